"""Independent pieces of work side by side, in processes of one thread."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """``work`` of each item, in their order; what ``work`` holds and gives travels between processes.

    Small networks keep one core busy and not two, so that many of them are trained soonest one to a core. With one
    process, or one item, this process does it, with all its threads.
    """
    processes = min(processes, len(items))
    if processes < 2:
        yield from map(work, items)
        return
    import joblib

    parallel: Any = joblib.Parallel(n_jobs=processes, backend="loky", return_as="generator")
    yield from parallel(joblib.delayed(_alone)(work, item, os.getpid()) for item in items)


def _alone(work: Callable[[Any], Any], item: Any, parent: int) -> Any:
    if os.getpid() != parent:  # a worker of another pool may start none, and does the work itself
        _end_with(parent)
        torch.set_num_threads(1)
    return work(item)


@cache
def _end_with(parent: int) -> None:
    """Once in a process: have it end when its parent is gone, for after ``kill -9`` it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
