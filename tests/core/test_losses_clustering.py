"""Assignments to clusters, against the usual loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.losses import sinkhorn

quick = settings(max_examples=25, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
