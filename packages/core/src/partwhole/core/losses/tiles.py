"""Sums over a matrix of logits, a few rows of it at a time, with their gradients.

A *part* is a function ``part(logits, rows)`` of some rows (a slice) of the matrix. It returns the value summed over
these rows, and overwrites the logits by the gradient of that value. So no more than one tile exists, and nothing is
computed twice. Tiles are written into one buffer: on a CPU, asking the system for a new one costs more than filling it.

Axes: N queries, M keys, D features, R rows, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Part = Callable[[Tensor, slice], Tensor]
Whole = Callable[..., Tensor]


def choose(tile: int | None, rows: int, columns: int, device: torch.device) -> int | None:
    """How many rows at a time: as asked, or as many as pay; None where the whole matrix is to be made."""
    if tile is not None:
        if tile < 1:
            raise ValueError(f"tile is {tile}: at least one row is needed at a time")
        return tile if tile < rows else None
    whole, elements, least = (1 << 17, 1 << 21, 128) if device.type == "cpu" else (1 << 22, 1 << 25, 1024)
    return None if rows * columns <= whole else min(rows, max(least, elements // columns))


def chunk(columns: int, device: torch.device) -> int:
    """How many rows of existing logits to look at at a time: as many as a CPU's cache holds, or a GPU likes."""
    return max(1, (1 << 18 if device.type == "cpu" else 1 << 25) // max(columns, 1))


def rows_of(count: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, count)) for start in range(0, count, tile)]


def tiled(
    part: Part,
    query: Tensor,
    key: Tensor,
    *,
    tile: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    whole: Whole | None = None,
) -> Tensor:
    """The sum of ``part(scale * query[rows] @ key.mT + bias, rows)`` over all rows, ``tile`` of them at a time.

    query (N, D), key (M, D), scale (), bias (M,). The gradients are found with the value, so there is no second
    derivative, and RuntimeError where one is asked for, unless ``whole(query, key, scale, bias)`` is the same sum by
    operations that have one.
    """
    live = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (query, key, scale, bias)]
    return _Tiled.apply(part, whole, tile, live, query, key, scale, bias)  # type: ignore[return-value]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        part: Part,
        whole: Whole | None,
        tile: int,
        live: Sequence[bool],
        query: Tensor,
        key: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        value = query.new_zeros(())  # not added to in place: torch 2.11, compiling, would lose the gradient
        buffer = query.new_empty(min(tile, len(query)), len(key))
        inputs = (query, key, scale, bias)
        slopes = [torch.zeros_like(x) if x is not None and on else None for x, on in zip(inputs, live, strict=True)]
        by_query, by_key, by_scale, by_bias = slopes
        for rows in rows_of(len(query), tile):
            plain = query[rows]
            some = plain if scale is None else plain * scale
            logits = torch.mm(some, key.mT, out=buffer[: len(some)])
            if bias is not None:
                logits += bias
            value = value + part(logits, rows)  # and now they are its gradient
            if by_key is not None:
                by_key.addmm_(logits.mT, some)
            if by_bias is not None:
                by_bias += logits.sum(0)
            if by_query is not None or by_scale is not None:
                slope = logits @ key
                if by_scale is not None:
                    by_scale += (slope * plain).sum()
                if by_query is not None:
                    by_query[rows] = slope if scale is None else slope * scale
        ctx.whole, ctx.live = whole, live
        ctx.save_for_backward(*slopes, *(() if whole is None else inputs))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slopes, inputs = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if ctx.whole is None or not _again():
            once()
            return None, None, None, None, *(None if slope is None else slope * grads[0] for slope in slopes)
        wanted = [x for x, on in zip(inputs, ctx.live, strict=True) if on]
        found = iter(torch.autograd.grad(ctx.whole(*inputs), wanted, grads[0], create_graph=True))
        return None, None, None, None, *(next(found) if on else None for on in ctx.live)


def chunked(part: Part, logits: Tensor, rows: Sequence[slice], *, scale: Tensor | None = None) -> Tensor:
    """The sum of ``part(scale * logits[r], r)`` over the slices ``rows``, for logits (R, K) that exist already.

    A slice is widened to float32 by itself. ``part`` is called again for the gradient, which is the only other tensor
    of the size of the logits, of their dtype. No second derivative.
    """
    return _Chunked.apply(part, rows, logits, scale)  # type: ignore[return-value]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, rows: Sequence[slice], logits: Tensor, scale: Tensor | None) -> Tensor:
        ctx.part, ctx.rows = part, rows
        ctx.save_for_backward(logits, scale)
        value = logits.new_zeros((), dtype=_wide(logits))
        buffer = _buffer(logits, rows)
        for r in rows:
            value = value + part(_filled(buffer, logits[r], scale), r)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        once()
        logits, scale = ctx.saved_tensors
        covered = sum(r.stop - r.start for r in ctx.rows) == len(logits)
        slope = torch.empty_like(logits) if covered else torch.zeros_like(logits)
        # the gradient is made where it stays, unless that is too narrow to compute in
        buffer = None if slope.dtype == _wide(logits) else _buffer(logits, ctx.rows)
        by_scale = torch.zeros_like(scale) if scale is not None and ctx.needs_input_grad[3] else None
        for r in ctx.rows:
            some = _filled(slope[r] if buffer is None else buffer, logits[r], scale)
            ctx.part(some, r)
            if by_scale is not None:
                by_scale += grads[0] * (some * logits[r]).sum()
            some *= grads[0] if scale is None else grads[0] * scale
            if buffer is not None:
                slope[r] = some
        return None, None, slope, by_scale


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _buffer(logits: Tensor, rows: Sequence[slice]) -> Tensor:
    return logits.new_empty(max([0, *(r.stop - r.start for r in rows)]), logits.shape[1], dtype=_wide(logits))


def _filled(buffer: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
    some = buffer[: len(logits)]
    if scale is not None and some.dtype == logits.dtype:
        return torch.mul(logits, scale, out=some)
    some.copy_(logits)
    return some if scale is None else some.mul_(scale)


def once() -> None:
    """RuntimeError where a second derivative is asked for: the gradient kept is a constant, and it would be wrong."""
    if _again():
        raise RuntimeError(
            "a loss found a tile at a time has no second derivative (create_graph=True): make the whole matrix, "
            "tile=len(query), if the loss takes a tile"
        )


def _again() -> bool:
    """In a backward: whether its own gradient will be asked for."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
