"""Pseudo-labels: where a teacher is sure of an unlabelled thing, its answer is the label (Lee, 2013)."""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, pool_for
from partwhole.core.losses import consistency, cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project_one
from partwhole.core.schedules import linear
from partwhole.core.teacher import Teacher


class PseudoLabel(Method):
    """batch: ``labelled``, with ``x`` and ``label`` (B,), below 0 unknown, and ``unlabelled``, with ``x``; optional
    ``valid`` beside each x. ``core.data.together`` makes such batches of two streams.

    The teacher is a moving average of the student; with ``momentum=None`` the student labels for itself, as in the
    paper. It does so where its probability reaches ``threshold``; the paper takes all (0). The weight of the unlabelled
    rises from 0 to ``weight`` over the first ``rise`` of the training; the paper's, to 3, starts to rise late. Noisy
    student (Xie et al., 2020) trains a teacher to its end, then a new student on inputs noised for it alone: here both
    read the same input and go together. ``sure`` is the share of the unlabelled that the teacher is sure of.
    ``answer(x, valid)`` are its logits (B, classes).
    """

    reached: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        threshold: float = 0.95,
        weight: float = 1.0,
        rise: float = 0.3,
        momentum: float | None = 0.999,
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        if not 0 < rise <= 1:
            raise ValueError(f"rise is the part of the training in which the weight rises, above 0 to 1; got {rise}")
        self.head = Head(pool or pool_for(encoder), nn.Linear(encoder.dim, classes))
        self.teacher = None if momentum is None else Teacher(encoder, self.head)
        self.threshold, self.weight, self.rise, self.momentum = threshold, weight, rise, momentum
        self.register_buffer("reached", torch.zeros(()))  # of the weight, 0 to 1

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        few, many = batch["labelled"], batch["unlabelled"]
        known, mine = (project_one(self.encoder, self.head, some["x"], some.get("valid")) for some in (few, many))
        theirs = mine if self.teacher is None else self.teacher(many["x"], many.get("valid"))
        taught = consistency(theirs, mine, threshold=self.threshold)
        count, share = (few["label"] >= 0).sum(), distributed.share(len(mine))
        supervised = cross_entropy(known, few["label"]) * distributed.share(count)
        loss = supervised + self.weight * self.reached * taught["loss"] * share
        return {"loss": loss, "supervised": supervised.detach(), "sure": taught["share"] * share}

    def after_step(self, progress: float) -> None:
        self.reached.fill_(linear(progress, 0.0, 1.0, until=self.rise))
        if self.teacher is not None and self.momentum is not None:
            self.teacher.update(self.encoder, self.head, momentum=self.momentum)

    def answer(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return project_one(self.encoder, self.head, x, valid) if self.teacher is None else self.teacher(x, valid)
