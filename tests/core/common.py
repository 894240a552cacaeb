"""What tests of several files share: numbers that are random and the same in every run, and whole checks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from partwhole.core.method import Batch, Method
from partwhole.core.testing import check_loss

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
quick = settings(max_examples=25, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def single(*shape: int, seed: int = 0) -> Tensor:
    """Normal, in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coin(*shape: int, chance: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < chance


def most(*shape: int, seed: int = 0) -> Tensor:
    """Seven in ten are true, as of what is real in a padded batch."""
    return coin(*shape, chance=0.7, seed=seed)


def cos(a: Tensor, b: Tensor) -> Tensor:
    """By plain arithmetic."""
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def softmax(x: Tensor) -> Tensor:
    """Of (K,), by plain arithmetic."""
    return (x - x.max()).exp() / (x - x.max()).exp().sum()


def cross_entropy(target: Tensor, logits: Tensor, temperature: float = 0.1) -> Tensor:
    """Of (K,), by plain arithmetic."""
    return -(target * softmax(logits / temperature).log()).sum()


def check_case(*, loss: Callable[..., Tensor], inputs: Iterable[Tensor], **options: Any) -> None:
    """``check_loss`` of a row of a table."""
    check_loss(loss, *inputs, **options)


def train(method: Method, batch: Batch, *, steps: int = 3, rate: float = 0.05) -> list[float]:
    """The losses of some steps of plain descent."""
    losses = []
    for step in range(steps):
        loss = method(batch)["loss"]
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=rate)
        method.after_step((step + 1) / steps)
        losses.append(round(loss.item(), 7))
    return losses


def check_options(make: Callable[..., Method], batch: Batch, options: Iterable[dict], **how: Any) -> None:
    """P11: with each of these options ``make`` gives a method of other losses than with every other one."""
    seen: list[list[float]] = []
    for option in options:
        torch.manual_seed(0)
        losses = train(make(**option), batch, **how)
        assert all(map(math.isfinite, losses)), f"{option}: NaN is unlike everything"
        assert losses not in seen, f"{option} changes nothing, or what another does"
        seen.append(losses)
