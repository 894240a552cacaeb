"""How methods of several views read them.

Axes: V views, B things, D features, N things that are meant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from partwhole.core.encoder import Encoder


def project_one(encoder: Encoder, head: Callable[..., Tensor], x: Tensor, valid: Tensor | None = None) -> Tensor:
    """``head(encoder(x), real)``, (B, D), where ``real`` says which tokens are."""
    return head(encoder(x) if valid is None else encoder(x, valid=valid), encoder.real(x, valid))


def project(
    encoder: Encoder, head: Callable[..., Tensor], views: Sequence[Tensor], valid: Sequence | None = None
) -> Tensor:
    """``project_one`` of every view: (V, B, D). Neighbours of one shape pass through as one batch.

    ``valid`` is None or a list parallel to ``views``, of None or (B, L).
    """
    return passes(lambda x, v: project_one(encoder, head, x, v), views, valid)


def multicrop(encoder: Encoder, head: Callable[..., Tensor], batch: Mapping[str, Any]) -> Tensor:
    """``project`` of the batch's ``views``, then of its ``crops``, if any: (S, B, D)."""
    large = project(encoder, head, batch["views"], batch.get("valid"))
    if not batch.get("crops"):
        return large
    return torch.cat([large, project(encoder, head, batch["crops"], batch.get("crops_valid"))])


def passes(
    net: Callable[[Tensor, Tensor | None], Tensor], views: Sequence[Tensor], valid: Sequence | None = None
) -> Tensor:
    """``net(view, valid)`` of every view: (V, B, ...). Neighbours of one shape pass through as one batch."""
    return torch.cat([net(x, v).unflatten(0, (at.stop - at.start, -1)) for x, v, at in stretches(views, valid)])


def stretches(views: Sequence[Tensor], valid: Sequence | None = None) -> Iterator[tuple[Tensor, Tensor | None, slice]]:
    """Neighbours of one shape as one batch, their ``valid``, and which views these are."""
    if valid is not None and len(valid) != len(views):
        raise ValueError(f"{len(views)} views came with {len(valid)} masks of valid positions: one for each is needed")
    masks: list[Any] = [None] * len(views) if valid is None else list(valid)
    start = 0
    for i in range(1, len(views) + 1):
        if i < len(views) and views[i].shape == views[start].shape and (masks[i] is None) == (masks[start] is None):
            continue
        together = None if masks[start] is None else torch.cat(masks[start:i])
        yield torch.cat(list(views[start:i])), together, slice(start, i)
        start = i


def found(meant: Tensor) -> Tensor:
    """Where the flattened ``meant`` is true: (N,) int64. It waits for the device; compiled as one graph, N > 1."""
    index = meant.flatten().nonzero()[:, 0]
    if torch.compiler.is_compiling():  # a traced graph has no other way for a batch without rows
        torch._check(len(index) > 1, lambda: "compiled as one graph, a method must find two in every batch")
    return index
