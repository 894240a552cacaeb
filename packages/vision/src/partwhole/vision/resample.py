"""Crops of images resized, blurred and turned: each a linear map, for one image or for a batch with a number for each.

All agree with torchvision's functions on floats, to rounding.

Axes: B images, H and W their height and width, S the side of what comes out.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

KEPT = 1024  # up to this side of a crop its weights are kept; products with them are faster than torch's own resizing
SMALL, BLOCK = 96, 32  # views of more than SMALL pixels are made BLOCK pixels at a time: weights are zero far off
AT_ONCE = 1 << 27  # numbers that a device holds of a batch of images, as floats


def crops(images: Tensor | Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Crops of uint8 images, antialiased and bilinear: (B, 3, size, size) float32 in [0, 1].

    images: (B, 3, H, W), or B of (3, H, W) of any sizes.
    boxes: (B, 5) integers on the CPU: top, left, height, width, and 1 where the crop is mirrored.

    What ``torchvision.transforms.v2.functional.resized_crop`` makes of floats, with antialias. A CPU takes one image
    after the other, which then stays in its cache; other devices take all that have one size in two matrix products.
    """
    if one_by_one(images[0]):
        out = torch.empty(len(images), 3, size, size)
        for image, box, x in zip(images, boxes.tolist(), out, strict=True):
            _crop(image, box, x)
        return out
    step = max(1, AT_ONCE // images[0].numel()) if isinstance(images, Tensor) else 1
    some = images.split(step) if isinstance(images, Tensor) else [image[None] for image in images]
    return torch.cat([_crops_at_once(few, box, size) for few, box in zip(some, boxes.split(step), strict=True)])


def one_by_one(x: Tensor) -> bool:
    """Whether images are best changed one after the other: on a CPU each then stays in the cache."""
    return x.device.type == "cpu"


def _crop(image: Tensor, box: Sequence[int], out: Tensor) -> None:
    """One of them into out (3, S, S)."""
    top, left, height, width, mirrored = map(int, box)
    x, size = image[:, top : top + height, left : left + width].float(), out.shape[-1]
    if max(height, width) > KEPT:
        x = F.interpolate(x[None], (size, size), mode="bilinear", antialias=True)[0]
        torch.mul(x.flip(-1) if mirrored else x, 1 / 255, out=out)
        return
    x = _joined(
        [torch.bmm(weight.expand(3, -1, -1), x[:, first:last]) for first, last, weight in _blocks(height, size)], 1
    )
    blocks = _blocks(width, size)
    if mirrored:
        blocks = [(first, last, weight.flip(0)) for first, last, weight in reversed(blocks)]
    torch.cat([x[..., first:last] @ weight.mT for first, last, weight in blocks], 2, out=out)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


@lru_cache(maxsize=512)
def _blocks(source: int, size: int) -> list[tuple[int, int, Tensor]]:
    """What resizes a row of ``source`` pixels, some new pixels at a time: the old ones from first to last that they
    take of, and the weights. Their sums are 255 ** -.5: two of them bring 255 to 1."""
    weight = _weights(torch.tensor([[0, source, 0]]), source, size, torch.device("cpu"))[0] / math.sqrt(255)
    blocks = []
    for rows in weight.split(size if size <= SMALL else BLOCK):
        taken = rows.any(0).nonzero()
        first, last = int(taken[0]), int(taken[-1]) + 1
        blocks.append((first, last, rows[:, first:last].contiguous()))
    return blocks


def _crops_at_once(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    device, (height, width) = images.device, images.shape[-2:]
    rows = _weights(boxes[:, [0, 2, 4]] * torch.tensor([1, 1, 0]), height, size, device)
    columns = _weights(boxes[:, [1, 3, 4]], width, size, device)
    return rows[:, None] @ (images.float() / 255 @ columns.mT[:, None])


def _weights(parts: Tensor, source: int, size: int, device: torch.device) -> Tensor:
    """What each of ``size`` pixels takes of each of ``source``, (B, size, source), for parts (B, 3): start, length of
    the part that is seen, and 1 where it is mirrored.

    A triangle around the centre of the new pixel, as wide as two old ones or two new ones, whichever is more, cut at
    the ends of the part; sums are 1. Places are kept as whole number and rest: in float32 that is exact enough.
    """
    start, length, mirrored = (parts[:, i, None].double() for i in range(3))
    centre = torch.arange(size) + 0.5
    centre = start + length / size * torch.where(mirrored > 0, size - centre, centre)
    floor = centre.floor()
    slope = (size / length).clamp(max=1)
    numbers = torch.stack(
        [floor, centre - floor - 0.5, *torch.broadcast_tensors(slope, start, start + length, floor)[:3]]
    )
    floor, rest, slope, first, last = numbers.float().to(device)[..., None]
    at = torch.arange(source, device=device, dtype=torch.float32)
    weight = (1 - ((at - floor) - rest).abs() * slope).clamp_(min=0) * ((at >= first) & (at < last))
    return weight / weight.sum(-1, keepdim=True)


def translate(x: Tensor, down: int, right: int) -> Tensor:
    """x (3, S, S) moved by whole pixels, less than S; what comes in is mirrored at the border."""
    pad = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    S = x.shape[-1]
    top, left = max(-down, 0), max(-right, 0)
    return F.pad(x, pad, mode="reflect")[..., top : top + S, left : left + S]


# ------------------------------------------------------------------ blur


def kernel(size: int) -> int:
    """Pixels of the blur of an image of that side: a tenth of it, as in SimCLR, made odd; at least 3."""
    return max(3, size // 10 | 1)


def blur_(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Blur x (..., 3, S, S) in place by a Gaussian of that standard deviation, in pixels; cut where ``kernel`` ends.

    sigma is one number, or (B, 1, 1, 1). Its reach is mirrored at the border. Two products with a banded matrix: see
    ``torchvision.transforms.v2.functional.gaussian_blur``, which is a convolution with the whole square.
    """
    S = x.shape[-1]
    reach = min(kernel(S) // 2, S - 1)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    width = sigma.flatten()[:, None] if isinstance(sigma, Tensor) else sigma
    taps = (-0.5 * (at / width).square()).softmax(-1).view(-1, 2 * reach + 1)
    taps = F.threshold(taps, 1e-9, 0)  # products with numbers near the least there are take a hundred times as long
    # a kernel at the start of rows one longer than they are read moves on by one pixel in each
    wide = S + 2 * reach
    band = F.pad(taps[:, None].expand(-1, S, -1), (0, S)).reshape(len(taps), -1)[:, : S * wide].view(-1, S, wide)
    matrix = band[..., reach : reach + S].clone()
    if reach:
        matrix[..., 1 : reach + 1] += band[..., :reach].flip(-1)
        matrix[..., S - 1 - reach : S - 1] += band[..., reach + S :].flip(-1)
    matrix = matrix[:, None] if x.ndim > 3 else matrix
    return x.copy_(matrix @ x @ matrix.mT)


# ------------------------------------------------------------------ turns and slants


def affine_(x: Tensor, matrix: Sequence[Sequence[float]] | Tensor, fill: float = 0.5) -> Tensor:
    """Move the pixels of x (..., 3, S, S) in place: the one at p, from the centre, takes what is at matrix (2, 3) p.

    Bilinear; ``fill`` where there was nothing. matrix is one, in pixels, or (B, 2, 3).
    """
    S = x.shape[-1]
    many = x.view(-1, *x.shape[-3:])
    theta = torch.as_tensor(matrix, device=x.device, dtype=x.dtype).view(-1, 2, 3)
    at = torch.arange(S, device=x.device, dtype=x.dtype) - (S - 1) / 2
    grid = torch.stack([at.expand(S, S), at[:, None].expand(S, S), torch.ones_like(at).expand(S, S)], -1)
    grid = torch.einsum("hwk,bjk->bhwj", grid, theta) / (S / 2)
    moved = F.grid_sample(many - fill, grid, align_corners=False)  # zeros outside
    return many.copy_(moved.add_(fill)).view(x.shape)


def on_rows(
    x: Tensor, rows: Sequence[int], change: Callable[..., Tensor], values: Sequence[float] | None = None
) -> None:
    """Change some of the images x (B, 3, S, S) in place, each by its own number of ``values`` (as many as rows).

    ``change(images, value)`` changes one (3, S, S) in place by a number, or several (N, 3, S, S) by (N, 1, 1, 1). A CPU
    takes one after the other, which stays in its cache; other devices take all at once.
    """
    if not rows:
        return
    if one_by_one(x):
        for i, row in enumerate(rows):
            change(x[row], *([] if values is None else [values[i]]))
        return
    column = [] if values is None else [torch.tensor(values, device=x.device).view(-1, 1, 1, 1)]
    if len(rows) == len(x):
        change(x, *column)
        return
    index = torch.tensor(rows, device=x.device)
    part = x[index]
    change(part, *column)
    x[index] = part
