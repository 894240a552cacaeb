"""Contrastive losses: pull together what belongs together, push the rest apart.

There are two ways to the same value. Where the matrix of all queries and keys is small, it is made; where it is not,
some rows of it exist at a time (``tile``) and the gradients are found with the value. ``tile=None`` chooses.

Axes: N queries, M keys, P positives of a query, D features; V views, B things.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses import pairs
from partwhole.core.losses.precision import in_float32, positive_temperature, scalar, unit
from partwhole.core.losses.tiles import choose, rows_of, tiled


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
        Queries without a positive do not count; where none has one, the loss is 0.
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
    query, key, scale = unit(query), unit(key), 1 / scalar(temperature, query)
    of_query, of_key = pairs.counts(positive, len(key))
    row = _mean_over(of_query, query.dtype)  # what each log of a sum weighs
    column = _mean_over(of_key, query.dtype) if symmetric else None
    if column is not None:
        row, column = row / 2, column / 2
    by_row, by_column = row / of_query.clamp(min=1), None if column is None else column / of_key.clamp(min=1)
    size = choose(tile, len(query), len(key), query.device)
    if size is None:
        logits = _without(query @ key.mT * scale, exclude, positive)
        along = pairs.take(logits.log_softmax(1), positive) * pairs.weights(positive, by_row)
        if by_column is None:
            return -along.sum()
        return -(along + pairs.take(logits.log_softmax(0), positive) * pairs.weights(positive, None, by_column)).sum()

    lowest = torch.finfo(query.dtype).min
    columns = spare = query.new_empty(0)
    if column is not None:
        spare = query.new_empty(size, len(key))
        columns = _column_sums(query, key, scale, positive, exclude, spare)

    def part(logits: Tensor, rows: slice) -> Tensor:
        some, mine, value = positive[rows], row[rows, None], logits.new_zeros(())
        pairs.remove_(logits, None if exclude is None else exclude[rows], some)
        down = None
        if column is not None:
            down = torch.sub(logits, columns, out=spare[: len(logits)])
            value = -(pairs.take(down, some) * pairs.weights(some, None, by_column)).sum()
            down.exp_().mul_(column)
        top = logits.amax(1, keepdim=True).clamp(min=lowest)
        logits -= top
        value = value - (pairs.take(logits, some) * pairs.weights(some, by_row[rows])).sum()
        total = logits.exp_().sum(1, keepdim=True).clamp(min=torch.finfo(query.dtype).tiny)
        logits *= mine / total
        if down is not None:
            logits += down
        pairs.subtract_(logits, some, pairs.weights(some, by_row[rows], by_column))
        return value + (mine * total.log()).sum()

    return tiled(part, query, key, tile=size, scale=scale)


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


def _mean_over(count: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of each in a mean over those that have a count; zeros where none has."""
    has = (count > 0).to(dtype)
    return has / has.sum().clamp(min=1)


def _without(logits: Tensor, exclude: Tensor | None, positive: Tensor) -> Tensor:
    """-inf at the excluded pairs that are not positive; logits (N, M), with gradient."""
    if exclude is None:
        return logits
    M = logits.shape[1]
    return logits.masked_fill(pairs.mask(exclude, M) & ~pairs.mask(positive, M), -torch.inf)


@torch.no_grad()
def _column_sums(
    query: Tensor, key: Tensor, scale: Tensor, positive: Tensor, exclude: Tensor | None, buffer: Tensor
) -> Tensor:
    """log(sum over n not excluded: exp(scale * query[n] . key[m])) for all m: (M,). ``buffer`` holds some rows."""
    top = query.new_full((len(key),), torch.finfo(query.dtype).min)
    total = query.new_zeros(len(key))
    for rows in rows_of(len(query), len(buffer)):
        some = query[rows] * scale
        logits = torch.mm(some, key.mT, out=buffer[: len(some)])
        pairs.remove_(logits, None if exclude is None else exclude[rows], positive[rows])
        higher = torch.maximum(top, logits.amax(0))
        total = total * (top - higher).exp() + logits.sub_(higher).exp_().sum(0)
        top = higher
    return (top + total.log()).clamp(min=torch.finfo(query.dtype).min)  # of a key without queries too
