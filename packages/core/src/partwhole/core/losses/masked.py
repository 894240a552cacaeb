"""Losses on hidden tokens.

Axes: B batch, L tokens, T what a token is rebuilt into, V entries of a vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.precision import in_float32


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
    counted = hidden.bool() if valid is None else hidden.bool() & valid
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
    counted = hidden.bool() if valid is None else hidden.bool() & valid
    blank = ~counted[..., None]
    prediction, target = prediction.masked_fill(blank, 0), target.detach().masked_fill(blank, 0)
    error = F.smooth_l1_loss(prediction, target, beta=beta, reduction="none").mean(-1)
    return error.sum() / counted.sum().clamp(min=1)


@in_float32
def masked_cross_entropy(logits: Tensor, target: Tensor, hidden: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Cross entropy on the hidden tokens only (BERT: Devlin et al., 2019; BEiT: Bao et al., 2022); 0 where none is.

        loss = -mean over hidden (b, l) of  log softmax(logits[b, l])[target[b, l]]

    logits (B, L, V); target (B, L) int; hidden (B, L) bool, and valid (B, L), true where a token is real: the rest may
    hold anything.
    """
    if not logits.shape[:-1] == target.shape == hidden.shape:
        raise ValueError(
            "logits (B, L, V), target (B, L) and hidden (B, L) are needed; got "
            f"{tuple(logits.shape)}, {tuple(target.shape)} and {tuple(hidden.shape)}"
        )
    counted = hidden.bool() if valid is None else hidden.bool() & valid
    logits, target = logits.masked_fill(~counted[..., None], 0), target.masked_fill(~counted, 0)
    error = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view_as(target)
    return error.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)


def _same_tokens(prediction: Tensor, target: Tensor, hidden: Tensor) -> None:
    if not prediction.shape == target.shape == (*hidden.shape, target.shape[-1]):
        raise ValueError(
            "prediction and target (B, L, T) and hidden (B, L) are needed; got "
            f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(hidden.shape)}"
        )
