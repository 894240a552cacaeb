"""Labels as soft maps on a grid and back: masks of objects or parts, and joints.

Axes: K labels, H W pixels, h w places of the grid, J joints.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.video.protocol import Protocol
from partwhole.vision.maps import IGNORED

MODES: dict[str, Literal["bilinear", "nearest-exact"]] = {"bilinear": "bilinear", "nearest": "nearest-exact"}


def resized(maps: Tensor, size: Sequence[int], how: str) -> Tensor:
    """Maps (K, h, w) as (K, *size), bilinear or of the nearest place; pixels are squares, and nothing is shifted."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    smooth = {"align_corners": False} if how == "bilinear" else {}
    return F.interpolate(maps[None], tuple(size), mode=MODES[how], **smooth)[0]


def objects(ids: Tensor) -> list[int]:
    """The ids (H, W) that are there, 0 first, which is the background; 255, not counted, is not among them."""
    return [0, *(i for i in ids.unique().tolist() if i not in (0, IGNORED))]


def to_grid(ids: Tensor, known: Sequence[int], grid: Sequence[int], protocol: Protocol) -> Tensor:
    """Ids (H, W) as shares (K, h, w) of those that are ``known``; what is none of them is background, the first."""
    out = torch.stack([resized((ids == i).float()[None], grid, protocol.down)[0] for i in known])
    out[0] = 1 - out[1:].sum(0)
    return out


def to_ids(
    maps: Tensor, known: Sequence[int], size: Sequence[int], inside: Sequence[int], protocol: Protocol
) -> Tensor:
    """The strongest label of maps (K, h, w) at every pixel, as its id: int16 (H, W) of ``size``.

    inside: the size of the encoder's input, for protocols that decide there. Of labels that are equally strong the
    first wins, whatever the order in memory.
    """
    at = inside if protocol.decide == "input" else size
    best = number = None
    for k, one in enumerate(maps):  # one at a time: hundreds of objects at full size do not fit into memory
        large = resized(one[None], at, protocol.up)[0]
        if protocol.stretch and large.max() > 0:
            least, most = large.min(), large.max()
            # A label that is the same everywhere says nothing: the papers' codes divide by nearly nothing there.
            large = (large - least) / (most - least) if most > least else torch.zeros_like(large)
        if best is None or number is None:
            best, number = large, torch.zeros(tuple(at), dtype=torch.int64, device=maps.device)
        else:
            above = large > best
            best, number = torch.where(above, large, best), torch.where(above, k, number)
    if number is None:
        raise ValueError("there is no label, not even of the background")
    ids = torch.tensor(known, dtype=torch.int16, device=maps.device)[number]
    return resized(ids[None].float(), size, "nearest")[0].to(torch.int16)


def heat_maps(points: Tensor, size: Sequence[int], grid: Sequence[int], *, sigma: float = 0.5) -> Tensor:
    """Joints as labels (J + 1, h, w), the background first: exp(-d^2 / (2 sigma^2)), d in places of the grid.

    points (J, 2): x and y in pixels of ``size`` (H, W), centres of pixels being whole numbers. A joint that is not
    finite, or outside, has an empty map. Nothing is less than a map's 3 sigma, and background is where all are 0 (Jabri
    et al., 2020, whose joints are shifted to whole places; here they are not).
    """
    (H, W), (h, w) = size, grid
    x, y = (points[:, 0] + 0.5) * w / W - 0.5, (points[:, 1] + 0.5) * h / H - 0.5
    far = (torch.arange(h)[None, :, None] - y[:, None, None]) ** 2
    far = far + (torch.arange(w)[None, None] - x[:, None, None]) ** 2
    there = points.isfinite().all(1) & (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
    reach = max(3 * sigma, 0.75)  # at least the nearest place
    maps = torch.where((far <= reach * reach) & there[:, None, None], (-far / (2 * sigma * sigma)).exp(), 0.0)
    return torch.cat([(maps.sum(0, keepdim=True) == 0).float(), maps])


def to_points(maps: Tensor, size: Sequence[int], *, topk: int = 3) -> Tensor:
    """Joints (J, 2), x and y in pixels of ``size``, of labels (J + 1, h, w): the mean of the ``topk`` strongest places,
    by their strength. NaN of a joint whose map is empty: it is lost.
    """
    (H, W), (h, w) = size, maps.shape[1:]
    value, place = maps[1:].flatten(1).topk(min(topk, h * w), 1)
    share = value / value.sum(1, keepdim=True)  # 0 / 0 where a joint is lost
    x, y = (share * (place % w)).sum(1), (share * (place // w)).sum(1)
    return torch.stack(((x + 0.5) * W / w - 0.5, (y + 0.5) * H / h - 0.5), 1)
