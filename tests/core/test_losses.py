"""The losses against loops written from their formulas, and the properties that keep a run from going wrong."""

import itertools
import math

import pytest
import torch
from common import DTYPES, check_case, coin, cos, draw, quick
from hypothesis import given
from hypothesis import strategies as st

from partwhole.core.losses import (
    distill,
    info_nce,
    masked_cross_entropy,
    masked_mse,
    masked_smooth_l1,
    negative_cosine,
)

# ------------------------------------------------------------------ loops from the formulas


def loop_info_nce(query, key, positive=None, temperature=0.1, exclude=None):
    """positive, exclude: (N, M) bool."""
    losses = []
    for n, m in itertools.product(range(len(query)), range(len(key))):
        if positive[n, m] if positive is not None else n == m:
            among = [
                (cos(query[n], k) / temperature).exp()
                for j, k in enumerate(key)
                if exclude is None or not exclude[n, j]
            ]
            mine = positive[n].sum() if positive is not None else 1
            losses.append((sum(among).log() - cos(query[n], key[m]) / temperature) / mine)
    queries = len(query) if positive is None else int(positive.any(1).sum())
    return sum(losses) / queries


def loop_negative_cosine(prediction, target, valid=None):
    pairs = [
        (p, t)
        for i, (p, t) in enumerate(zip(prediction.flatten(0, -2), target.flatten(0, -2), strict=True))
        if valid is None or valid.flatten()[i]
    ]
    return -sum(cos(p, t) for p, t in pairs) / len(pairs)


def loop_distill(student, teacher, temperature=0.1):
    terms = []
    for s, t, b in itertools.product(range(len(student)), range(len(teacher)), range(student.shape[1])):
        if s != t:
            e = (student[s, b] / temperature).exp()
            terms.append(-sum(teacher[t, b, k] * (e[k] / e.sum()).log() for k in range(len(e))))
    return sum(terms) / len(terms)


def loop_masked_mse(prediction, target, hidden, valid=None, normalise=False):
    terms = []
    for b, i in itertools.product(*map(range, hidden.shape)):
        if hidden[b, i] and (valid is None or valid[b, i]):
            t = target[b, i]
            if normalise:
                mean = sum(t) / len(t)
                t = (t - mean) / (sum((v - mean) ** 2 for v in t) / (len(t) - 1) + 1e-6).sqrt()
            terms.append(sum((prediction[b, i, k] - t[k]) ** 2 for k in range(len(t))) / len(t))
    return sum(terms) / len(terms)


def counted(hidden, valid):
    return [(b, i) for b, i in itertools.product(*map(range, hidden.shape)) if hidden[b, i] and valid[b, i]]


def loop_masked_smooth_l1(prediction, target, hidden, valid, beta=0.7):
    terms = []
    for b, i in counted(hidden, valid):
        d = (prediction[b, i] - target[b, i]).abs()
        terms.append(sum(v * v / (2 * beta) if v < beta else v - beta / 2 for v in d) / len(d))
    return sum(terms) / len(terms)


F = draw(4, 6, 5)  # feature
V = coin(4, 6, chance=0.75)  # valid
CASES = {
    "info_nce": dict(loss=info_nce, inputs=(draw(5, 4), draw(5, 4, seed=1)), reference=loop_info_nce),
    "info_nce, more keys, tiled, excluded": dict(
        loss=lambda q, k: info_nce(q, k, exclude=coin(5, 8, chance=0.3), temperature=0.3, tile=2),
        reference=lambda q, k: loop_info_nce(
            q, k, exclude=coin(5, 8, chance=0.3) & ~torch.eye(5, 8).bool(), temperature=0.3
        ),
        inputs=(draw(5, 4), draw(8, 4, seed=1)),
        axis=None,
    ),
    "info_nce, several positives": dict(
        loss=lambda q, k, p: info_nce(q, k, p),
        reference=loop_info_nce,
        inputs=(draw(5, 4), draw(8, 4, seed=1), coin(5, 8, chance=0.3, seed=2)),
        axis=None,
    ),
    "negative_cosine": dict(
        loss=lambda p, t, v: negative_cosine(p, t, valid=v),
        reference=loop_negative_cosine,
        inputs=(F, draw(4, 6, 5, seed=1), V),
        constant=(1,),
        valid=2,
        count=lambda p, t, v: v.sum(),
    ),
    "distill": dict(
        loss=distill,
        reference=loop_distill,
        inputs=(draw(4, 3, 6), draw(2, 3, 6, seed=1).softmax(-1)),
        constant=(1,),
        axis=1,
        count=lambda s, t: s.shape[1],
    ),
    "masked_mse": dict(
        loss=lambda p, t, h, v: masked_mse(p, t, h, valid=v),
        reference=loop_masked_mse,
        inputs=(F, draw(4, 6, 5, seed=1), coin(4, 6, seed=2), V),
        constant=(1,),
        valid=3,
        count=lambda p, t, h, v: (h & v).sum(),
    ),
    "masked_smooth_l1": dict(
        loss=lambda p, t, h, v: masked_smooth_l1(p, t, h, valid=v, beta=0.7),
        reference=loop_masked_smooth_l1,
        inputs=(F, draw(4, 6, 5, seed=1), coin(4, 6, seed=2), V),
        constant=(1,),
        valid=3,
        count=lambda p, t, h, v: (h & v).sum(),
    ),
    "masked_mse, normalised": dict(
        loss=lambda p, t, h, v: masked_mse(p, t, h, valid=v, normalise=True),
        reference=lambda p, t, h, v: loop_masked_mse(p, t, h, v, normalise=True),
        inputs=(F, draw(4, 6, 5, seed=1), coin(4, 6, seed=2), V),
        constant=(1,),
        valid=3,
        count=lambda p, t, h, v: (h & v).sum(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    """With P4 (order), P14 (zeros, equal rows), padding, half precision and what must be constant."""
    check_case(**CASES[case])


# ------------------------------------------------------------------ info_nce


@quick
@given(
    temperature=st.floats(1e-3, 10),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_P5_info_nce_is_finite_and_exact_at_any_temperature(temperature, dtype, size, seed):
    x = (draw(8, 6, seed=seed) * size).to(dtype)
    live = x.clone().requires_grad_()
    me = torch.arange(8)
    loss = info_nce(live, live, me.roll(4), temperature=temperature, exclude=me)
    loss.backward()
    u = torch.nn.functional.normalize(x.double(), dim=-1)
    s = (u @ u.T / temperature).fill_diagonal_(-torch.inf)
    expected = (s.logsumexp(1) - s[me, me.roll(4)]).mean()
    assert live.grad is not None
    assert live.grad.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=2e-6 / temperature)


def test_P5_self_similarity_is_no_negative():
    """At a low temperature the query itself would otherwise be the only key that counts."""
    x = torch.eye(4, 3, dtype=torch.float64)[[0, 1, 0, 1]]  # views 0 and 2, 1 and 3 are alike
    me = torch.arange(4)
    assert info_nce(x, x, me.roll(2), temperature=0.01, exclude=me).item() == pytest.approx(0, abs=1e-9)
    assert info_nce(x, x, me.roll(2), temperature=0.01).item() == pytest.approx(math.log(2))


def test_P7_a_tensor_temperature_means_the_same_and_learns():
    q, k = draw(4, 3), draw(4, 3, seed=1)
    learned = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    loss = info_nce(q, k, temperature=learned)
    assert loss.item() == info_nce(q, k, temperature=0.2).item()
    assert torch.autograd.gradcheck(lambda t: info_nce(q, k, temperature=t), (learned,))
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            info_nce(q, k, temperature=wrong)


def test_P11_every_option_of_info_nce_changes_the_value():
    q, k = draw(4, 3), draw(6, 3, seed=1)
    options = [{}, {"temperature": 0.5}, {"positive": torch.tensor([5, 4, 1, 0])}, {"exclude": coin(4, 6, chance=0.4)}]
    assert len({round(info_nce(q, k, **o).item(), 9) for o in options}) == len(options)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_P13_more_views_are_one_definition_which_is_nt_xent_at_two(views):
    z = draw(views, 3, 5)
    flat, me = z.flatten(0, 1), torch.arange(views * 3).view(views, 3)
    others = torch.stack([me.roll(-v, 0) for v in range(1, views)], -1).flatten(0, 1)
    got = info_nce(flat, flat, others, exclude=me.flatten(), temperature=0.2)
    terms = []
    for (v, b), w in itertools.product(itertools.product(range(views), range(3)), range(views)):
        if v != w:
            e = [(cos(z[v, b], flat[j]) / 0.2).exp() for j in range(len(flat)) if j != v * 3 + b]
            terms.append(sum(e).log() - cos(z[v, b], z[w, b]) / 0.2)
    assert got.item() == pytest.approx((sum(terms) / len(terms)).item(), rel=1e-9)


def test_indices_masks_and_none_say_the_same():
    q, k = draw(4, 3), draw(6, 3, seed=1)
    index, mask = torch.tensor([2, -1, 0, 5]), torch.zeros(4, 6, dtype=torch.bool)
    mask[[0, 2, 3], [2, 0, 5]] = True
    assert info_nce(q, k, index).item() == pytest.approx(info_nce(q, k, mask).item(), rel=1e-12)
    assert info_nce(q, k, exclude=index).item() == pytest.approx(info_nce(q, k, exclude=mask).item(), rel=1e-12)
    both = info_nce(q, k, index, exclude=mask).item()
    assert both == pytest.approx(info_nce(q, k, index).item(), rel=1e-12), "a positive is never excluded"


def test_P14_info_nce_without_positives_is_zero_with_zero_gradient():
    q = draw(3, 4).requires_grad_()
    loss = info_nce(q, q, torch.full((3,), -1), exclude=torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert q.grad is not None
    assert not q.grad.any()
    one = info_nce(q[:1], q[1:2])
    assert one.item() == 0, "a batch of one has nothing to tell apart"


@pytest.mark.parametrize("temperature", [1.0, 1 / 14.3, 1 / 100])
@pytest.mark.parametrize("tile", [1, 3, 4, 10, 50])
def test_P16_tiled_info_nce_equals_full(temperature, tile):
    q, k = draw(10, 6).requires_grad_(), draw(10, 6, seed=1).requires_grad_()
    me = torch.arange(10)
    values, grads = [], []
    for size in (None, tile):
        loss = info_nce(q, k, me.roll(5), exclude=me, temperature=temperature, tile=size)
        values.append(loss.item())
        grads.append(torch.cat(torch.autograd.grad(loss * 3, (q, k))))
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert torch.allclose(*grads, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------ negative_cosine, distill, masked losses


def test_negative_cosine_reads_direction_alone():
    a = draw(5, 4)
    assert negative_cosine(a, 3 * a).item() == pytest.approx(-1)
    assert negative_cosine(a, -a).item() == pytest.approx(1)
    assert negative_cosine(a, draw(5, 4, seed=1), valid=torch.zeros(5, dtype=torch.bool)).item() == 0


@quick
@given(shift=st.floats(-1e4, 1e4), temperature=st.floats(1e-2, 10), dtype=st.sampled_from(DTYPES[:3]))
def test_P5_distill_is_finite_and_blind_to_a_shift_of_the_logits(shift, temperature, dtype):
    student, teacher = draw(3, 4, 7), draw(2, 4, 7, seed=1).softmax(-1)
    moved = distill((student + shift).to(dtype), teacher.to(dtype), temperature=temperature)
    assert moved.isfinite()
    if dtype == torch.float64:
        assert moved.item() == pytest.approx(distill(student, teacher, temperature=temperature).item(), rel=1e-7)


def test_distill_skips_the_pairs_of_one_view_and_needs_another():
    student, teacher = draw(3, 4, 7), draw(2, 4, 7, seed=1).softmax(-1)
    changed = teacher.clone()
    changed[0] = changed[0].roll(1, -1)
    assert distill(student[:2], teacher).item() != distill(student[:2], changed).item()
    only_first = distill(student[:2], teacher[:1]).item()  # view 0 of the teacher with view 1 of the student alone
    assert only_first == pytest.approx(distill(torch.stack([student[2], student[1]]), teacher[:1]).item())
    with pytest.raises(ValueError, match="no pair of different views"):
        distill(student[:1], teacher[:1])


def test_P14_masked_mse_of_nothing_is_zero():
    p = draw(2, 3, 4).requires_grad_()
    loss = masked_mse(p, draw(2, 3, 4, seed=1), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None
    assert not p.grad.any()
    with pytest.raises(ValueError, match="no variance"):
        masked_mse(p[..., :1], p[..., :1], torch.ones(2, 3, dtype=torch.bool), normalise=True)


def test_P14_masked_losses_of_nothing_are_zero_and_nonsense_is_refused():
    p, none = draw(2, 3, 4).requires_grad_(), torch.zeros(2, 3, dtype=torch.bool)
    ids = torch.full((2, 3), -1)
    for loss in (masked_smooth_l1(p, draw(2, 3, 4, seed=1), none), masked_cross_entropy(p, ids, none)):
        (grad,) = torch.autograd.grad(loss, p)
        assert loss.item() == 0
        assert not grad.any()
    with pytest.raises(ValueError, match="beta"):
        masked_smooth_l1(p, p, none, beta=0.0)
    with pytest.raises(ValueError, match="are needed; got"):
        masked_cross_entropy(p, ids[:, 1:], none)


def test_P11_masked_smooth_l1_is_square_within_beta_and_straight_beyond():
    zero, all_of_them = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    d = torch.tensor([[[0.5, -3.0]]])
    assert masked_smooth_l1(d, zero, all_of_them).item() == pytest.approx((0.125 + 2.5) / 2)
    assert masked_smooth_l1(d, zero, all_of_them, beta=4.0).item() == pytest.approx((0.25 + 9) / 8 / 2)


def test_P11_normalise_makes_masked_mse_blind_to_scale_and_shift():
    p, t, hidden = draw(2, 3, 4), draw(2, 3, 4, seed=1), torch.ones(2, 3, dtype=torch.bool)
    one, other = (masked_mse(p, x, hidden, normalise=True).item() for x in (t, 5 * t - 2))
    assert one == pytest.approx(other, rel=1e-5)
    assert masked_mse(p, t, hidden).item() != pytest.approx(masked_mse(p, 5 * t - 2, hidden).item())
