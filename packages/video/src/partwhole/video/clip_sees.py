"""Methods that hide parts of a clip: what is seen of it, and what is hidden, for an encoder of clips.

Where a place is hidden it is hidden at all times (Tong et al., 2022; Bardes et al., 2024): from one frame to the next
hardly anything changes, so that it could be copied from the frame before.

Axes: t h w places of tubes, L = t h w of them, time by time.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwhole.core import masks, sees
from partwhole.core.catalog import Sees
from partwhole.core.data import View, collate
from partwhole.core.encoder import Encoder
from partwhole.core.masks import Ratio, grid, hide, hide_blocks
from partwhole.core.method import Method
from partwhole.core.methods import MAE
from partwhole.core.sees import Kept, Seeing
from partwhole.core.transformer import TransformerEncoder
from partwhole.video.clip_views import Clip, too_short
from partwhole.video.tubes import Tubes
from partwhole.vision import policies
from partwhole.vision.network import Network
from partwhole.vision.pretext import drawn
from partwhole.vision.recipe import Own, Policy
from partwhole.vision.views import Looks, Random

LEAST = 9  # places of which some can be hidden


@dataclass(frozen=True, kw_only=True)
class Tubed(Seeing, ABC):
    """Whole clips, by a transformer over tubes of them."""

    network: Network = Network(name="vit")
    size: int = 64
    """Side of the frames that the network sees, in pixels."""
    frames: int = 8
    """Frames of a clip."""
    stride: int = 2
    """Frames of the video from one frame of a clip to the next."""
    tube: int = 2
    """Frames of a tube, which is one token."""
    policy: Policy = "mae"
    """How clips are cropped and coloured, all frames alike: as in the paper of that name, of images."""

    def encoder(self) -> Encoder:
        if self.network.name != "vit":
            raise ValueError(
                f"{type(self).__name__} hides parts of clips, which only our own transformer can leave out: leave "
                f"--network.name at vit, not {self.network.name}"
            )
        if self.network.weights is not None:
            raise ValueError("--network.weights are those of a model of timm: for clips give --init, a run's folder")
        side, n = self.size // self.network.patch, self.network
        if side * side < LEAST:
            raise ValueError(
                f"frames of {self.size} pixels have {side * side} patches of {n.patch}: too few to hide some of them, "
                f"{LEAST} are needed. Raise --size, or lower --network.patch"
            )
        embed = Tubes(n.dim, size=self.size, frames=self.frames, patch=n.patch, tube=self.tube)
        heads = max(1, n.dim // 64)
        return TransformerEncoder(embed, dim=n.dim, depth=n.depth, heads=heads, cls=n.cls, registers=n.registers)

    @property
    def long(self) -> int:
        """Frames of a clip."""
        return self.frames

    def short(self, video: Any) -> str | None:
        """Why a video is too short; None where it is not."""
        return too_short(video, self.long)

    def clip(self, augment: Random, **how: Any) -> Clip:
        return Clip(augment=augment, frames=self.frames, stride=self.stride, **how)

    def look(self) -> View:
        return self.clip(policies.looks(self.policy, self.size).first)

    def looks(self, crops: int) -> View:
        both = policies.looks(self.policy, self.size, crops)
        local: Any = None if both.local is None else self.clip(both.local)
        first, second = self.clip(both.first), self.clip(both.second)
        return Looks(first, second, crops, local)  # type: ignore[arg-type]  # it only calls them

    def strong(self) -> View:
        return self.clip(policies.strong(self.size))

    def plain(self) -> View:
        """What an evaluation sees."""
        return self.clip(policies.plain(self.size), middle=True)

    def tokens(self, encoder: Encoder) -> int:
        return encoder.embed.count(self.size, self.frames)  # type: ignore[union-attr,operator]

    def places(self) -> tuple[int, int, int]:
        """Times, rows and columns of the tubes of a look."""
        side = self.size // self.network.patch
        return self.frames // self.tube, side, side

    def hiding(self, encoder: Encoder, ratio: Ratio, chance: float = 1.0) -> Callable[[], Tensor]:
        return HiddenTubes(self.places(), ratio, chance)


@dataclass(frozen=True)
class HiddenTubes:
    """Draws which tubes are hidden, places at all times: (L,). With ``parts``, neighbouring places together, in about
    so many blocks of a frame."""

    places: tuple[int, int, int]
    ratio: Ratio
    chance: float = 1.0
    parts: int | None = None

    def __post_init__(self) -> None:
        masks.check(self.places[1] * self.places[2], self.ratio, self.chance)  # here, and not first in a data worker

    def __call__(self) -> Tensor:
        t, h, w = self.places
        if self.parts is None:
            return hide(h * w, self.ratio, chance=self.chance).repeat(t)
        size = max(1, h * w / self.parts)
        return hide_blocks(grid(h, w), self.ratio, size=size, chance=self.chance).repeat(t)


@dataclass(frozen=True, kw_only=True)
class Hidden(Tubed, ABC):
    """Nine places of ten are hidden (VideoMAE, Tong et al., 2022). Apart from the paper, the mean and spread that a
    hidden tube is rebuilt without are those of all its pixels, not of each colour by itself."""

    ratio: float = 0.9
    """Share of hidden places: the higher, the less is left to tell them from."""

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        """A picture of what it makes of clips."""
        from partwhole.video.pictures import reconstruction_picture

        assert isinstance(method, MAE)
        view = Kept(self.plain(), self.hiding(method.encoder, self.ratio))
        seen = collate([drawn(view, samples, i, 0) for i in range(min(4, len(samples)))])
        return Own({}, reconstruction_picture(method, seen["x"], seen["keep"]))


@dataclass(frozen=True, kw_only=True)
class Blocked(Tubed, ABC):
    """What is hidden lies together, in about twelve blocks of a frame."""

    def hiding(self, encoder: Encoder, ratio: Ratio, chance: float = 1.0) -> Callable[[], Tensor]:
        return HiddenTubes(self.places(), ratio, chance, parts=12)


@dataclass(frozen=True)
class Around:
    """A clip, the little that is seen of it, and the rest to predict: {"x", "keep": (L,), "targets": (1, L)}.

    As V-JEPA (Bardes et al., 2024), which hides either eight small blocks, overlapping, or two large ones, nine tenths
    of a frame together, at all times. Here the tenth that is seen is drawn, as likely at every place: a few small
    pieces in one half of the cases, one piece in the other.
    """

    look: View
    places: tuple[int, int, int]
    ratio: float

    def __call__(self, sample: Any) -> dict[str, Any]:
        x = self.look(sample)
        seen = round((1 - self.ratio) * self.places[1] * self.places[2])
        size = max(1.0, seen * (0.25 if torch.rand(()) < 0.5 else 3.0))  # of a cell, of which all or a part is seen
        t, h, w = self.places
        keep = hide_blocks(grid(h, w), 1 - self.ratio, size=size).repeat(t)
        return {"x": x, "keep": keep, "targets": ~keep[None]}


@dataclass(frozen=True, kw_only=True)
class InTubes(Tubed, ABC):
    """Of which most is predicted from the rest (V-JEPA)."""

    ratio: float = 0.9
    """Share of what is to be predicted: the higher, the less is left to tell it from."""

    def view(self, encoder: Encoder) -> View:
        masks.check(self.places()[1] * self.places()[2], self.ratio)
        return Around(self.look(), self.places(), self.ratio)


BETWEEN: dict[Sees, tuple[type[Tubed], ...]] = {
    "views": (Tubed,),
    "crops": (Tubed,),
    "numbered": (Tubed,),
    "hiding": (Blocked,),
    "masked": (Blocked,),
    "kept": (Hidden,),
    "named": (Blocked,),
    "blocks": (InTubes,),
}


def on_clips(kind: Any, base: type, *, module: str) -> Any:
    """A generic method, of those that see ``BETWEEN``, as a recipe for whole clips; base is the recipe of clips."""
    return sees.recipe(kind, base, *BETWEEN[kind.sees], module=module)
