"""Assignments to clusters, against the usual loop."""

import itertools

import pytest
import torch
from common import draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.losses import bag_of_words, sinkhorn
from partwhole.core.methods.assignment import balanced
from partwhole.core.threads import ranks


def loop_sinkhorn(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Columns, then rows, of a matrix of plain numbers."""
    q = [[torch.exp(s / temperature) for s in row] for row in scores]
    N, K = scores.shape
    for _ in range(iterations):
        for k in range(K):
            column = sum(q[n][k] for n in range(N))
            for n in range(N):
                q[n][k] = q[n][k] / column / K
        for n in range(N):
            row = sum(q[n])
            q[n] = [x / row / N for x in q[n]]
    return torch.tensor([[x * N for x in row] for row in q])


@quick
@given(N=st.integers(1, 6), K=st.integers(1, 5), iterations=st.integers(1, 4), seed=st.integers(0, 99))
def test_sinkhorn_is_the_loop(N, K, iterations, seed):
    scores = draw(N, K, seed=seed)
    got = sinkhorn(scores, temperature=0.5, iterations=iterations)
    torch.testing.assert_close(got, loop_sinkhorn(scores, 0.5, iterations).double())


@quick
@given(N=st.integers(1, 30), K=st.integers(1, 20), seed=st.integers(0, 99))
def test_rows_sum_to_1_and_clusters_are_used_equally(N, K, seed):
    q = sinkhorn(draw(N, K, seed=seed), temperature=1.0, iterations=200)
    torch.testing.assert_close(q.sum(1), torch.ones(N).double())
    torch.testing.assert_close(q.sum(0), torch.full((K,), N / K).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-4, 0.05, 100.0])
def test_P5_sinkhorn_is_finite_at_any_temperature_and_in_any_type(dtype, temperature):
    q = sinkhorn(draw(8, 5).to(dtype), temperature=temperature)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8, dtype=q.dtype), rtol=1e-4, atol=1e-4)


def test_sinkhorn_takes_no_gradient_and_keeps_the_batches_apart():
    scores = draw(2, 6, 4).requires_grad_()
    q = sinkhorn(scores)
    assert not q.requires_grad
    torch.testing.assert_close(q[1], sinkhorn(scores[1]))
    order = torch.randperm(6)
    torch.testing.assert_close(sinkhorn(scores[0][order]), q[0][order])


@quick
@given(
    scale=st.sampled_from([1e-30, 1.0, 1e4, 1e30, 3e38]),
    shift=st.sampled_from([0.0, 1e4, -1e38, 3e38]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    iterations=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_P8_sinkhorn_is_finite_for_any_finite_scores(scale, shift, dtype, iterations, seed):
    scores = (draw(6, 4, seed=seed).clamp(-1, 1) * scale + shift).clamp(-3e38, 3e38).to(dtype)
    scores[seed % 6, seed % 4] = torch.finfo(dtype).max  # and one entry as large, one as small as can be
    scores[(seed + 1) % 6, (seed + 2) % 4] = torch.finfo(dtype).min
    q = sinkhorn(scores, iterations=iterations)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(6, dtype=q.dtype), rtol=1e-5, atol=1e-5)


@quick
@given(shift=st.floats(-1e6, 1e6), iterations=st.integers(1, 50), seed=st.integers(0, 99))
def test_P8_sinkhorn_is_blind_to_one_global_shift_at_any_iteration_count(shift, iterations, seed):
    scores = draw(7, 5, seed=seed)
    q = sinkhorn(scores, iterations=iterations)
    torch.testing.assert_close(sinkhorn(scores + shift, iterations=iterations), q, rtol=1e-6, atol=1e-7)


def test_P8_a_shift_of_each_row_is_another_matter():
    """Rows are scaled last, so with few iterations it matters how they start: no row may be shifted by its maximum."""
    scores = draw(7, 5)
    assert (sinkhorn(scores - scores.amax(1, keepdim=True), iterations=1) - sinkhorn(scores, iterations=1)).max() > 0.1


@quick
@given(N=st.integers(2, 20), K=st.integers(2, 10), temperature=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_P9_rows_sum_to_1_and_the_clusters_even_out_with_iterations(N, K, temperature, seed):
    scores = torch.nn.functional.normalize(draw(N, 6, seed=seed), dim=1) @ draw(6, K, seed=seed + 1) / 6**0.5
    errors = []
    for iterations in (1, 3, 10, 50):
        q = sinkhorn(scores, temperature=temperature, iterations=iterations)
        torch.testing.assert_close(q.sum(1), torch.ones(N).double())
        errors.append((q.sum(0) - N / K).abs().sum().item())
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.5 * errors[0] + 1e-9


@pytest.mark.parametrize("sizes", [(3, 6), (4, 1, 4), (1, 0, 5, 3)])
@pytest.mark.parametrize("bank", [0, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_P9_rows_of_all_ranks_are_assigned_as_by_one(sizes, bank, masked):
    """Whatever share of the rows a process has; rows of a bank, which all have, count once."""
    scores, extra = draw(2, 9, 4), draw(bank, 4, seed=1) if bank else None
    valid = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.7 if masked else None
    filled = torch.arange(bank) < 3 if masked and bank else None
    whole = scores if extra is None else torch.cat([extra.expand(2, -1, -1), scores], 1)
    counted = torch.ones(whole.shape[:2], dtype=torch.bool)
    if valid is not None:
        counted[:, bank:] = valid
    if filled is not None:
        counted[:, :bank] = filled
    expected = torch.stack([torch.zeros(9, 4).double() for _ in range(2)])
    for v in range(2):
        kept = counted[v, bank:]
        expected[v, kept] = sinkhorn(whole[v, counted[v]], temperature=0.3)[-int(kept.sum()) :]
    ends = list(itertools.accumulate((0, *sizes)))

    def rank(r: int) -> Tensor:
        mine = slice(ends[r], ends[r + 1])
        own = None if valid is None else valid[:, mine]
        return balanced(scores[:, mine], temperature=0.3, valid=own, bank=extra, filled=filled)

    alone = balanced(scores, temperature=0.3, valid=valid, bank=extra, filled=filled)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-14)
    with ranks(len(sizes)) as run:
        got = torch.cat(run(rank), 1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_rows_that_do_not_count_change_nothing(junk):
    scores, valid = draw(6, 4), torch.tensor([True, False, True, True, False, True])
    dirty = scores.masked_fill(~valid[:, None], junk)
    q = sinkhorn(dirty, valid=valid)
    torch.testing.assert_close(q[valid], sinkhorn(scores[valid]))
    assert not q[~valid].any()
    assert not sinkhorn(dirty, valid=torch.zeros(6, dtype=torch.bool)).any(), "none counts"


def test_no_rows_are_no_assignments():
    assert sinkhorn(torch.zeros(2, 0, 4)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("options", "wrong"), [({"temperature": 0.0}, "temperature"), ({"iterations": 0}, "iterations")]
)
def test_sinkhorn_refuses_what_makes_no_sense(options, wrong):
    with pytest.raises(ValueError, match=wrong):
        sinkhorn(torch.zeros(3, 4), **options)
    with pytest.raises(ValueError, match=r"\(\.\.\., N, K\)"):
        sinkhorn(torch.zeros(3))


# ------------------------------------------------------------------ bags of words


@quick
@given(
    B=st.integers(1, 3),
    L=st.integers(1, 4),
    K=st.integers(1, 5),
    temperature=st.floats(0.05, 50),
    seed=st.integers(0, 99),
)
def test_bag_of_words_is_the_loop(B, L, K, temperature, seed):
    tokens, words = draw(B, L, 3, seed=seed), draw(K, 3, seed=seed + 1)
    valid = torch.rand(B, L, generator=torch.Generator().manual_seed(seed)) < 0.7
    bag, distance = bag_of_words(
        tokens.masked_fill(~valid[..., None], torch.nan), words, temperature=temperature, valid=valid
    )
    for b in range(B):
        most, nearest = torch.zeros(K).double(), []
        for i in range(L):
            if valid[b, i]:
                d = torch.stack([sum((tokens[b, i, f] - words[k, f]) ** 2 for f in range(3)) for k in range(K)])
                e = (-(d - d.min()) / temperature).exp()
                most = torch.maximum(most, e / e.sum())
                nearest.append(d.min())
        if nearest:
            most, mean = most / most.sum(), sum(nearest) / len(nearest)
        else:
            mean = 0.0
        torch.testing.assert_close(bag[b], most, rtol=1e-6, atol=1e-9)
        assert distance[b].item() == pytest.approx(float(mean), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2])
def test_bags_are_finite_constants_in_any_type(dtype, size):
    tokens, words = (draw(2, 3, 4) * size).to(dtype).requires_grad_(), (draw(5, 4, seed=1) * size).to(dtype)
    bag, distance = bag_of_words(tokens, words, temperature=1e-3)
    assert bag.isfinite().all()
    assert distance.isfinite().all()
    assert not bag.requires_grad
    torch.testing.assert_close(bag.sum(1), torch.ones(2, dtype=bag.dtype))
    with pytest.raises(ValueError, match=r"tokens \(B, L, D\)"):
        bag_of_words(tokens[0], words, temperature=1.0)
