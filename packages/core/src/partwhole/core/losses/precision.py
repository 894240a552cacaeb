"""Losses count in float32 at least, whatever they are given and whatever autocast says."""

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

    @wraps(loss)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*map(widen, args), **{k: widen(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return wide


def unit(x: Tensor) -> Tensor:
    """x (..., D) on the unit sphere. An all-zero row has no direction: it stays zero and gets no gradient."""
    return x * inverse_norm(x)


def inverse_norm(x: Tensor) -> Tensor:
    """1 / |x| over the last axis, (..., D) -> (..., 1); 0 without a gradient where |x| is 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.masked_fill(norm <= 1e-12, torch.inf).reciprocal()


def positive_temperature(temperature: float | Tensor) -> None:
    """ValueError for a number that is not above 0. A tensor is not looked at: that would wait for the device."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
