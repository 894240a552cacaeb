"""Barlow Twins', VICReg's and LeJEPA's losses against loops, and pinned to their authors' code where that differs."""

import itertools
import math

import pytest
import torch
from common import DTYPES, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from partwhole.core.losses import barlow, sigreg, vicreg
from partwhole.core.losses.redundancy import _off_diagonal
from partwhole.core.testing import check_loss


def variance(column: Tensor, over: int) -> Tensor:
    mean = sum(column) / len(column)
    return sum((v - mean) ** 2 for v in column) / over


# ------------------------------------------------------------------ loops from the formulas


def loop_barlow(first, second, redundancy=0.0051, eps=1e-5):
    N, D = first.shape
    loss = 0
    for i, j in itertools.product(range(D), range(D)):
        a, b = first[:, i], second[:, j]
        spread = (variance(a, N) + eps).sqrt() * (variance(b, N) + eps).sqrt()
        c = sum((a[n] - sum(a) / N) * (b[n] - sum(b) / N) for n in range(N)) / N / spread
        loss = loss + ((1 - c) ** 2 if i == j else redundancy * c**2)
    return loss


def loop_vicreg(first, second, eps=1e-4):
    """The terms in the paper's equations 1 to 5."""
    N, D = first.shape
    s = sum(sum((first[n, i] - second[n, i]) ** 2 for i in range(D)) for n in range(N)) / N
    v = c = 0
    for z in (first, second):
        v = v + sum((1 - (variance(z[:, i], N - 1) + eps).sqrt()).clamp(min=0) for i in range(D)) / D
        centred = [z[:, i] - sum(z[:, i]) / N for i in range(D)]
        c = (
            c
            + sum(
                (sum(centred[i][n] * centred[j][n] for n in range(N)) / (N - 1)) ** 2
                for i, j in itertools.product(range(D), range(D))
                if i != j
            )
            / D
        )
    return s, v, c


def loop_sigreg(feature, directions, limit=5.0, points=17):
    """The paper's algorithm 1: both halves of the integral, the mean of complex exponentials."""
    ts = [-limit + 2 * limit * k / (points - 1) for k in range(points)]
    total = 0
    for s in range(directions.shape[1]):
        axis = directions[:, s] / directions[:, s].square().sum().sqrt()
        x = [sum(f * d for f, d in zip(row, axis, strict=True)) for row in feature]
        heights = []
        for t in ts:
            real = sum((t * v).cos() for v in x) / len(x) - math.exp(-t * t / 2)
            imaginary = sum((t * v).sin() for v in x) / len(x)
            heights.append((real**2 + imaginary**2) * math.exp(-t * t / 2))
        step = ts[1] - ts[0]
        total = total + len(x) * sum((a + b) / 2 * step for a, b in itertools.pairwise(heights))
    return total / directions.shape[1]


def weighed(first, second):
    terms = vicreg(first, second)
    return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]


WIDE, TALL, AXES = (4, 6), (9, 3), draw(4, 5, seed=7)
CASES = {
    "barlow, more rows than features": (barlow, loop_barlow, (draw(*TALL), draw(*TALL, seed=1))),
    "barlow, more features than rows": (barlow, loop_barlow, (draw(*WIDE), draw(*WIDE, seed=1))),
    "vicreg, more rows than features": (
        weighed,
        lambda a, b: 25 * loop_vicreg(a, b)[0] / 3 + 25 * loop_vicreg(a, b)[1] / 2 + loop_vicreg(a, b)[2],
        (draw(*TALL) / 3, draw(*TALL, seed=1) * 2),
    ),
    "vicreg, more features than rows": (
        weighed,
        lambda a, b: 25 * loop_vicreg(a, b)[0] / 6 + 25 * loop_vicreg(a, b)[1] / 2 + loop_vicreg(a, b)[2],
        (draw(*WIDE) / 3, draw(*WIDE, seed=1) * 2),
    ),
    "sigreg": (
        lambda x: sigreg(x, AXES, limit=5.0, knots=9),
        lambda x: loop_sigreg(x, AXES),
        (draw(6, 4),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    """With P4 (order), P14 (zeros, equal rows) and half precision."""
    loss, reference, inputs = CASES[case]
    check_loss(loss, *inputs, reference=reference)


# ------------------------------------------------------------------ what the authors' code gives


def official_barlow(first: Tensor, second: Tensor) -> Tensor:
    """As in facebookresearch/barlowtwins: torch's batch norm without weights, 1 / N, 0.0051."""
    norm = nn.BatchNorm1d(first.shape[1], affine=False).to(first.dtype)
    c = norm(first).T @ norm(second) / len(first)
    off = c - torch.diag(c.diagonal())
    return (c.diagonal() - 1).square().sum() + 0.0051 * off.square().sum()


def test_barlow_is_that_of_the_official_code_and_of_the_paper():
    first, second = draw(*TALL), draw(*TALL, seed=1)
    assert barlow(first, second).item() == pytest.approx(official_barlow(first, second).item(), rel=1e-12)
    assert barlow(first, second).item() == pytest.approx(loop_barlow(first, second, eps=0).item(), rel=1e-4)
    small = barlow(first / 1e3, second / 1e3).item()
    assert small != pytest.approx(loop_barlow(first, second, eps=0).item(), rel=1e-2), "eps is felt by small features"
    assert barlow(first / 1e3, second / 1e3, eps=0).item() == pytest.approx(barlow(first, second, eps=0).item())


def test_P12_vicregs_terms_have_names_and_differ_from_the_paper_as_said():
    first, second = draw(*WIDE) / 3, draw(*WIDE, seed=1) * 2
    s, v, c = loop_vicreg(first, second)
    terms = vicreg(first, second)
    assert list(terms) == ["invariance", "variance", "covariance"]
    assert s.item() == pytest.approx(6 * terms["invariance"].item(), rel=1e-12), "the paper sums over features"
    assert v.item() == pytest.approx(2 * terms["variance"].item(), rel=1e-12), "and over the views"
    assert c.item() == pytest.approx(terms["covariance"].item(), rel=1e-12)


def test_P12_vicreg_is_that_of_the_official_code():
    """As in facebookresearch/vicreg (solo-learn leaves out the halves of the variance)."""
    first, second = draw(*WIDE) / 3, draw(*WIDE, seed=1) * 2
    terms, off = vicreg(first, second), 0
    for x in (first, second):
        cov = torch.cov(x.T)
        off = off + (cov - torch.diag(cov.diagonal())).square().sum() / 6
    hinge = [torch.relu(1 - (x.var(0) + 1e-4).sqrt()).mean() for x in (first, second)]
    assert terms["invariance"].item() == pytest.approx(nn.functional.mse_loss(first, second).item(), rel=1e-12)
    assert terms["variance"].item() == pytest.approx((hinge[0] / 2 + hinge[1] / 2).item(), rel=1e-12)
    assert terms["covariance"].item() == pytest.approx(off.item(), rel=1e-12)


def test_sigreg_is_that_of_the_official_code():
    """As in rbalestr-lab/lejepa: 17 knots from 0 to 3, all weights twice the step but for the first and the last."""
    x, axes = draw(12, 4), draw(4, 8, seed=3)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    weight = torch.full((17,), 2 * 3 / 16, dtype=torch.float64)
    weight[[0, -1]] = 3 / 16
    phi = (-t.square() / 2).exp()
    angle = (x @ (axes / axes.norm(dim=0)))[..., None] * t
    error = (angle.cos().mean(0) - phi).square() + angle.sin().mean(0).square()
    expected = ((error @ (weight * phi)) * 12).mean()
    assert sigreg(x, axes).item() == pytest.approx(expected.item(), rel=1e-12)


# ------------------------------------------------------------------ properties


@quick
@given(n=st.integers(2, 12), d=st.integers(1, 12), scale=st.sampled_from([1e-2, 1.0, 1e2]), seed=st.integers(0, 99))
def test_the_sum_over_pairs_is_the_same_either_way(n, d, scale, seed):
    a, b = draw(n, d, seed=seed) * scale, draw(n, d, seed=seed + 100) * scale
    for other in (a, b):
        products = (a.T @ other).square()
        expected = products.sum() - products.diagonal().sum()
        assert _off_diagonal(a, other).item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9 * scale**4)


@quick
@given(
    n=st.integers(2, 9),
    d=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),  # a gradient that grows as the cube of more is beyond float16
    shift=st.sampled_from([0.0, 10.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_P14_values_and_gradients_are_finite_and_exact_in_every_dtype(n, d, scale, shift, dtype, seed):
    first, second = ((draw(n, d, seed=seed + k) * scale + shift).to(dtype) for k in (0, 100))
    axes = draw(d, 3, seed=seed)
    for loss in (barlow, weighed, lambda a, b: sigreg(torch.cat([a, b]), axes)):
        live = first.clone().requires_grad_()
        value = loss(live, second)
        value.backward()
        assert live.grad is not None
        assert live.grad.isfinite().all()
        exact = loss(first.double(), second.double()).item()
        assert value.item() == pytest.approx(exact, rel=2e-3, abs=2e-3)


@quick
@given(n=st.integers(2, 9), d=st.integers(2, 7), seed=st.integers(0, 99))
def test_what_the_losses_do_not_see(n, d, seed):
    first, second = draw(n, d, seed=seed), draw(n, d, seed=seed + 100)
    rows, columns = torch.randperm(n), torch.randperm(d)
    for loss in (barlow, weighed):
        value = loss(first, second).item()
        assert loss(first[rows], second[rows]).item() == pytest.approx(value, rel=1e-9)
        assert loss(first[:, columns], second[:, columns]).item() == pytest.approx(value, rel=1e-9)
        assert loss(second, first).item() == pytest.approx(value, rel=1e-9), "the views are alike"
        assert loss(first + 5, second + 5).item() == pytest.approx(value, rel=1e-7), "only what differs counts"
    scaled = barlow(first * 3 + 1, second * 7, eps=0).item()
    assert scaled == pytest.approx(barlow(first, second, eps=0).item(), rel=1e-9), "barlow reads correlations"


def test_barlow_is_0_where_views_agree_and_features_are_uncorrelated():
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow(x, x, eps=0).item() == pytest.approx(0, abs=1e-12)
    assert barlow(x, x[:, [0, 0]], eps=0).item() == pytest.approx(1 + 0.0051, abs=1e-12)


def test_vicreg_is_0_where_views_agree_vary_and_do_not_covary():
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert weighed(x, x).item() == pytest.approx(0, abs=1e-12)
    assert vicreg(x, x, target=2.0)["variance"].item() == pytest.approx(2 - math.sqrt(4 / 3 + 1e-4), abs=1e-12)


def test_P14_collapsed_features_cost_what_they_should():
    flat = torch.full((6, 4), 0.3, dtype=torch.float32, requires_grad=True)
    assert barlow(flat, flat).item() == pytest.approx(4, abs=1e-3), "no feature correlates with itself"
    terms = vicreg(flat, flat)
    assert terms["variance"].item() == pytest.approx(1 - 0.01, abs=1e-4)
    assert terms["covariance"].item() == pytest.approx(0, abs=1e-9)
    (barlow(flat, flat) + sum(terms.values()) + sigreg(flat, torch.eye(4))).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_sigreg_is_least_for_a_standard_normal_and_sees_what_two_moments_do_not():
    axes = torch.randn(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    normal = draw(2000, 3)
    coins = normal.sign()  # mean 0, variance 1, uncorrelated: VICReg has nothing to say
    assert sum(vicreg(coins, coins).values()).item() == pytest.approx(0, abs=5e-3)
    value = sigreg(normal, axes).item()
    assert value < 2, "the mean of the statistic under its hypothesis is near 1, whatever N"
    for other in (normal * 2, normal / 2, normal + 1, normal[:, [0, 0, 0]]):
        assert sigreg(other, axes).item() > 20 * value
    assert sigreg(coins, torch.eye(3)).item() > 20 * value


def test_sigregs_integral_is_that_of_a_fine_grid():
    x, axes = draw(20, 3), draw(3, 4, seed=1)
    fine = sigreg(x, axes, knots=4001).item()
    assert sigreg(x, axes).item() == pytest.approx(fine, rel=1e-2)
    assert sigreg(x, axes, limit=5.0, knots=9).item() == pytest.approx(
        sigreg(x, axes, limit=5.0, knots=4001).item(), rel=0.05
    )


def test_sigregs_directions_are_constants_of_any_length():
    x, axes = draw(6, 4), draw(4, 5, seed=1).requires_grad_()
    value = sigreg(x.requires_grad_(), axes)
    value.backward()
    assert axes.grad is None
    assert sigreg(x, axes * 9).item() == pytest.approx(value.item(), rel=1e-12)
    other = sigreg(x, draw(4, 5, seed=2)).item()
    assert other != pytest.approx(value.item(), rel=1e-3)


def test_P11_every_option_changes_the_value():
    first, second, axes = draw(6, 4) / 2, draw(6, 4, seed=1) / 2, draw(4, 3)
    for loss, options in (
        (lambda **o: barlow(first, second, **o), [{}, {"redundancy": 0.1}, {"eps": 0.1}]),
        (lambda **o: vicreg(first, second, **o)["variance"], [{}, {"target": 2.0}, {"eps": 0.1}]),
        (lambda **o: sigreg(first, axes, **o), [{}, {"limit": 2.0}, {"knots": 5}]),
    ):
        assert len({round(loss(**o).item(), 9) for o in options}) == len(options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: barlow(draw(1, 4), draw(1, 4)), "a batch of 1 has no variance: at least 2 things, over all processes"),
        (lambda: vicreg(draw(1, 4), draw(1, 4)), "a batch of 1 has no variance"),
        (lambda: vicreg(draw(3, 4), draw(2, 4)), r"two views \(N, D\) are needed; got \(3, 4\) and \(2, 4\)"),
        (lambda: sigreg(draw(3, 4), draw(3, 4)), r"feature \(N, D\) and directions \(D, S\) are needed"),
        (lambda: sigreg(draw(0, 4), draw(4, 4)), "one row and one direction are needed"),
        (lambda: sigreg(draw(3, 4), draw(4, 4), knots=1), "at least 2 knots"),
    ],
)
def test_P14_what_cannot_be_is_told_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()
