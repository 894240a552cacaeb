"""The losses on groups of tokens, against loops written from their formulas, and their memory."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from common import DTYPES, check_case, coin, cos, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.losses import (
    group_contrast,
    group_info_nce,
    group_means,
    group_pairs,
)


def whole(high: int, *shape: int, low: int = 0, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def loop_group_info_nce(feature, group, valid=None, temperature=0.1, coarse=None):
    terms = []
    for b in range(len(feature)):
        known = [i for i in range(feature.shape[1]) if group[b, i] >= 0 and (valid is None or valid[b, i])]
        unit = {i: feature[b, i] / feature[b, i].square().sum().sqrt() for i in known}
        members = {g: [i for i in known if group[b, i] == g] for g in {int(group[b, i]) for i in known}}
        mean = {g: sum(unit[i] for i in of) for g, of in members.items()}
        for i in known:
            own = int(group[b, i])
            rivals = [
                g
                for g, of in members.items()
                if g == own or coarse is None or coarse[b, i] < 0 or all(coarse[b, j] != coarse[b, i] for j in of)
            ]
            e = {g: (cos(unit[i], mean[g]) / temperature).exp() for g in rivals}
            terms.append(-(e[own] / sum(e.values())).log())
    return sum(terms) / len(terms)


def loop_group_contrast(feature, group, valid=None, kept=None, margin=0.5):
    """kept (B, L, L) coins, or None for their expectation."""
    total, positives, pairs = 0.0, 0, 0
    known = (group >= 0) if valid is None else (group >= 0) & valid
    B, L = group.shape
    triples = [(b, i, j) for b, i, j in itertools.product(range(B), range(L), range(L)) if known[b, i] and known[b, j]]
    for b, i, j in triples:
        pairs, positives = pairs + 1, positives + int(group[b, i] == group[b, j])
    for b, i, j in triples:
        if i != j:
            c = cos(feature[b, i], feature[b, j])
            if group[b, i] == group[b, j]:
                total = total + (1 - c)
            else:
                weight = positives / pairs if kept is None else float(kept[b, i, j])
                total = total + weight * (c - margin).clamp(min=0)
    return 0.5 * total / pairs


F = draw(4, 6, 5)  # feature
G = whole(3, 4, 6, low=-1)  # group
V = coin(4, 6, chance=0.75)  # valid
CASES = {
    "group_info_nce": dict(
        loss=lambda f, g, v: group_info_nce(f, g, valid=v),
        reference=loop_group_info_nce,
        inputs=(F, G, V),
        valid=2,
        count=lambda f, g, v: (v & (g >= 0)).sum(),
    ),
    "group_info_nce, coarse": dict(
        loss=lambda f, g, v, c: group_info_nce(f, g, valid=v, coarse=c, temperature=0.4),
        reference=lambda f, g, v, c: loop_group_info_nce(f, g, v, coarse=c, temperature=0.4),
        inputs=(draw(4, 9, 5), whole(6, 4, 9, low=-1), coin(4, 9, chance=0.75), whole(3, 4, 9, low=-1, seed=1)),
        valid=2,
        count=lambda f, g, v, c: (v & (g >= 0)).sum(),
    ),
    "group_contrast, the paper's coins": dict(
        loss=lambda f, g, v, k: group_contrast(f, g, valid=v, negatives=k),
        reference=loop_group_contrast,
        inputs=(F, G, V, coin(4, 6, 6, seed=3)),
        valid=2,
    ),
    "group_contrast, expected": dict(
        loss=lambda f, g, v: group_contrast(f, g, valid=v, negatives="expected", margin=0.1),
        reference=lambda f, g, v: loop_group_contrast(f, g, v, margin=0.1),
        inputs=(F, G, V),
        valid=2,
    ),
    "group_contrast, fraction given": dict(
        loss=lambda f, g: group_contrast(f, g, negatives="expected", fraction=0.25),
        inputs=(F, G),
        count=lambda f, g: group_pairs(g)[1],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    """With P4 (order), P14 (zeros, equal rows), padding, half precision and what must be constant."""
    check_case(**CASES[case])


# ------------------------------------------------------------------ groups


def matrices_of_the_paper(feature: Tensor, group: Tensor, coins: Tensor, margin: float = 0.5) -> Tensor:
    """The authors' arithmetic, all matrices at once: a mean over every entry, those left out included."""
    f = feature / feature.norm(dim=-1, keepdim=True)
    c = f @ f.mT
    y = (group[:, :, None] == group[:, None, :]).double()
    loss = y * (1 - c) + (1 - y) * (c - margin).clamp(min=0)
    kept = ((y == 1) | coins).double()
    return 0.5 * ((1 - torch.eye(c.shape[-1])) * kept * loss).mean()


@quick
@given(b=st.integers(1, 3), length=st.integers(1, 40), groups=st.integers(1, 6), seed=st.integers(0, 99))
def test_group_contrast_is_the_papers_pair_loss(b, length, groups, seed):
    feature, group = draw(b, length, 4, seed=seed), whole(groups, b, length, seed=seed)
    coins = coin(b, length, length, seed=seed)
    got, expected = group_contrast(feature, group, negatives=coins), matrices_of_the_paper(feature, group, coins)
    assert got.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


def test_group_contrast_is_the_papers_over_several_tiles():
    feature, group, coins = draw(1, 600, 4).requires_grad_(), whole(5, 1, 600), coin(1, 600, 600, chance=0.2)
    got, expected = group_contrast(feature, group, negatives=coins), matrices_of_the_paper(feature, group, coins)
    a, b = (torch.autograd.grad(x, feature)[0] for x in (got, expected))
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(a, b, rtol=1e-7, atol=1e-12)


def test_sampled_negatives_have_the_papers_mean_and_variance():
    feature, group = draw(2, 12, 2), whole(3, 2, 12)
    generator = torch.Generator().manual_seed(0)
    y = group[:, :, None] == group[:, None, :]
    p = y.double().mean().item()
    ours = [group_contrast(feature, group, generator=generator).item() for _ in range(1000)]
    papers = [
        matrices_of_the_paper(feature, group, torch.rand(2, 12, 12, generator=generator) < p).item()
        for _ in range(1000)
    ]
    (m1, s1), (m2, s2) = ((torch.tensor(x).mean().item(), torch.tensor(x).std().item()) for x in (ours, papers))
    assert m1 == pytest.approx(m2, abs=5 * s2 / 1000**0.5)
    assert s1 == pytest.approx(s2, rel=0.12)
    assert group_contrast(feature, group, negatives="expected").item() == pytest.approx(m2, abs=5 * s2 / 1000**0.5)


def test_sampled_negatives_follow_the_generators_alone():
    feature, group, valid = draw(3, 8, 4), whole(3, 3, 8), coin(3, 8, chance=0.7)

    def value(rows, length=8, **more):
        seeded = [torch.Generator().manual_seed(r) for r in rows]
        f, g, v = (x[rows][:, :length] for x in (feature, group, valid))
        if "pad" in more:
            f, g, v = (torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, more["pad"])) for x in (f, g, v))
        return group_contrast(f, g, generator=seeded, valid=v, fraction=0.4).item() * group_pairs(g, v)[1].item()

    apart = sum(value([r]) for r in range(3))
    assert value([0, 1, 2]) == pytest.approx(apart, rel=1e-9), "a thing's coins do not depend on its batch"
    assert value([2, 0, 1]) == pytest.approx(apart, rel=1e-9)
    assert value([0, 1, 2], pad=5) == pytest.approx(apart, rel=1e-9), "nor on padding"
    again = [group_contrast(feature, group, generator=torch.Generator().manual_seed(s)).item() for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_P11_every_option_of_group_contrast_changes_the_value():
    feature, group = draw(2, 9, 3), whole(3, 2, 9)
    options = [
        {"negatives": "expected"},
        {"negatives": "all"},
        {"negatives": "expected", "margin": 0.2},
        {"negatives": "expected", "fraction": 0.9},
        {"negatives": "expected", "valid": coin(2, 9)},
        {"generator": torch.Generator().manual_seed(0)},
    ]
    assert len({round(group_contrast(feature, group, **o).item(), 9) for o in options}) == len(options)
    with pytest.raises(ValueError, match="negatives is"):
        group_contrast(feature, group, negatives="some")  # type: ignore[arg-type]


@quick
@given(b=st.integers(1, 3), length=st.integers(1, 30), groups=st.integers(1, 30), seed=st.integers(0, 99))
def test_group_info_nce_equals_loops_for_any_number_of_groups(b, length, groups, seed):
    feature, group = draw(b, length, 4, seed=seed), whole(groups, b, length, seed=seed)
    expected = float(loop_group_info_nce(feature, group))
    assert group_info_nce(feature, group).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@quick
@given(seed=st.integers(0, 99), dtype=st.sampled_from([torch.int64, torch.int32, torch.int16]))
def test_group_numbers_are_only_names(seed, dtype):
    """Any integers, any order, gaps; equal numbers in different things have nothing to do with each other."""
    feature, group = draw(2, 20, 4, seed=seed), whole(5, 2, 20, low=-1, seed=seed)
    names = torch.tensor([30000, 7, 0, 32767, 12], dtype=dtype)
    renamed = torch.where(group < 0, -3, names[group]).to(dtype)
    renamed[1] = torch.where(
        renamed[1] < 0, -9, (renamed[1] - 7).clamp(min=0) + (group[1] == 2) * 1
    )  # others in thing 1
    for loss in (group_info_nce, lambda f, g: group_contrast(f, g, negatives="expected")):
        assert loss(feature, renamed).item() == pytest.approx(loss(feature, group).item(), rel=1e-9)


@quick
@given(seed=st.integers(0, 99), extra=st.integers(0, 5))
def test_order_and_padding_of_tokens_change_nothing(seed, extra):
    feature, group, valid = draw(2, 9, 4, seed=seed), whole(4, 2, 9, low=-1, seed=seed), coin(2, 9, seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    wider = [torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (extra, 0)) for x in (feature, group, valid)]
    for loss in (group_info_nce, lambda f, g, valid: group_contrast(f, g, negatives="expected", valid=valid)):
        expected = loss(feature, group, valid=valid).item()
        assert loss(feature[:, order], group[:, order], valid=valid[:, order]).item() == pytest.approx(
            expected, rel=1e-9
        )
        assert loss(wider[0], wider[1], valid=wider[2]).item() == pytest.approx(expected, rel=1e-9)


@quick
@given(temperature=st.floats(1e-3, 10), dtype=st.sampled_from(DTYPES), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_P5_group_info_nce_is_finite_and_exact_at_any_temperature(temperature, dtype, size):
    feature, group = (draw(2, 8, 4) * size).to(dtype).requires_grad_(), whole(3, 2, 8, low=-1)
    loss = group_info_nce(feature, group, temperature=temperature)
    loss.backward()
    assert feature.grad is not None
    assert feature.grad.isfinite().all()
    exact = group_info_nce(feature.detach().double(), group, temperature=temperature).item()
    assert loss.item() == pytest.approx(exact, rel=1e-4, abs=2e-6 / temperature)


@pytest.mark.parametrize("loss", [group_info_nce, group_contrast])
def test_P14_degenerate_groups_give_zero(loss):
    feature = draw(2, 6, 4).requires_grad_()
    nothing = torch.full((2, 6), -1)
    for case in (
        lambda: loss(feature, nothing),
        lambda: loss(feature, torch.zeros(2, 6, dtype=torch.int64), valid=torch.zeros(2, 6, dtype=torch.bool)),
        lambda: loss(feature[:, :1], torch.zeros(2, 1, dtype=torch.int64)),
        lambda: loss(feature[:0], nothing[:0]),
        lambda: loss(feature[:, :0], nothing[:, :0]),
    ):
        value = case()
        (grad,) = torch.autograd.grad(value, feature)
        assert value.item() == 0
        assert not grad.any()
    one_group = torch.zeros(2, 6, dtype=torch.int64)
    assert group_info_nce(feature, one_group).item() == 0
    with pytest.raises(ValueError, match="integer group"):
        loss(feature, one_group.double())
    with pytest.raises(ValueError, match="valid is"):
        loss(feature, one_group, valid=torch.ones(2, 5, dtype=torch.bool))


def test_P11_coarse_groups_hold_no_negatives():
    feature, group = draw(1, 8, 4).requires_grad_(), torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]])
    plain = group_info_nce(feature, group)
    one = group_info_nce(feature, group, coarse=torch.zeros_like(group))
    assert one.item() == 0, "all in one coarse group: nothing to tell apart"
    unknown = group_info_nce(feature, group, coarse=torch.full_like(group, -1))
    same = group_info_nce(feature, group, coarse=group)
    assert plain.item() == pytest.approx(unknown.item())
    assert plain.item() == pytest.approx(same.item())
    assert group_info_nce(feature, group, coarse=group // 2).item() < plain.item()


def test_losses_are_weighted_over_ranks_by_what_they_count():
    """The pair loss of a batch from its pieces: the fraction and the number of pairs are those of the whole."""
    feature, group = draw(5, 7, 4), whole(3, 5, 7, low=-1)
    same, pairs = group_pairs(group)
    total = group_contrast(feature, group, negatives="expected").item()
    parts = [
        group_contrast(feature[s], group[s], negatives="expected", fraction=same / pairs).item()
        * (group_pairs(group[s])[1] / pairs).item()
        for s in (slice(0, 1), slice(1, 5))
    ]
    assert sum(parts) == pytest.approx(total, rel=1e-9)


def test_a_second_derivative_is_refused_and_not_silently_wrong():
    feature = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = group_contrast(feature, torch.tensor([[0, 0, 1, 1, 2]]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, feature, create_graph=True)


@pytest.mark.slow
def test_P16_memory_is_bounded():
    """Peak memory beyond the inputs, forward and backward, against that of matrices of all pairs."""
    program = """
import re, torch
from partwhole.core.losses import group_contrast, group_info_nce, info_nce
torch.set_num_threads(1)
def most():  # of this program: ru_maxrss begins with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def peak(work):
    before = most()
    work().backward()
    return (most() - before) / 1024
f, g = torch.randn(8, 2048, 32, requires_grad=True), torch.randint(0, 16, (8, 2048))
q = torch.randn(6000, 32, requires_grad=True)
info_nce(q[:50], q[:50], tile=10).backward()
group_info_nce(f[:, :50], g[:, :50]).backward()
group_contrast(f[:, :50], g[:, :50]).backward()
print(peak(lambda: info_nce(q, q, tile=500)), peak(lambda: group_info_nce(f, g)), peak(lambda: group_contrast(f, g)))
print(peak(lambda: info_nce(q, q, tile=len(q))))
"""
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once, so a peak is a peak
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=exact)
    tiled, prototypes, pairs, full = map(float, done.stdout.split())
    matrix = 6000 * 6000 * 4 / 2**20  # 137 MB
    assert full > 0.8 * matrix, "the full one must show, or this test measures nothing"
    assert tiled < matrix / 2
    assert prototypes < 60
    assert pairs < 60, "one matrix of all pairs alone has 128 MB, and plain code keeps several"


@quick
@given(b=st.integers(1, 3), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_group_means_are_the_loop(b, length, seed):
    feature, group, valid = draw(b, length, 3, seed=seed), whole(3, b, length, low=-1, seed=seed), coin(b, length)
    feature[~valid] = torch.nan
    mean, there = group_means(feature, group, valid)
    assert mean.shape[:2] == there.shape == (b, int(group.max()) + 1)
    for i, g in itertools.product(range(b), range(there.shape[1])):
        mine = [feature[i, j] for j in range(length) if valid[i, j] and group[i, j] == g]
        assert there[i, g] == bool(mine)
        torch.testing.assert_close(mean[i, g], sum(mine) / len(mine) if mine else torch.zeros(3).double())
