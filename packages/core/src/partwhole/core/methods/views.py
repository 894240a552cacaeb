"""How methods of several views read them.

Axes: V views, B things, D features.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor


def project(
    encoder: Callable[..., Tensor], head: Callable[..., Tensor], views: Sequence[Tensor], valid: Sequence | None = None
) -> Tensor:
    """``head(encoder(view))`` of every view: (V, B, D). Neighbours of one shape pass through as one batch.

    ``valid`` is None or a list parallel to ``views``, of None or (B, L).
    """
    return passes(lambda x, v: head(encoder(x), None) if v is None else head(encoder(x, valid=v), v), views, valid)


def passes(
    net: Callable[[Tensor, Tensor | None], Tensor], views: Sequence[Tensor], valid: Sequence | None = None
) -> Tensor:
    """``net(view, valid)`` of every view: (V, B, ...). Neighbours of one shape pass through as one batch."""
    if valid is not None and len(valid) != len(views):
        raise ValueError(f"{len(views)} views came with {len(valid)} masks of valid positions: one for each is needed")
    masks = [None] * len(views) if valid is None else list(valid)
    out = []
    for _, group in groupby(zip(views, masks, strict=True), key=lambda pair: (pair[0].shape, pair[1] is None)):
        xs, vs = zip(*group, strict=True)
        y = net(torch.cat(xs), None if vs[0] is None else torch.cat(vs))
        out.append(y.unflatten(0, (len(xs), -1)))
    return torch.cat(out)
