"""Soft assignments of rows to clusters.

Axes: N rows, K clusters; B things, L tokens, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from partwhole.core.losses.precision import in_float32, positive_temperature


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
