"""The queue against a list of everything that was ever added."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.queue import Queue
from partwhole.core.threads import ranks

quick = settings(max_examples=50, deadline=None, derandomize=True)


def held(queue: Queue) -> set[float]:
    """The first entry of each row, which says which row it is."""
    return set(queue.rows[queue.filled][:, 0].tolist())


def numbered(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0]).double()


@quick
@given(length=st.integers(1, 9), steps=st.lists(st.lists(st.integers(0, 12), max_size=3), max_size=6))
def test_S5_it_holds_the_last_rows_whatever_the_sizes_of_the_batches(length, steps):
    """Each step has some micro-batches; nothing moves before its update."""
    queue, made = Queue(length, 2).double(), 1
    before = held(queue)
    for sizes in steps:
        for size in sizes:
            queue.add(numbered(made, size))
            made += size
            assert held(queue) == before
        queue.update()
        before = held(queue)
        assert before == set(map(float, range(max(made - length, 1), made)))
        assert torch.equal(queue.rows[:, 1], -queue.rows[:, 0]), "rows stay whole"
        assert queue.filled.sum() == min(made - 1, length)


@quick
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), length=st.integers(1, 8), world=st.integers(2, 3))
def test_S1_ranks_and_micro_batches_are_one_batch(sizes, length, world):
    one = Queue(length, 2).double()
    several = [copy.deepcopy(one) for _ in range(world)]
    for step in range(2):
        rows = numbered(100 * step + 1, sum(sizes))
        one.add(rows)
        one.update()
        for batch in rows.split(sizes):
            pieces = batch.tensor_split(world)

            def add(r: int, pieces=pieces) -> None:
                several[r].add(pieces[r])

            with ranks(world) as run:
                run(add)
        for queue in several:
            queue.update()
            for name, value in one.state_dict().items():
                assert torch.equal(queue.state_dict()[name], value), name


def test_S3_a_queue_between_passes_is_in_its_state():
    a, b = Queue(3, 2), Queue(3, 2)
    a.add(numbered(1, 2))
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for queue in (a, b):
        queue.add(numbered(3, 2))
        queue.update()
    assert torch.equal(a.rows, b.rows)
    assert held(a) == {2, 3, 4}


def test_rows_are_constants_in_float32():
    queue = Queue(3, 2).bfloat16()
    assert queue.rows.dtype == torch.float32
    queue.add(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    queue.update()
    assert not queue.rows.requires_grad
    with pytest.raises(ValueError, match="one row or more"):
        Queue(0, 2)
