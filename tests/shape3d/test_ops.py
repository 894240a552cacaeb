"""Point operations against loops, and what padding, order, duplicates and too few points must not change."""

import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from partwhole.shape3d import ops

few = settings(max_examples=25, deadline=None)


@st.composite
def clouds(draw, most: int = 40):
    """Points (B, P, 3), some of them twice, and valid (B, P) with one real point or more in each shape."""
    B, P = draw(st.integers(1, 3)), draw(st.integers(1, most))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    xyz = torch.randn(B, P, 3, generator=g)
    if draw(st.booleans()):  # equal points
        xyz = xyz[:, torch.randint(P, (P,), generator=g)]
    valid = torch.rand(B, P, generator=g) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    valid[torch.arange(B), torch.randint(P, (B,), generator=g)] = True
    return xyz, valid


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist())


def loop_farthest(xyz: Tensor, real: list[int], count: int) -> list[int]:
    chosen = [max(real, key=lambda i: (xyz[i].norm().item(), -i))]
    while len(chosen) < count:
        chosen.append(max(real, key=lambda i: (min(distance(xyz[i], xyz[c]) for c in chosen), -i)))
    return chosen


def loop_nearest(query: Tensor, xyz: Tensor, real: list[int], k: int) -> list[float]:
    return sorted(distance(query, xyz[i]) for i in real)[:k]


@few
@given(clouds(), st.integers(1, 12))
def test_farthest_points_are_those_of_the_loop(cloud, count):
    xyz, valid = cloud
    index = ops.farthest_points(xyz, count, valid)
    assert index.shape == (len(xyz), count)
    for b in range(len(xyz)):
        real = valid[b].nonzero().squeeze(1).tolist()
        expected = loop_farthest(xyz[b], real, count)
        new = len({tuple(xyz[b, i].tolist()) for i in real})  # from there on all distances are 0
        torch.testing.assert_close(xyz[b][index[b][:new]], xyz[b][expected][:new])
        assert valid[b][index[b]].all()


@few
@given(clouds(), st.integers(1, 60))
def test_every_path_of_farthest_points_chooses_alike(cloud, count):
    xyz, valid = cloud
    free = torch.full(valid.shape, torch.inf).masked_fill(~valid, -1)
    first = xyz.square().sum(-1).masked_fill(~valid, -1).argmax(1)
    one, other = (f(xyz, first, free.clone(), count) for f in (ops._farthest_cpu, ops._farthest_loop))
    assert torch.equal(one, other)
    assert torch.equal(one, ops.farthest_points(xyz, count, valid))


@pytest.mark.slow
def test_the_cuda_kernel_chooses_as_the_cpu_does():
    pytest.importorskip("triton")
    code = """
import torch
from partwhole.shape3d import ops, ops_triton
g = torch.Generator().manual_seed(0)
xyz, valid = torch.randn(3, 300, 3, generator=g), torch.arange(300) < torch.tensor([[300], [200], [20]])
free = torch.full(valid.shape, torch.inf).masked_fill(~valid, -1)
first = xyz.square().sum(-1).masked_fill(~valid, -1).argmax(1)
assert torch.equal(ops_triton.farthest(xyz, first, free, 50), ops._farthest_cpu(xyz, first, free.clone(), 50))
"""
    environment = {"TRITON_INTERPRET": "1", "PATH": "", "OMP_NUM_THREADS": "1"}  # the kernel, statement by statement
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@few
@given(clouds(), st.integers(1, 12), st.randoms())
def test_farthest_points_follow_order_turning_and_padding(cloud, count, random):
    xyz = cloud[0]
    B, P, _ = xyz.shape
    count = min(count, *(len(x.unique(dim=0)) for x in xyz))  # beyond, points are repeated in no certain order
    places = ops.gather(xyz, ops.farthest_points(xyz, count))
    order = torch.tensor(random.sample(range(P), P))
    torch.testing.assert_close(ops.gather(xyz[:, order], ops.farthest_points(xyz[:, order], count)), places)
    sign = torch.tensor([1.0, -1.0, 1.0])
    turned = xyz[..., [1, 2, 0]] * sign
    found = ops.gather(turned, ops.farthest_points(turned, count))
    torch.testing.assert_close(found, places[..., [1, 2, 0]] * sign)
    padded = torch.cat([xyz, torch.full((B, 5, 3), 1e6)], 1)
    valid = torch.arange(P + 5).expand(B, -1) < P
    assert torch.equal(ops.farthest_points(padded, count, valid), ops.farthest_points(xyz, count))


@few
@given(clouds(), st.integers(1, 60), st.sampled_from([ops.farthest_points, ops.random_points]))
def test_chosen_marks_the_points_that_are_new(cloud, count, take):
    xyz, valid = cloud
    xyz = torch.randn_like(xyz)  # no two alike
    index, new = take(xyz, count, valid), ops.chosen(count, valid)
    for b in range(len(xyz)):
        first = index[b][new[b]].tolist()
        assert len(set(first)) == len(first) == min(count, int(valid[b].sum()))
        assert set(index[b].tolist()) == set(first)
        assert valid[b][index[b]].all()


@few
@given(clouds(), st.integers(1, 50), st.sampled_from([3, 5]))
def test_nearest_are_those_of_the_loop_on_every_path(cloud, k, dim):
    xyz, valid = cloud
    if dim > 3:
        xyz = torch.cat([xyz, xyz[..., :2].flip(1)], -1)
    query = torch.cat([xyz[:, :3], torch.randn(len(xyz), 2, dim)], 1)
    paths = [ops.nearest, ops._nearest_top, *([ops._nearest_tree] if dim == 3 else [])]
    for path in paths:
        far, index = path(query, xyz, k, valid)
        assert far.shape == index.shape == (*query.shape[:2], k)
        for b in range(len(xyz)):
            real = valid[b].nonzero().squeeze(1).tolist()
            for q in range(query.shape[1]):
                expected = loop_nearest(query[b, q], xyz[b], real, k)
                n = len(expected)
                torch.testing.assert_close(far[b, q, :n], torch.tensor(expected), atol=2e-6, rtol=1e-5)
                found = [distance(query[b, q], xyz[b, i]) for i in index[b, q].tolist()]
                torch.testing.assert_close(far[b, q, :n], torch.tensor(found[:n]), atol=2e-6, rtol=1e-5)
                assert len(set(index[b, q, :n].tolist())) == n
                assert far[b, q, n:].isinf().all()
                assert (index[b, q, n:] == index[b, q, 0]).all()
                assert valid[b][index[b, q]].all()


def test_nearest_is_exact_far_from_the_origin():
    xyz = torch.rand(1, 100, 3) + 1e4
    far, _ = ops._nearest_top(xyz, xyz, 2, None)
    exact = (
        torch.cdist(xyz.double(), xyz.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(-1).values[..., :2]
    )
    torch.testing.assert_close(far.double(), exact, atol=1e-6, rtol=1e-4)
    assert (far[..., 0] == 0).all()


def test_nearest_is_the_same_in_chunks(monkeypatch):
    xyz, query = torch.randn(2, 50, 7), torch.randn(2, 33, 7)
    whole = ops.nearest(query, xyz, 4)
    monkeypatch.setitem(ops.ELEMENTS, "cpu", 700)
    for a, b in zip(whole, ops.nearest(query, xyz, 4), strict=True):
        torch.testing.assert_close(a, b)


def test_a_shape_without_points_gives_finite_values():
    xyz, valid = torch.full((2, 4, 3), torch.nan), torch.zeros(2, 4, dtype=torch.bool)
    xyz[1], valid[1] = 0.5, True
    far, index = ops.nearest(xyz.nan_to_num(), xyz.nan_to_num(), 3, valid)
    assert far[0].isinf().all()
    assert (index[0] == 0).all()
    assert ops.interpolate(xyz.nan_to_num(), torch.ones(2, 4, 5), xyz.nan_to_num(), valid=valid).isfinite().all()


@few
@given(clouds(), st.floats(0.05, 3), st.integers(1, 20))
def test_ball_holds_the_nearest_within_the_radius_and_repeats_the_nearest(cloud, radius, k):
    xyz, valid = cloud
    query = torch.randn(len(xyz), 4, 3)
    index = ops.ball(query, xyz, radius, k, valid)
    for b in range(len(xyz)):
        real = valid[b].nonzero().squeeze(1).tolist()
        for q in range(4):
            nearest, *rest = loop_nearest(query[b, q], xyz[b], real, k)
            inside = [nearest] + [d for d in rest if d <= radius]
            found = [distance(query[b, q], xyz[b, i]) for i in index[b, q].tolist()]
            torch.testing.assert_close(
                torch.tensor(found), torch.tensor(inside + [nearest] * (k - len(inside))), atol=1e-5, rtol=1e-5
            )
            assert valid[b][index[b, q]].all()


def test_several_balls_are_each_as_if_alone():
    xyz = torch.randn(2, 60, 3)
    for index, r, k in zip(ops.balls(xyz, xyz, [0.3, 1.0], [9, 4]), [0.3, 1.0], [9, 4], strict=True):
        assert torch.equal(index, ops.ball(xyz, xyz, r, k))


@few
@given(clouds(12), st.integers(1, 5))
def test_interpolation_is_that_of_the_loop(cloud, k):
    xyz, valid = cloud
    feature, query = torch.randn(*xyz.shape[:2], 4), torch.randn(len(xyz), 3, 3)
    feature[~valid] = 1e6
    got = ops.interpolate(xyz, feature, query, k, valid)
    for b in range(len(xyz)):
        real = valid[b].nonzero().squeeze(1).tolist()
        for q in range(3):
            near = sorted(real, key=lambda i: distance(query[b, q], xyz[b, i]))[:k]
            if len({tuple(xyz[b, i].tolist()) for i in real}) < len(real):
                continue  # of equal points any may be taken
            weight = [1 / (distance(query[b, q], xyz[b, i]) ** 2 + 1e-8) for i in near]
            expected = sum(w * feature[b, i] for w, i in zip(weight, near, strict=True)) / sum(weight)
            torch.testing.assert_close(got[b, q], expected, atol=1e-4, rtol=1e-4)


def test_interpolation_at_its_sources_returns_them():
    xyz, feature = torch.rand(2, 30, 3), torch.randn(2, 30, 4)
    torch.testing.assert_close(ops.interpolate(xyz, feature, xyz), feature, atol=2e-4, rtol=1e-3)


def test_interpolation_weights_sum_to_one():
    _, weight = ops.interpolation(torch.rand(2, 30, 3), torch.rand(2, 9, 3), 3)
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 9))


def test_gradients_of_gather_and_interpolate_are_those_of_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 2, dtype=torch.double, requires_grad=True)
    index = torch.randint(6, (2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: ops.gather(x, index), (x,))
    xyz, to = torch.randn(2, 6, 3), torch.randn(2, 5, 3)
    assert torch.autograd.gradcheck(lambda x: ops.interpolate(xyz, x, to), (x,))
    for b in range(2):
        assert torch.equal(ops.gather(x, index)[b], x[b][index[b]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu_and_never_waits():
    torch.manual_seed(0)
    xyz, valid = torch.randn(3, 500, 3), torch.arange(500) < torch.tensor([[500], [300], [5]])
    feature = torch.randn(3, 500, 8)
    moved = [t.cuda() for t in (xyz, valid, feature)]
    ops.farthest_points(moved[0], 64, moved[1])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = run(*moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, expected in zip(results, run(xyz, valid, feature), strict=True):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)


def run(xyz: Tensor, valid: Tensor, feature: Tensor) -> list[Tensor]:
    centre = ops.gather(xyz, ops.farthest_points(xyz, 64, valid))
    near = ops.gather(xyz, ops.ball(centre, xyz, 0.5, 16, valid))
    return [centre, near, ops.nearest(xyz, xyz, 7, valid)[0], ops.interpolate(xyz, feature, centre, valid=valid)]


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"farthest_points: xyz \(2, 5, 4\)"):
        ops.farthest_points(torch.zeros(2, 5, 4), 3)
    with pytest.raises(ValueError, match=r"nearest: query \(2, 5, 3\), xyz \(2, 0, 3\)"):
        ops.nearest(torch.zeros(2, 5, 3), torch.zeros(2, 0, 3), 3)
    with pytest.raises(ValueError, match="no points to take"):
        ops.gather(torch.zeros(2, 0, 3), torch.zeros(2, 1, dtype=torch.int64))
