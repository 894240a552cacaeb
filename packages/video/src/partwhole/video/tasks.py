"""Recipes for clips: the walk, future prediction, and core's methods on pairs of frames and on whole clips."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from partwhole.core.catalog import Given
from partwhole.core.data import View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit
from partwhole.core.method import Method
from partwhole.video import foretell, network
from partwhole.video.recipe import OnFrames
from partwhole.video.sees import GENERIC
from partwhole.video.views import Walk, Walking, begins, short
from partwhole.video.walk import RandomWalk
from partwhole.vision.maps import patch


@dataclass(frozen=True, kw_only=True)
class CRW(OnFrames):
    """Walk through a video along what looks alike, there and back, and arrive where you started (Jabri et al., 2020).

    The paper: frames of 256 pixels, 49 patches of 64, width 1, batches of 20 of a quarter of a million clips, lr 1e-4.
    """

    dense: bool = True
    """Train a ResNet with a place of its map for every 8 pixels, as the paper does; else 32, which is faster."""
    walk: Walk = Walk()
    temperature: float = 0.05
    """What cosines are divided by: the lower, the more a walk keeps to the likest node."""
    shortest: int = 1
    """Steps that the shortest walk goes out; the authors' code: 2."""
    both: bool = True
    """Walks begin in the last frame too, not in the first alone as in the paper."""
    dim: int = 128
    """Features of a node, a linear projection of the network's."""
    positions: Literal["auto", "kept", "moved"] = "auto"
    """moved: on the way home each patch of a transformer is at another position, so that it cannot return by position
    alone; auto: for transformers over whole frames. It costs twice the time."""
    batch: int = 8
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.0, evaluate_every=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "moved" and self.walk.patch:
            raise ValueError("positions can be moved in whole frames alone: with them, set --walk.patch 0")

    def short(self, video: Any) -> str | None:
        frames, rate = self.walk.frames, self.walk.rate
        return None if len(begins(video, frames, rate)[0]) else short(video, frames, rate)

    @property
    def side(self) -> int:
        return self.walk.patch or self.size

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from super().unused()
        usual = Walk()
        if self.walk.patch:
            if self.positions == "kept":
                yield "positions", "those of patches are never moved, only those of whole frames (--walk.patch 0)"
        else:
            if self.positions == "kept" and network.plain(self.network.name):
                yield "positions", f"--network.name {self.network.name} has none that would be moved"
            for name in ("grid", "jitter"):
                if getattr(self.walk, name) != getattr(usual, name):
                    yield f"walk.{name}", "it is for patches, and --walk.patch is 0"
        if self.walk.again and not self.walk.dropout:
            yield "walk.again", "no edges are dropped, as --walk.dropout is 0"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return RandomWalk(encoder, dim=self.dim, temperature=self.temperature, shortest=self.shortest, both=self.both)

    def view(self, encoder: Encoder) -> View:
        if self.walk.patch:
            return Walking(walk=self.walk, size=self.size)
        nodes, roll = self.tokens(encoder), 0
        if self.positions == "moved" or (self.positions == "auto" and patch(encoder) is not None):
            roll = self.size // round(nodes**0.5)
        return Walking(walk=self.walk, size=self.size, nodes=nodes, roll=roll)


@dataclass(frozen=True, kw_only=True)
class DPC(foretell.DPC, OnFrames):
    """Tell the next blocks of a clip among all, by what came before (Han et al., 2019)."""


@dataclass(frozen=True, kw_only=True)
class MemDPC(foretell.MemDPC, OnFrames):
    """The same as a mixture of what is remembered, forwards and backwards (Han et al., 2020)."""


TASKS = {"crw": CRW, "dpc": DPC, "memdpc": MemDPC, **GENERIC}
