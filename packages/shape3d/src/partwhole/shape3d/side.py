"""Independent pieces of work side by side, in processes of one thread."""

from collections.abc import Callable, Iterator, Sequence
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

    parallel: Any = joblib.Parallel(n_jobs=processes, return_as="generator")
    yield from parallel(joblib.delayed(_alone)(work, item) for item in items)


def _alone(work: Callable[[Any], Any], item: Any) -> Any:
    torch.set_num_threads(1)
    return work(item)
