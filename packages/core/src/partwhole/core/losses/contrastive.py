"""Contrastive losses: pull together what belongs together, push the rest apart.

Where the matrix of all queries and keys is small, it is made; where it is not, some rows of it exist at a time
(``tile``) and the gradients are found with the value. ``tile=None`` chooses.

Axes: N queries, M keys, P positives of a query, D features; V views, B things.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses import pairs
from partwhole.core.losses.tiles import choose, rows_of, tiled
from partwhole.core.precision import in_float32, positive_temperature, scalar, unit


@in_float32
def info_nce(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    exclude: Tensor | None = None,
    symmetric: bool = False,
    tile: int | None = None,
) -> Tensor:
    """Pick each query's positives among all keys (van den Oord et al., 2018).

        s[n, m] = cos(query[n], key[m]) / temperature
        loss    = mean over n, mean over the positives p of n:  log(sum over m not excluded: exp s[n, m]) - s[n, p]

    With two views, the other view as the positive and ``exclude`` the query itself, this is NT-Xent (Chen et al.,
    2020); with several positives it is the "out" form of SupCon (Khosla et al., 2020), which with one is NT-Xent.

    query (N, D), key (M, D): extra negatives are extra keys.
    positive: (N,) or (N, P) indices into key, -1 for none, or (N, M) bool; by default query n matches key n.
        Queries without a positive do not count; where none has one, the loss is 0. One named twice is one. Given by
        index, a single positive keeps value and gradients exact however near to 0 they are.
    exclude: (N,) or (N, P) indices or (N, M) bool: pairs that are neither, such as a view and itself. A positive is
        never excluded.
    temperature: above 0; a tensor may learn.
    symmetric: the mean of both directions, queries among keys and keys among queries, as in CLIP (Radford et al.,
        2021). The pairs are the same, and the matrix is made once. Over several processes take two calls instead, each
        with the other side gathered.
    tile: so many queries at a time, (tile, M) of memory instead of (N, M); at least N for the whole matrix, which
        alone has second derivatives.
    """
    positive, exclude = _checked(query, key, positive, exclude, temperature)
    positive = pairs.distinct(positive)
    query, key, scale = unit(query), unit(key), 1 / scalar(temperature, query)
    of_query, of_key = (count.to(query.dtype) for count in pairs.counts(positive, len(key)))
    row, column = (_mean_over(count) / (1 + symmetric) for count in (of_query, of_key))  # what each log of a sum weighs
    by_row, by_column = row / of_query.clamp(min=1), column / of_key.clamp(min=1)
    size = choose(tile, len(query), len(key), query.device)
    spare = query.new_empty((size or len(query)) if symmetric else 0, len(key))
    columns = _column_sums(query, key, scale, positive, exclude, spare) if symmetric and size is not None else None

    def part(logits: Tensor, rows: slice) -> Tensor:
        some, down, further = positive[rows], columns, spare[: len(logits)]
        own = _parted(logits, some, None if exclude is None else exclude[rows])
        if symmetric:
            down = down or _more(_nothing(key), logits, own, some, out=further)
            torch.sub(logits, down.top, out=further).exp_().mul_(column / down.total())
        along = _row_sums(logits, own, some)
        logits *= row[rows, None] / along.total()
        value, pull = along.pull(own, some, pairs.weights(some, by_row[rows]), of_query[rows, None])
        if down is not None:
            logits += further
            at, by = _Sums(*(pairs.of_keys(x, some) for x in down)), pairs.weights(some, None, by_column)
            more, harder = at.pull(own, some, by, pairs.of_keys(of_key, some))
            value, pull = value + more, pull + harder
        pairs.subtract_(logits, some, pull)
        return value

    def whole(query: Tensor, key: Tensor, scale: Tensor, _: None) -> Tensor:
        logits, on = query @ key.mT * scale, pairs.mask(positive, len(key))
        off = on if exclude is None else on | pairs.mask(exclude, len(key))
        value = _picked(logits, on, off, row, by_row)
        return value + _picked(logits.mT, on.mT, off.mT, column, by_column) if symmetric else value

    return tiled(part, query, key, tile=size or max(len(query), 1), scale=scale, whole=whole if size is None else None)


@in_float32
def nt_xent(
    z: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    key: Tensor | None = None,
    start: int = 0,
    tile: int | None = None,
) -> Tensor:
    """Find the other views of a thing among all other views of all things (Chen et al., 2020).

        s[i, j] = cos(z[i], z[j]) / temperature,   i and j any views of any things
        loss    = mean over i, mean over the other views p of i's thing:  log(sum over j != i: exp s[i, j]) - s[i, p]

    With two views this is NT-Xent; with more it is SupCon's "out" form (Khosla et al., 2020), a thing being a class.

    z (V, B, D), V >= 2. Over processes: ``key=gather(z.flatten(0, 1))`` (M, D), all rows of all of them, in which those
    of this one begin at ``start``. tile: as in ``info_nce``.
    """
    if z.ndim != 3 or len(z) < 2:
        raise ValueError(f"z (V, B, D) of two or more views is needed; got {tuple(z.shape)}")
    V, B, _ = z.shape
    me = torch.arange(start, start + V * B, device=z.device).view(V, B)
    others = torch.stack([me.roll(-v, 0) for v in range(1, V)], -1)  # (V, B, V - 1)
    rows = z.flatten(0, 1)
    return info_nce(
        rows,
        rows if key is None else key,
        others.flatten(0, 1),
        temperature=temperature,
        exclude=me.flatten(),
        tile=tile,
    )


@in_float32
def sigmoid_contrast(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    exclude: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Say of every pair by itself whether it belongs together (SigLIP, Zhai et al., 2023).

        s[n, m] = cos(query[n], key[m]) / temperature + bias
        loss    = mean over n, sum over m not excluded:  - log sigmoid(s[n, m] if m is a positive of n else -s[n, m])

    query, key, positive, exclude and tile as in ``info_nce``; a query without a positive counts, with its negatives.
    temperature: above 0; the paper learns 1 / temperature, from 10 on, and ``bias``, from -10 on.

    Every pair has a loss of its own, so over processes each takes its own queries and all keys, and nothing is
    symmetrised.
    """
    positive, exclude = _checked(query, key, positive, exclude, temperature)
    positive, each = pairs.distinct(positive), 1 / max(len(query), 1)
    query, key, scale, bias = unit(query), unit(key), 1 / scalar(temperature, query), scalar(bias, query)
    size = choose(tile, len(query), len(key), query.device)
    if size is None:
        logits = _without(query @ key.mT * scale + bias, exclude, positive)
        return -F.logsigmoid(torch.where(pairs.mask(positive, len(key)), logits, -logits)).sum() * each
    spare = query.new_empty(size, len(key))

    def part(logits: Tensor, rows: slice) -> Tensor:
        some, other = positive[rows], spare[: len(logits)]
        pairs.remove_(logits, None if exclude is None else exclude[rows], some)
        # - log sigmoid(-s) = max(s, 0) + log(1 + exp(-|s|)); for a positive, s less
        torch.clamp(logits, min=0, out=other)
        pairs.subtract_(other, some, pairs.take(logits, some))
        value = other.sum() + torch.abs(logits, out=other).neg_().exp_().log1p_().sum()
        logits.sigmoid_().mul_(each)
        pairs.subtract_(logits, some, pairs.weights(some, logits.new_full((len(logits),), each)))
        return value * each

    return tiled(part, query, key, tile=size, scale=scale, bias=bias.expand(len(key)))


def _checked(
    query: Tensor, key: Tensor, positive: Tensor | None, exclude: Tensor | None, temperature: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """positive and exclude as ``pairs.checked`` returns them; ValueError where the arguments do not fit each other."""
    positive_temperature(temperature)
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (N, D) and key (M, D) are needed; got {tuple(query.shape)} and {tuple(key.shape)}")
    if positive is None:
        if len(key) < len(query):
            raise ValueError(f"{len(key)} keys for {len(query)} queries: say which are positive")
        positive = torch.arange(len(query), device=query.device)
    positive = pairs.checked("positive", positive, len(query), len(key))
    return positive, None if exclude is None else pairs.checked("exclude", exclude, len(query), len(key))


def _mean_over(count: Tensor) -> Tensor:
    """The weight of each in a mean over those that have a count; zeros where none has."""
    has = (count > 0).to(count.dtype)
    return has / has.sum().clamp(min=1)


def _without(logits: Tensor, exclude: Tensor | None, positive: Tensor) -> Tensor:
    """-inf at the excluded pairs that are not positive; logits (N, M), with gradient."""
    if exclude is None:
        return logits
    M = logits.shape[1]
    return logits.masked_fill(pairs.mask(exclude, M) & ~pairs.mask(positive, M), -torch.inf)


def _picked(logits: Tensor, on: Tensor, off: Tensor, each: Tensor, by: Tensor) -> Tensor:
    """Sum over n: each[n] * log of the sum over all m, less the sum over the positives p: by[n] * logits[n, p].

    logits (N, M); on, the positives, and off, these and what is excluded, (N, M) bool; each (N,), by times their count.
    """
    lowest = torch.finfo(logits.dtype).min
    own, others = logits.masked_fill(~on, lowest), logits.masked_fill(off, -torch.inf).logsumexp(1)
    share = F.logsigmoid(own.logsumexp(1).clamp(min=lowest) - others)  # log of that of all positives
    return -(each * share).sum() - (by[:, None] * own.log_softmax(1)).masked_fill(~on, 0).sum()


class _Sums(NamedTuple):
    """Sums of exp(logits - top), of the positives apart: where one of them outweighs the others, the loss is what these
    are, and would be rounding if it were found as a difference. The positives of a mask are not parted from the others.
    """

    top: Tensor  # the greatest logit
    others: Tensor
    own: Tensor

    def total(self) -> Tensor:
        return (self.others + self.own).clamp(min=torch.finfo(self.own.dtype).tiny)

    def pull(self, own: Tensor, some: Tensor, by: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the positives of by * (log of the total - logit), and what they, less their part of the sum (which a
        mask's keep), lose by it.

        own: their logits; by, and count, how many share a total: shaped as by ``pairs.take``, or to fit it.
        """
        log = (self.others + (self.own - 1)).clamp(min=0).log1p()  # the greatest is 1
        value = (self.top - own).add_(log).mul_(by).sum()
        if some.dtype == torch.bool:
            return value, by
        share = (own - self.top).exp() / self.own.clamp(min=torch.finfo(own.dtype).tiny) * count
        return value, by * (1 - share + share * self.others / self.total())


def _parted(logits: Tensor, positive: Tensor, exclude: Tensor | None) -> Tensor:
    """The positives' logits, shaped as by ``pairs.take``; what is excluded becomes -inf, as do positives by index."""
    pairs.remove_(logits, exclude, positive)
    own = pairs.take(logits, positive, torch.finfo(logits.dtype).min)
    if positive.dtype != torch.bool:
        pairs.drop_(logits, positive)
    return own


def _row_sums(logits: Tensor, own: Tensor, some: Tensor) -> _Sums:
    """Over keys, (N, 1); the logits, as ``_parted`` left them, become exp(logits - top)."""
    top = logits.amax(1, keepdim=True).clamp(min=torch.finfo(own.dtype).min)
    if some.dtype == torch.bool:
        return _Sums(top, logits.sub_(top).exp_().sum(1, keepdim=True), torch.zeros_like(top))
    top = torch.maximum(top, own.amax(1, keepdim=True))
    return _Sums(top, logits.sub_(top).exp_().sum(1, keepdim=True), (own - top).exp().sum(1, keepdim=True))


@torch.no_grad()
def _column_sums(
    query: Tensor, key: Tensor, scale: Tensor, positive: Tensor, exclude: Tensor | None, buffer: Tensor
) -> _Sums:
    """Over queries, (M,), for the logits scale * query[n] . key[m]. ``buffer`` holds some rows."""
    sums = _nothing(key)
    for rows in rows_of(len(query), len(buffer)):
        some = query[rows] * scale
        logits = torch.mm(some, key.mT, out=buffer[: len(some)])
        own = _parted(logits, positive[rows], None if exclude is None else exclude[rows])
        sums = _more(sums, logits, own, positive[rows], out=buffer)
    return sums


def _nothing(key: Tensor) -> _Sums:
    zeros = torch.zeros_like(key[:, 0])
    return _Sums(torch.full_like(zeros, torch.finfo(key.dtype).min), zeros, zeros)


def _more(sums: _Sums, logits: Tensor, own: Tensor, some: Tensor, *, out: Tensor) -> _Sums:
    """Sums over queries, (M,), and some more of them: logits (N, M), as ``_parted`` left them. out is overwritten."""
    listed = some.dtype != torch.bool
    top = torch.maximum(sums.top, logits.amax(0))
    top = pairs.onto_keys(top, some, own, "amax") if listed else top
    shrink = (sums.top - top).exp()
    others = sums.others * shrink + torch.sub(logits, top, out=out[: len(logits)]).exp_().sum(0)
    inside = sums.own * shrink
    if listed:
        inside = pairs.onto_keys(inside, some, (own - pairs.of_keys(top, some)).exp(), "sum")
    return _Sums(top, others, inside)
