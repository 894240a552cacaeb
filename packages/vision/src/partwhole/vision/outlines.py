"""Masks of objects: from COCO's outlines, from numbers of objects, and the boxes around them.

Axes: H W pixels, N objects. A box is left, top, right, bottom, in pixels from the image's corner.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwhole.vision.maps import IGNORED


def outline(told: Any, H: int, W: int) -> Tensor:
    """COCO's polygons, with the pixels whose middle is inside, or its runs of pixels down the columns, without and
    with: (H, W) bool."""
    if isinstance(told, Mapping):
        runs = told["counts"]
        if not isinstance(runs, list):
            raise ValueError("an outline of compressed counts: write them as a list, as pycocotools decodes them")
        if sum(runs) != H * W:
            raise ValueError(f"an outline of {sum(runs)} pixels in an image of {H} by {W}")
        inside = (torch.arange(len(runs)) % 2).bool().repeat_interleave(torch.tensor(runs))
        return inside.view(W, H).mT.contiguous()
    from PIL import Image, ImageDraw

    inside, fine = torch.zeros(H, W, dtype=torch.bool), 4  # PIL draws borders too: finer, and only the middles are seen
    for corners in told:
        at = np.reshape(corners, (-1, 2))
        (left, top), (right, bottom) = (np.clip(v, 0, (W, H)).astype(int) for v in (at.min(0), np.ceil(at.max(0))))
        if left >= right or top >= bottom:
            continue
        drawn = Image.new("1", ((right - left) * fine, (bottom - top) * fine))
        ImageDraw.Draw(drawn).polygon([tuple(xy) for xy in ((at - (left, top)) * fine).tolist()], fill=1)
        inside[top:bottom, left:right] |= torch.from_numpy(np.array(drawn)[fine // 2 :: fine, fine // 2 :: fine])
    return inside


def numbered(numbers: Tensor, but: Sequence[int] = (IGNORED,)) -> Tensor:
    """The masks (N, H, W) bool of the objects that have these numbers (H, W), from 1, in their order, ``but`` some."""
    known = torch.tensor([n for n in numbers.unique().tolist() if n > 0 and n not in but], dtype=numbers.dtype)
    return numbers == known[:, None, None]


def around(masks: Tensor) -> list[list[float]]:
    """The boxes (N, 4) around masks (N, H, W) bool."""
    from torchvision.ops import masks_to_boxes

    boxes = masks_to_boxes(masks)
    return (boxes + torch.tensor([0, 0, 1, 1])).tolist()  # the last pixel is inside
