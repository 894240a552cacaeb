"""LeJEPA: views agree, and embeddings are spread as a standard normal distribution (Balestriero and LeCun, 2025)."""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.data import mix
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.evaluate import spread
from partwhole.core.losses import sigreg
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import multicrop


class LeJEPA(Method):
    """batch: ``views``, a list of large views of one batch of things; optional ``crops``, a list of smaller ones of any
    sizes; optional ``valid`` and ``crops_valid``, lists parallel to them.

    Every view is drawn to the mean of the large ones (``invariance``), and the embeddings of each view are tested for
    normality along ``slices`` random directions (``gaussian``, the mean of ``losses.sigreg``; about 1 where they are
    normal): loss = (1 - weight) * invariance + weight * gaussian. No teacher, no stopped gradient, no schedule.
    The directions follow from the number of steps alone: all processes have the same ones, and new ones in every step.
    Unlike the paper's, the projector has GELU. ``weight`` is .01 to .1 in the paper, .05 in its code.
    """

    step: Tensor
    directions: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        dim: int = 128,
        weight: float = 0.05,
        slices: int = 1024,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, hidden, hidden, dim, norm=norm))
        self.weight = weight
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("directions", _directions(dim, slices, 0))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        large, small = batch["views"], batch.get("crops", [])
        if len(large) + len(small) < 2:
            raise ValueError(f"LeJEPA draws views together: two or more are needed, got {len(large) + len(small)}")
        z = multicrop(self.encoder, self.head, batch)  # (V, B, D)
        std = spread(z[0])
        z = distributed.gather(z.transpose(0, 1))  # (M, V, D), things of all processes
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        invariance = (z - z[:, : len(large)].mean(1, keepdim=True)).square().mean()
        gaussian = torch.stack([sigreg(view, self.directions) for view in z.unbind(1)]).mean()
        loss = (1 - self.weight) * invariance + self.weight * gaussian
        return {"loss": loss, "invariance": invariance.detach(), "gaussian": gaussian.detach(), "std": std}

    def after_step(self, progress: float) -> None:
        self.step += 1
        dim, slices = self.directions.shape
        self.directions.copy_(_directions(dim, slices, int(self.step)))


def _directions(dim: int, slices: int, step: int) -> Tensor:
    return torch.randn(dim, slices, generator=torch.Generator().manual_seed(mix(step)))
