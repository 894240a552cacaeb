"""Losses on hidden tokens.

Axes: B batch, L tokens, T what a token is rebuilt into.
"""

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
    if not prediction.shape == target.shape == (*hidden.shape, target.shape[-1]):
        raise ValueError(
            "prediction and target (B, L, T) and hidden (B, L) are needed; got "
            f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(hidden.shape)}"
        )
    target = target.detach()
    if normalise:
        if target.shape[-1] < 2:
            raise ValueError(f"a target of {target.shape[-1]} value a token has no variance: leave normalise out")
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    counted = hidden.bool() if valid is None else hidden.bool() & valid
    error = (prediction - target).masked_fill(~counted[..., None], 0).square().mean(-1)
    return error.sum() / counted.sum().clamp(min=1)
