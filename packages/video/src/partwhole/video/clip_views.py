"""Views of a video: some of its frames, all cropped alike, as one clip or as blocks of frames.

Axes: T frames, N blocks, S side of what a network sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwhole.vision.views import Augment, Random

Sample = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One random view of a sample's video: x (3, T, S, S), frames at even distances from a random one on.

    Nothing but these frames is read. Where a video is too short for the distance it shrinks, as far as to no frame
    twice. ValueError for a video of fewer than T frames.
    """

    augment: Random
    """What is done to the frames: one crop and one flip for all."""
    frames: int = 8
    """Frames of a clip."""
    stride: int = 2
    """Frames from one to the next: 1 takes each."""
    middle: bool = False
    """Take the clip in the middle of the video, not a random one."""
    framewise: bool = False
    """Draw colours, and all that is done after the crop, anew for each frame."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a clip is {getattr(self, name)}; expected 1 or more")

    def __call__(self, sample: Sample) -> Tensor:
        video = sample["video"]
        return self.augmented(video.frames(self.times(len(video), video.name)))

    def times(self, length: int, name: str = "a video") -> list[int]:
        """Which frames of a video of ``length``, by torch's global generator."""
        if length < self.frames:
            raise ValueError(
                f"{name} has {length} frames, and a clip {self.frames}: leave the video out, or choose shorter clips"
            )
        stride = min(self.stride, (length - 1) // max(1, self.frames - 1)) if self.frames > 1 else 1
        left = length - (self.frames - 1) * stride  # places to begin
        start = (left - 1) // 2 if self.middle else int(torch.randint(left, ()))
        return [start + t * stride for t in range(self.frames)]

    def augmented(self, frames: Tensor) -> Tensor:
        """uint8 (T, 3, H, W) -> (3, T, S, S)."""
        size = frames.shape[2], frames.shape[3]
        first = self.augment.draw(*size)
        rows = [first] * len(frames)
        if self.framewise:
            others = (self.augment.draw(*size) for _ in range(len(frames) - 1))
            rows = [first, *({**other, "box": first["box"]} for other in others)]
        drawn = {name: torch.stack([row[name] for row in rows]) for name in first}
        return self.augment.apply(frames, drawn).transpose(0, 1).contiguous()


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of frames that follow each other: {"x": (N, 3, T, S, S)}, N T frames of one clip."""

    clip: Clip
    """All of the frames, those of all blocks."""
    blocks: int = 8
    """Blocks that the clip is cut into."""

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.clip.frames % self.blocks:
            raise ValueError(
                f"a clip of {self.clip.frames} frames cannot be cut into {self.blocks} blocks of one length"
            )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        return {"x": self.clip(sample).unflatten(1, (self.blocks, -1)).transpose(0, 1).contiguous()}


def dpc(size: int) -> Augment:
    """What Han et al. (2019) do to frames: one crop and flip for all; colours, and whether any are left, of each frame
    by itself (``Clip.framewise``), so that the next block is not found by its colours. They take one channel for
    grey, here it is the usual mean of all."""
    return Augment(
        size=size, scale=(0.5, 1.0), jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, grey=0.5
    )


def too_short(video: Any, frames: int) -> str | None:
    """Why a video has no clip of so many frames; None where it has."""
    return f"{video.name} has {len(video)} frames, and {frames} are needed" if len(video) < frames else None
