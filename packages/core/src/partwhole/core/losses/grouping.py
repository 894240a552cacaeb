"""Losses on groups of tokens: those of one group should look alike, those of different groups should not.

Axes: B things, L tokens, G groups of a thing, C coarse groups, D features. Groups are numbered within each thing by any
integers; below 0 means unknown. ``valid`` (B, L) is true where a token is real.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.precision import in_float32, positive_temperature, unit

TILE = 1024  # rows of the (L, L) matrix of pairs that exist at a time


@in_float32
def group_info_nce(
    feature: Tensor,
    group: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    valid: Tensor | None = None,
    coarse: Tensor | None = None,
) -> Tensor:
    """Find each token's own group among the mean features of its thing's groups.

        u[b, l]    = feature[b, l] / |feature[b, l]|
        mean[b, g] = sum over l in g: u[b, l], over its length
        loss       = mean over tokens of known group:  cross entropy of u[b, l] . mean[b, :] / temperature to g[b, l]

    feature (B, L, D), group (B, L) integer. Linear in L where ``group_contrast`` is quadratic.
    coarse (B, L): groups at a coarser level. Those that have a token in the coarse group of a token are left out of its
    choice, but for its own: negatives lie across coarse groups only.
    A thing with one group gives 0, and so does a batch without any known group.
    """
    positive_temperature(temperature)
    known = _known(feature, group, valid)
    own = _renumber(group, known)  # (B, L), 0 to G - 1
    u = unit(feature.masked_fill(~known[..., None], 0))
    member = _member(own, known)  # (B, L, G)
    mean = unit(member.to(u.dtype).mT @ u)  # (B, G, D)
    logits = u @ mean.mT / temperature  # (B, L, G)
    out = ~member.any(1, keepdim=True)  # groups that this thing does not have
    if coarse is not None:
        located = known & (coarse >= 0)
        inside = _member(_renumber(coarse, located), located).to(u.dtype)  # (B, L, C)
        shared = (member.to(u.dtype).mT @ inside > 0).to(u.dtype)  # (B, G, C)
        out = out | (inside @ shared.mT > 0)
    out = out & ~member & known[..., None]
    own = own.masked_fill(~known, -100)
    total = F.cross_entropy(logits.masked_fill(out, -torch.inf).flatten(0, 1), own.flatten(), reduction="sum")
    return total / known.sum().clamp(min=1)


@in_float32
def group_contrast(
    feature: Tensor,
    group: Tensor,
    *,
    margin: float = 0.5,
    negatives: Literal["sampled", "expected", "all"] | Tensor = "sampled",
    fraction: float | Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Pull together the pairs of one group, push apart the others (Gadelha et al., 2020, as in the authors' code).

        c[b, i, j] = cos(feature[b, i], feature[b, j])
        l[b, i, j] = 1 - c  if group[b, i] == group[b, j], else  max(0, c - margin)
        p          = share of the pairs of one group, i == j included, among all pairs of the batch
        loss       = 0.5 * mean over all b, i, j:  (i != j) * kept * l,   kept = one group, or a coin of chance p

    The pairs left out stay in the mean, so the value falls with the number of groups: finely cut things weigh little.

    feature (B, L, D), group (B, L) integer; pairs with an unknown or padded token are no pairs.
    negatives: "sampled", the paper's coins; "expected", weight p on every negative, which is the mean over all coins
        and needs no randomness; "all", weight 1; or the coins themselves, (B, L, L) bool.
    fraction: p, where this batch is a piece of the one that counts: ``group_pairs`` says what to add up.
    generator: of the coins, or one generator for each thing, so that a thing's coins do not depend on its batch.

    Nothing of size (B, L, L) is kept: 1,024 rows of one thing at a time, and the gradient comes with the value (so
    there is no second derivative).
    """
    known = _known(feature, group, valid)
    same, pairs = group_pairs(group, valid)
    p = same / pairs.clamp(min=1) if fraction is None else torch.as_tensor(fraction, device=feature.device)
    u = unit(feature.masked_fill(~known[..., None], 0))
    return 0.5 * _PairSum.apply(u, group, known, valid, margin, negatives, p, generator) / pairs.clamp(min=1)


def group_pairs(group: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many pairs (i, j) of a thing's tokens share a group, and how many there are, as float32 scalars.

    group (B, L), valid (B, L). Over ranks: ``same, pairs = mean(same), mean(pairs)``, then ``fraction=same / pairs``.
    """
    known = group >= 0 if valid is None else (group >= 0) & valid
    own = _renumber(group, known)
    sizes = torch.zeros_like(own).scatter_add_(1, own, known.to(own.dtype))
    return sizes.square().sum().float(), known.sum(1).square().sum().float()


class _PairSum(torch.autograd.Function):
    """Sum over all pairs of weight * l, with its gradient.

    Given which pairs lie beyond the margin, l is linear in the cosines: the sum is const + sum w[i, j] u[i].u[j],
    and its gradient by u[i] is sum over j (w[i, j] + w[j, i]) u[j]. w exists for TILE rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        group: Tensor,
        known: Tensor,
        valid: Tensor | None,
        margin: float,
        negatives: str | Tensor,
        p: Tensor,
        generator: Any,
    ) -> Tensor:
        total, slope = u.new_zeros(()), torch.zeros_like(u)
        for b in range(len(u)):
            # coins are thrown for real tokens only: padding must not change them
            real = slice(None) if valid is None else valid[b].nonzero()[:, 0]
            x, g, k = u[b, real], group[b, real], known[b, real]
            own = generator[b] if isinstance(generator, Sequence) else generator
            grad = torch.zeros_like(x)
            for start in range(0, len(x), TILE):
                rows = slice(start, start + TILE)
                c = x[rows] @ x.mT  # (rows, L)
                alike = g[rows, None] == g
                if isinstance(negatives, Tensor):
                    kept = negatives[b][real][:, real][rows].to(x.dtype)
                elif negatives == "sampled":
                    kept = (torch.rand(c.shape, generator=own, device=c.device) < p).to(x.dtype)
                elif negatives in ("expected", "all"):
                    kept = p.to(x.dtype) if negatives == "expected" else 1.0
                else:
                    raise ValueError(
                        f'negatives is "sampled", "expected", "all" or a (B, L, L) mask; got {negatives!r}'
                    )
                w = torch.where(alike, -1, (c > margin) * kept).to(x.dtype)
                w.masked_fill_(~(k[rows, None] & k), 0)
                w.diagonal(start).zero_()
                total += (w * torch.where(alike, c - 1, c - margin)).sum()
                grad[rows] += w @ x
                grad += w.mT @ x[rows]
            slope[b, real] = grad
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None, None, None, None, None, None


def _known(feature: Tensor, group: Tensor, valid: Tensor | None) -> Tensor:
    """(B, L) bool: real and of known group; ValueError where the shapes do not fit."""
    if feature.ndim != 3 or group.shape != feature.shape[:2] or group.is_floating_point():
        raise ValueError(
            f"feature (B, L, D) and integer group (B, L) are needed; got {tuple(feature.shape)} and "
            f"{group.dtype} {tuple(group.shape)}"
        )
    if valid is not None and valid.shape != group.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, group {tuple(group.shape)}: they must be alike")
    return group >= 0 if valid is None else (group >= 0) & valid


def _member(own: Tensor, known: Tensor) -> Tensor:
    """(B, L, G) bool: which group each known token is of; G is the most groups that a thing has, at least 1."""
    most = int(own.max()) + 1 if own.numel() else 1
    return (own[..., None] == torch.arange(most, device=own.device)) & known[..., None]


def _renumber(group: Tensor, known: Tensor) -> Tensor:
    """The groups of each row as 0, 1, ... in the order of their numbers; 0 where unknown. (B, L) int64."""
    if group.shape[1] == 0:
        return group.long()
    last = torch.iinfo(group.dtype).max
    ordered, order = group.masked_fill(~known, last).sort(1)
    step = F.pad((ordered[:, 1:] != ordered[:, :-1]).long(), (1, 0))
    return torch.empty_like(order).scatter_(1, order, step.cumsum(1)).masked_fill(~known, 0)
