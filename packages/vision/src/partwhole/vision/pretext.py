"""What pretext tasks on images share: a plain crop, a puzzle of tiles, an answer that is right or wrong, pictures.

Axes: B things, H x W pixels, S side of what the network sees, T tiles, K answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.data import View, collate, mix
from partwhole.core.fit import move
from partwhole.core.losses import cross_entropy
from partwhole.core.method import Method
from partwhole.vision.draw import png
from partwhole.vision.views import MEAN, STD

GRID = 3  # tiles of a puzzle along each side
GREEN, RED = (0.1, 0.65, 0.2), (0.85, 0.1, 0.1)


def crop(image: Tensor, side: int, *, area: tuple[float, float] = (0.5, 1.0), flip: bool = True) -> Tensor:
    """A random square of an image, mirrored half of the time: uint8 (3, H, W) -> float32 (3, side, side) in [0, 1].

    ``area`` is the range of its share of the greatest square. Nothing is stretched or turned, which some tasks ask for.
    """
    high, wide = image.shape[-2:]
    share = float(torch.empty(()).uniform_(*area))
    edge = max(1, round(min(high, wide) * share**0.5))
    top, left = (int(torch.randint(n - edge + 1, ())) for n in (high, wide))
    x = image[:, top : top + edge, left : left + edge].float() / 255
    if edge != side:  # not as bytes: torch's kernel for these fails where one pixel is left
        x = F.interpolate(x[None], (side, side), mode="bilinear", antialias=True)[0]
    return x.flip(-1) if flip and torch.rand(()) < 0.5 else x


def normalised(x: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """(x - mean) / std by channel; x (..., 3, H, W)."""
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


# ------------------------------------------------------------------ tiles


def cell_of(tile: int, gap: float) -> int:
    """The side of the cells of a puzzle between whose tiles a gap of ``gap`` tiles lies on average."""
    if tile < 2:
        raise ValueError(f"tiles of {tile} pixels show nothing; 2 or more are needed: raise the size")
    return round(tile * (1 + gap))


def tiles(image: Tensor, tile: int, cell: int, *, jitter: int, shift: int = 0) -> Tensor:
    """One tile from each of 3 x 3 cells, row by row: (3, 3 cell, 3 cell) -> (9, 3, tile, tile).

    A tile lies in the middle of its cell, but for up to ``jitter`` pixels each way, of its own; each of its colours is
    displaced by up to ``shift`` pixels more, within the image.
    """
    slack, most = (cell - tile) // 2, GRID * cell - tile
    if not 0 <= jitter <= slack:
        raise ValueError(f"a tile of {tile} in a cell of {cell} can be moved by 0 to {slack} pixels, not by {jitter}")
    cells = torch.arange(GRID * GRID)
    corner = torch.stack([cells // GRID, cells % GRID], -1) * cell + slack  # (9, 2)
    corner = corner + torch.randint(-jitter, jitter + 1, (GRID * GRID, 2))
    corner = corner[:, None] + torch.randint(-shift, shift + 1, (GRID * GRID, 3, 2))
    at = corner.clamp(0, most).tolist()
    cut = [[image[c, y : y + tile, x : x + tile] for c, (y, x) in enumerate(colours)] for colours in at]
    return torch.stack([torch.stack(one) for one in cut])


def joined(parts: Tensor, gap: int = 2) -> Tensor:
    """Nine tiles as one image, white between them: (9, 3, t, t) -> (3, 3 t + 2 gap, 3 t + 2 gap)."""
    side = parts.shape[-1] + gap
    whole = parts.new_ones(3, GRID * side, GRID * side)
    for i, one in enumerate(parts):
        y, x = i // GRID * side, i % GRID * side
        whole[:, y : y + one.shape[-2], x : x + one.shape[-1]] = one
    return whole[:, : whole.shape[1] - gap, : whole.shape[2] - gap]


# ------------------------------------------------------------------ answers


def judged(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Cross entropy and accuracy of answers: logits (N, K), label (N,)."""
    share = distributed.share(len(label))
    right = (logits.argmax(-1) == label).double().mean()
    items = torch.tensor(len(label), device=label.device)
    return {"loss": cross_entropy(logits, label) * share, "items": items, "accuracy": right * share}


def held_out(
    method: Method, view: View, samples: Sequence[Any], *, seed: int = 0, batch: int = 64
) -> Mapping[str, float]:
    """What ``method`` says of samples that it was not trained on: "accuracy", "loss" and whatever else it returns.

    Each sample is seen once, by a view that is drawn from ``seed`` and its number: the same for every method. Values
    are means over items. No generator moves, and the method is left as it was.
    """
    if len(samples) == 0:
        raise ValueError("there is no sample to measure on")
    device, training = next(method.parameters()).device, method.training
    sums, items = dict[str, float](), 0.0
    method.eval()
    try:
        for start in range(0, len(samples), batch):
            seen = [drawn(view, samples, i, seed) for i in range(start, min(start + batch, len(samples)))]
            with torch.no_grad():
                out = method(move(collate(seen), device))
            count = float(out["items"])
            items += count
            for name, value in out.items():
                sums[name] = sums.get(name, 0.0) + float(value) * count
    finally:
        method.train(training)
    return {name: value / items for name, value in sums.items() if name != "items"}


def drawn(look: Callable[[Any], Any], samples: Sequence[Any], index: int, seed: int) -> Any:
    """``look(samples[index])`` with the randomness of (seed, index) alone."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(mix(seed, index))
        return look(samples[index])


def ask(method: Method, logits: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``logits(x)`` as in an evaluation, on the CPU."""
    training = method.training
    method.eval()
    try:
        with torch.no_grad():
            return logits(x.to(next(method.parameters()).device)).cpu()
    finally:
        method.train(training)


# ------------------------------------------------------------------ pictures


def framed(image: Tensor, good: bool, width: int = 3) -> Tensor:
    """An image (3, H, W) within a frame: green where the answer was right, red where it was wrong."""
    colour = image.new_tensor(GREEN if good else RED)[:, None, None]
    whole = colour.expand(3, image.shape[1] + 2 * width, image.shape[2] + 2 * width).clone()
    whole[:, width:-width, width:-width] = image
    return whole


def sheet(rows: Sequence[Sequence[Tensor]], *, side: int = 120) -> bytes:
    """Images (3, H, W) in [0, 1] in rows and columns, each ``side`` pixels high and wide: the bytes of a PNG."""
    size = (side, side)
    even = [[F.interpolate(x[None].float(), size, mode="bilinear", antialias=True)[0] for x in row] for row in rows]
    return png(even, limit=200_000)
