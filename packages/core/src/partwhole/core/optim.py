"""The optimizer of a method: which parameters decay, how fast each learns, one state for any number of processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from partwhole.core import distributed
from partwhole.core.lars import LARS


def make(
    method: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float = 1.0,
) -> Optimizer:
    """AdamW, Adam (decay inside the gradient), SGD or LARS (momentum ``betas[0]``) over the trainable parameters.

    Vectors and scalars (biases, norms, tokens, temperatures) do not decay. ``layer_decay`` is that of ``rates``.
    """
    rate, grouped = rates(method, layer_decay), dict[tuple[float, bool], list[nn.Parameter]]()
    for _, p in trainable(method):
        grouped.setdefault((rate[id(p)], p.ndim > 1), []).append(p)
    if not grouped:
        raise ValueError("the method has no trainable parameter: nothing to train")
    groups = [{"params": ps, "rate": r, "decays": d} for (r, d), ps in sorted(grouped.items(), key=lambda g: g[0])]
    if name == "adamw":
        optimizer: Optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    elif name == "adam":
        optimizer = torch.optim.Adam(groups, betas=betas, fused=True)
    elif name == "sgd":
        optimizer = torch.optim.SGD(groups, lr, momentum=betas[0])
    elif name == "lars":
        optimizer = LARS(groups, lr, momentum=betas[0])
    else:
        raise ValueError(f"no optimizer {name!r}: choose adamw, adam, sgd or lars")
    tune(optimizer, lr=lr, weight_decay=weight_decay)
    return optimizer


def tune(optimizer: Optimizer, *, lr: float, weight_decay: float) -> None:
    """Set the learning rate and the decay of the next step, each group's as ``make`` began it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def rates(method: nn.Module, layer_decay: float = 1.0) -> dict[int, float]:
    """The learning rate of every trainable parameter, by id, as a fraction of the highest.

    Layer i (from 0) of the L that ``method.encoder.stages()`` names learns at ``layer_decay ** (L - i)``, so that of a
    fine-tuned encoder the first ones change least (Clark et al., 2020; Bao et al., 2022); what the encoder itself
    holds, such as a CLS token, belongs to the first. The rest (a last norm, heads, decoders) learns at 1.
    """
    out = {id(p): 1.0 for _, p in trainable(method)}
    if layer_decay == 1:
        return out
    encoder: Any = method.encoder
    layers = encoder.stages()
    first = layer_decay ** len(layers)
    out.update({id(p): first for p in encoder.parameters(recurse=False) if id(p) in out})
    for i, layer in enumerate(layers):
        out.update({id(p): layer_decay ** (len(layers) - i) for p in layer.parameters() if id(p) in out})
    return out


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


def remembers(optimizer: Optimizer) -> bool:
    """Whether it has state after a step: all but SGD without momentum."""
    return any(group.get("momentum", 1) for group in optimizer.param_groups)


def _whole(value: Any) -> Any:
    value = distributed.full(value)
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
