"""MoCo: find a slow teacher's embedding of the other view among many (He et al., 2020; Chen et al., 2020, 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.evaluate import spread
from partwhole.core.losses import info_nce
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import passes, project
from partwhole.core.queue import Queue
from partwhole.core.schedules import cosine
from partwhole.core.teacher import Teacher


class MoCo(Method):
    """batch: ``views``, a list of two inputs of one batch of things; optional ``valid``, a list parallel to it.

    With a ``queue`` this is versions 1 and 2: the student's first view is the query, the teacher's second view its
    positive, and the negatives are the teacher's last ``queue`` embeddings of former batches; at first zeros, of cosine
    0, where the paper's code has random directions, of cosine near 0. Version 1 has
    ``hidden=0``, a linear head, and ``temperature=0.07``. ``momentum`` stays.
    ``queue=0`` is version 3: both views are queries, with a predictor, the negatives are the other things of the batch,
    on all processes, and ``momentum`` rises to 1 along a cosine. Its paper has ``momentum=0.99``, ``hidden=4096``,
    ``dim=256``, ``norm="batch"``.

    There is no shuffling of batches for BatchNorm. Shuffling hides that a query and its positive were normalised by the
    same few things of one GPU; here BatchNorm takes its statistics over all processes. What is left of the leak, that a
    positive shares its batch's statistics and the queue does not, goes with the default ``norm=None`` and an encoder
    with layer norm. Also left out: version 3's factor of 2 * temperature before the sum of both losses, of which this
    is the mean, its third layer of the projection and its norm after the last one, and the frozen patch embedding.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: int = 65536,
        hidden: int = 2048,
        dim: int = 128,
        temperature: float = 0.2,
        momentum: float = 0.999,
        norm: Norm = None,
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.temperature, self.momentum = temperature, momentum
        widths = (hidden,) if hidden else ()
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, *widths, dim, norm=norm))
        self.predict = None if queue else mlp(dim, *widths, dim, norm=norm)
        self.teacher = Teacher(encoder, self.head)
        self.queue = Queue(queue, dim) if queue else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views, valid = batch["views"], batch.get("valid")
        if len(views) != 2 or (valid is not None and len(valid) != 2):
            masks = "" if valid is None else f" with {len(valid)} masks of valid positions"
            raise ValueError(f"MoCo looks for one view by the other: two are needed, got {len(views)}{masks}")
        if self.queue is None:
            key = passes(self.teacher, views, valid)  # (2, B, D)
            z = project(self.encoder, self.head, views, valid)  # (2, B, D)
            loss = self.in_batch(z, key)
        else:
            (first, second), masks = views, valid or (None, None)
            key = self.teacher(second, masks[1])  # (B, D)
            z = project(self.encoder, self.head, [first], masks[:1])  # (1, B, D)
            loss = self.against_queue(self.queue, z[0], key)
        return {"loss": loss * distributed.share(z.shape[1]), "std": spread(z[0])}

    def in_batch(self, z: Tensor, key: Tensor) -> Tensor:
        """z, key (2, B, D): each view's prediction among the teacher's other views."""
        assert self.predict is not None
        B = z.shape[1]
        query = self.predict(z.flatten(0, 1)).unflatten(0, (2, B))
        positive = torch.arange(B, device=z.device) + distributed.start(B)
        losses = [
            info_nce(query[v], distributed.gather(key[1 - v]), positive, temperature=self.temperature) for v in (0, 1)
        ]
        return torch.stack(losses).mean()

    def against_queue(self, queue: Queue, query: Tensor, key: Tensor) -> Tensor:
        """query, key (B, D): the other keys of the batch are no negatives."""
        others = torch.arange(len(query), device=query.device).expand(len(query), -1)  # (B, B)
        keys = torch.cat([key, queue.rows])
        loss = info_nce(query, keys, others[0], temperature=self.temperature, exclude=others)
        if self.training:
            queue.add(F.normalize(key, dim=-1))
        return loss

    def after_step(self, progress: float) -> None:
        momentum = self.momentum if self.queue is not None else cosine(progress, self.momentum, 1.0)
        self.teacher.update(self.encoder, self.head, momentum=momentum)
        if self.queue is not None:
            self.queue.update()
