"""Tensors as one PNG, small enough for a report.

Axes: H W pixels. Colours (3, H, W) are in [0, 1].
"""

import colorsys
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partwhole.vision.maps import IGNORED, enlarged

FIRE = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark to bright in grey too
LEAST = 0.35  # pictures are not made smaller than by this factor


class Picture(NamedTuple):
    """``page.picture(*picture)``: the bytes of a PNG file, and what is seen on it."""

    png: bytes
    caption: str


def pasted(rows: Sequence[Sequence[Tensor]], gap: int) -> Any:
    """Rows of pictures (3, H, W) side by side on white, ``gap`` pixels apart: a picture of PIL's."""
    from PIL import Image

    widths = [sum(p.shape[2] + gap for p in row) - gap for row in rows]
    heights = [max(p.shape[1] for p in row) for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(pixels), (left, top))
            left += picture.shape[2] + gap
        top += height + gap
    return sheet


def png(rows: Sequence[Sequence[Tensor]], *, limit: int = 60_000, gap: int = 4) -> bytes:
    """``pasted`` as a PNG of 256 colours.

    One that is larger than ``limit`` bytes is made again with fewer pixels until it fits, or a third is left of a side.
    """
    from PIL import Image

    sheet, scale = pasted(rows, gap), 1.0
    while True:
        size = (max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale)))
        image = sheet if scale == 1 else sheet.resize(size, Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= limit or scale * 0.85 < LEAST:
            return out.getvalue()
        scale *= 0.85


def heat(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (h, w) as colours (3, *size), from its lowest value, dark, to its highest, bright; one value is dark."""
    x = enlarged(x[None], size, smooth=True)[0]
    low, high = x.min(), x.max()
    at = (x - low) / (high - low) if high > low else torch.zeros_like(x)
    stops = torch.tensor(FIRE) / 255
    below = (at * (len(FIRE) - 1)).floor().clamp(max=len(FIRE) - 2)
    share = (at * (len(FIRE) - 1) - below)[..., None]
    i = below.long()
    return (stops[i] * (1 - share) + stops[i + 1] * share).permute(2, 0, 1)


def marked(picture: Tensor, place: tuple[float, float]) -> Tensor:
    """The picture (3, H, W) with a red cross at ``place``, shares of its height and width."""
    H, W = picture.shape[1:]
    y, x = (min(int(p * n), n - 1) for p, n in zip(place, (H, W), strict=True))
    arm, half = max(3, min(H, W) // 14), max(1, min(H, W) // 90)
    out = picture.clone()
    for thick, colour in ((half + 1, (1.0, 1.0, 1.0)), (half, (1.0, 0.0, 0.0))):  # white around it, seen on any ground
        for down, across in ((arm, thick), (thick, arm)):
            box = (slice(max(0, y - down), y + down + 1), slice(max(0, x - across), x + across + 1))
            out[:, box[0], box[1]] = torch.tensor(colour)[:, None, None]
    return out


def covered(picture: Tensor, mask: Tensor, colour: tuple[float, float, float] = (1.0, 0.15, 0.1)) -> Tensor:
    """The picture (3, H, W), in which what mask (H, W) holds is coloured and the rest is paler."""
    tint = torch.tensor(colour)[:, None, None]
    return torch.where(mask, 0.45 * picture + 0.55 * tint, 0.6 * picture + 0.4)


def colour_of(label: int) -> Tensor:
    """(3,): of the first class red, of the others as far from it and each other as may be."""
    return torch.tensor(colorsys.hsv_to_rgb((0.01 + (label - 1) * 0.618) % 1, 0.9, 1.0))


def painted(picture: Tensor, classes: Tensor) -> Tensor:
    """The picture (3, H, W), in which the pixels of each class (H, W) from 1 have its colour; 0 is paler, 255 grey."""
    out = 0.6 * picture + 0.4
    for label in classes.unique().tolist():
        if label:
            tint = torch.full((3,), 0.5) if label == IGNORED else colour_of(label)
            out = torch.where(classes == label, 0.45 * picture + 0.55 * tint[:, None, None], out)
    return out


def stacked(masks: Tensor) -> Tensor:
    """Masks (N, H, W) bool as numbers (H, W) from 1 in their order, 0 where none is; smaller ones lie on larger."""
    out = torch.zeros(masks.shape[1:], dtype=torch.int64)
    for i in masks.sum((1, 2)).argsort(descending=True).tolist():
        out[masks[i]] = i + 1
    return out


def boxed(picture: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """The picture (3, H, W) with the outlines of boxes (N, 4), each in the colour of its label."""
    out, (H, W) = picture.clone(), picture.shape[1:]
    thick = max(1, min(H, W) // 70)
    for box, label in zip(boxes.round().int().tolist(), labels.tolist(), strict=True):
        left, top, right, bottom = (max(0, min(v, n)) for v, n in zip(box, (W, H, W, H), strict=True))
        tint = colour_of(label)[:, None, None]
        for rows, columns in (
            (slice(top, top + thick), slice(left, right)),
            (slice(max(0, bottom - thick), bottom), slice(left, right)),
            (slice(top, bottom), slice(left, left + thick)),
            (slice(top, bottom), slice(max(0, right - thick), right)),
        ):
            out[:, rows, columns] = tint
    return out
