"""Walk through a video along what looks alike, there and back again, and arrive where you started (Jabri et al., 2020).

Axes: B clips, T frames, N nodes of a frame, L tokens, D features, S side of a frame or of a patch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Mean
from partwhole.core.method import Batch, Method
from partwhole.core.precision import in_float32, positive_temperature, unit

LEAST = 1e-20  # a chance to return, added before its logarithm, as in the authors' code


class Walked(NamedTuple):
    """What a walk is judged by."""

    loss: Tensor
    returned: Tensor  # share of the nodes from which the longest walk most probably ends where it began
    chance: Tensor  # how probable that is, on average


def walk_loss(
    nodes: Tensor,
    dropped: Tensor | None = None,
    back: Tensor | None = None,
    *,
    temperature: float = 0.05,
    shortest: int = 1,
    both: bool = True,
) -> Tensor:
    """Minus the log of the chance to return, over palindromes of all lengths (Jabri et al., 2020, eq. 5).

        out[t][n, m]  = softmax over m of cos(nodes[t, n], nodes[t + 1, m]) / temperature
        home[t][m, n] = softmax over n of cos(back[t + 1, m], back[t, n]) / temperature
        chance[k][n]  = (out[0] out[1] ... out[k - 1] home[k - 1] ... home[0])[n, n]
        loss          = mean over clips, over k = shortest .. T - 1 and over n of  -log(chance[k][n] + 1e-20)

    nodes (B, T, N, D): of any length. back (B, T, N, D): the same nodes as they look on the way home; default: nodes.
    dropped (B, 2, T - 1, N, N) bool: edges that cannot be taken, [:, 0, t, n, m] on the way out from n to m and
        [:, 1, t, m, n] on the way home from m to n. A node that would lose all its edges keeps them.
    shortest: the steps that the shortest walk goes out. The authors' code leaves out walks of one step (2), the paper
        has them (1).
    both: walks begin in the first frame, and others in the last one: the same video backwards has the same loss.
        The paper's begin in the first frame alone.

    As the target is the identity, only the diagonals of the longest products are made; the others grow by one factor at
    a time, 2 (T - 2) products of matrices for all lengths together.
    """
    return walk(nodes, dropped, back, temperature=temperature, shortest=shortest, both=both).loss


@in_float32
def walk(
    nodes: Tensor,
    dropped: Tensor | None = None,
    back: Tensor | None = None,
    *,
    temperature: float = 0.05,
    shortest: int = 1,
    both: bool = True,
) -> Walked:
    """``walk_loss``, and how many of its longest walks return."""
    _check(nodes, dropped, back, temperature, shortest)
    out, home = steps(nodes, dropped, back, temperature=temperature)
    ways = [(out, home)]
    if both:
        ways.append((home[::-1], out[::-1]))
    logs, hits, chances = [], [], []
    for there, again in ways:
        away, towards = there[0], again[0]
        returns = [_diagonal(away, towards)]
        for go, come in zip(there[1:], again[1:], strict=True):
            away, towards = away @ go, come @ towards
            returns.append(_diagonal(away, towards))
        logs += [(chance + LEAST).log() for chance in returns[shortest - 1 :]]
        chances.append(returns[-1].detach())
        with torch.no_grad():  # a tie is no return
            end = away @ towards
            hits.append((end >= end.diagonal(dim1=-2, dim2=-1)[..., None]).sum(-1) == 1)
    returned, chance = (torch.stack(values).to(nodes.dtype).mean() for values in (hits, chances))
    return Walked(-torch.stack(logs).mean(), returned, chance)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    """Of the product of a and b, (B, N, N) -> (B, N)."""
    return (a * b.mT).sum(-1)


def steps(
    nodes: Tensor, dropped: Tensor | None = None, back: Tensor | None = None, *, temperature: float = 0.05
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """``out`` and ``home`` of ``walk_loss``, T - 1 each of (B, N, N), whose rows sum to 1."""
    ahead = unit(nodes)
    behind = ahead if back is None else unit(back)
    score = ahead[:, :-1] @ ahead[:, 1:].mT / temperature  # (B, T - 1, N, N)
    other = score.mT if back is None else behind[:, 1:] @ behind[:, :-1].mT / temperature
    gone = (None, None) if dropped is None else dropped.unbind(1)
    out, home = (_shares(s, g).unbind(1) for s, g in zip((score, other), gone, strict=True))
    return out, home


def _shares(score: Tensor, dropped: Tensor | None) -> Tensor:
    """Softmax over the edges that can be taken."""
    if dropped is not None:
        score = score.masked_fill(dropped & ~dropped.all(-1, keepdim=True), -torch.inf)
    return score.softmax(-1)


def _check(nodes: Tensor, dropped: Tensor | None, back: Tensor | None, temperature: float, shortest: int) -> None:
    positive_temperature(temperature)
    if nodes.ndim != 4 or nodes.shape[1] < 2 or 0 in nodes.shape:
        raise ValueError(f"nodes are {tuple(nodes.shape)}: (B, T, N, D) of two frames or more are needed")
    B, T, N, _ = nodes.shape
    if not 1 <= shortest < T:
        raise ValueError(f"walks of {shortest} steps out and more, in {T} frames: shortest is 1 to {T - 1} there")
    if back is not None and back.shape != nodes.shape:
        raise ValueError(f"back is {tuple(back.shape)}, and nodes are {tuple(nodes.shape)}: give the same nodes twice")
    if dropped is not None and (dropped.shape != (B, 2, T - 1, N, N) or dropped.dtype != torch.bool):
        raise ValueError(
            f"dropped is {dropped.dtype} {tuple(dropped.shape)}: bool {(B, 2, T - 1, N, N)} is needed, which edges "
            "cannot be taken from each of the T - 1 frames to the next, and home again"
        )


class RandomWalk(Method):
    """batch: ``x``, clips, as patches (B, T, N, 3, S, S), each of which is a node, or as frames (B, T, 3, S, S), of
    which every token of the encoder but special ones is a node; optional ``dropped`` (B, 2, T - 1, N, N) bool, which
    edges cannot be taken (drawn with the data, so that it is the same however many processes share a batch); optional
    ``shift`` (B, T, 2) int64, for frames: by how many pixels, down and to the right, each frame is rolled for the way
    home. They must be as many as whole tokens have, of which a frame must have as many rows as columns.

    A node is the mean of an encoder's tokens, projected linearly to ``dim`` (None: as it is).

    A transformer sees where a patch is, and could return by that alone. Frames that are rolled, each by another shift,
    by whole patches, have the same patches at other positions on the way home (a form of the perturbed positions of
    Co-Settle: with those the authors report 59.3 on DAVIS where they have 26.2 without).

    ``returned`` is the share of nodes from which the longest walk most probably returns, ``chance`` how probably.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int | None = 128,
        temperature: float = 0.05,
        shortest: int = 1,
        both: bool = True,
    ):
        super().__init__(encoder)
        self.head = nn.Identity() if dim is None else nn.Linear(encoder.dim, dim)
        self.pool = Mean()
        self.temperature, self.shortest, self.both = temperature, shortest, both

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, shift = batch["x"], batch.get("shift")
        T = x.shape[1]
        if shift is None:
            nodes, back = self.nodes(x), None
        else:
            seen = self.nodes(torch.cat([x, rolled(x, shift)], 1))
            nodes, back = seen[:, :T], self.unrolled(seen[:, T:], shift, x.shape[-1])
        out = walk(
            nodes, batch.get("dropped"), back, temperature=self.temperature, shortest=self.shortest, both=self.both
        )
        return {"loss": out.loss * distributed.share(len(x)), "returned": out.returned, "chance": out.chance}

    def nodes(self, x: Tensor) -> Tensor:
        """Patches (B, T, N, 3, S, S) or frames (B, T, 3, S, S) -> (B, T, N, dim)."""
        if x.ndim not in (5, 6):
            raise ValueError(f"x is {tuple(x.shape)}: patches (B, T, N, 3, S, S) or frames (B, T, 3, S, S) are needed")
        tokens = self.tokens(x.flatten(0, x.ndim - 4))
        return self.head(self.pool(tokens) if x.ndim == 6 else tokens).unflatten(0, x.shape[: x.ndim - 3])

    def unrolled(self, nodes: Tensor, shift: Tensor, size: int) -> Tensor:
        """The nodes (B, T, N, D) of rolled frames of ``size`` pixels a side, where they were before."""
        side = round(nodes.shape[2] ** 0.5)
        if side**2 != nodes.shape[2] or size % side:
            raise ValueError(
                f"frames of {size} pixels have {nodes.shape[2]} nodes: to be rolled by whole ones, they must be "
                "square, with as many rows as columns, and their side a multiple of these"
            )
        return rolled(nodes.mT.unflatten(-1, (side, side)), -shift // (size // side)).flatten(-2).mT

    def tokens(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L, D), without special ones."""
        return self.encoder(x)[:, self.encoder.special :]


def rolled(x: Tensor, shift: Tensor) -> Tensor:
    """x (B, T, C, H, W), of which each frame is rolled by shift (B, T, 2): down, and to the right."""
    H, W = x.shape[-2:]
    row, column = (
        (torch.arange(n, device=x.device) - shift[..., i, None]) % n for i, n in enumerate((H, W))
    )  # where a row is taken from
    B, T = (torch.arange(n, device=x.device) for n in x.shape[:2])
    picked = x.movedim(2, -1)[B[:, None, None, None], T[:, None, None], row[..., None], column[..., None, :]]
    return picked.movedim(-1, 2)
