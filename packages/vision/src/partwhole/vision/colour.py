"""Colours of images changed, in place: x (..., 3, H, W) in [0, 1], by one number or by one for each, (B, 1, 1, 1).

All agree with torchvision's functions of the same names on floats, to rounding, at a fraction of the time.
"""

from functools import lru_cache

import torch
from torch import Tensor

Amount = float | Tensor
LUMA = (0.2989, 0.587, 0.114)  # what red, green and blue add to brightness (ITU-R BT.601)


def brightness_(x: Tensor, amount: Amount) -> Tensor:
    """0 is black, 1 the same."""
    return x.mul_(amount).clamp_(0, 1)


def contrast_(x: Tensor, amount: Amount) -> Tensor:
    """0 is the mean brightness everywhere, 1 the same."""
    mean = x.mean((-2, -1))
    if x.ndim == 3:  # numbers are faster than tensors of one number
        grey = sum(weight * level for weight, level in zip(LUMA, mean.tolist(), strict=True))
    else:
        grey = (mean @ _luma(x.dtype, x.device)[0])[:, None, None, None]
    return x.mul_(amount).add_(grey * (1 - amount)).clamp_(0, 1)


def saturation_(x: Tensor, amount: Amount) -> Tensor:
    """0 is grey, 1 the same."""
    grey, rest = _luma(x.dtype, x.device), _luma(x.dtype, x.device, rest=True)
    if isinstance(amount, Tensor):
        return _mixed(x, torch.addcmul(grey, rest, amount.view(-1, 1, 1))).clamp_(0, 1)
    return _mixed(x, torch.add(grey, rest, alpha=amount)).clamp_(0, 1)


@lru_cache(maxsize=16)
def _luma(dtype: torch.dtype, device: torch.device, rest: bool = False) -> Tensor:
    """What makes colours grey, (3, 3), or what else there is in them."""
    grey = torch.tensor([LUMA] * 3, dtype=dtype, device=device)
    return torch.eye(3, dtype=dtype, device=device) - grey if rest else grey


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """Channels mixed, in place."""
    flat = x.view(*x.shape[:-2], -1)
    return flat.copy_(matrix @ flat).view(x.shape)


def hue_(x: Tensor, amount: Amount) -> Tensor:
    """Turn the circle of colours by this share of it.

    The greatest and the least of red, green and blue stay; of what is between them each gets a share that depends on
    the hue alone, h in [0, 6): red |h - 3| - 1, green 2 - |h - 2|, blue 2 - |h - 4|, each cut to [0, 1].
    """
    red, green, blue = (x.narrow(-3, i, 1) for i in range(3))
    both = green + blue
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    far = both.sub_(red).add_(most).sub_(least, alpha=2).div_(chroma.clamp(min=1e-12))  # from red, in [0, 3]
    h = far.copysign_(green - blue).add_(6 * amount)
    h.sub_((h / 6).floor_(), alpha=6)
    torch.sub(h, 3, out=red).abs_().sub_(1)
    torch.sub(h, 2, out=green).abs_().neg_().add_(2)
    torch.sub(h, 4, out=blue).abs_().neg_().add_(2)
    return x.clamp_(0, 1).mul_(chroma).add_(least)


def grey_(x: Tensor) -> Tensor:
    """Without colours."""
    return _mixed(x, _luma(x.dtype, x.device))


def solarize_(x: Tensor, threshold: Amount = 0.5) -> Tensor:
    """The negative, where a channel is at the threshold or above."""
    return x.copy_(torch.where(x >= threshold, 1 - x, x))


def posterize_(x: Tensor, bits: Amount) -> Tensor:
    """As many bits for each channel."""
    levels = 2**bits
    return x.mul_(levels).floor_().clamp_(max=levels - 1).div_(levels)


def sharpness_(x: Tensor, amount: Amount) -> Tensor:
    """0 is a little blurred, 1 the same; borders stay."""
    if min(x.shape[-2:]) < 3:
        return x
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    inside = x[..., 1:-1, 1:-1]
    soft = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(inside, alpha=4).div_(13)
    inside.add_(soft.sub_(inside).mul_(1 - amount))
    return x.clamp_(0, 1)


def autocontrast_(x: Tensor) -> Tensor:
    """Each channel from 0 to 1."""
    from torchvision.transforms.v2.functional import autocontrast

    return x.copy_(autocontrast(x))


def equalize_(x: Tensor) -> Tensor:
    """Each channel with as many pixels of any value, in 256 steps."""
    from torchvision.transforms.v2.functional import equalize

    return x.copy_(equalize(x))


def sobel_(x: Tensor) -> Tensor:
    """The steepness of each channel, by Sobel's filter; 1 is a step from 0 to 1. Borders are repeated."""
    wide = torch.nn.functional.pad(x.view(-1, *x.shape[-3:]), (1, 1, 1, 1), mode="replicate")
    along = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    across = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    right = along[..., 2:] - along[..., :-2]
    down = across[..., 2:, :] - across[..., :-2, :]
    return x.copy_((right.square_() + down.square_()).sqrt_().div_(4).clamp_(max=1).view(x.shape))
