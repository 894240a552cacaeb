"""SwAV: predict from one view to which prototypes another is assigned, all used equally (Caron et al., 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.losses import distill
from partwhole.core.method import Batch, Method
from partwhole.core.methods.assignment import balanced, usage
from partwhole.core.methods.views import multicrop
from partwhole.core.queue import Queue


class SwAV(Method):
    """batch: ``views``, a list of large views of one batch of things, ``crops``, a list of smaller ones, which are not
    assigned, of any sizes; optional ``valid`` and ``crops_valid``, lists parallel to them.

    ``temperature`` is that of the predictions, ``assignment_temperature`` the paper's epsilon. ``queue`` embeddings of
    earlier views, where it is not 0, are assigned along with a view from progress ``queue_from`` on: for batches that
    are small beside the number of prototypes. Prototypes keep length 1, and do not move before progress ``frozen``.
    ``entropy`` is that of an assignment, ``usage`` as in ``methods.assignment``.

    Otherwise than the authors' code: one queue for all large views, where they keep one for each; it fills from the
    start, and counts before it is full.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 3000,
        hidden: int = 2048,
        dim: int = 128,
        temperature: float = 0.1,
        assignment_temperature: float = 0.05,
        queue: int = 0,
        queue_from: float = 0.05,
        frozen: float = 0.01,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, hidden, dim, norm=norm))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=-1))
        self.temperature, self.assignment_temperature = temperature, assignment_temperature
        self.queue, self.queue_from, self.frozen = Queue(queue, dim) if queue else None, queue_from, frozen
        self.free: Tensor
        self.queued: Tensor
        self.register_buffer("free", torch.tensor(frozen <= 0))
        self.register_buffer("queued", torch.tensor(queue_from <= 0))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = F.normalize(multicrop(self.encoder, self.head, batch), dim=-1)  # (S, B, D)
        B, T = z.shape[1], len(batch["views"])
        prototypes = torch.where(self.free, self.prototypes, self.prototypes.detach()).to(z.dtype)
        scores = z @ prototypes.mT  # (S, B, K)

        bank, filled = None, None
        if self.queue is not None:
            bank = self.queue.rows @ prototypes.detach().to(self.queue.rows.dtype).mT
            filled = self.queue.filled & self.queued
            if self.training:
                self.queue.add(z[:T].transpose(0, 1).flatten(0, 1))
        target = balanced(scores[:T], temperature=self.assignment_temperature, bank=bank, filled=filled)

        loss = distill(scores, target, temperature=self.temperature)
        return {
            "loss": loss * distributed.share(B),
            "entropy": torch.special.entr(target).sum(-1).mean(),
            "usage": usage((scores.detach() / self.temperature).softmax(-1)),
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))
        self.free.fill_(progress >= self.frozen)
        self.queued.fill_(progress >= self.queue_from)
        if self.queue is not None:
            self.queue.update()
