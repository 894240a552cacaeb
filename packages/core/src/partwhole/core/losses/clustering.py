"""Soft assignments of rows to clusters.

Axes: N rows, K clusters.
"""

from torch import Tensor

from partwhole.core.losses.precision import in_float32, positive_temperature


@in_float32
def sinkhorn(scores: Tensor, *, temperature: float | Tensor = 0.05, iterations: int = 3) -> Tensor:
    """Rows spread over clusters so that every cluster is used equally: constants that sum to 1 (Caron et al., 2020).

        q[n, k] = r[n] * c[k] * exp(scores[n, k] / temperature),   sum over k: q[n, k] = 1,  sum over n: q[n, k] = N / K

    r and c are found by scaling columns and rows in turn (Cuturi, 2013), rows last: only with many ``iterations`` are
    the columns exact too. In logarithms, so that no temperature overflows. scores (..., N, K); N = 0 gives none.
    """
    positive_temperature(temperature)
    if scores.ndim < 2:
        raise ValueError(f"scores (..., N, K) are needed; got {tuple(scores.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: at least 1")
    q = scores.detach() / temperature
    for _ in range(iterations):
        q = q.log_softmax(-2).log_softmax(-1)  # each cluster's share of the rows, then each row's of the clusters
    return q.exp()
