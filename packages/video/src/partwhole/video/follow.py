"""Objects, parts and joints of the first frame followed through a video, by the features of any encoder of images.

Axes: T frames, H W pixels, B frames of a batch, D features, h w places of a map, K labels, J joints.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, device_of
from partwhole.core.watch import Quiet, Watch
from partwhole.video.labels import heat_maps, objects, to_grid, to_ids, to_points
from partwhole.video.maps import frame_map
from partwhole.video.propagate import changed, propagate
from partwhole.video.protocol import Protocol
from partwhole.vision.maps import IGNORED, patch, resized, resting

Maps = Encoder | Callable[[Tensor], Tensor]  # an encoder of images, or x (B, 3, H, W) -> (B, D, h, w)
LOOK = 8  # frames of which bfloat16 tells how many labels it changes
LARGEST = 32767  # of an id: masks that are followed are int16


def follow(
    encoder: Maps, video: Any, masks: Any, protocol: Protocol, *, batch: int = 8, watch: Watch | None = None
) -> Tensor:
    """Ids of every frame, int16 (T, H, W) at the video's own size; those of the first frame as they are given.

    encoder: an encoder, ours or of timm, in eval mode here whatever it is in; or any function or module of frames
        (B, 3, H', W'), normalised as vision does, that gives a map of features (B, D, h, w).
    video: ``len``, ``size`` (H, W), and ``frames(indices)`` uint8 (T, 3, H, W).
    masks: ``frames([0])`` int64 (1, H, W), of objects or parts from 1; 0 and 255 are background.
    batch: frames that are encoded together; each is encoded once.
    """
    first = first_ids(masks, video.size)
    known, inside = objects(first), seen_size(encoder, video.size, protocol)

    def begin(grid: tuple[int, int]) -> Tensor:
        return to_grid(first, known, grid, protocol)

    out = torch.empty(len(video), *video.size, dtype=torch.int16)
    out[0] = first
    for t, labels in enumerate(carried(encoder, video, begin, protocol, batch=batch, watch=watch)):
        if t:
            out[t] = to_ids(labels, known, video.size, inside, protocol).cpu()
    return out


def first_ids(masks: Any, size: tuple[int, int]) -> Tensor:
    """The mask of the first frame, int16 (H, W), where what is not counted is background; ValueError of a bad one."""
    if not len(masks):
        raise ValueError("there is no mask, and that of the first frame is what is followed")
    first = masks.frames([0])[0]
    if tuple(first.shape) != tuple(size):
        raise ValueError(f"masks are {tuple(first.shape)} and frames {tuple(size)}: both must be of one size")
    found = objects(first)
    if len(found) == 1:
        raise ValueError("the first mask has no object: ids from 1 are needed, 0 is the background")
    if min(found) < 0 or max(found) > LARGEST:
        raise ValueError(f"the first mask has ids from {min(found)} to {max(found)}: number them from 1 to {LARGEST}")
    return torch.where(first == IGNORED, 0, first).to(torch.int16)


def follow_points(
    encoder: Maps, video: Any, points: Tensor, protocol: Protocol, *, batch: int = 8, watch: Watch | None = None
) -> Tensor:
    """Joints of every frame, float32 (T, J, 2), x and y in pixels, NaN where lost; the first as they are given.

    points (J, 2): those of the first frame; NaN where not known.
    """

    def begin(grid: tuple[int, int]) -> Tensor:
        return heat_maps(points, video.size, grid)

    all_labels = carried(encoder, video, begin, protocol, batch=batch, watch=watch)
    found = [to_points(labels.cpu(), video.size) for labels in all_labels]
    return torch.stack([points.float(), *found[1:]])


def carried(
    encoder: Maps,
    video: Any,
    begin: Callable[[tuple[int, int]], Tensor],
    protocol: Protocol,
    *,
    batch: int = 8,
    watch: Watch | None = None,
) -> Iterator[Tensor]:
    """Labels (K, h, w) of every frame; ``begin`` makes those of the first for a grid (h, w)."""
    if not len(video):
        raise ValueError(f"{getattr(video, 'name', 'the video')} has no frame to follow anything in")
    watch = watch or Quiet()
    features = maps(encoder, video, protocol, batch)
    start = list(islice(features, 1))
    first = begin((start[0].shape[1], start[0].shape[2]))
    if protocol.dtype == "bfloat16":
        start += islice(features, LOOK - 1)
        share = changed(start, first, protocol)
        watch.say(f"bfloat16 changes {share:.1%} of the labels of places, in the first {len(start)} frames")
    for done, labels in enumerate(propagate(chain(start, features), first, protocol), 1):
        watch.step(done, {"total": len(video)})
        yield labels


def maps(encoder: Maps, video: Any, protocol: Protocol, batch: int = 8) -> Iterator[Tensor]:
    """The features (D, h, w) of each frame, on the encoder's device; every frame is read and encoded once."""
    size, device = seen_size(encoder, video.size, protocol), torch.device("cpu")
    if isinstance(encoder, nn.Module) and next(encoder.parameters(), None) is not None:
        device = device_of(encoder)
    for start in range(0, len(video), batch):
        frames = video.frames(range(start, min(start + batch, len(video))))
        x = torch.stack([resized(frame, size) for frame in frames]).to(device)
        with torch.no_grad(), resting(encoder) if isinstance(encoder, nn.Module) else nullcontext():
            y = frame_map(encoder, x) if isinstance(encoder, Encoder) else encoder(x)
        if y.ndim != 4 or len(y) != len(x):
            raise ValueError(f"frames {tuple(x.shape)} gave {tuple(y.shape)}: maps (B, D, h, w) are needed")
        yield from y


def seen_size(encoder: Maps, size: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """The height and width at which an encoder sees frames of ``size``."""
    step = (patch(encoder) if isinstance(encoder, Encoder) else None) or 1
    H, W = size
    shorter = protocol.size or min(H, W)
    wanted = H * shorter / min(H, W), W * shorter / min(H, W)
    if protocol.sides == "sixty-four":
        high, wide = (round(side) if side == min(wanted) else int(side // 64 * 64) for side in wanted)
    elif protocol.sides == "up":  # by a hair less, since 960 * 854 / 480 may be more than it is
        high, wide = (math.ceil(side / step - 1e-9) * step for side in wanted)
    else:
        high, wide = (max(1, round(side / step)) * step for side in wanted)
    if min(high, wide) < 1:
        raise ValueError(
            f"frames of {H} by {W} pixels become {high} by {wide} under this protocol: choose another size"
        )
    return high, wide
