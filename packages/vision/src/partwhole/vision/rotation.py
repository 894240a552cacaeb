"""Tell by how much an image was turned (Gidaris et al., 2018).

Axes: B things, R turns, S side of what the network sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from partwhole.core.catalog import Given
from partwhole.core.data import View
from partwhole.core.encoder import Encoder, Head, pool_for
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project_one
from partwhole.vision.pretext import ask, crop, drawn, framed, judged, normalised, sheet
from partwhole.vision.views import MEAN, STD

TURNS = 4  # by 0, 90, 180 and 270 degrees, counterclockwise


@dataclass(frozen=True)
class Turned:
    """An image, turned all four ways: {"x": (4, 3, size, size)}, the turn by 90 i degrees at place i.

    The paper's networks for ImageNet see random crops and mirror images, as here. The crop is square and never
    stretched: a stretch along one axis would tell a quarter turn from a half turn. All four are of the same crop, so
    that a batch holds nothing by which they could be told but the turn. A quarter turn of pixels is exact.
    """

    size: int
    area: tuple[float, float] = (0.5, 1.0)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        return {"x": normalised(self.turned(sample), self.mean, self.std)}

    def turned(self, sample: dict[str, Any]) -> Tensor:
        """The same in [0, 1]."""
        x = crop(sample["image"], self.size, area=self.area)
        return torch.stack([x.rot90(turns, (1, 2)) for turns in range(TURNS)])


class RotationPrediction(Method):
    """batch: ``x`` (B, 4, 3, S, S), each thing turned four ways, in the order of ``Turned``.

    ``logits(x)`` of any images (N, 3, S, S) are (N, 4). A linear layer on the encoder's vector of a thing; the paper
    has the last block of its network there.
    """

    def __init__(self, encoder: Encoder):
        super().__init__(encoder)
        self.head = Head(pool_for(encoder), nn.Linear(encoder.dim, TURNS))

    def logits(self, x: Tensor) -> Tensor:
        return project_one(self.encoder, self.head, x)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch["x"]
        if x.ndim != 5 or x.shape[1] != TURNS:
            raise ValueError(f"x must be (B, {TURNS}, 3, S, S), each image turned {TURNS} ways; got {tuple(x.shape)}")
        label = torch.arange(TURNS, device=x.device).repeat(len(x))
        return judged(self.logits(x.flatten(0, 1)), label)


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Tell by how much an image was turned (Gidaris et al., 2018)."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return RotationPrediction(encoder)

    def view(self, encoder: Encoder) -> View:
        return Turned(self.size)  # type: ignore[attr-defined]  # of the recipe


def picture(method: RotationPrediction, view: Turned, samples: Sequence[Any], *, seed: int = 0) -> bytes:
    """Three rows, a column for each sample: as the network saw it, turned back by its answer, and as it was. A PNG."""
    rows: list[list[Tensor]] = [[], [], []]
    for i in range(len(samples)):
        turned = drawn(view.turned, samples, i, seed)
        turn = (i + seed) % TURNS
        seen = turned[turn]
        guess = int(ask(method, method.logits, normalised(seen, view.mean, view.std)[None]).argmax())
        back = framed(seen.rot90(-guess, (1, 2)), guess == turn)
        for row, image in zip(rows, (seen, back, turned[0]), strict=True):
            row.append(image)
    return sheet(rows)
