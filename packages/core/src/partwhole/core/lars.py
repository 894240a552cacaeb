"""LARS: each matrix moves by a fraction of its own size, however large its gradient is."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from partwhole.core import distributed


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, for large batches (You et al., 2017), as BYOL and Barlow Twins train.

        d = gradient + weight_decay * w
        q = trust * |w| / |d|     1 where either norm is 0, and for vectors and scalars, which have no decay here either
        m = momentum * m + q * d
        w = w - lr * m

    The paper and SimCLR's code have lr inside the running sum m; outside, as in torch's SGD, it acts at once. The norms
    are those of whole tensors, however FSDP2 spreads them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("trust", trust)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, and is {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients there; a parameter without one stays."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            every = [p for p in group["params"] if p.grad is not None]
            for some, adapted in (([p for p in every if p.ndim > 1], True), ([p for p in every if p.ndim <= 1], False)):
                if some:
                    self._move(some, group, adapted=adapted)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any], *, adapted: bool) -> None:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        w = [distributed.local(p) for p in parameters]
        d = [distributed.local(p.grad) for p in parameters]
        m = [distributed.local(self.state[p]["momentum_buffer"]) for p in parameters]
        if adapted:
            d = list(torch._foreach_add(d, w, alpha=group["weight_decay"]))
            size, slope = norms(parameters, w), norms(parameters, d)
            q = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, torch.ones_like(size))
            torch._foreach_mul_(d, list(q.unbind()))
        torch._foreach_mul_(m, group["momentum"])
        torch._foreach_add_(m, d)
        torch._foreach_add_(w, m, alpha=-group["lr"])


def norms(whole: Sequence[Tensor], local: Sequence[Tensor]) -> Tensor:
    """2-norms (len(local),) of tensors that are spread as ``whole`` are, and of which this rank holds ``local``."""
    squares = torch.stack(torch._foreach_norm(list(local))).square()
    spread = [distributed.local(p) is not p for p in whole]
    if any(spread):
        everywhere = distributed.mean(squares) * distributed.world()
        squares = torch.where(torch.tensor(spread, device=squares.device), everywhere, squares)
    return squares.sqrt()
