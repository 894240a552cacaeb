"""Losses of classes, of which only some are known, or which are known in part.

Axes: N things (or any leading axes), K classes, M classes that share a thing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.tiles import chunk, chunked, rows_of
from partwhole.core.precision import in_float32, outside_autocast, widen


@in_float32
def cross_entropy(logits: Tensor, label: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over things of known label; 0 where there is none.

        q[n, k] = (1 - smoothing) * (k == label[n]) + smoothing / K           (Szegedy et al., 2016)
        loss    = mean over n of known label:  - sum over k: q[n, k] * log softmax over k: logits[n, k]

    logits (..., K), label (...) integer, below 0 unknown.
    """
    _check(logits, label, "label")
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"smoothing is the share of a label that is spread over all classes, in [0, 1); got {smoothing}"
        )
    known = label >= 0
    logits = logits.masked_fill(~known[..., None], 0).flatten(0, -2)
    total = F.cross_entropy(
        logits, label.masked_fill(~known, -100).flatten(), reduction="sum", label_smoothing=smoothing
    )
    return total / known.sum().clamp(min=1)


@outside_autocast
def soft_cross_entropy(logits: Tensor, index: Tensor, share: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean cross entropy to labels that a few of many classes share; 0 where there is no thing.

        loss = mean over n:  weight[n] * - sum over m: share[n, m] * log softmax over k: logits[n, k] at k = index[n, m]

    logits (..., K); index (..., M) integer and share (..., M), constant: which classes, and how much of the thing is of
    each; weight (...), constant, 1 by default. The mean is over all things, whatever they weigh.

    Some rows are looked at at a time, in float32 whatever the dtype: of the size of the logits only their gradient is
    ever made; it has no gradient of its own.
    """
    if logits.ndim < 2 or index.shape != share.shape or index.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            "logits (..., K), index (..., M) and share (..., M) are needed; got "
            f"{tuple(logits.shape)}, {tuple(index.shape)} and {tuple(share.shape)}"
        )
    weight = torch.ones_like(share[..., 0]) if weight is None else weight
    _check(logits, weight, "weight")
    rows, index = logits.flatten(0, -2), index.flatten(0, -2)
    wide = widen(logits[:0]).dtype
    each = weight.detach().to(wide).flatten() / max(len(rows), 1)
    share = share.detach().to(wide).flatten(0, -2) * each[:, None]
    if torch.compiler.is_compiling():  # it makes little of what is between, and may not know how many rows there are
        return -(share * widen(rows).log_softmax(-1).gather(1, index)).sum()

    def part(some: Tensor, r: slice) -> Tensor:
        wanted, mass = share[r], share[r].sum(1, keepdim=True)
        some -= some.amax(1, keepdim=True)
        value = -(some.gather(1, index[r]) * wanted).sum()
        total = some.exp_().sum(1, keepdim=True)
        some.mul_(mass / total).scatter_add_(1, index[r], -wanted)
        return value + (mass * total.log()).sum()

    return chunked(part, rows, rows_of(len(rows), chunk(rows.shape[1], rows.device)))


@in_float32
def consistency(
    weak: Tensor, strong: Tensor, *, threshold: float = 0.95, valid: Tensor | None = None
) -> dict[str, Tensor]:
    """What is sure of one view teaches the other (FixMatch: Sohn et al., 2020).

        p[n, k] = softmax over k: weak[n, k], a constant
        sure[n] = max over k: p[n, k] >= threshold
        loss    = mean over n:  sure[n] * - log softmax of strong[n, :] at argmax over k: p[n, k]
        share   = mean over n:  sure[n]

    weak, strong (..., K) logits; valid (...), true where a thing counts. The mean is over all that count, sure or not,
    so the loss grows with the share: where nothing is sure it is 0.
    """
    if weak.shape != strong.shape:
        raise ValueError(
            f"weak and strong logits (..., K) must be alike; got {tuple(weak.shape)}, {tuple(strong.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability; got {threshold}")
    if valid is None:
        valid = torch.ones_like(weak[..., 0], dtype=torch.bool)
    _check(weak, valid, "valid")
    weak, strong = (x.masked_fill(~valid[..., None], 0) for x in (weak.detach(), strong))
    most, pseudo = weak.softmax(-1).max(-1)
    sure, count = (most >= threshold) & valid, valid.sum().clamp(min=1)
    losses = -strong.log_softmax(-1).gather(-1, pseudo[..., None])[..., 0]
    return {"loss": torch.where(sure, losses, 0).sum() / count, "share": sure.sum() / count}


def _check(logits: Tensor, other: Tensor, name: str) -> None:
    if logits.ndim < 2 or logits.shape[:-1] != other.shape:
        raise ValueError(
            f"logits (..., K) and {name} (...) are needed; got {tuple(logits.shape)} and {tuple(other.shape)}"
        )
