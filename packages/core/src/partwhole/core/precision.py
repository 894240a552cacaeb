"""Numbers that losses and prototypes rest on: float32 at least, whatever they are given and whatever autocast says."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def widen(x: Any) -> Any:
    """float16 and bfloat16 tensors as float32; all else as it is."""
    narrow = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4
    return x.float() if narrow else x


def in_float32(loss: Callable[P, R]) -> Callable[P, R]:
    """Run ``loss`` outside autocast with its half-precision arguments widened; the value stays float32."""

    plain = outside_autocast(loss)

    @wraps(loss)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        return plain(*map(widen, args), **{k: widen(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return wide


def outside_autocast(loss: Callable[P, R]) -> Callable[P, R]:
    """Run ``loss`` outside autocast: for those that widen large arguments a few rows at a time."""

    @wraps(loss)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return plain


def unit(x: Tensor, free: Tensor | None = None) -> Tensor:
    """x (..., D) on the unit sphere. An all-zero row has no direction: it stays zero and gets no gradient.

    While ``free`` (), if given, is false, the gradient is 0.
    """
    return _Unit.apply(x, free)  # type: ignore[return-value]


class _Unit(torch.autograd.Function):
    """x * inverse_norm(x), with a gradient that makes one tensor of the size of x where the chain rule makes four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, free: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, free)
        return x * inverse_norm(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, free = ctx.saved_tensors
        scale = inverse_norm(x)  # anew, so that there is a second derivative
        along = torch.linalg.vecdot(grads[0], x)[..., None] * scale * scale
        slope = scale if free is None else scale * free
        return (grads[0] * slope).addcmul_(x, along * slope, value=-1), None


def inverse_norm(x: Tensor) -> Tensor:
    """1 / |x| over the last axis, (..., D) -> (..., 1); 0 without a gradient where |x| is 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.masked_fill(norm <= 1e-12, torch.inf).reciprocal()


def positive_temperature(temperature: float | Tensor) -> None:
    """ValueError for a number that is not above 0. A tensor is not looked at: that would wait for the device."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")


def scalar(x: float | Tensor, like: Tensor) -> Tensor:
    """x as a tensor of the dtype and on the device of another; the gradient of a tensor flows on."""
    return x.to(like) if isinstance(x, Tensor) else torch.full((), x, dtype=like.dtype, device=like.device)
