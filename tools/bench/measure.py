"""Timings and peaks of memory, for the benchmarks beside it.

The sides of a comparison are timed in turn, in one run; a figure is the median. On the CPU the time is the process's
own (other programs on the machine hardly change it), on CUDA that of the wall, after waiting for the device. Memory is
the growth of the peak over what the inputs take, on the CPU in a child process of its own.
"""

import contextlib
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Work = Callable[[], object]


def seconds(work: Work, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()  # noqa: TID251  a clock
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()  # noqa: TID251
    return time.perf_counter() - start


def medians(sides: Mapping[str, Work], device: str, *, repeats: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each side, after ``warm`` rounds that do not count."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(warm + repeats):
        for side, work in sides.items():
            took = seconds(work, device)
            if turn >= warm:
                times[side].append(took)
    return {side: statistics.median(t) for side, t in times.items()}


def peak_on_cuda(work: Work) -> float:
    """Growth of the peak memory, MB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def peak_of_child(words: Sequence[str]) -> float:
    """What this program, called with ``words``, prints last: by ``peak_here``. NaN where it fails."""
    done = subprocess.run([sys.executable, sys.argv[0], *words], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def peak_here(work: Work, *, warm: bool = True) -> float:
    """Growth of the peak memory of this process, MB; Linux only."""
    if warm:
        work()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the first call left in the heap would hide the second's need
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return max(0, highest - before) / 1e6


def machine(device: str, threads: int) -> str:
    """One line that says what was measured on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    load = os.getloadavg()[0]
    return f"{model}, {threads} of {os.cpu_count()} threads, load {load:.1f}, torch {torch.__version__}"


def devices(asked: str) -> list[str]:
    """ "cpu", "cuda", or "all" that there are."""
    return (["cpu"] + (["cuda"] if torch.cuda.is_available() else [])) if asked == "all" else [asked]
