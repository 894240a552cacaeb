"""Which places of a grid may look at which: tiles of queries, and for each tile all the keys that any of them sees.

Axes: h w the grid, N = h * w its places row by row, Q queries of a tile, M keys that they see together, S frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Window = Literal["none", "square", "disc", "open-disc"]

SIDES = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # of tiles that are tried
MOST = 1 << 24  # numbers of a tile's affinities, 64 MB of float32, where one query does not need more
COPY = 24  # what laying out a key costs, in products with a query
START = 20_000  # what a tile costs beside its numbers, in products


@dataclass(frozen=True)
class Tile:
    """``queries`` (Q,) and ``keys`` (M,) by the numbers of their places; ``seen`` (Q, M) bool, None for all."""

    queries: Tensor
    keys: Tensor
    seen: Tensor | None


@dataclass(frozen=True)
class Tiling:
    """The tiles of a grid (h, w) under a window: ``rows`` times ``columns`` places, fewer at the end.

    With ``rows`` 0 it is dense: a tile is ``columns`` places in their order, and its keys are all there are.
    """

    h: int
    w: int
    window: Window
    radius: int
    rows: int
    columns: int
    device: torch.device

    @property
    def dense(self) -> bool:
        return self.rows == 0

    def __iter__(self) -> Iterator[Tile]:
        return self._chunks() if self.dense else self._rectangles()

    def _chunks(self) -> Iterator[Tile]:
        places = torch.arange(self.h * self.w, device=self.device)
        for queries in places.split(self.columns):
            seen = None
            if self.window != "none":  # made anew for every frame: to keep it takes N x N
                down = torch.arange(self.h, device=self.device) - (queries // self.w)[:, None]
                across = torch.arange(self.w, device=self.device) - (queries % self.w)[:, None]
                seen = inside(down[:, :, None], across[:, None], self.window, self.radius).flatten(1)
            yield Tile(queries, places, seen)

    def _rectangles(self) -> Iterator[Tile]:
        reach = self.radius
        for top in range(0, self.h, self.rows):
            high = min(self.rows, self.h - top)
            above, below = min(top, reach), min(self.h - top - high, reach)
            for left in range(0, self.w, self.columns):
                wide = min(self.columns, self.w - left)
                before, after = min(left, reach), min(self.w - left - wide, reach)
                bounds = (high, wide, above, below, before, after)
                queries, keys, seen = _form(bounds, self.window, self.radius, self.device)
                yield Tile(
                    (top + queries[0]) * self.w + left + queries[1], (top + keys[0]) * self.w + left + keys[1], seen
                )


@lru_cache(maxsize=64)
def _form(bounds: tuple[int, ...], window: Window, radius: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where queries (2, Q) and keys (2, M) are from a tile's first place, and ``seen``; many tiles share it."""
    high, wide, above, below, before, after = bounds
    rows, columns = torch.arange(-above, high + below), torch.arange(-before, wide + after)
    keys = torch.cartesian_prod(rows, columns).mT
    queries = torch.cartesian_prod(torch.arange(high), torch.arange(wide)).mT
    apart = keys[:, None] - queries[:, :, None]
    seen = inside(apart[0], apart[1], window, radius)
    used = seen.any(0)  # the corners of a disc's neighbourhood are seen by none
    return queries.to(device), keys[:, used].to(device), seen[:, used].to(device)


def inside(down: Tensor, across: Tensor, window: Window, radius: int) -> Tensor:
    """Whether places so many rows and columns apart see each other: bool, of the shape that both have together.

    square: both at most ``radius``; disc: their distance at most that; open-disc: less than that; none: all.
    """
    if window == "none":
        return torch.ones_like(down * across, dtype=torch.bool)
    if window == "square":
        return (down.abs() <= radius) & (across.abs() <= radius)
    far = down * down + across * across
    return far <= radius * radius if window == "disc" else far < radius * radius


def tiling(h: int, w: int, frames: int, window: Window, radius: int, device: torch.device) -> Tiling:
    """The tiles that cost least for a grid (h, w) and ``frames`` to look at: dense where a window has most of the grid.

    The cost is counted, not timed, so that it is the same on every machine: products of queries and keys, and what
    laying out keys and beginning a tile cost beside them.
    """
    places = h * w
    chunk = max(1, min(places, MOST // (places * frames)))
    best = Tiling(h, w, window, radius, 0, chunk, device)
    if window == "none":
        return best
    least = frames * places * places + START * -(-places // chunk)  # all keys lie as they are needed
    for rows in [side for side in SIDES if side <= h]:
        for columns in [side for side in SIDES if side <= w]:
            down, across = _sizes(h, rows, radius), _sizes(w, columns, radius)
            if frames * max(q * m for q, m in down) * max(q * m for q, m in across) > MOST:
                continue
            products = sum(q * m for q, m in down) * sum(q * m for q, m in across)
            keys = sum(m for _, m in down) * sum(m for _, m in across)
            cost = frames * (products + COPY * keys) + START * len(down) * len(across)
            if cost < least:
                best, least = Tiling(h, w, window, radius, rows, columns, device), cost
    return best


def _sizes(length: int, side: int, radius: int) -> list[tuple[int, int]]:
    """Along one axis: queries and keys of each tile."""
    out = []
    for start in range(0, length, side):
        count = min(side, length - start)
        out.append((count, min(start, radius) + count + min(length - start - count, radius)))
    return out
