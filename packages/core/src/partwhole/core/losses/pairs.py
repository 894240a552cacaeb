"""Which query belongs to which key, as indices or as a mask, without making one of the other.

Axes: N queries, M keys, P pairs of a query. Indices are (N, P) into the keys, -1 for none; a mask is (N, M) bool.
"""

import torch
from torch import Tensor


def checked(name: str, pairs: Tensor, queries: int, keys: int) -> Tensor:
    """``pairs``, which may be (N,) indices too, as (N, P) indices or an (N, M) mask; ValueError where it is neither."""
    fits = pairs.shape == (queries, keys) if pairs.dtype == torch.bool else pairs.ndim in (1, 2)
    if pairs.is_floating_point() or not fits or len(pairs) != queries:
        raise ValueError(
            f"{name} must hold indices ({queries},) or ({queries}, P), or be bool ({queries}, {keys}); "
            f"got {pairs.dtype} {tuple(pairs.shape)}"
        )
    return pairs[:, None] if pairs.ndim == 1 else pairs


def counts(pairs: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """How many pairs each query is in (N,), and each key (M,)."""
    if pairs.dtype == torch.bool:
        return pairs.sum(1), pairs.sum(0)
    live = pairs >= 0
    of_key = torch.zeros(keys, dtype=torch.int64, device=pairs.device)
    return live.sum(1), of_key.scatter_add_(0, pairs.clamp(min=0).flatten(), live.flatten().long())


def mask(pairs: Tensor, keys: int) -> Tensor:
    """(N, M) bool."""
    if pairs.dtype == torch.bool:
        return pairs
    out = torch.zeros(len(pairs), keys + 1, dtype=torch.bool, device=pairs.device)
    return out.scatter_(1, pairs.masked_fill(pairs < 0, keys).long(), True)[:, :keys]


def remove_(logits: Tensor, exclude: Tensor | None, positive: Tensor) -> None:
    """-inf in logits (N, M) at the excluded pairs that are not positive."""
    if exclude is None:
        return
    if exclude.dtype == torch.bool or positive.dtype == torch.bool:
        logits.masked_fill_(mask(exclude, logits.shape[1]) & ~mask(positive, logits.shape[1]), -torch.inf)
        return
    before = take(logits, positive, -torch.inf)
    drop_(logits, exclude)
    logits.scatter_reduce_(1, positive.clamp(min=0).long(), before, "amax")


def drop_(logits: Tensor, pairs: Tensor) -> None:
    """-inf in logits (N, M) at the indices (N, P)."""
    nothing = torch.where(pairs >= 0, -torch.inf, torch.full_like(pairs, torch.inf, dtype=logits.dtype))
    logits.scatter_reduce_(1, pairs.clamp(min=0).long(), nothing, "amin")


def take(logits: Tensor, pairs: Tensor, none: float = 0) -> Tensor:
    """The logits (N, M) of the pairs, ``none`` where there is none: (N, P), or (N, M) for a mask."""
    if pairs.dtype == torch.bool:
        return torch.where(pairs, logits, none)
    return torch.where(pairs >= 0, logits.gather(1, pairs.clamp(min=0).long()), none)


def weights(pairs: Tensor, query: Tensor | None, key: Tensor | None = None) -> Tensor:
    """query[n] + key[m] of the pairs, as ``take`` takes it; query (N,), key (M,), or None for zeros."""
    total = 0 if query is None else query[:, None]
    if pairs.dtype == torch.bool:
        return torch.where(pairs, total if key is None else total + key, 0)
    return torch.where(pairs >= 0, total if key is None else total + key[pairs.clamp(min=0).long()], 0)


def of_keys(numbers: Tensor, pairs: Tensor) -> Tensor:
    """The keys' numbers (M,) as they stand beside what ``take`` gives; any where there is no pair."""
    return numbers if pairs.dtype == torch.bool else numbers[pairs.clamp(min=0).long()]


def onto_keys(numbers: Tensor, pairs: Tensor, amount: Tensor, how: str) -> Tensor:
    """The keys' numbers (M,) with the amounts of the indices (N, P) reduced into them, by "sum" or "amax"."""
    return numbers.scatter_reduce(0, pairs.clamp(min=0).long().flatten(), amount.flatten(), how)


def subtract_(logits: Tensor, pairs: Tensor, amount: Tensor) -> None:
    """Take amount, shaped as by ``take``, from the logits (N, M) of the pairs; it is 0 where there is none."""
    if pairs.dtype == torch.bool:
        logits -= amount
    else:
        logits.scatter_add_(1, pairs.clamp(min=0).long(), -amount)


def distinct(pairs: Tensor) -> Tensor:
    """The same pairs, each named once."""
    if pairs.dtype == torch.bool or pairs.shape[1] < 2:
        return pairs
    ordered = pairs.sort(1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(again, -1)
