"""Soft assignments of rows to clusters.

Axes: N rows, K clusters; B things, L tokens, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from partwhole.core.precision import in_float32, positive_temperature


@in_float32
def sinkhorn(
    scores: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    iterations: int = 3,
    valid: Tensor | None = None,
    columns: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Rows spread over clusters so that every cluster is used equally: constants that sum to 1 (Caron et al., 2020).

        q[n, k] = r[n] * c[k] * exp(scores[n, k] / temperature),   sum over k: q[n, k] = 1,  sum over n: q[n, k] = N / K

    r and c are found by scaling columns and rows in turn (Cuturi, 2013), rows last: only with many ``iterations`` are
    the columns exact too. In logarithms, so that no finite score overflows, whatever the temperature.
    ``distill`` from the assignments of some views to the scores of others is SwAV's swapped prediction.

    scores (..., N, K); N = 0 gives none.
    valid (..., N), true where a row counts: the others may hold anything, change nothing and are given zeros.
    columns: log-sums (..., 1, K) over all rows, of the logarithms (..., N, K) of these; by default these are all.
        ``methods.assignment.balanced`` makes it those of every process.
    """
    positive_temperature(temperature)
    if scores.ndim < 2:
        raise ValueError(f"scores (..., N, K) are needed; got {tuple(scores.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: at least 1")
    most = torch.finfo(scores.dtype).max / 8  # differences of such stay finite
    q = (scores.detach() / temperature).clamp(-most, most)
    out = None if valid is None else ~valid[..., None]
    for _ in range(iterations):
        counted = q if out is None else q.masked_fill(out, -torch.inf)
        sums = counted.logsumexp(-2, keepdim=True) if columns is None else columns(counted)
        q = (q - sums).log_softmax(-1)  # each cluster's share of the rows, then each row's of the clusters
    return q.exp() if out is None else q.exp().masked_fill(out, 0)


@in_float32
def bag_of_words(
    tokens: Tensor, words: Tensor, *, temperature: float | Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which words a thing has: constants (B, K) that sum to 1 over k (Gidaris et al., 2021).

        d[b, l, k]  = |tokens[b, l] - words[k]|^2
        q[b, l, k]  = softmax over k: -d[b, l, k] / temperature
        bag[b, k]   = max over l: q[b, l, k], over its sum over k

    and the mean over l of min over k: d[b, l, k] (B,), the scale that a temperature must have. tokens (B, L, D), words
    (K, D); valid (B, L), true where a token is real: both are 0 for a thing without any.
    """
    positive_temperature(temperature)
    if tokens.ndim != 3 or words.ndim != 2 or tokens.shape[2] != words.shape[1]:
        raise ValueError(
            f"tokens (B, L, D) and words (K, D) are needed; got {tuple(tokens.shape)}, {tuple(words.shape)}"
        )
    tokens, words = tokens.detach(), words.detach()
    real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if valid is None else valid
    tokens = tokens.masked_fill(~real[..., None], 0)
    d = tokens.square().sum(-1, keepdim=True) + words.square().sum(-1) - 2 * tokens @ words.mT
    d = d.clamp(min=0)  # rounding
    most = (-d / temperature).softmax(-1).masked_fill(~real[..., None], 0).amax(1)
    nearest = d.amin(-1).masked_fill(~real, 0).sum(1) / real.sum(1).clamp(min=1)
    return most / most.sum(1, keepdim=True).clamp(min=1e-12), nearest
