"""FixMatch: a sure answer on a weakly changed view is the label of a strongly changed one (Sohn et al., 2020)."""

from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, pool_for
from partwhole.core.losses import consistency, cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project, project_one
from partwhole.core.teacher import Teacher


class FixMatch(Method):
    """batch: ``labelled``, with ``x`` and ``label`` (B,), below 0 unknown, and ``unlabelled``, with ``views``, a list
    of the weakly and the strongly changed view; optional ``valid`` beside them, a list beside views.
    ``core.data.together`` makes such batches of two streams; the paper's second one is seven times as large.

    ``answer(x, valid)`` are the logits (B, classes), of a moving average of the weights, which the paper evaluates;
    without ``momentum`` of the weights as they are. ``sure`` is the share of the unlabelled whose label was guessed.
    Unlike the official code's, the labelled and the unlabelled pass through the network apart, each with the batch norm
    of their own.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        threshold: float = 0.95,
        weight: float = 1.0,
        momentum: float | None = 0.999,
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), nn.Linear(encoder.dim, classes))
        self.average = None if momentum is None else Teacher(encoder, self.head)
        self.threshold, self.weight, self.momentum = threshold, weight, momentum

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        few, many = batch["labelled"], batch["unlabelled"]
        if len(many["views"]) != 2:
            raise ValueError(f"FixMatch needs a weak and a strong view of the unlabelled; got {len(many['views'])}")
        known = project_one(self.encoder, self.head, few["x"], few.get("valid"))
        weak, strong = project(self.encoder, self.head, many["views"], many.get("valid"))
        guessed = consistency(weak, strong, threshold=self.threshold)
        count, share = (few["label"] >= 0).sum(), distributed.share(len(weak))
        supervised = cross_entropy(known, few["label"]) * distributed.share(count)
        loss = supervised + self.weight * guessed["loss"] * share
        return {"loss": loss, "supervised": supervised.detach(), "sure": guessed["share"] * share}

    def after_step(self, progress: float) -> None:
        if self.average is not None and self.momentum is not None:
            self.average.update(self.encoder, self.head, momentum=self.momentum)

    def answer(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return project_one(self.encoder, self.head, x, valid) if self.average is None else self.average(x, valid)
