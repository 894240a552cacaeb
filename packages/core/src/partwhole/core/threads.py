"""Ranks as threads of one process: what several processes would compute, in one graph, for tests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from partwhole.core import distributed


@contextmanager
def ranks(world: int) -> Iterator[Callable[[Callable[[int], Any]], list[Any]]]:
    """Within, ``run(work)`` calls ``work(rank)`` in ``world`` threads whose ``core.distributed`` exchanges tensors, and
    returns what they return. The graphs of all ranks are one: backward through the sum of their losses leaves in each
    rank's tensors the gradient that its process would have. For methods that call ``distributed.gather(...)`` and so
    on by the module's name, and draw no random numbers.
    """
    me, meeting, table = threading.local(), threading.Barrier(world), [None] * world

    def exchange(x: Any) -> list[Any]:
        table[me.rank] = x
        meeting.wait(60)
        everyone = list(table)
        meeting.wait(60)
        return everyone

    def mean(x: Tensor) -> Tensor:
        x = x.detach()
        return torch.stack(exchange(x if x.is_floating_point() else x.double())).mean(0)

    def share(n: Any) -> Tensor:
        mine = torch.as_tensor(n, dtype=torch.float64).detach()
        average = mean(mine)
        return torch.where(average > 0, mine / average, 1.0)

    def run(work: Callable[[int], Any]) -> list[Any]:
        results, errors = [None] * world, []

        def thread(rank: int) -> None:
            me.rank = rank
            try:
                results[rank] = work(rank)
            except threading.BrokenBarrierError:
                pass  # another rank failed, and its error says why
            except BaseException as error:
                errors.append(error)
                meeting.abort()

        threads = [threading.Thread(target=thread, args=(r,)) for r in range(world)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if errors:
            raise errors[0]
        if meeting.broken:
            raise AssertionError("the ranks do not call the same collectives in the same order")
        return results

    replaced = {
        "rank": lambda: me.rank,
        "world": lambda: world,
        "gather": lambda x: torch.cat(exchange(x)),
        "start": lambda n: sum(exchange(n)[: me.rank]),
        "total": lambda x: torch.stack(exchange(x)).sum(0),
        "mean": mean,
        "share": share,
    }
    original = {name: getattr(distributed, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(distributed, name, function)
        yield run
    finally:
        for name, function in original.items():
            setattr(distributed, name, function)
