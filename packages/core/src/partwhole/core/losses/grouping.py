"""Losses on groups of tokens: those of one group should look alike, those of different groups should not.

Axes: B things, L tokens, G groups of a thing, C coarse groups, D features. Groups are numbered within each thing by any
integers; below 0 means unknown. ``valid`` (B, L) is true where a token is real.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.tiles import once
from partwhole.core.precision import in_float32, inverse_norm, positive_temperature, unit


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
    feature = _clear(feature, known)
    scale = inverse_norm(feature)  # (B, L, 1); what is scaled is the little that follows, not the features
    member = _member(own, known)  # (B, L, G)
    mean = unit((member * scale).mT @ feature)  # (B, G, D)
    logits = (feature @ mean.mT) * (scale / temperature)  # (B, L, G)
    out = ~member.any(1, keepdim=True)  # groups that this thing does not have
    if coarse is not None:
        _known(feature, coarse, valid)
        located = known & (coarse >= 0)
        inside = _member(_renumber(coarse, located), located).to(logits.dtype)  # (B, L, C)
        shared = (member.to(logits.dtype).mT @ inside > 0).to(logits.dtype)  # (B, G, C)
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

    Nothing of size (B, L, L) is made, only some rows of one thing at a time, and the gradient is found with the value:
    so there is no second derivative.
    """
    if not isinstance(negatives, Tensor) and negatives not in ("sampled", "expected", "all"):
        raise ValueError(f'negatives is "sampled", "expected", "all" or a (B, L, L) mask; got {negatives!r}')
    known = _known(feature, group, valid)
    if isinstance(negatives, Tensor) and negatives.shape != (*group.shape, group.shape[1]):
        raise ValueError(
            f"a mask of negatives is (B, L, L); got {tuple(negatives.shape)} for {tuple(group.shape)} tokens"
        )
    same, pairs = group_pairs(group, valid)
    p = torch.as_tensor(same / pairs.clamp(min=1) if fraction is None else fraction).to(feature)
    u = unit(_clear(feature, known))
    return 0.5 * _PairSum.apply(u, group, known, valid, margin, negatives, p, generator) / pairs.clamp(min=1).to(u)


def group_pairs(group: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many pairs (i, j) of a thing's tokens share a group, and how many there are, as float64 scalars.

    group (B, L), valid (B, L). Over ranks: ``same, pairs = mean(same), mean(pairs)``, then ``fraction=same / pairs``.
    """
    known = group >= 0 if valid is None else (group >= 0) & valid
    own = _renumber(group, known)
    sizes = torch.zeros_like(own).scatter_add_(1, own, known.to(own.dtype))
    return sizes.square().sum().double(), known.sum(1).square().sum().double()


@in_float32
def group_means(feature: Tensor, group: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean feature (B, G, D) of a thing's groups, 0 where it has none of that number, and which it has (B, G).

    feature (B, L, D), group (B, L) integer: G - 1 is the greatest.
    """
    known = _known(feature, group, valid)
    member = _member(group, known)
    size = member.sum(1)
    total = member.to(feature.dtype).mT @ _clear(feature, known)
    return total / size.clamp(min=1)[..., None], size > 0


class _PairSum(torch.autograd.Function):
    """Sum over all ordered pairs i != j of kept * l, with its gradient.

    l[i, j] = l[j, i], so a pair {i, j} is met once, i < j, and n = kept[i, j] + kept[j, i] says how often it counts.
    Given which pairs lie beyond the margin, the sum is linear in the cosines: const + sum over i < j: w u[i].u[j], with
    w = -n for a pair of one group and n or 0 for the others. So the gradient by u[i] is the sum over j of w u[j], and
    nothing has to be kept for it but its own value. w exists for some rows at a time.
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
        every, tile = bool(known.all()), 256 if u.device.type == "cpu" else 4096  # a CPU's cache, a GPU's many cores
        for b in range(len(u)):
            # coins are thrown for real tokens only: padding must not change them
            real = slice(None) if valid is None else valid[b].nonzero()[:, 0]
            x, g, k = u[b, real], group[b, real], known[b, real]
            coins = negatives[b][real][:, real] if isinstance(negatives, Tensor) else None
            own = generator[b] if isinstance(generator, Sequence) else generator
            grad = torch.zeros_like(x)
            for start in range(0, len(x), tile):
                row, rest = slice(start, start + tile), slice(start, None)
                c = x[row] @ x[rest].mT  # (tile, L - start)
                if coins is not None:
                    n = coins[row, rest].to(x.dtype) + coins[rest, row].mT
                elif negatives == "sampled":  # two coins at once
                    draw = torch.rand(c.shape, generator=own, device=c.device)
                    n = (draw < p * (2 - p)).to(x.dtype) + (draw < p * p)
                else:
                    n = 2 * p if negatives == "expected" else 2
                alike = g[row, None] == g[rest]
                w = torch.where(alike, -2, (c > margin) * n).to(x.dtype).triu_(1)
                if not every:
                    w.masked_fill_(~(k[row, None] & k[rest]), 0)
                total = total + (w * (c - torch.where(alike, 1, margin))).sum()
                grad[row] += w @ x[rest]
                grad[rest] += w.mT @ x[row]
            slope[b, real] = grad
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        once()
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


def _clear(feature: Tensor, known: Tensor) -> Tensor:
    """Zeros where a token is not known: whatever stands there, NaN too, has no part in anything."""
    return feature if not torch.compiler.is_compiling() and known.all() else feature.masked_fill(~known[..., None], 0)


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
