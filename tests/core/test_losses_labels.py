"""Losses of known and of guessed labels, against loops and by their properties."""

import math

import pytest
import torch
from common import check_case, draw, quick
from hypothesis import given
from hypothesis import strategies as st

from partwhole.core.losses import consistency, cross_entropy, soft_cross_entropy


def loop_cross_entropy(logits, label, smoothing=0.0):
    terms = []
    for row, k in zip(logits.flatten(0, -2), label.flatten().tolist(), strict=True):
        if k >= 0:
            log_p = row - row.exp().sum().log()
            terms.append(-(1 - smoothing) * log_p[k] - smoothing * sum(log_p) / len(row))
    return sum(terms) / len(terms)


def loop_consistency(weak, strong, threshold, valid=None):
    terms, sure = [], 0
    valid = torch.ones_like(weak[..., 0]) if valid is None else valid
    rows = zip(weak.flatten(0, -2), strong.flatten(0, -2), valid.flatten().tolist(), strict=True)
    for w, s, counts in rows:
        if not counts:
            continue
        p = [(v.exp() / w.exp().sum()).item() for v in w]
        if max(p) >= threshold:
            sure += 1
            terms.append(-(s[p.index(max(p))] - s.exp().sum().log()))
        else:
            terms.append(0 * s.sum())
    return sum(terms) / len(terms), sure / len(terms)


def loop_soft_cross_entropy(logits, index, share, weight=None):
    terms = []
    weight = torch.ones_like(share[..., 0]) if weight is None else weight
    for row, classes, parts, w in zip(
        logits.flatten(0, -2), index.flatten(0, -2), share.flatten(0, -2), weight.flatten(), strict=True
    ):
        log_p = row - row.exp().sum().log()
        terms.append(-w * sum(p * log_p[k] for k, p in zip(classes.tolist(), parts, strict=True)))
    return sum(terms) / len(terms)


LABEL = torch.tensor([2, -1, 0, 1, -1, 3])
SHARED = torch.stack([draw(7, seed=n).argsort()[:3] for n in range(6)])  # three classes a thing
VALID = torch.tensor([True, True, False, True, True, False])
CASES = {
    "cross_entropy": dict(
        loss=cross_entropy,
        reference=loop_cross_entropy,
        inputs=(draw(6, 4), LABEL),
        count=lambda x, label: (label >= 0).sum(),
    ),
    "cross_entropy, smoothed": dict(
        loss=lambda x, label: cross_entropy(x, label, smoothing=0.2),
        reference=lambda x, label: loop_cross_entropy(x, label, 0.2),
        inputs=(draw(3, 2, 4), LABEL.view(3, 2)),
        count=lambda x, label: (label >= 0).sum(),
    ),
    "soft_cross_entropy": dict(
        loss=soft_cross_entropy,
        reference=loop_soft_cross_entropy,
        inputs=(draw(6, 7), SHARED, draw(6, 3, seed=1).softmax(-1)),
        constant=(2,),
        count=lambda x, *_: len(x),
    ),
    "soft_cross_entropy, weighted": dict(
        loss=lambda x, i, s, w: soft_cross_entropy(x, i, s, weight=w),
        reference=loop_soft_cross_entropy,
        inputs=(draw(3, 2, 7), SHARED.view(3, 2, 3), draw(3, 2, 3, seed=1).abs(), draw(3, 2, seed=2).abs()),
        constant=(2, 3),
        count=lambda x, *_: len(x),
    ),
    "consistency": dict(
        loss=lambda w, s, v: consistency(w, s, threshold=0.5, valid=v)["loss"],
        reference=lambda w, s, v: loop_consistency(w, s, 0.5, v)[0],
        inputs=(2 * draw(6, 4), draw(6, 4, seed=1), VALID),
        constant=(0,),
        valid=2,
        count=lambda w, s, v: v.sum(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    """With P4 (order), P14 (zeros, equal rows), padding, half precision and what must be constant."""
    check_case(**CASES[case])


@quick
@given(
    n=st.integers(1, 9),
    k=st.integers(2, 6),
    threshold=st.sampled_from([0.0, 0.3, 0.6, 0.95, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_consistency_is_the_formula_at_any_threshold(n, k, threshold, scale, seed):
    weak, strong = draw(n, k, seed=seed) * scale, draw(n, k, seed=seed + 100)
    loss, share = loop_consistency(weak, strong, threshold)
    got = consistency(weak, strong, threshold=threshold)
    assert got["loss"].item() == pytest.approx(loss.item(), rel=1e-9)
    assert got["share"].item() == pytest.approx(share)
    every = consistency(weak, strong, threshold=0.0)
    assert every["share"].item() == 1
    assert every["loss"].item() == pytest.approx(cross_entropy(strong, weak.argmax(-1)).item(), rel=1e-9)
    assert got["loss"] <= every["loss"] + 1e-12


@quick
@given(n=st.integers(0, 5), k=st.integers(2, 9), leading=st.sampled_from([(), (2,), (3, 1)]), seed=st.integers(0, 99))
def test_a_label_shared_by_one_class_is_a_label_and_by_all_of_them_a_smoothed_one(n, k, leading, seed):
    logits = draw(n, *leading, k, seed=seed).requires_grad_()
    label = draw(n, *leading, k, seed=seed + 1).argmax(-1)
    every = torch.arange(k).expand(*label.shape, k)
    smooth = torch.full((k,), 0.2 / k, dtype=torch.float64) + 0.8 * torch.eye(k, dtype=torch.float64)
    for soft, hard in (
        (soft_cross_entropy(logits, label[..., None], torch.ones(*label.shape, 1)), cross_entropy(logits, label)),
        (soft_cross_entropy(logits, every, smooth[label]), cross_entropy(logits, label, smoothing=0.2)),
    ):
        assert soft.item() == pytest.approx(hard.item(), abs=1e-12)
        for a, b in zip(torch.autograd.grad(soft, logits), torch.autograd.grad(hard, logits), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_many_rows_are_looked_at_some_at_a_time_with_one_value_and_gradient():
    logits, index = draw(3000, 200).requires_grad_(), torch.arange(3000)[:, None] % 200  # more than one chunk
    share, weight = torch.ones(3000, 1), draw(3000, seed=1).abs()
    loss = soft_cross_entropy(logits, index, share, weight=weight)
    plain = -(weight * logits.log_softmax(-1).gather(1, index)[:, 0]).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    got, expected = (torch.autograd.grad(x, logits)[0] for x in (loss, plain))
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_P5_great_logits_are_finite(dtype):
    strong = torch.tensor([[3e4, 0.0, -3e4], [0.0, 3e4, 0.0]], dtype=dtype, requires_grad=True)
    out = consistency(strong, strong.flip(1))
    (out["loss"] + cross_entropy(strong, torch.tensor([2, 0]))).backward()
    assert out["share"].item() == 1
    assert out["loss"].item() == pytest.approx(3e4, rel=1e-2)  # (6e4 + 0) / 2
    assert strong.grad is not None
    assert strong.grad.isfinite().all()


def test_the_unsure_count_in_the_mean_but_add_nothing():
    """The official code divides by all: of two things one of which is sure, the loss is half of its own."""
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.zeros(1, 3)
    strong = draw(2, 3).float().requires_grad_()
    out = consistency(torch.cat([sure, unsure]), strong)
    alone = consistency(sure, strong[:1])
    assert out["loss"].item() == pytest.approx(alone["loss"].item() / 2)
    assert (out["share"].item(), alone["share"].item()) == (0.5, 1)
    out["loss"].backward()
    assert strong.grad is not None
    assert not strong.grad[1].any()
    assert consistency(torch.zeros(1, 2), draw(1, 2).float(), threshold=0.5)["share"].item() == 1, "at it is over it"


def test_P14_nothing_known_and_nothing_sure_are_0_with_zero_gradient():
    x = draw(3, 4).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    for loss in (
        cross_entropy(x, torch.full((3,), -1)),
        cross_entropy(x[:0], torch.zeros(0, dtype=torch.int64)),
        consistency(torch.zeros(3, 4), x)["loss"],
        consistency(draw(3, 4) * 99, x, valid=none)["loss"],
        consistency(x[:0], x[:0])["loss"],
    ):
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert not grad.any()


def test_what_stands_at_an_unknown_label_changes_nothing():
    x, label = draw(4, 3), torch.tensor([0, -1, 2, -7])
    dirty = x.clone()
    dirty[[1, 3]] = torch.nan
    assert cross_entropy(dirty, label).item() == cross_entropy(x, label).item()
    assert cross_entropy(x, label).item() == pytest.approx(cross_entropy(x[[0, 2]], label[[0, 2]]).item(), rel=1e-12)


def test_smoothing_keeps_a_perfect_answer_from_costing_nothing():
    perfect, label = 100 * torch.eye(3), torch.arange(3)
    assert cross_entropy(perfect, label).item() == pytest.approx(0, abs=1e-6)
    assert cross_entropy(perfect, label, smoothing=0.3).item() == pytest.approx(0.2 * 100)
    assert cross_entropy(torch.zeros(3, 3), label, smoothing=0.3).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cross_entropy(draw(3, 4), torch.zeros(4).long()),
            r"label \(...\) are needed; got \(3, 4\) and \(4,\)",
        ),
        (lambda: cross_entropy(draw(3, 4), torch.zeros(3).long(), smoothing=1.0), r"in \[0, 1\); got 1.0"),
        (
            lambda: soft_cross_entropy(draw(3, 4), torch.zeros(3, 2).long(), draw(3, 1)),
            r"got \(3, 4\), \(3, 2\) and \(3, 1\)",
        ),
        (lambda: soft_cross_entropy(draw(3, 4), SHARED[:3], draw(3, 3), weight=draw(4)), "weight"),
        (lambda: consistency(draw(3, 4), draw(4, 4)), r"must be alike; got \(3, 4\), \(4, 4\)"),
        (lambda: consistency(draw(3, 4), draw(3, 4), threshold=1.5), "threshold is a probability; got 1.5"),
        (lambda: consistency(draw(3, 4), draw(3, 4), valid=torch.ones(4).bool()), "valid"),
    ],
)
def test_what_cannot_be_is_told_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()
