"""What is remembered of every thing, and k-means on the sphere against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.memory import Memory, spherical_kmeans
from partwhole.core.threads import ranks

quick = settings(max_examples=40, deadline=None, derandomize=True)


def directions(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1)


@quick
@given(batches=st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=4), world=st.integers(1, 3))
def test_the_latest_row_of_each_thing_is_kept_whoever_writes_it(batches, world):
    memories = [Memory(7, 2).double() for _ in range(world)]
    expected, made = torch.zeros(7, 2).double(), 0
    for batch in batches:
        index = torch.tensor(batch, dtype=torch.int64)
        rows = torch.arange(1.0, 1 + 2 * len(batch)).double().view(-1, 2) + made
        made += 2 * len(batch)
        for i, row in zip(batch, rows, strict=True):
            expected[i] = row
        if world == 1:
            memories[0].write(index, rows)
            continue
        indices, pieces = index.tensor_split(world), rows.tensor_split(world)

        def write(r: int, indices=indices, pieces=pieces) -> None:
            memories[r].write(indices[r], pieces[r])

        with ranks(world) as run:
            run(write)
    for memory in memories:
        assert torch.equal(memory.rows, expected)
        assert torch.equal(memory.known, expected.any(1))


def test_memory_stays_in_float32_without_gradient():
    memory = Memory(3, 2, 2).bfloat16()
    memory.write(torch.tensor([1]), torch.ones(1, 2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert memory.rows.dtype == torch.float32
    assert not memory.rows.requires_grad
    assert memory.known.tolist() == [False, True, False]


def loop_kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, list[int]]:
    centroids = torch.stack([c / c.norm() for c in centroids])
    for round in range(iterations + 1):
        nearest = [max(range(len(centroids)), key=lambda k: (x @ centroids[k]).item()) for x in rows]
        if round == iterations:
            return centroids, nearest
        for k in range(len(centroids)):
            mine = [x for x, n in zip(rows, nearest, strict=True) if n == k]
            if mine:
                centroids[k] = sum(mine[1:], mine[0]) / sum(mine[1:], mine[0]).norm()
    raise AssertionError


@quick
@given(
    N=st.integers(1, 20),
    K=st.integers(1, 6),
    iterations=st.integers(0, 5),
    tile=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_kmeans_is_the_loop(N, K, iterations, tile, seed):
    rows, start = directions(N, 4, seed=seed), 3 * directions(K, 4, seed=seed + 1)
    centroids, nearest = spherical_kmeans(rows, start, iterations=iterations, tile=tile)
    expected = loop_kmeans(rows, start.clone(), iterations)
    torch.testing.assert_close(centroids, expected[0], rtol=1e-9, atol=1e-12)
    assert nearest.tolist() == expected[1]


def test_kmeans_finds_groups_and_never_gets_worse():
    truth = torch.arange(60) % 3
    rows = torch.nn.functional.normalize(directions(3, 8)[truth] + 0.1 * directions(60, 8, seed=1), dim=1)
    _, nearest = spherical_kmeans(rows, rows[:3])
    assert all(len(nearest[truth == k].unique()) == 1 for k in range(3))
    assert len(nearest.unique()) == 3
    fits = []
    for iterations in range(6):
        centroids, nearest = spherical_kmeans(rows, rows[[0, 3, 6]], iterations=iterations)
        fits.append((rows * centroids[nearest]).sum().item())
    assert fits == sorted(fits)
    with pytest.raises(ValueError, match=r"rows \(N, D\)"):
        spherical_kmeans(rows, rows[0])
