"""Contrastive loss: pull together what belongs together, push the rest apart.

Axes: N queries, M keys, P positives of a query, D features.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from partwhole.core.losses.precision import in_float32, positive_temperature, unit


@in_float32
def info_nce(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    exclude: Tensor | None = None,
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
    tile: so many queries at a time, recomputed in the backward pass: (tile, M) of memory instead of (N, M).
    """
    positive_temperature(temperature)
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (N, D) and key (M, D) are needed; got {tuple(query.shape)} and {tuple(key.shape)}")
    if positive is None:
        if len(key) < len(query):
            raise ValueError(f"{len(key)} keys for {len(query)} queries: say which are positive")
        positive = torch.arange(len(query), device=query.device)
    for name, pairs in (("positive", positive), ("exclude", exclude)):
        _check_pairs(name, pairs, len(query), len(key))
    query, key = unit(query), unit(key)
    if tile is None or tile >= len(query):
        total, count = _sums(query, key, positive, exclude, temperature)
        return total / count.clamp(min=1)
    total, count = query.new_zeros(()), torch.zeros((), dtype=torch.int64, device=query.device)
    for start in range(0, len(query), tile):
        q, p, e = (None if x is None else x[start : start + tile] for x in (query, positive, exclude))
        some = checkpoint(_sums, q, key, p, e, temperature, use_reentrant=False, preserve_rng_state=False)
        total, count = total + some[0], count + some[1]
    return total / count.clamp(min=1)


def _sums(
    query: Tensor, key: Tensor, positive: Tensor, exclude: Tensor | None, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The loss summed over these queries, and how many of them have a positive."""
    logits = query @ key.mT / temperature  # (N, M)
    if positive.dtype == torch.bool:
        count = positive.sum(1)
        wanted = torch.where(positive, logits, 0).sum(1) / count.clamp(min=1)
    else:
        index = positive.reshape(len(query), -1)
        count = (index >= 0).sum(1)
        wanted = torch.where(index >= 0, logits.gather(1, index.clamp(min=0)), 0).sum(1) / count.clamp(min=1)
    if exclude is not None:
        logits = logits.masked_fill(_mask(exclude, len(key)) & ~_mask(positive, len(key)), -torch.inf)
    return torch.where(count > 0, logits.logsumexp(1) - wanted, 0).sum(), (count > 0).sum()


def _mask(pairs: Tensor, keys: int) -> Tensor:
    """(N, M) bool from indices, -1 for none."""
    if pairs.dtype == torch.bool:
        return pairs
    index = pairs.reshape(len(pairs), -1)
    mask = torch.zeros(len(index), keys + 1, dtype=torch.bool, device=index.device)
    return mask.scatter_(1, index.masked_fill(index < 0, keys), True)[:, :keys]


def _check_pairs(name: str, pairs: Tensor | None, queries: int, keys: int) -> None:
    if pairs is None:
        return
    fits = pairs.shape == (queries, keys) if pairs.dtype == torch.bool else pairs.ndim in (1, 2)
    if pairs.is_floating_point() or not fits or len(pairs) != queries:
        raise ValueError(
            f"{name} must hold indices ({queries},) or ({queries}, P), or be bool ({queries}, {keys}); "
            f"got {pairs.dtype} {tuple(pairs.shape)}"
        )
