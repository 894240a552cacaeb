"""What to hide, drawn in a view: single tokens, or blocks of neighbours wherever tokens have coordinates.

Neighbours are told by coordinates (L, A) alone, so the same functions serve a row of words (``grid(L)``), an image
(``grid(H, W)``), a video (``grid(T, H, W)``) and points in space. Nothing is hidden more often than anything else: a
token at the border is as likely as one in the middle. (Rectangles laid inside an image, as in the papers, favour its
middle: one of 6 by 6 tokens in 14 by 14 hides a token there 36 times as often as one in a corner.)

Where a thing's tokens are found by its embedding, such as the patches of a cloud of points, the view asks the embedding
for their coordinates, ``embed.coordinates(x[None])[0]``: as nothing in it is random, the encoder will find the same.

Axes: L tokens, A axes of a place, T target blocks, K tokens that are meant.
"""

import torch
from torch import Tensor

Ratio = float | tuple[float, float]  # of hidden tokens; (low, high) is drawn evenly between them


def hide(length: int, ratio: Ratio, generator: torch.Generator | None = None, *, chance: float = 1.0) -> Tensor:
    """Choose round(ratio * length) of ``length`` tokens, at least one, never all: (length,) bool, true if hidden.

    Every token is as likely as any other. Nothing is hidden but with ``chance``: iBOT and DINOv2 leave half of their
    views whole, and draw the ratio of the others between .1 and .5 (Zhou et al., 2022; Oquab et al., 2023).
    Call it in a view; by default it draws from torch's global generator, which is seeded for each sample.
    """
    hidden = torch.zeros(length, dtype=torch.bool)
    count = _drawn(length, ratio, chance, generator)
    hidden[torch.randperm(length, generator=generator)[:count]] = True
    return hidden


def _drawn(length: int, ratio: Ratio, chance: float, generator: torch.Generator | None) -> int:
    """How many of ``length`` tokens to hide."""
    check(length, ratio, chance)
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    if chance < 1 and torch.rand((), generator=generator) >= chance:
        return 0
    if low < high:
        low += (high - low) * float(torch.rand((), generator=generator))
    return min(max(round(low * length), 1), length - 1)


def check(length: int, ratio: Ratio, chance: float = 1.0) -> None:
    """ValueError, if nothing can be hidden so."""
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    if length < 2:
        raise ValueError(f"hiding a part of {length} tokens leaves nothing to predict it from: 2 are needed")
    if not 0 < low <= high < 1:
        raise ValueError(f"the ratio to hide lies between 0 and 1, not at {ratio}")
    if not 0 <= chance <= 1:
        raise ValueError(f"the chance to hide anything lies in [0, 1], not at {chance}")


def grid(*shape: int) -> Tensor:
    """Coordinates (L, A) of the tokens of a grid of A axes, the last axis fastest."""
    return torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).flatten(0, -2).float()


def cells(coordinates: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Part the tokens into ``count`` compact cells of about one size, at random: (L,), the number of each one's cell.

    ``count`` tokens are drawn; to each belong the tokens nearest to it; the means of these cells take the tokens anew.
    A number says nothing of a cell: a token lies in cell 0 with chance 1 / count, wherever it is.
    """
    if coordinates.ndim != 2 or not 1 <= count <= len(coordinates):
        raise ValueError(
            f"coordinates (L, A) of at least as many tokens as cells are needed; got {tuple(coordinates.shape)} and "
            f"{count} cells"
        )
    where = coordinates.double()
    seeds = where[torch.randperm(len(where), generator=generator)[:count]]
    cell = torch.cdist(where, seeds).argmin(1)
    size = torch.bincount(cell, minlength=count).clamp(min=1)
    means = torch.zeros_like(seeds).index_add_(0, cell, where) / size[:, None]
    cell = torch.cdist(where, means).argmin(1)
    return torch.randperm(count, generator=generator)[cell]  # for ties have gone to the lower number


def hide_blocks(
    coordinates: Tensor,
    ratio: Ratio,
    *,
    size: float = 16,
    chance: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """As ``hide``, but neighbours together, in blocks of about ``size`` tokens: (L,) bool, true if hidden.

    The tokens are put in a random order in which those of one cell stand side by side, and as many as are to be hidden
    are taken from a random place on, around the end: so the number is exact and each token as likely as any other.
    For BEiT (Bao et al., 2022: 0.4 of an image, in blocks of 16 patches or more) and data2vec (0.6).
    """
    if not size >= 1:
        raise ValueError(f"a block has at least one token; got size {size}")
    length = len(coordinates)
    count = _drawn(length, ratio, chance, generator)
    cell = cells(coordinates, max(round(length / size), 1), generator)
    aim = torch.randn(coordinates.shape[1], generator=generator, dtype=torch.float64)
    order = (coordinates.double() @ aim).argsort()  # of a cell that is cut, the hidden part is one piece
    order = order[cell[order].argsort(stable=True)]
    start = int(torch.randint(length, (), generator=generator))
    hidden = torch.zeros(length, dtype=torch.bool)
    hidden[order.roll(-start)[:count]] = True
    return hidden


def target_blocks(
    coordinates: Tensor, *, targets: int = 4, blocks: int = 7, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """{"targets": (T, L) bool, "keep": (L,) bool}: ``targets`` of ``blocks`` cells, and what is in none of them.

    For I-JEPA (Assran et al., 2023), which draws four rectangles, each a seventh to a fifth of the image, and keeps
    what they leave of a larger one. Here they do not overlap, vary in shape as cells do, and each token is in one of
    them with chance targets / blocks.
    """
    if not 1 <= targets < blocks:
        raise ValueError(f"some cells are targets, some are left to see: got {targets} targets of {blocks} cells")
    cell = cells(coordinates, blocks, generator)
    return {"targets": cell == torch.arange(targets)[:, None], "keep": cell >= targets}


def indices(mask: Tensor, most: int | None = None) -> Tensor:
    """mask (..., L) bool -> the indices of what it means, (..., K) int64, in their order, -1 beyond their number.

    K is ``most``, or the most that any row has. Masks of one known number of tokens, or of ``most`` at the most, give
    batches of one shape, which torch.compile can take in one graph: see ``transformer.pack``.
    """
    count = int(mask.sum(-1).max())
    if most is not None and count > most:
        raise ValueError(f"{count} tokens are meant, and there is room for {most}: raise most")
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    found = order.masked_fill(~mask.gather(-1, order), -1)[..., : count if most is None else most]
    short = (most or 0) - found.shape[-1]
    return torch.nn.functional.pad(found, (0, short), value=-1) if short > 0 else found
