"""Contrastive losses a tile at a time: the values and gradients of the whole matrix, without the whole matrix."""

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from common import check_case, coin, cos, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from partwhole.core.losses import info_nce, nt_xent, sigmoid_contrast

quick = settings(max_examples=40, deadline=None, derandomize=True)


# ------------------------------------------------------------------ loops from the formulas


def loop_nt_xent(z, temperature=0.1):
    views, things = range(len(z)), range(z.shape[1])
    terms = []
    for v, b, w in itertools.product(views, things, views):
        if v != w:
            others = [z[x, y] for x in views for y in things if (x, y) != (v, b)]
            total = sum((cos(z[v, b], o) / temperature).exp() for o in others)
            terms.append(total.log() - cos(z[v, b], z[w, b]) / temperature)
    return sum(terms) / len(terms)


def loop_clip(query, key, temperature=0.1):
    terms = []
    for n in range(len(query)):
        along = sum((cos(query[n], k) / temperature).exp() for k in key)
        down = sum((cos(q, key[n]) / temperature).exp() for q in query)
        terms.append((along.log() + down.log()) / 2 - cos(query[n], key[n]) / temperature)
    return sum(terms) / len(terms)


def loop_sigmoid(query, key, positive=None, exclude=None, temperature=0.1, bias=-10.0):
    total = torch.zeros((), dtype=query.dtype)
    for n, m in itertools.product(range(len(query)), range(len(key))):
        together = n == m if positive is None else positive[n, m]
        if together or exclude is None or not exclude[n, m]:
            s = cos(query[n], key[m]) / temperature + bias
            total = total - (1 / (1 + (-s if together else s).exp())).log()
    return total / len(query)


TWO, POSITIVE, EXCLUDE = (draw(5, 4), draw(7, 4, seed=1)), coin(5, 7, chance=0.3, seed=2), coin(5, 7, seed=3)
CASES = {
    "nt_xent, two views": dict(loss=nt_xent, reference=loop_nt_xent, inputs=(draw(2, 4, 5),), axis=1),
    "nt_xent, three views, tiled": dict(
        loss=lambda z: nt_xent(z, temperature=0.3, tile=4),
        reference=lambda z: loop_nt_xent(z, 0.3),
        inputs=(draw(3, 3, 5),),
        axis=1,
    ),
    "symmetric": dict(
        loss=lambda q, k: info_nce(q, k, symmetric=True), reference=loop_clip, inputs=(draw(5, 4), draw(5, 4, seed=1))
    ),
    "symmetric, tiled": dict(
        loss=lambda q, k: info_nce(q, k, symmetric=True, tile=2),
        reference=loop_clip,
        inputs=(draw(5, 4), draw(5, 4, seed=1)),
    ),
    "sigmoid": dict(loss=sigmoid_contrast, reference=loop_sigmoid, inputs=(draw(5, 4), draw(5, 4, seed=1))),
    "sigmoid, tiled, learned": dict(
        loss=lambda q, k, b: sigmoid_contrast(q, k, POSITIVE, exclude=EXCLUDE, temperature=0.4, bias=b, tile=2),
        reference=lambda q, k, b: loop_sigmoid(q, k, POSITIVE, EXCLUDE, 0.4, b),
        inputs=(*TWO, draw(1)[0]),
        axis=None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    check_case(**CASES[case])


# ------------------------------------------------------------------ tiles


def pair_forms(N: int, M: int, form: str, seed: int) -> Tensor | None:
    g = torch.Generator().manual_seed(seed)
    if form == "none":
        return None
    if form == "mask":
        return torch.rand(N, M, generator=g) < 0.3
    index = torch.stack([torch.randperm(M, generator=g)[:3] for _ in range(N)])
    index[torch.rand(N, 3, generator=g) < 0.3] = -1
    return index if form == "several" else index[:, 0]


LOSSES = {
    "one way": lambda q, k, p, e, t, b, tile: info_nce(q, k, p, temperature=t, exclude=e, tile=tile),
    "both ways": lambda q, k, p, e, t, b, tile: info_nce(q, k, p, temperature=t, exclude=e, symmetric=True, tile=tile),
    "sigmoid": lambda q, k, p, e, t, b, tile: sigmoid_contrast(q, k, p, temperature=t, bias=b, exclude=e, tile=tile),
}


@quick
@given(
    loss=st.sampled_from(sorted(LOSSES)),
    temperature=st.sampled_from([1.0, 1 / 14.3, 1 / 100]),
    tile=st.sampled_from([1, 3, 4, 9]),
    keys=st.integers(10, 14),
    positive=st.sampled_from(["none", "one", "several", "mask"]),
    exclude=st.sampled_from(["none", "one", "several", "mask"]),
    seed=st.integers(0, 99),
)
def test_P16_tiles_equal_the_whole_in_value_and_all_gradients(loss, temperature, tile, keys, positive, exclude, seed):
    live = [draw(10, 6, seed=seed), draw(keys, 6, seed=seed + 1), torch.tensor(temperature).double(), draw(1)[0]]
    live = [x.requires_grad_() for x in live[: 4 if loss == "sigmoid" else 3]]
    some = pair_forms(10, keys, positive, seed), pair_forms(10, keys, exclude, seed + 7)
    values, grads = [], []
    for size in (10, tile):
        value = LOSSES[loss](*live[:2], *some, live[2], live[3] if len(live) > 3 else None, size)
        values.append(value.item())
        grads.append([g.flatten() for g in torch.autograd.grad(value * 3, live, allow_unused=True) if g is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-10, abs=1e-12)
    assert torch.allclose(*map(torch.cat, grads), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 1 / 14.3, 1 / 100, 1e-3])
@pytest.mark.parametrize("loss", LOSSES)
def test_P5_tiles_in_float32_are_exact(loss, temperature):
    q, k = draw(300, 16), draw(300, 16, seed=1)
    k = q + 0.3 * k
    whole, tiles = [], []
    for out, dtype, tile in ((whole, torch.float64, 300), (tiles, torch.float32, 128)):
        live = [x.to(dtype).requires_grad_() for x in (q, k)]
        value = LOSSES[loss](*live, None, None, temperature, -10.0, tile)
        out += [value, *torch.autograd.grad(value, live)]
    assert tiles[0].item() == pytest.approx(whole[0].item(), rel=1e-5, abs=1e-5 / temperature / 300)
    for a, b in zip(tiles[1:], whole[1:], strict=True):
        assert (a - b).abs().max() < 1e-5 * max(b.abs().max().item(), 1 / temperature / 300)


def exactly(query: Tensor, key: Tensor, same: Tensor, other: Tensor, temperature: float) -> Tensor:
    """InfoNCE from a query to the ``same`` keys among these and ``other`` ones, as log(1 + what the others are)."""
    unit = torch.nn.functional.normalize
    s = unit(query, dim=1) @ unit(key, dim=1).mT / temperature
    own, others = (s.masked_fill(~some, -torch.inf) for some in (same, other))
    within = -own.log_softmax(1)[same].view(len(s), -1).mean(1)  # exactly 0, of a single one
    return (within + (others.logsumexp(1) - own.logsumexp(1)).exp().log1p()).mean()


@quick
@given(
    form=st.sampled_from(["one way", "both ways", "two views", "three views"]),
    temperature=st.sampled_from([0.1, 0.05, 0.02, 0.01]),
    noise=st.sampled_from([1.0, 0.3, 0.1, 0.03, 0.01]),
    tile=st.sampled_from([7, 1000]),
    seed=st.integers(0, 99),
)
def test_P5_gradients_in_float32_are_exact_however_well_the_case_is_solved(form, temperature, noise, tile, seed):
    """To 1e-5 of their largest entry, or to what the rounding of a logit of 1 / temperature makes of it."""
    z, views = draw(60, 16, seed=seed), 3 if form == "three views" else 2
    z = torch.stack([z + noise * draw(60, 16, seed=seed + 100 * v) for v in range(1, views + 1)]).float()
    eye, me, thing = torch.eye(60) > 0, torch.eye(60 * views) > 0, torch.arange(60 * views) % 60
    same = thing[:, None] == thing
    values, grads = [], []
    for dtype in (torch.float64, torch.float32):
        live = z.to(dtype).requires_grad_()
        (q, k), rows, options = live[:2], live.flatten(0, 1), {"temperature": temperature, "tile": tile}
        if dtype == torch.float32:
            value = (
                nt_xent(live, **options) if "views" in form else info_nce(q, k, symmetric=form != "one way", **options)
            )
        elif "views" in form:
            value = exactly(rows, rows, same & ~me, ~same, temperature)
        else:
            value = exactly(q, k, eye, ~eye, temperature)
            value = value if form == "one way" else (value + exactly(k, q, eye, ~eye, temperature)) / 2
        values.append(value.item())
        grads.append(torch.autograd.grad(value, live)[0].double())
    bound = max(1e-5, 5e-7 / temperature)
    # several positives pull apart what their rounding does not tell
    least = 1 / temperature / 60 if form == "three views" else 1e-30
    assert values[1] == pytest.approx(values[0], rel=bound, abs=1e-30)
    assert (grads[1] - grads[0]).abs().max() < bound * max(grads[0].abs().max().item(), least)


@pytest.mark.parametrize("loss", LOSSES)
def test_tiles_need_no_gradient_of_keys_or_of_anything(loss):
    q, k = draw(10, 6), draw(12, 6, seed=1)
    args = (None, None, 0.2, -10.0)
    both = [x.clone().requires_grad_() for x in (q, k)]
    expected = LOSSES[loss](*both, *args, 4)
    slopes = torch.autograd.grad(expected, both)
    for i in (0, 1):
        live = [x.clone().requires_grad_(j == i) for j, x in enumerate((q, k))]
        (got,) = torch.autograd.grad(LOSSES[loss](*live, *args, 4), live[i])
        assert torch.allclose(got, slopes[i])
    with torch.no_grad():
        value = LOSSES[loss](*both, *args, 4)
    assert not value.requires_grad
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_whole_matrix_has_second_derivatives_and_tiles_say_that_they_have_none(loss):
    q, k = draw(5, 3).requires_grad_(), draw(5, 3, seed=1)
    twice = lambda q: torch.autograd.grad(LOSSES[loss](q, k, None, None, 0.5, -1.0, None), q, create_graph=True)[0]  # noqa: E731
    assert torch.autograd.gradcheck(twice, (q,))
    (once,) = torch.autograd.grad(LOSSES[loss](q, k, None, None, 0.5, -1.0, None), q)
    assert torch.allclose(once, twice(q))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(LOSSES[loss](q, k, None, None, 0.5, -1.0, 2), q, create_graph=True)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made within."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.most = max(self.most, x.untyped_storage().nbytes() // x.element_size())
        return out


N = 2048
ME = torch.arange(N)
SIZES = {
    "both ways": lambda q, k: info_nce(q, k, symmetric=True),
    "several positives, exclusions": lambda q, k: info_nce(q, k, torch.stack([ME.roll(1), ME.roll(9)], 1), exclude=ME),
    "gathered keys": lambda q, k: info_nce(q, torch.cat([k, q, k]), ME + 700),
    "queue": lambda q, k: info_nce(q[:600], torch.cat([k[:600], *[k.detach()] * 3]), exclude=ME[:600].expand(600, -1)),
    "nt_xent": lambda q, k: nt_xent(torch.stack([q, k])),
    "sigmoid": lambda q, k: sigmoid_contrast(q, k, ME.roll(3)),
}


@pytest.mark.parametrize("case", SIZES)
def test_P16_no_tensor_of_all_pairs_is_ever_made(case):
    """By default: with a mask, of bytes or of numbers, this would fail too."""
    q, k = (draw(N, 8, seed=s).float().requires_grad_() for s in (0, 1))
    with Largest() as seen:
        SIZES[case](q, k).backward()
    pairs = {"gathered keys": 3 * N * N, "queue": 600 * (600 + 3 * N), "nt_xent": 4 * N * N}.get(case, N * N)
    assert 0 < seen.most <= 1 << 21 < pairs


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
def test_P16_peak_memory_is_a_fraction_of_the_matrix():
    q, k = (draw(8192, 16, seed=s).float().requires_grad_() for s in (0, 1))
    info_nce(q[:600], k[:600], symmetric=True).backward()  # threads and the like
    Path("/proc/self/clear_refs").write_text("5")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    info_nce(q, k, symmetric=True).backward()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    assert peak - before < 8192 * 8192 * 4 / 4, "the matrix alone is 256 MiB"


# ------------------------------------------------------------------ what the papers say


def test_nt_xent_is_cross_entropy_without_the_diagonal():
    """As the paper's code has it: concatenated views, the diagonal at minus infinity."""
    z = draw(2, 6, 4)
    u = torch.nn.functional.normalize(z, dim=-1).flatten(0, 1)
    logits = (u @ u.mT / 0.5).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    assert nt_xent(z, temperature=0.5).item() == pytest.approx(expected.item(), rel=1e-12)


def test_P13_nt_xent_reads_gathered_rows():
    z = draw(3, 8, 4)
    whole = nt_xent(z, temperature=0.2)
    pieces = [z[:, :3], z[:, 3:]]
    key = torch.cat([p.flatten(0, 1) for p in pieces])
    values = [nt_xent(p, temperature=0.2, key=key, start=s) for p, s in zip(pieces, (0, 9), strict=True)]
    assert ((3 * values[0] + 5 * values[1]) / 8).item() == pytest.approx(whole.item(), rel=1e-12)


def test_symmetric_is_the_mean_of_both_directions_with_the_same_pairs():
    q, k = draw(5, 4), draw(7, 4, seed=1)
    for positive, exclude in ((POSITIVE, EXCLUDE), (POSITIVE, None)):
        there = info_nce(q, k, positive, exclude=exclude)
        back = info_nce(k, q, positive.mT, exclude=None if exclude is None else exclude.mT)
        both = info_nce(q, k, positive, exclude=exclude, symmetric=True)
        assert both.item() == pytest.approx(((there + back) / 2).item(), rel=1e-12)


def test_sigmoid_contrast_starts_as_the_paper_says_and_excludes():
    """With bias -10 and scale 10 nearly all of the first loss is that of the positives."""
    q, k = torch.eye(4).double(), torch.eye(4).double().roll(1, 0)  # all cosines with the positive are 0
    s = torch.tensor(10.0).exp()
    expected = (1 + s).log() + 2 * (1 + 1 / s).log() + math.log(2)
    assert sigmoid_contrast(q, k).item() == pytest.approx(expected.item(), rel=1e-6)
    twins = torch.arange(4).roll(-1)  # the pairs of cosine 1
    assert sigmoid_contrast(q, k, exclude=twins).item() == pytest.approx((expected - math.log(2)).item(), rel=1e-6)


def test_P7_P11_every_option_of_sigmoid_contrast_changes_the_value_and_learns():
    q, k = draw(4, 3), draw(6, 3, seed=1)
    options = [{}, {"temperature": 0.5}, {"bias": -1.0}, {"positive": ME[:4] + 2}, {"exclude": coin(4, 6)}]
    assert len({round(sigmoid_contrast(q, k, **o).item(), 9) for o in options}) == len(options)
    live = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, -3.0)]
    for tile in (2, None):
        work = lambda t, b, tile=tile: sigmoid_contrast(q, k, temperature=t, bias=b, tile=tile)  # noqa: E731
        assert work(*live).item() == pytest.approx(work(0.2, -3.0).item(), rel=1e-12)
        assert torch.autograd.gradcheck(work, tuple(live))


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_positive_named_twice_is_one_pair(loss, tile):
    q, k = draw(4, 3), draw(6, 3, seed=1)
    once = torch.tensor([[1, -1, 2], [0, -1, -1], [5, 3, -1], [-1, -1, -1]])
    twice = torch.tensor([[1, 2, 2], [0, 0, 0], [3, 5, 3], [-1, -1, -1]])
    one, other = (LOSSES[loss](q, k, p, None, 0.5, -1.0, tile).item() for p in (once, twice))
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: sigmoid_contrast(draw(3, 2), draw(2, 2)), "say which are positive"),
        (lambda: sigmoid_contrast(draw(3, 2), draw(3, 2), temperature=0.0), "above 0"),
        (lambda: info_nce(draw(3, 2), draw(3, 2), tile=0), "at least one row"),
        (lambda: info_nce(draw(3, 2), draw(3, 2), draw(3, 3)), "must hold indices"),
        (lambda: nt_xent(draw(1, 3, 2)), "two or more views"),
    ],
)
def test_P14_wrong_arguments_are_told_so(work, message):
    with pytest.raises(ValueError, match=message):
        work()


@pytest.mark.parametrize("tile", [None, 1])
def test_P14_a_batch_of_one_or_none_has_nothing_to_tell_apart(tile):
    q = draw(3, 4).requires_grad_()
    for symmetric in (False, True):
        loss = info_nce(q, q, torch.full((3,), -1), exclude=coin(3, 3, chance=2.0), symmetric=symmetric, tile=tile)
        loss.backward()
        assert loss.item() == 0
        assert q.grad is not None
        assert not q.grad.any()
        assert info_nce(q[:1], q[1:2], symmetric=symmetric, tile=tile).item() == 0
        assert info_nce(q[:0], q, symmetric=symmetric, tile=tile).item() == 0
    assert sigmoid_contrast(q[:0], q, tile=tile).item() == 0


@pytest.mark.slow
def test_losses_a_tile_at_a_time_trace_as_one_graph():
    q, k = draw(20, 4).requires_grad_(), draw(20, 4, seed=1)

    def work(q: Tensor, k: Tensor) -> Tensor:
        return info_nce(q, k, exclude=ME[:20].roll(1), symmetric=True, tile=9) + sigmoid_contrast(q, k, tile=9)

    traced = torch.compile(work, backend="aot_eager", fullgraph=True)(q, k)
    (slope,) = torch.autograd.grad(traced, q)
    (expected,) = torch.autograd.grad(work(q, k), q)
    assert traced.item() == pytest.approx(work(q, k).item())
    assert torch.allclose(slope, expected)
