"""Batches, nested dicts and lists of tensors, taken apart: for checks of what a method makes of them.

Axes: B things, L positions. A mask is a tensor ``valid`` (B, L) beside those that it masks, or a list: ``valid``
parallel to ``views`` and other lists, ``crops_valid`` to ``crops``.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mapped(x: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(x, Mapping):
        return {k: mapped(v, change) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [mapped(v, change) for v in x]
    return change(x) if isinstance(x, Tensor) else x


def cast(batch: Any, dtype: torch.dtype) -> Any:
    return mapped(batch, lambda x: x.to(dtype) if x.is_floating_point() else x)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else a == b


def pieces(x: Tensor, axis: int, parts: int = 2, least: int = 1) -> list[Tensor]:
    """Uneven pieces: ``least`` things each, if there are enough, but for the first, which has the rest."""
    size = x.shape[axis]
    if size <= parts:
        raise AssertionError(f"a batch of {size} cannot be split unevenly in {parts}: give more than {parts} things")
    least = min(least, (size - 1) // parts)
    return list(x.split([size - least * (parts - 1)] + [least] * (parts - 1), dim=axis))


def split(batch: Any, parts: int, least: int = 1) -> list[Any]:
    return [mapped(batch, lambda x, i=i: pieces(x, 0, parts, least)[i]) for i in range(parts)]


def _pairs(batch: Any) -> Iterator[tuple[Any, str, str]]:
    """Containers of a batch with the key of a mask in them and that of what it masks."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            if key == "valid" or key.endswith("_valid"):
                for other in batch if isinstance(value, Tensor) else _parallel(batch, key):
                    if other != key:
                        yield batch, key, other
            yield from _pairs(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _pairs(value)


def _parallel(batch: Mapping[str, Any], key: str) -> list[str]:
    """What a list of masks masks: ``crops_valid`` the crops, ``valid`` every other list as long as itself."""
    if key != "valid":
        return [key.removesuffix("_valid")]
    return [
        name
        for name, value in batch.items()
        if isinstance(value, list | tuple)
        and len(value) == len(batch[key])
        and name not in (key, "crops", "crops_valid")
    ]


def masks(batch: Any) -> Iterator[Tensor]:
    for container, key, _ in _pairs(batch):
        yield from ([container[key]] if isinstance(container[key], Tensor) else container[key])


def soiled(batch: Any) -> Any:
    """A copy of the batch with junk wherever a mask is false."""
    batch = copy.deepcopy(batch)
    for container, key, name in _pairs(batch):
        mask, value = container[key], container[name]
        if isinstance(mask, Tensor):
            container[name] = soil(value, mask, 1e3)
        else:
            container[name] = [soil(x, m, 1e3) for x, m in zip(value, mask, strict=True)]
    return batch


def without_last(batch: Any, drop: bool) -> Any:
    """A copy of the batch in which the last position of every mask is padding, or is not there at all."""
    batch = copy.deepcopy(batch)
    for container, key, name in _pairs(batch):
        mask, value = container[key], container[name]
        if drop:
            one = isinstance(mask, Tensor)
            container[name] = _cut(value, mask) if one else [_cut(x, m) for x, m in zip(value, mask, strict=True)]
    for container, key in {(id(c), k): (c, k) for c, k, _ in _pairs(batch)}.values():
        container[key] = mapped(container[key], lambda m: m[:, :-1] if drop else F.pad(m[:, :-1], (0, 1)))
    return batch


def _cut(x: Any, mask: Tensor) -> Any:
    """x without the last position, where mask (B, L) says which axis that is: see ``soil``."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x
    if x.shape[:2] == mask.shape:
        return x[:, :-1]
    return x[..., :-1] if x.ndim > 2 and (x.shape[0], x.shape[-1]) == mask.shape else x


def soil(x: Any, mask: Tensor, junk: float) -> Any:
    """Junk where mask (B, L) is false, if x is (B, L, ...) or (B, ..., L): floats of that size, any of its integers."""
    if not isinstance(x, Tensor):
        return x
    if x.shape[: mask.ndim] == mask.shape:
        shape = (*mask.shape, *[1] * (x.ndim - mask.ndim))
    elif mask.ndim == 2 and x.ndim > 2 and (x.shape[0], x.shape[-1]) == mask.shape:
        shape = (mask.shape[0], *[1] * (x.ndim - 2), mask.shape[1])
    else:
        return x
    draw = torch.Generator().manual_seed(0)
    if x.is_floating_point():
        other = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) * junk
    else:
        other = x.flatten()[torch.randint(max(x.numel(), 1), x.shape, generator=draw)] if x.numel() else x
    return torch.where(mask.view(shape), x, other)
