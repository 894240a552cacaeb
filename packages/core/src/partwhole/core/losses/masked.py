"""Losses on hidden tokens.

Axes: B batch, L tokens, T what a token is rebuilt into; N tokens of any batch, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.tiles import Part, choose, chunk, chunked, rows_of, tiled
from partwhole.core.precision import in_float32, outside_autocast, widen


@in_float32
def masked_mse(
    prediction: Tensor, target: Tensor, hidden: Tensor, *, valid: Tensor | None = None, normalise: bool = False
) -> Tensor:
    """Mean squared error on the hidden tokens only (He et al., 2022); 0 where nothing is hidden.

        loss = mean over hidden (b, l), mean over t:  (prediction[b, l, t] - target[b, l, t])^2

    prediction, target (B, L, T), the target a constant; hidden (B, L) bool, and valid (B, L), true where a token is
    real: the rest may hold anything. ``normalise`` shifts and scales each target token to mean 0 and (unbiased)
    variance 1 over t first, as the paper does.
    """
    _same_tokens(prediction, target, hidden)
    target = target.detach()
    if normalise:
        if target.shape[-1] < 2:
            raise ValueError(f"a target of {target.shape[-1]} value a token has no variance: leave normalise out")
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    counted = _both(hidden, valid)
    error = (prediction - target).masked_fill(~counted[..., None], 0).square().mean(-1)
    return error.sum() / counted.sum().clamp(min=1)


@in_float32
def masked_smooth_l1(
    prediction: Tensor, target: Tensor, hidden: Tensor, *, valid: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    """Huber's error over beta on the hidden tokens only (data2vec: Baevski et al., 2022); 0 where nothing is hidden.

        loss = mean over hidden (b, l), mean over t of  d^2 / (2 beta)  where |d| < beta,  |d| - beta / 2  elsewhere
        d = prediction[b, l, t] - target[b, l, t]

    prediction, target (B, L, T), the target a constant; hidden (B, L) bool, and valid (B, L), true where a token is
    real: the rest may hold anything.
    """
    _same_tokens(prediction, target, hidden)
    if not beta > 0:
        raise ValueError(f"beta, where the square ends and the line begins, must be above 0; got {beta}")
    counted = _both(hidden, valid)
    blank = ~counted[..., None]
    prediction, target = prediction.masked_fill(blank, 0), target.detach().masked_fill(blank, 0)
    error = F.smooth_l1_loss(prediction, target, beta=beta, reduction="none").mean(-1)
    return error.sum() / counted.sum().clamp(min=1)


@outside_autocast
def masked_cross_entropy(logits: Tensor, target: Tensor, hidden: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Cross entropy on the hidden tokens only (Devlin et al., 2019; Bao et al., 2022); 0 where nothing is hidden.

        loss = mean over hidden (b, l):  log(sum over k: exp logits[b, l, k]) - logits[b, l, target[b, l]]

    logits (B, L, K), target (B, L) integer, hidden (B, L) bool, and valid (B, L), true where a token is real: the rest
    may hold anything. Or rows of them: (N, K) and (N,) three times. Where most tokens are not hidden, do not make their
    logits: ``linear_cross_entropy``.

    Some rows are looked at at a time, in float32 whatever the dtype: beside the logits only their gradient is as large.
    There is no second derivative.
    """
    if logits.shape[:-1] != target.shape or target.shape != hidden.shape or target.is_floating_point():
        raise ValueError(
            "logits (B, L, K), integer target (B, L) and hidden (B, L) are needed; got "
            f"{tuple(logits.shape)}, {target.dtype} {tuple(target.shape)} and {tuple(hidden.shape)}"
        )
    counted = _both(hidden, valid).flatten()
    flat = logits.reshape(-1, logits.shape[-1])
    part = _cross_entropy(target.flatten(), counted, widen(flat[:0]))
    return chunked(part, flat, rows_of(len(flat), chunk(flat.shape[1], flat.device)))


@in_float32
def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Cross entropy of a linear layer's classes, without ever making all of its logits; 0 where there is no row.

        logits[n, k] = features[n] . weight[k] + bias[k]
        loss         = mean over valid n:  log(sum over k: exp logits[n, k]) - logits[n, target[n]]

    features (N, D), weight (K, D), bias (K,), target (N,) integer, valid (N,) bool; or features (..., D), target and
    valid (...). Rows that are not valid may hold anything and never reach the layer.
    tile: so many rows at a time; at least N for all logits at once, which alone has second derivatives.

    torch.nn.functional has a function of this name from 2.14 on, in less memory, which a CPU takes longer for where
    there are many classes, and which makes all logits unless told not to.
    """
    if features.shape[:-1] != target.shape or features.shape[-1] != weight.shape[-1] or target.is_floating_point():
        raise ValueError(
            "features (N, D), weight (K, D) and integer target (N,) are needed; got "
            f"{tuple(features.shape)}, {tuple(weight.shape)} and {target.dtype} {tuple(target.shape)}"
        )
    features, target = features.reshape(-1, features.shape[-1]), target.flatten()
    counted = torch.ones_like(target, dtype=torch.bool) if valid is None else valid.flatten()
    if valid is not None and not torch.compiler.is_compiling():  # a compiled graph keeps its shapes
        features, target, counted = features[counted], target[counted], counted[counted]
    features = features.masked_fill(~counted[:, None], 0)
    size = choose(tile, len(features), len(weight), features.device)
    if size is None:
        target = target.masked_fill(~counted, -100).long()
        total = F.cross_entropy(F.linear(features, weight, bias), target, reduction="sum", ignore_index=-100)
        return total / counted.sum().clamp(min=1)
    return tiled(_cross_entropy(target, counted, features), features, weight, tile=size, bias=bias)


def _cross_entropy(target: Tensor, counted: Tensor, like: Tensor) -> Part:
    """The mean over the counted rows, (N,) as target."""
    target = target.masked_fill(~counted, 0).long()[:, None]
    share = counted.to(like.dtype)[:, None] / counted.sum().clamp(min=1)

    def part(logits: Tensor, rows: slice) -> Tensor:
        wanted, weight = target[rows], share[rows]
        logits.masked_fill_(~counted[rows, None], 0)
        logits -= logits.amax(1, keepdim=True)
        value = -(logits.gather(1, wanted) * weight).sum()
        total = logits.exp_().sum(1, keepdim=True)
        logits.mul_(weight / total).scatter_add_(1, wanted, -weight)
        return value + (weight * total.log()).sum()

    return part


def _both(hidden: Tensor, valid: Tensor | None) -> Tensor:
    """Which tokens are hidden, and real."""
    return hidden.bool() if valid is None else hidden.bool() & valid


def _same_tokens(prediction: Tensor, target: Tensor, hidden: Tensor) -> None:
    if not prediction.shape == target.shape == (*hidden.shape, target.shape[-1]):
        raise ValueError(
            "prediction and target (B, L, T) and hidden (B, L) are needed; got "
            f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(hidden.shape)}"
        )
