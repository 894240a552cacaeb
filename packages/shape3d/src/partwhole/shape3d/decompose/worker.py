"""The child process of the pool: reads jobs from stdin, one JSON object a line, and answers on what was stdout.

It may abort, crash, hang or be killed at any moment: the pool knows from the last answer what it was doing. It never
imports torch. Run by `python -m partwhole.shape3d.decompose.worker`, not by hand.
"""

import json
import os
import queue
import resource
import sys
import threading
import time
from typing import Any

Job = dict[str, Any]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engines print must not end up between the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    while True:
        job = json.loads(jobs.get())
        from partwhole.shape3d.decompose.cache import CacheError

        try:
            say(record=_do(job, lambda stage: say(stage=stage)))
        except CacheError as error:
            say(fatal=[error.folder, error.found, error.do])
        _limit(None, None)


def _listen(jobs: queue.Queue) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # the pool closed the pipe, or died: nobody waits for an answer


def _limit(cpu_seconds: float | None, memory_mb: int | None) -> None:
    """Lets this process use so much more CPU time and address space than it has used; beyond that the kernel ends
    it."""
    cpu = resource.RLIM_INFINITY if cpu_seconds is None else int(time.process_time() + cpu_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    space = resource.RLIM_INFINITY
    if memory_mb is not None and os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            space = int(file.read().split()[0]) * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _do(job: Job, begin: Any) -> dict[str, Any]:
    """One shape from file to cache entry; `begin(stage)` is called before everything that may end the process."""
    import numpy as np

    from partwhole.shape3d import files
    from partwhole.shape3d.decompose import engines
    from partwhole.shape3d.decompose.cache import Cache, Damaged, key_of

    options = engines.Decompose(**job["options"])
    cache = Cache(job["cache"])
    start = time.process_time() - job["spent"]  # by attempts that ended their process
    record = {name: job[name] for name in ("path", "size", "mtime_ns", "settings")}
    reasons = list(job["reasons"])

    def failed(key: str | None) -> dict[str, Any]:
        return {
            **record,
            "status": "failed",
            "key": key,
            "reasons": reasons,
            "seconds": round(time.process_time() - start, 3),
        }

    begin("reading")
    _limit(options.cpu_seconds, options.memory_mb)
    try:
        geometry = files.read(job["path"])
        key = key_of(geometry, options.settings())
        try:
            meta = cache.read(key)["meta"] if not job["anew"] else None
        except KeyError:
            meta = None
        except Damaged as error:
            meta, record["remade"] = None, str(error)
        if meta is not None:
            return {
                **record,
                "status": "done",
                "key": key,
                "cached": True,
                **meta,
                "bytes": cache.path(key).stat().st_size,
            }
        sampled, normals, index = files.sample(geometry, options.points, options.seed)
        frame, points = engines.to_frame(geometry, sampled)
    except (files.BadShape, MemoryError, ValueError) as error:
        found = (
            f"{error.found}; {error.do}" if isinstance(error, files.BadShape) else f"{type(error).__name__}: {error}"
        )
        reasons.append(found)
        return failed(None)

    stages = engines.stages(options.engine, geometry.is_mesh) if geometry.component is None else ["given"]
    for stage in stages:
        if stage in job["skip"]:
            continue
        begin(stage)
        _limit(options.cpu_seconds, options.memory_mb)
        try:
            if stage == "given":
                assert geometry.component is not None
                labels = np.unique(geometry.component[index], return_inverse=True)[1][None]
                labels = np.repeat(labels, len(options.thresholds), axis=0)
            else:
                labels = engines.run(stage, frame, points, options)
        except Exception as error:
            reasons.append(f"{stage}: {type(error).__name__}: {error}")
            continue
        meta = {
            "engine": stage,
            "reasons": reasons,
            "seconds": round(time.process_time() - start, 3),
            "components": (labels.max(1) + 1).tolist(),
            "thresholds": list(options.thresholds),
        }
        begin("writing")
        _limit(None, None)
        size = cache.write(key, points, normals, labels, meta)
        return {**record, "status": "done", "key": key, "cached": False, **meta, "bytes": size}
    return failed(key)


if __name__ == "__main__":
    main()
