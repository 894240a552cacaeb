"""Losses without negatives: views agree, and the batch as a whole must not collapse.

All of them read statistics of a batch, so they need its rows from every process: a method gathers them with gradient
(``distributed.gather``), every process then has the whole loss, and it is multiplied by no ``share``.

Axes: N rows of the whole batch, D features, S directions, T knots.
"""

import torch
from torch import Tensor

from partwhole.core.precision import in_float32, unit


@in_float32
def barlow(first: Tensor, second: Tensor, *, redundancy: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """Make the features' correlations between two views the identity (Zbontar et al., 2021).

        a[n, i] = (first[n, i] - mean over n) / sqrt(variance over n + eps),   b likewise of second
        c[i, j] = mean over n: a[n, i] * b[n, j]
        loss    = sum over i: (1 - c[i, i])^2  +  redundancy * sum over i != j: c[i, j]^2

    first, second (N, D), row n of both of one thing; the variance is biased. In the paper eps is 0; it is the official
    code's, and makes the correlation of a constant feature 0. ValueError for one row.
    """
    _check_pair(first, second)
    a, b = (x - x.mean(0) for x in (first, second))
    a, b = (x * (x.square().mean(0) + eps).rsqrt() for x in (a, b))
    alike = (1 - (a * b).mean(0)).square().sum()
    return alike + redundancy * _off_diagonal(a, b) / len(a) ** 2


@in_float32
def vicreg(first: Tensor, second: Tensor, *, target: float = 1.0, eps: float = 1e-4) -> dict[str, Tensor]:
    """Three terms, to be weighted: views agree, features vary, and do not covary (Bardes et al., 2022).

        invariance  mean over n, i:  (first[n, i] - second[n, i])^2
        variance    mean over i, and over the two views:  max(0, target - sqrt(var[i] + eps))
        covariance  sum over the two views:  1 / D * sum over i != j: cov[i, j]^2

    first, second (N, D), row n of both of one thing; var and cov are unbiased (over N - 1). ValueError for one row.
    These are the official code's terms, to which the weights 25, 25, 1 belong. In the paper's equations the invariance
    is a sum over i (D times this), and the variance a sum over the views (twice this, as in the paper's own listing).
    """
    _check_pair(first, second)
    N, D = first.shape
    centred = [x - x.mean(0) for x in (first, second)]
    std = torch.stack([(x.square().sum(0) / (N - 1) + eps).sqrt() for x in centred])
    return {
        "invariance": (first - second).square().mean(),
        "variance": (target - std).relu().mean(),
        "covariance": torch.stack([_off_diagonal(x, x) for x in centred]).sum() / (D * (N - 1) ** 2),
    }


@in_float32
def sigreg(feature: Tensor, directions: Tensor, *, limit: float = 3.0, knots: int = 17) -> Tensor:
    """How far rows are from a standard normal distribution, seen along some directions (Balestriero and LeCun, 2025).

        x[n, s] = feature[n, :] . directions[:, s] / |directions[:, s]|
        T[s]    = N * integral over t, from -limit to limit:  |mean over n: exp(i t x[n, s]) - w(t)|^2 * w(t)
        loss    = mean over s: T[s],   w(t) = exp(-t^2 / 2)

    T is the statistic of Epps and Pulley (1983). The integrand is even: twice the trapezoid rule over ``knots`` equal
    steps from 0 to ``limit``, as in the official code. The paper's listing has limit 5 and knots 9, there written as 17
    from -5 to 5.

    feature (N, D); directions (D, S), constants, the same on every process: drawn by the caller, normally of
    ``torch.randn`` and anew in every step. Memory is N * S * knots.
    """
    if feature.ndim != 2 or directions.ndim != 2 or feature.shape[1] != directions.shape[0]:
        raise ValueError(
            f"feature (N, D) and directions (D, S) are needed; got {tuple(feature.shape)} and {tuple(directions.shape)}"
        )
    if knots < 2 or not limit > 0 or 0 in (*feature.shape, directions.shape[1]):
        raise ValueError(
            f"at least 2 knots up to a limit above 0, one row and one direction are needed; got knots {knots}, limit "
            f"{limit}, {len(feature)} rows and {directions.shape[1]} directions"
        )
    x = feature @ unit(directions.detach().to(feature.dtype).mT).mT  # (N, S)
    t = torch.linspace(0, limit, knots, dtype=x.dtype, device=x.device)
    window = (-t.square() / 2).exp()
    angle = x[..., None] * t  # (N, S, T)
    error = (angle.cos().mean(0) - window).square() + angle.sin().mean(0).square()  # (S, T)
    return 2 * len(x) * torch.trapezoid(error * window, t, dim=-1).mean()


def _off_diagonal(a: Tensor, b: Tensor) -> Tensor:
    """Sum over i != j: (sum over n: a[n, i] * b[n, j])^2, for a, b (N, D): all pairs less those of i == j.

    With fewer rows than features the sum over all pairs is that of the products of two (N, N) matrices:
    |a^T b|^2 = tr(a a^T b b^T). With four times as many features as rows ``barlow`` takes half the time, ``vicreg``
    under a third, and these matrices a sixteenth of the memory.
    """
    if len(a) < a.shape[1]:
        gram = a @ a.mT
        every = (gram * (gram if b is a else b @ b.mT)).sum()
    else:
        every = (a.mT @ b).square().sum()
    return every - (a * b).sum(0).square().sum()


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"two views (N, D) are needed; got {tuple(first.shape)} and {tuple(second.shape)}")
    if len(first) < 2:
        raise ValueError(f"a batch of {len(first)} has no variance: at least 2 things, over all processes, are needed")
