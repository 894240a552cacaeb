"""Solve a jigsaw puzzle of nine tiles (Noroozi and Favaro, 2016).

Axes: B things, T tiles, D features, K permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations as all_permutations
from math import factorial
from typing import Any

import torch
from torch import Tensor

from partwhole.core.catalog import Given
from partwhole.core.data import View
from partwhole.core.encoder import Encoder, mlp, pool_for
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project_one
from partwhole.vision.pretext import GRID, ask, cell_of, crop, drawn, framed, joined, judged, sheet, tiles

TILES = GRID * GRID


@lru_cache(maxsize=8)
def permutations(count: int, seed: int = 0) -> Tensor:
    """``count`` permutations of nine tiles that differ from each other in as many places as may be: (K, 9) int64.

    The first is drawn; then always the one whose summed Hamming distance to those before is the greatest (the authors'
    algorithm 1). Of several such, which the authors do not say, the one whose nearest is the farthest, and of those the
    first in the order of the alphabet. The same for the same arguments; made once.
    """
    if not 2 <= count <= factorial(TILES):
        raise ValueError(f"{count} permutations are asked for; 2 to {factorial(TILES):,} of {TILES} tiles can be told")
    every = torch.tensor(list(all_permutations(range(TILES))), dtype=torch.uint8).mT.contiguous()  # (9, 9!)
    alike = torch.zeros(every.shape[1], dtype=torch.int32)  # places in which each agrees with those chosen, summed
    nearest = torch.zeros_like(alike)  # and the most with one of them
    chosen = [int(torch.randint(len(alike), (), generator=torch.Generator().manual_seed(seed)))]
    while len(chosen) < count:
        same = torch.zeros(len(alike), dtype=torch.uint8)
        for at, tile in zip(every, every[:, chosen[-1]], strict=True):
            same += at == tile
        alike += same
        torch.maximum(nearest, same, out=nearest)
        alike[chosen[-1]] = 1 << 24  # never again
        chosen.append(int((alike * (TILES + 1) + nearest).argmin()))
    return every[:, chosen].mT.long().contiguous()


@dataclass(frozen=True)
class Puzzle:
    """Nine tiles in another order: {"x": (9, 3, tile, tile), "label": number of the permutation}.

    Place i shows the tile whose own place is ``permutations(count, seed)[label][i]``.

    tile: their side. gap: between two of them on average, in tiles: each lies anywhere in its cell (64 of 85 pixels in
    the paper, so a third of a tile). So edges that fit each other are no help.

    guard: what else would give the order away without a look at what is shown. The mean and the spread of each colour
    of each tile are taken away (near tiles are alike in them), and with them any change of contrast or brightness by
    tile. Colours are displaced against each other by up to 2 of 64 pixels, in each tile by its own, and three
    images in ten are grey: a lens shifts one colour against another by the place in the picture.
    """

    tile: int
    count: int = 100
    gap: float = 1 / 3
    guard: bool = True
    seed: int = 0
    area: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.gap < 0:
            raise ValueError(f"the gap between tiles is {self.gap} of their side; expected 0 or more")
        cell_of(self.tile, self.gap)
        permutations(self.count, self.seed)  # here, and not once in every worker

    def __call__(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        cut, label = self.cut(sample)
        return {"x": self.seen(cut[permutations(self.count, self.seed)[label]]), "label": label}

    def cut(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The tiles in [0, 1], in their own order, and which permutation to put them in."""
        cell = cell_of(self.tile, self.gap)
        whole = crop(sample["image"], GRID * cell, area=self.area)
        if self.guard and torch.rand(()) < 0.3:
            whole = whole.mean(0, keepdim=True).expand(3, -1, -1)
        shift = max(1, round(self.tile / 32)) if self.guard else 0
        cut = tiles(whole, self.tile, cell, jitter=(cell - self.tile) // 2, shift=shift)
        return cut, torch.randint(self.count, ())

    def seen(self, x: Tensor) -> Tensor:
        """Tiles as the network sees them; where there is less than one step of 255 of contrast, it is not raised."""
        if self.guard:
            mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
            return (x - mean) / std.clamp(min=1 / 255)
        return (x - 0.5) / 0.25


class JigsawPuzzles(Method):
    """batch: ``x`` (B, 9, 3, t, t), tiles in the order that ``label`` (B,) names, as of ``Puzzle``.

    ``logits(x)`` are (B, K), one of each of ``count`` permutations. All tiles pass the same encoder; their vectors are
    joined in the order shown, and an MLP with one hidden layer of ``hidden`` features answers.
    """

    def __init__(self, encoder: Encoder, *, count: int, hidden: int):
        super().__init__(encoder)
        self.pool = pool_for(encoder)
        self.head = mlp(TILES * encoder.dim, hidden, count)

    def logits(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != TILES:
            raise ValueError(f"x must be (B, {TILES}, 3, t, t), the tiles of each image; got {tuple(x.shape)}")
        vectors = project_one(self.encoder, self.pool, x.flatten(0, 1))
        return self.head(vectors.unflatten(0, x.shape[:2]).flatten(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return judged(self.logits(batch["x"]), batch["label"])


@dataclass(frozen=True, kw_only=True)
class Jigsaw:
    """Solve a jigsaw puzzle of nine tiles (Noroozi and Favaro, 2016)."""

    permutations: int = 100
    """Orders to tell from each other, as unlike as may be: the more, the harder (1000 in the paper)."""
    gap: float = 1 / 3
    """What lies between two tiles on average, in tiles: the more, the less do edges that fit tell their order."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return JigsawPuzzles(encoder, count=self.permutations, hidden=4 * encoder.dim)

    def view(self, encoder: Encoder) -> View:
        return Puzzle(self.size // 2, count=self.permutations, gap=self.gap)  # type: ignore[attr-defined]  # of the recipe


def picture(method: JigsawPuzzles, view: Puzzle, samples: Sequence[Any], *, seed: int = 0) -> bytes:
    """Three rows, a column for each sample: the puzzle, as the network solves it, and the truth. A PNG."""
    rows: list[list[Tensor]] = [[], [], []]
    orders = permutations(view.count, view.seed)
    for i in range(len(samples)):
        cut, label = drawn(view.cut, samples, i, seed)
        shown = cut[orders[label]]
        guess = int(ask(method, method.logits, view.seen(shown)[None]).argmax())
        solved = torch.empty_like(shown)
        solved[orders[guess]] = shown  # back to where each tile is said to be from
        right = guess == int(label)
        for row, image in zip(rows, (joined(shown), framed(joined(solved), right), joined(cut)), strict=True):
            row.append(image)
    return sheet(rows)
