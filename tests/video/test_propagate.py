"""Label propagation: equal to the published arithmetic, and what must hold whatever the features are."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.video.propagate import Propagation, changed, propagate
from partwhole.video.protocol import PROTOCOLS, Protocol
from partwhole.video.tiles import Tiling, inside, tiling

CPU = torch.device("cpu")


def seen_by(h, w, p):
    """(N, N): which key each query may look at, by the definition."""
    places = [(y, x) for y in range(h) for x in range(w)]

    def see(a, b):
        dy, dx = abs(a[0] - b[0]), abs(a[1] - b[1])
        far = (dy * dy + dx * dx) ** 0.5
        return {
            "none": True,
            "square": max(dy, dx) <= p.radius,
            "disc": far <= p.radius,
            "open-disc": far < p.radius,
        }[p.window]

    return torch.tensor([[see(a, b) for b in places] for a in places])


def naive(features, first, p):
    """All pairs, one query after the other: the published formulas."""
    T, _, h, w = features.shape
    seen, unit = seen_by(h, w, p), F.normalize(features.flatten(2), dim=1)
    labels = [first.to(unit.dtype).flatten(1)]
    for t in range(1, T):
        past = list(range(t - p.context, t)) if p.context else []
        if p.first == "left":
            frames = [(s, False) for s in past if s >= 0]
        else:
            frames = [(0, p.first == "free")]
            frames += [(s, False) for s in past if s > 0]
            missing = {"none": 0, "one": int(0 in past), "all": sum(s <= 0 for s in past)}[p.repeats]
            frames += [(0, False)] * missing
        affinity = torch.cat([unit[:, :][t].mT @ unit[s] + (0 if free else torch.where(seen, 0.0, -torch.inf))
                              for s, free in frames], 1)  # fmt: skip
        values = torch.cat([labels[s] for s, _ in frames], 1)
        rows = []
        for a in affinity:
            if p.mode == "top-k":
                best = a.sort(descending=True, stable=True)
                if p.ties:
                    a = torch.where(a >= best.values[min(p.topk, len(a)) - 1], a, -torch.inf)
                else:
                    kept = torch.full_like(a, -torch.inf)
                    kept[best.indices[: p.topk]] = best.values[: p.topk]
                    a = kept
            rows.append(values @ (a / p.temperature).softmax(0))
        labels.append(torch.stack(rows, 1))
    return torch.stack(labels).unflatten(2, (h, w))


def run(features, first, p):
    return torch.stack(list(propagate(features, first, p)))


def video(T, D, h, w, K, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, D, h, w, generator=g, dtype=torch.float64)
    return x, torch.rand(K, h, w, generator=g, dtype=torch.float64)


protocols = st.builds(
    Protocol,
    context=st.integers(0, 4),
    first=st.sampled_from(["windowed", "free"]),
    repeats=st.sampled_from(["none", "one", "all"]),
    window=st.sampled_from(["none", "square", "disc", "open-disc"]),
    radius=st.integers(1, 5),
    mode=st.sampled_from(["top-k", "soft"]),
    topk=st.integers(1, 8),
    ties=st.booleans(),
    temperature=st.sampled_from([0.05, 0.2, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(protocols, st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.integers(0, 99))
def test_equals_the_published_arithmetic(p, h, w, T, seed):
    x, first = video(T, 5, h, w, 3, seed)
    torch.testing.assert_close(run(x, first, p), naive(x, first, p).float(), atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 9))
def test_a_first_frame_left_behind(context, T, seed):
    p = Protocol(context=context, first="left", radius=2)
    x, first = video(T, 5, 5, 6, 2, seed)
    torch.testing.assert_close(run(x, first, p), naive(x, first, p).float(), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["square", "disc", "open-disc"]),
    st.integers(1, 6),
    st.integers(1, 11),
    st.integers(1, 11),
    st.sampled_from([(1, 1), (2, 3), (4, 4), (5, 2), (20, 20)]),
    st.sampled_from(["windowed", "free"]),
    st.booleans(),
)
def test_tiles_equal_masked_global_exactly(window, radius, h, w, sides, first, ties):
    """Cosines of features of +-1/4 have no rounding and many ties: a place too many or too few would be seen."""
    g = torch.Generator().manual_seed(h * 100 + w)
    x = torch.randint(0, 2, (4, 16, h, w), generator=g).float() * 2 - 1
    labels = torch.randint(0, 2, (2, h, w), generator=g).float()
    p = Protocol(context=2, first=first, window=window, radius=radius, ties=ties, topk=3 if ties else 1000)
    outs = []
    for rows, columns in (sides, (0, 7)):
        along = Propagation(x[0], labels, p)
        along.tiling = Tiling(h, w, window, radius, rows, columns, CPU)
        outs.append([along(frame) for frame in x[1:]])
    for local, whole in zip(*outs, strict=True):
        torch.testing.assert_close(local, whole, atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 25),
    st.sampled_from(["none", "square", "disc", "open-disc"]),
    st.sampled_from([None, (3, 2), (8, 8), (0, 11)]),
)
def test_tiles_hold_every_pair_once(h, w, radius, frames, window, sides):
    plan = tiling(h, w, frames, window, radius, CPU) if sides is None else Tiling(h, w, window, radius, *sides, CPU)
    if window == "none" and not plan.dense:
        return  # only a window has rectangles
    count = torch.zeros(h * w, h * w, dtype=torch.int64)
    for tile in plan:
        seen = torch.ones(len(tile.queries), len(tile.keys), dtype=torch.bool) if tile.seen is None else tile.seen
        assert len(tile.keys.unique()) == len(tile.keys)
        if not plan.dense:
            assert seen.any(0).all()
        count[tile.queries[:, None], tile.keys] += seen.long()
    wanted = seen_by(h, w, Protocol(window=window, radius=radius)) if h * w <= 200 else count > 0
    assert torch.equal(count, wanted.long())


def test_dense_is_chosen_on_small_grids_and_for_large_windows_and_tiles_where_they_pay():
    assert tiling(6, 10, 8, "disc", 12, CPU).dense
    assert tiling(60, 108, 8, "disc", 100, CPU).dense
    assert tiling(60, 108, 8, "none", 3, CPU).dense
    assert not tiling(60, 108, 21, "disc", 12, CPU).dense
    assert not tiling(120, 216, 8, "square", 12, CPU).dense


def test_work_grows_with_the_places_not_with_their_square():
    def most(h, w):
        return max(len(tile.queries) * len(tile.keys) for tile in tiling(h, w, 8, "disc", 12, CPU))

    assert most(120, 216) == most(240, 432)


def test_windows_hold_what_they_say():
    y, x = torch.meshgrid(torch.arange(-12, 13), torch.arange(-12, 13), indexing="ij")
    count = {window: int(inside(y, x, window, 12).sum()) for window in ("square", "disc", "open-disc", "none")}
    assert count == {"square": 625, "disc": 441, "open-disc": 437, "none": 625}  # 437: Jabri et al.'s D < 12


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_identity_affinity_copies_the_labels(name):
    h, w = 5, 6
    x = torch.eye(h * w).view(1, h * w, h, w).expand(5, -1, -1, -1)
    first = torch.rand(3, h, w)
    out = run(x, first, replace(PROTOCOLS[name], topk=1, temperature=0.01))
    torch.testing.assert_close(out, first.expand_as(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_static_video_does_not_drift(name):
    """Smooth features, as a network's are, and twenty-five frames of the same picture."""
    g = torch.Generator().manual_seed(0)
    x = F.avg_pool2d(torch.randn(1, 32, 20, 26, generator=g), 3, 1)
    mask = torch.zeros(18, 24)
    mask[4:14, 6:18] = 1
    first = torch.stack((1 - mask, mask))
    last = run(x.expand(25, -1, -1, -1), first, PROTOCOLS[name])[-1]
    found = last.argmax(0)
    where = [torch.nonzero(m > 0).float().mean(0) for m in (mask, found)]
    torch.testing.assert_close(where[0], where[1], atol=0.1, rtol=0)
    both, either = ((found > 0) & (mask > 0)).sum(), ((found > 0) | (mask > 0)).sum()
    assert both / either > 0.9


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.sampled_from(list(PROTOCOLS)), st.integers(0, 9))
def test_permuting_the_objects_permutes_the_result(order, name, seed):
    x, first = video(4, 8, 6, 7, 4, seed)
    p = replace(PROTOCOLS[name], radius=3)
    torch.testing.assert_close(run(x, first[order], p), run(x, first, p)[:, order], atol=1e-6, rtol=0)


def test_labels_stay_shares():
    x, first = video(6, 8, 7, 9, 3, 0)
    first = first / first.sum(0)
    for p in PROTOCOLS.values():
        out = run(x, first, p)
        torch.testing.assert_close(out.sum(1), torch.ones(6, 7, 9))
        assert out.min() >= 0


def test_frames_are_asked_for_one_at_a_time():
    asked = []

    def frames():
        for t in range(4):
            asked.append(t)
            yield torch.randn(4, 3, 3)

    out = propagate(frames(), torch.rand(2, 3, 3), Protocol(context=1))
    for t in range(4):
        next(out)
        assert asked == list(range(t + 1))


def test_memory_is_that_of_the_context():
    along = Propagation(torch.randn(4, 3, 3), torch.rand(2, 3, 3), Protocol(context=2))
    sizes = set()
    for _ in range(9):
        along(torch.randn(4, 3, 3))
        sizes.add(along.ring.features.shape)
    assert sizes == {(3, 9, 4)}


def test_bfloat16_tells_how_many_labels_it_changes():
    g = torch.Generator().manual_seed(0)
    near = 1 + 0.02 * torch.randn(4, 32, 8, 8, generator=g)  # hardly told apart
    first = torch.nn.functional.one_hot(torch.randint(0, 4, (8, 8), generator=g)).permute(2, 0, 1).float()
    p = Protocol(dtype="bfloat16", topk=1)
    share = changed(near, first, p)
    found = [run(near, first, q).argmax(1) for q in (p, replace(p, dtype="float32"))]
    assert share == pytest.approx((found[0][1:] != found[1][1:]).float().mean().item())
    assert share > 0.01
    assert changed(near, first, replace(p, dtype="float32")) == 0
    apart = torch.eye(64).view(1, 64, 8, 8).expand(4, -1, -1, -1)
    assert changed(apart, first, p) == 0


def test_the_presets_differ_as_the_publications_do():
    crw, dino, dinov3, vfs = (PROTOCOLS[name] for name in ("crw", "dino", "dinov3", "vfs"))
    assert [p.context for p in (crw, dino, dinov3, vfs)] == [20, 7, 7, 20]
    assert [p.topk for p in (crw, dino, dinov3, vfs)] == [10, 5, 5, 10]
    assert [p.temperature for p in (crw, dino, dinov3, vfs)] == [0.05, 0.1, 0.2, 0.07]
    assert [p.window for p in (crw, dino, dinov3, vfs)] == ["open-disc", "square", "disc", "open-disc"]
    assert [p.repeats for p in (crw, dino, dinov3, vfs)] == ["all", "none", "none", "one"]
    assert [p.first for p in (crw, dino, dinov3, vfs)] == ["free", "windowed", "windowed", "windowed"]
    assert [(p.ties, p.stretch) for p in (crw, dino, dinov3, vfs)] == [(0, 0), (1, 1), (1, 1), (0, 1)]
    assert [(p.down, p.up) for p in (crw, dino)] == [("bilinear", "bilinear"), ("nearest", "bilinear")]
    assert [(p.down, p.up) for p in (dinov3, vfs)] == [("nearest", "nearest"), ("nearest", "bilinear")]
    assert {p.radius for p in PROTOCOLS.values()} == {12}
    x, first = video(5, 8, 15, 16, 2, 0)
    outs = [run(x, first, p) for p in (crw, dino, dinov3, vfs)]
    assert all(not torch.equal(a, b) for a, b in pairwise(outs))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="there is no frame"):
        next(propagate([], torch.rand(2, 3, 3), Protocol()))
    with pytest.raises(ValueError, match=r"one grid.*\(4, 3, 3\) and \(2, 3, 4\)"):
        Propagation(torch.rand(4, 3, 3), torch.rand(2, 3, 4), Protocol())
    with pytest.raises(ValueError, match=r"features are \(4, 3, 4\), and were \(4, 3, 3\)"):
        Propagation(torch.rand(4, 3, 3), torch.rand(2, 3, 3), Protocol())(torch.rand(4, 3, 4))
    for bad in ({"topk": 0}, {"temperature": 0}, {"first": "left", "context": 0}, {"window": "open-disc", "radius": 0}):
        with pytest.raises(ValueError, match=r"expected|keep the first|give 1"):
            Protocol(**bad)
