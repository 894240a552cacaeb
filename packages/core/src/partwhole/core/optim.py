"""The optimizer of a method: which parameters decay, and one state that fits any number of processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from partwhole.core import distributed


def make(
    method: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """AdamW, Adam (decay inside the gradient) or SGD (momentum ``betas[0]``) over the trainable parameters.

    Vectors and scalars (biases, norms, tokens, temperatures) do not decay.
    """
    groups = [
        {"params": [p for _, p in trainable(method) if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for _, p in trainable(method) if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ValueError("the method has no trainable parameter: nothing to train")
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=betas)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=betas[0])
    raise ValueError(f"no optimizer {name!r}: choose adamw, adam or sgd")


def trainable(method: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that take gradients; one that is used twice comes once."""
    return [(n, p) for n, p in method.named_parameters() if p.requires_grad]


def gradient_norm(method: nn.Module) -> torch.Tensor:
    """The 2-norm of all gradients together, a scalar; the same on all ranks once gradients are averaged."""
    grads = [p.grad for _, p in trainable(method) if p.grad is not None]
    return distributed.full(nn.utils.get_total_norm(grads))


def scale(method: nn.Module, factor: float) -> None:
    """Multiply the gradients by ``factor``."""
    for _, p in trainable(method):
        if p.grad is not None:
            p.grad.mul_(factor)


def clip(method: nn.Module, norm: torch.Tensor, most: float) -> None:
    """Scale the gradients, whose norm is ``norm``, down to norm ``most`` where it is larger."""
    nn.utils.clip_grads_with_norm_([p for _, p in trainable(method)], most, norm)


def state(optimizer: Optimizer, method: nn.Module) -> dict[str, Any]:
    """What the optimizer remembers, by parameter name, whole and on the CPU. All ranks must call it."""
    names = {id(p): n for n, p in trainable(method)}
    return {
        names[id(p)]: {k: _whole(v) for k, v in values.items()}
        for p, values in sorted(optimizer.state.items(), key=lambda item: names[id(item[0])])
    }


def restore(optimizer: Optimizer, method: nn.Module, saved: Mapping[str, Any]) -> None:
    """Take back ``state``, spread as the parameters are now. Learning rate, decay and the like stay as they are."""
    parameters = dict(trainable(method))
    missing, foreign = set(parameters) - set(saved), set(saved) - set(parameters)
    if saved and (missing or foreign):
        raise ValueError(
            f"the optimizer state is of other parameters: {len(missing)} missing {sorted(missing)[:3]}, "
            f"{len(foreign)} unknown {sorted(foreign)[:3]}"
        )
    order = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): n for n, p in parameters.items()}
    entries: dict[int, Any] = {}
    for index, p in enumerate(order):
        values = saved.get(names[id(p)], {})
        entries[index] = {
            k: distributed.like(v, p) if isinstance(v, torch.Tensor) and v.shape == p.shape and k != "step" else v
            for k, v in values.items()
        }
    optimizer.load_state_dict(
        {"state": entries if saved else {}, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _whole(value: Any) -> Any:
    value = distributed.full(value)
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
