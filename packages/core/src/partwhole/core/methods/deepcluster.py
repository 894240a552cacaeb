"""DeepCluster-v2: predict the cluster that a thing fell into when all were last clustered (Caron et al., 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.losses import cross_entropy
from partwhole.core.memory import Memory, spherical_kmeans
from partwhole.core.method import Batch, Method
from partwhole.core.methods.assignment import usage
from partwhole.core.methods.views import multicrop
from partwhole.core.precision import widen

ASSIGNED = 2  # so many views of a thing are remembered, and clustered by the heads in turn


class DeepCluster(Method):
    """batch: ``index`` (B,), the numbers of the things, 0 to ``things`` - 1; ``views``, a list of two large views of
    them or more, ``crops``, a list of smaller ones; optional ``valid`` and ``crops_valid``, lists parallel to them.

    The embedding of every thing is remembered. After every ``every`` steps, which should be an epoch, they are
    clustered by k-means, ``heads`` times from different rows; the centroids are the prototypes until the next time.
    Of the first ``every`` steps the loss is 0: they fill the memory (the authors pass over the data once beforehand).
    ``assigned`` is the share of the batch with a cluster, ``usage`` as in ``methods.assignment``. Every process holds
    the memory and clusters it, where the authors split it.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        things: int,
        every: int,
        prototypes: int = 3000,
        heads: int = 3,
        hidden: int = 2048,
        dim: int = 128,
        temperature: float = 0.1,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        if prototypes > things:
            raise ValueError(f"{things} things cannot make {prototypes} clusters: lower prototypes")
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, hidden, dim, norm=norm))
        self.every, self.temperature = every, temperature
        self.memory = Memory(things, ASSIGNED, dim)
        self.prototypes: Tensor
        self.cluster: Tensor
        self.steps: Tensor
        self.register_buffer("prototypes", F.normalize(torch.randn(heads, prototypes, dim), dim=-1))
        self.register_buffer("cluster", torch.full((heads, things), -1))  # -1: none
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if "index" not in batch or len(batch["views"]) < ASSIGNED:
            raise ValueError(
                f"DeepCluster needs the numbers of the things, 'index', and {ASSIGNED} views or more; "
                f"got {sorted(batch)} with {len(batch['views'])} views"
            )
        z = F.normalize(multicrop(self.encoder, self.head, batch), dim=-1)  # (S, B, D)
        if self.training:
            self.memory.write(batch["index"], z[:ASSIGNED].transpose(0, 1))
        scores = torch.einsum("sbd,hkd->hsbk", z, self.prototypes.to(z.dtype))
        logits = widen(scores) / self.temperature
        target = self.cluster[:, batch["index"]]  # (H, B): things that have a cluster have one of every head
        loss, count = cross_entropy(logits, target[:, None].expand(logits.shape[:-1])), (target[0] >= 0).sum()
        return {
            "loss": loss * distributed.share(count),
            "items": count,
            "assigned": count / max(target.shape[1], 1),
            "usage": torch.stack([usage(p) for p in logits.detach().softmax(-1)]).mean(),
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.steps += 1
        step = int(self.steps)
        if step % self.every:
            return
        known = self.memory.known
        rows = self.memory.rows[known]
        heads, K, _ = self.prototypes.shape
        if len(rows) < K:
            raise ValueError(f"{step} steps have shown {len(rows)} things, and {K} clusters are wanted: raise every")
        for h in range(heads):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step * heads + h))
            view = rows[:, h % ASSIGNED]
            self.prototypes[h], self.cluster[h, known] = spherical_kmeans(view, view[order[:K].to(rows.device)])
