"""Barlow Twins: each feature agrees between two views, and with no other feature (Zbontar et al., 2021)."""

from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.evaluate import spread
from partwhole.core.losses import barlow
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project


class BarlowTwins(Method):
    """batch: ``views``, a list of two inputs of one batch of things; optional ``valid``, a list parallel to it.

    Correlations are those of the whole batch over all processes, and so is their gradient: the official code keeps one
    process's part of it. ``std`` is near 1 where embeddings fill the sphere, 0 where they have collapsed.
    Unlike the paper's, the projector has GELU and biases.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 8192,
        dim: int = 8192,
        redundancy: float = 0.0051,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, hidden, hidden, dim, norm=norm))
        self.redundancy = redundancy

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        if len(views) != 2:
            raise ValueError(f"Barlow Twins correlates one view with another: two are needed, got {len(views)}")
        z = project(self.encoder, self.head, views, batch.get("valid"))  # (2, B, D)
        first, second = distributed.gather(z.transpose(0, 1)).unbind(1)  # rows of all processes
        return {"loss": barlow(first, second, redundancy=self.redundancy), "std": spread(z[0])}
