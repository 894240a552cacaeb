"""Views of a video: frames drawn from it, and what is seen of them.

Axes: T frames, H W their pixels, S side of a view, N patches of a frame, P side of a patch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.data import View
from partwhole.video.readers import Video
from partwhole.vision import resample
from partwhole.vision.views import MEAN, STD, Looks, Three, random_box

Sample = Mapping[str, Any]
TOLD = 10  # lines about clips that are too short
RATIO = (0.7, 1.3)  # width to height of the crop of a frame, which becomes square


# ------------------------------------------------------------------ which frames


def draw(video: Video, count: int, rate: float) -> list[int]:
    """``count`` frames in a row, at ``rate`` frames per second, from a moment that is drawn evenly.

    They are the frames nearest to these moments; where the video has fewer per second, it is every frame. ValueError
    where the video is too short.
    """
    starts, at = begins(video, count, rate)
    if not len(starts):
        raise ValueError(f"{short(video, count, rate)}: draw fewer frames, or more per second, or leave it out")
    start = int(starts[int(torch.randint(len(starts), ()))])
    ahead = torch.arange(count)
    wanted = at[start] + ahead / rate
    after = torch.searchsorted(at, wanted).clamp(1, max(1, len(at) - 1))
    before = after - 1
    nearest = torch.where(wanted - at[before] <= at[after.clamp(max=len(at) - 1)] - wanted, before, after)
    return torch.maximum(nearest, start + ahead).clamp(max=len(at) - 1).tolist()


def begins(video: Video, count: int, rate: float) -> tuple[Tensor, Tensor]:
    """From which frames ``count`` frames can be drawn at ``rate`` per second, (K,), none if the video is too short;
    and the times of all, (len,)."""
    if count < 1 or not rate > 0:
        raise ValueError(f"{count} frames at {rate} per second were asked for: 1 or more, at more than 0")
    at = torch.as_tensor(video.times(), dtype=torch.float64)
    if len(at) < count:
        return torch.empty(0, dtype=torch.int64), at
    slack = (at[-1] - at[0]) / max(1, len(at) - 1) / 2  # half a frame: times are rounded in files
    enough = at + (count - 1) / rate <= at[-1] + slack
    enough[len(at) - count + 1 :] = False
    return enough.nonzero()[:, 0], at


def short(video: Video, count: int, rate: float) -> str:
    """In words, why a video is too short."""
    at = video.times()
    long = float(at[-1] - at[0]) if len(video) else 0.0
    takes = (count - 1) / rate
    return (
        f"{video.name} has {len(video)} frames in {long:.2f} s, and {count} at {rate:g} per second take {takes:.2f} s"
    )


# ------------------------------------------------------------------ what is seen of them


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Through which frames a walk goes, what its nodes are, and where it cannot go."""

    frames: int = 4
    """Frames of a walk."""
    rate: float = 8.0
    """Frames per second."""
    patch: int = 16
    """Side of a patch, in pixels, each of which is a node, in the paper a quarter of the frame's; 0: nodes are the
    places of the map of a whole frame."""
    grid: int = 7
    """Patches of a row and of a column, as far apart as fill the frame: seven quarters overlap by half."""
    crop: tuple[float, float] = (0.8, 0.95)
    """Share of its area that is seen of a frame, drawn from this range for each frame."""
    jitter: tuple[float, float] = (0.7, 0.9)
    """Share of its area that is seen of a patch, drawn from this range for each patch."""
    dropout: float = 0.1
    """Chance of an edge to be dropped, on the way out and, independently, on the way home."""
    again: bool = False
    """Drop on the way home what was dropped on the way out, and more: what the authors' code does, not their paper."""

    def __post_init__(self) -> None:
        if self.frames < 2 or not self.rate > 0:
            raise ValueError(f"a walk of {self.frames} frames at {self.rate} per second: 2 or more, at more than 0")
        if self.patch < 0 or self.grid < 1:
            raise ValueError(f"{self.grid} patches of {self.patch} pixels a row: 1 or more, of 0 (none) or more")
        for name in ("crop", "jitter"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {(low, high)}; expected (low, high) with 0 < low <= high <= 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: a chance, 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class Walking:
    """Frames of a clip to walk through, as patches {"x": (T, N, 3, P, P)} or whole {"x": (T, 3, S, S)}; which edges
    cannot be taken, {"dropped": (2, T - 1, N, N) bool}, with ``dropout``; and {"shift": (T, 2)}, with ``roll``.

    As in the paper (Jabri et al., 2020), each frame has a crop of its own, and each patch is cut a little off the place
    where it lies: a walk cannot return by how things were cut.
    """

    walk: Walk
    size: int
    """Side of a frame, in pixels."""
    nodes: int = 0
    """Nodes of a whole frame; those of patches are known."""
    roll: int = 0
    """Shifts of whole frames are multiples of so many pixels; 0: there are none."""
    mean: Three = MEAN
    std: Three = STD

    def __post_init__(self) -> None:
        walk = self.walk
        if self.size < max(1, walk.patch):
            raise ValueError(f"patches of {walk.patch} pixels do not fit into frames of {self.size}: lower walk.patch")
        if self.roll and (walk.patch or self.size % self.roll):
            raise ValueError(f"whole frames alone are rolled, by a part of their {self.size} pixels; not {self.roll}")
        if walk.dropout and not walk.patch and self.nodes < 1:
            raise ValueError("to drop edges between whole frames, it must be known how many nodes they have: set nodes")

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        video, walk = sample["video"], self.walk
        frames = video.frames(draw(video, walk.frames, walk.rate))
        high, wide = frames.shape[2:]
        boxes = torch.stack([random_box(high, wide, walk.crop, RATIO, 0.0) for _ in frames])
        x = resample.crops(frames, boxes, self.size)
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        x = x.sub_(mean).div_(std)
        out = {"x": self.patches(x) if walk.patch else x}
        if walk.dropout:
            out["dropped"] = self.edges()
        if self.roll:
            out["shift"] = self.roll * torch.randint(self.size // self.roll, (walk.frames, 2))
        return out

    def edges(self) -> Tensor:
        """Which edges are dropped."""
        N = self.walk.grid**2 if self.walk.patch else self.nodes
        dropped = torch.rand(2, self.walk.frames - 1, N, N) < self.walk.dropout
        if self.walk.again:
            dropped[1] |= dropped[0].mT
        return dropped

    def patches(self, x: Tensor) -> Tensor:
        """Patches of frames, row by row: (T, 3, S, S) -> (T, N, 3, P, P), bilinear, enlarged a little."""
        T, S, P, G = len(x), self.size, self.walk.patch, self.walk.grid
        first = torch.arange(G) * ((S - P) / max(1, G - 1)) if G > 1 else torch.tensor([(S - P) / 2])
        corner = torch.stack(torch.meshgrid(first, first, indexing="ij"), -1).view(G * G, 2)  # down, right
        low, high = self.walk.jitter
        area = low + (high - low) * torch.rand(T, G * G)
        widest = torch.minimum(area.new_tensor(math.log(4 / 3)), -area.log())  # that lies within the window
        shape = ((torch.rand(T, G * G) * 2 - 1) * widest).exp()
        side = torch.stack([(area / shape).sqrt(), (area * shape).sqrt()], -1) * P  # height, width
        start = corner + torch.rand(T, G * G, 2) * (P - side)
        inside = (torch.arange(P) + 0.5) / P
        at = start[..., None] + inside * side[..., None]  # (T, N, 2, P), in pixels
        at = at * (2 / S) - 1
        rows, columns = at.unbind(2)
        place = torch.stack(torch.broadcast_tensors(columns[:, :, None], rows[..., None]), -1)  # (T, N, P, P, 2)
        cut = F.grid_sample(x, place.flatten(1, 2), padding_mode="border", align_corners=False)  # (T, 3, N * P, P)
        return cut.unflatten(2, (G * G, P)).transpose(1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class OneFrame:
    """A view of one frame, drawn from the whole clip."""

    look: View
    """A view of an image."""

    def __call__(self, sample: Sample) -> Any:
        video = sample["video"]
        return self.look({"image": video.frames([int(torch.randint(len(video), ()))])[0]})


@dataclass(frozen=True, kw_only=True)
class FramePair:
    """Two views of an image, of which each is of another frame: {"views": [x, x]} and, where there are any, {"crops":
    [...]}, local crops of either frame (Xu and Wang, 2021: VFS, with the two views of SimSiam)."""

    looks: Looks
    """What is seen of frames, as of one image."""
    apart: float = 1.0
    """Most seconds from one frame to the other; the first is drawn from the whole clip."""

    def __post_init__(self) -> None:
        if not self.apart >= 0:
            raise ValueError(f"apart is {self.apart}; expected seconds, 0 or more")

    def __call__(self, sample: Sample) -> dict[str, Any]:
        video, looks = sample["video"], self.looks
        at = torch.as_tensor(video.times(), dtype=torch.float64)
        one = int(torch.randint(len(at), ()))
        near = ((at - at[one]).abs() <= self.apart).nonzero()[:, 0]
        near = near[near != one] if len(near) > 1 else near
        two = int(near[int(torch.randint(len(near), ()))])
        images = [{"image": frame} for frame in video.frames([one, two])]
        seen: dict[str, Any] = {"views": [looks.first(images[0]), looks.second(images[1])]}
        if looks.crops and looks.local is not None:
            seen["crops"] = [looks.local(images[i % 2]) for i in range(looks.crops)]
        return seen
