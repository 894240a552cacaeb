"""Tell where a tile of an image lies, seen beside the tile in the middle (Doersch et al., 2015).

Axes: B things, T tiles, D features, P places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwhole.core.catalog import Given
from partwhole.core.data import View
from partwhole.core.encoder import Encoder, mlp, pool_for
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project_one
from partwhole.vision.pretext import (
    GRID,
    ask,
    cell_of,
    crop,
    drawn,
    framed,
    joined,
    judged,
    normalised,
    sheet,
    tiles,
)
from partwhole.vision.views import MEAN, STD

TILES, CENTRE = GRID * GRID, GRID * GRID // 2
PLACES = [i for i in range(TILES) if i != CENTRE]  # of the eight neighbours, row by row


@dataclass(frozen=True)
class Neighbours:
    """Nine tiles around a point, row by row: {"x": (9, 3, tile, tile)}, the one in the middle at place 4.

    tile: their side. gap: what lies between two of them, in tiles; half a tile in the paper. Each is moved by up to
    ``jitter`` of its side, of its own (7 of 96 pixels in the paper): lines that run on from tile to tile, and the
    distance between them, must not give the place away.

    guard: of each tile one colour is kept, and the other two are noise a hundredth as strong. A lens shifts one colour
    against another, the more so the farther from the middle, and a network learns to read the place in the picture from
    that. This is the paper's dropping of colours; its other way, taking away the axis from green to magenta, does as
    well there, but the encoder would then never see the direction in which most plants differ from most ground.

    Against the paper: all eight pairs with the middle are asked at once, so nine tiles make eight questions, and tiles
    are not made coarser at random.
    """

    tile: int
    gap: float = 0.5
    jitter: float = 0.07
    guard: bool = True
    area: tuple[float, float] = (0.5, 1.0)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        cell_of(self.tile, self.gap)
        if self.gap < 2 * self.jitter or self.jitter < 0:
            raise ValueError(
                f"tiles with a gap of {self.gap} between them cannot be moved by {self.jitter} of their side: "
                "the gap must be twice as much"
            )

    def __call__(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        return {"x": self.seen(self.cut(sample))}

    def cut(self, sample: dict[str, Any]) -> Tensor:
        """The tiles in [0, 1]."""
        cell = cell_of(self.tile, self.gap)
        whole = crop(sample["image"], GRID * cell, area=self.area)
        return tiles(whole, self.tile, cell, jitter=min(round(self.tile * self.jitter), (cell - self.tile) // 2))

    def seen(self, cut: Tensor) -> Tensor:
        """The tiles as the network sees them."""
        x = normalised(cut, self.mean, self.std)
        if not self.guard:
            return x
        kept = torch.randint(3, (len(x), 1, 1, 1)) == torch.arange(3)[:, None, None]  # (9, 3, 1, 1)
        strength = 0.01 * (x * kept).sum(1, keepdim=True).std((2, 3), keepdim=True)
        return torch.where(kept, x, strength * torch.randn_like(x))


class ContextPrediction(Method):
    """batch: ``x`` (B, 9, 3, t, t), tiles in the order of ``Neighbours``.

    ``logits(x)`` are (B, 8, 8): for each neighbour in its turn, which of the eight places it is from. All tiles pass
    the same encoder; the vectors of two are joined, the middle's first, and an MLP with one hidden layer of ``hidden``
    features answers.
    """

    def __init__(self, encoder: Encoder, *, hidden: int):
        super().__init__(encoder)
        self.pool = pool_for(encoder)
        self.head = mlp(2 * encoder.dim, hidden, len(PLACES))

    def logits(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != TILES:
            raise ValueError(f"x must be (B, {TILES}, 3, t, t), the tiles of each image; got {tuple(x.shape)}")
        vectors = project_one(self.encoder, self.pool, x.flatten(0, 1)).unflatten(0, x.shape[:2])  # (B, 9, D)
        others = vectors[:, PLACES]
        return self.head(torch.cat([vectors[:, CENTRE, None].expand_as(others), others], -1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.logits(batch["x"]).flatten(0, 1)
        label = torch.arange(len(PLACES), device=logits.device).repeat(len(batch["x"]))
        return judged(logits, label)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Tell where a tile of an image lies, seen beside the tile in the middle (Doersch et al., 2015)."""

    gap: float = 0.5
    """What lies between two tiles, in tiles: the more, the less do lines that run on tell where they are."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return ContextPrediction(encoder, hidden=4 * encoder.dim)

    def view(self, encoder: Encoder) -> View:
        return Neighbours(self.size // 2, gap=self.gap)  # type: ignore[attr-defined]  # of the recipe


def picture(method: ContextPrediction, view: Neighbours, samples: Sequence[Any], *, seed: int = 0) -> bytes:
    """Three rows, a column for each sample: two tiles, the second where the network puts it, and all nine. A PNG."""
    rows: list[list[Tensor]] = [[], [], []]
    for i in range(len(samples)):
        cut = drawn(view.cut, samples, i, seed)
        x = drawn(lambda c: view.seen(c), [cut], 0, seed + i)
        which = (i + seed) % len(PLACES)
        guess = int(ask(method, method.logits, x[None])[0, which].argmax())
        two = torch.ones_like(cut)
        two[CENTRE - 1], two[CENTRE + 1] = cut[CENTRE], cut[PLACES[which]]
        placed = torch.ones_like(cut)
        placed[CENTRE], placed[PLACES[guess]] = cut[CENTRE], cut[PLACES[which]]
        for row, image in zip(rows, (joined(two), framed(joined(placed), guess == which), joined(cut)), strict=True):
            row.append(image)
    return sheet(rows)
