"""Child processes that may die: one shape each at a time, watched, killed when they hang, replaced when they are used
up.

The engines abort and crash whole processes, so none runs in the caller's. Children are fresh interpreters (never forks:
a forked child of a process in which OpenMP ran hangs), with one thread each, and never import torch.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from partwhole.shape3d.decompose.cache import CacheError
from partwhole.shape3d.decompose.worker import Job

SHAPES_PER_CHILD = 20  # then it is replaced: engines leak, and one of them fails after some hundred meshes
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class _Child:
    def __init__(self) -> None:
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "partwhole.shape3d.decompose.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal reaches the caller alone, which then stops its children
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.job: Job | None = None
        self.stage: str | None = None
        self.since = self.spent = 0.0
        self.left = SHAPES_PER_CHILD
        self.text = b""
        self.killed = ""

    def give(self, job: Job) -> None:
        self.job, self.stage, self.since = job, None, time.monotonic()
        self.spent = _cpu_seconds(self.process.pid)
        self.left -= 1
        try:
            self.stdin.write(json.dumps(job).encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it died while idle: the end of its answers says so

    def answers(self) -> Iterator[dict[str, Any] | None]:
        """What it said since, and None if it has ended."""
        more = os.read(self.stdout.fileno(), 1 << 16)
        *lines, self.text = (self.text + more).split(b"\n")
        for line in lines:
            yield json.loads(line)
        if not more:
            yield None

    def watch(self) -> None:
        """Kills it if it hangs or uses too much memory; the kernel itself ends one that uses too much CPU time."""
        if self.job is None or self.killed:
            return
        options = self.job["options"]
        if time.monotonic() - self.since > options["wall_seconds"]:
            self.killed = f"hung: no result after {options['wall_seconds']:g} s, killed"
        elif _resident_mb(self.process.pid) > options["memory_mb"]:
            self.killed = f"used more than {options['memory_mb']} MB, killed"
        if self.killed:
            self.process.kill()

    def reason(self) -> str:
        code = self.process.wait()
        if self.killed:
            return self.killed
        if code == -signal.SIGXCPU:
            assert self.job is not None
            return f"used more than {self.job['options']['cpu_seconds']:g} CPU seconds, ended"
        what = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended the process with status {code}"
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        last = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{what} ({last[-1][:200]})" if last else what

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()
        self.errors.close()


def _cpu_seconds(pid: int) -> float:
    """What a process has used; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _resident_mb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError, ValueError):
        return 0.0


def work(jobs: Iterable[Job], workers: int, seconds: float | None = None) -> Generator[dict[str, Any], None, None]:
    """Does the jobs in `workers` children and yields each one's record as it is finished, whatever happens to the
    child. Stops after `seconds`, and leaves what is not finished.

    A stage that ends the process is recorded as a reason and the job goes on with the next one. Raises CacheError when
    the results cannot be written. Closing the generator, or an exception in its consumer, ends the children.
    """
    queue = deque(jobs)
    deadline = float("inf") if seconds is None else time.monotonic() + seconds
    children: list[_Child] = []
    selector = selectors.DefaultSelector()

    def drop(child: _Child) -> None:
        selector.unregister(child.stdout)
        children.remove(child)
        child.end()

    try:
        while time.monotonic() < deadline and (queue or any(child.job for child in children)):
            for child in [c for c in children if c.job is None and c.left == 0]:
                drop(child)
            for child in children:
                if queue and child.job is None:
                    child.give(queue.popleft())
            while queue and len(children) < workers:
                child = _Child()
                children.append(child)
                selector.register(child.stdout, selectors.EVENT_READ, child)
                child.give(queue.popleft())
            ready = [key.data for key, _ in selector.select(timeout=0.25)]
            for child in ready:
                for answer in child.answers():
                    if answer is None:
                        job, stage = child.job, child.stage
                        spent = max(0.0, _cpu_seconds(child.process.pid) - child.spent)  # before it is waited for
                        reason = child.reason()
                        drop(child)
                        if job is not None:
                            again = _after({**job, "spent": job["spent"] + spent}, stage, reason)
                            if again.get("status"):
                                yield again
                            else:
                                queue.appendleft(again)
                    elif "stage" in answer:
                        child.stage, child.since = answer["stage"], time.monotonic()
                    elif "fatal" in answer:
                        raise CacheError(*answer["fatal"])
                    else:
                        child.job = None
                        yield answer["record"]
            for child in children:
                child.watch()
    finally:
        for child in children:
            child.end()
        selector.close()


def _after(job: Job, stage: str | None, reason: str) -> dict[str, Any]:
    """The job again, without the stage that ended its process; or a record of failure."""
    if stage is None:
        job = {**job, "starts": job.get("starts", 0) + 1}
        if job["starts"] < 3:
            return job
        raise RuntimeError(f"the child processes of the decomposition do not start: {reason}")
    reasons = [*job["reasons"], f"{stage}: {reason}"]
    if stage in ("reading", "writing", "given"):
        record = {name: job[name] for name in ("path", "size", "mtime_ns", "settings")}
        return {**record, "status": "failed", "key": None, "reasons": reasons, "seconds": job["spent"]}
    skip = [*job["skip"], stage]
    if stage == "coacd" and "used more" in reason:  # preprocessing would only make it larger
        skip.append("coacd with preprocessing")
    return {**job, "skip": skip, "reasons": reasons}
