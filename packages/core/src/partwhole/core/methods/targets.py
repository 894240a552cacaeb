"""What a student with prototypes is to predict: its teacher's assignments, kept from collapsing.

Axes: N rows, K prototypes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from partwhole.core.methods.assignment import balanced
from partwhole.core.schedules import linear
from partwhole.core.teacher import Average

Centring = Literal["mean", "sinkhorn"]

WARMUP = 0.3  # of the training, in which the temperature rises
CENTER_MOMENTUM = 0.9


class Targets(nn.Module):
    """A teacher's logits (N, K) -> probabilities (N, K), constant.

    centring: "mean" subtracts the moving average of the logits and takes the softmax (Caron et al., 2021); "sinkhorn"
        makes all rows of all processes use every prototype equally (Caron et al., 2020; Oquab et al., 2023).
    temperature: at the start, and from ``WARMUP`` on; a straight line between.
    """

    def __init__(self, prototypes: int, *, temperature: tuple[float, float], centring: Centring = "mean"):
        super().__init__()
        if centring not in ("mean", "sinkhorn"):
            raise ValueError(f'centring is "mean" or "sinkhorn"; got {centring!r}')
        self.temperatures = temperature
        self.center = Average(prototypes, momentum=CENTER_MOMENTUM) if centring == "mean" else None
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(temperature[0]))

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        if self.center is None:
            return balanced(logits[None], temperature=self.temperature)[0]
        target = logits.sub(self.center.value).div_(self.temperature).softmax(-1)  # in place: K may be large
        if self.training:
            self.center.add(logits)
        return target

    def after_step(self, progress: float) -> None:
        if self.center is not None:
            self.center.update()
        self.temperature.fill_(linear(progress, *self.temperatures, until=WARMUP))


@torch.no_grad()
def entropies(target: Tensor) -> dict[str, Tensor]:
    """Of targets (..., K): ``entropy`` is that of one, ``entropy_of_mean`` that of their mean.

    Both are 0 where the teacher has collapsed onto one prototype, both ln K where onto none.
    """
    entropy = torch.special.entr(target).sum(-1).mean()
    return {"entropy": entropy, "entropy_of_mean": torch.special.entr(target.flatten(0, -2).mean(0)).sum()}
