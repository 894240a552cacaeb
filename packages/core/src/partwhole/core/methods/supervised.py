"""Supervised baseline: name the class of each thing whose label is known."""

from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, pool_for
from partwhole.core.losses import cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project_one


class Supervised(Method):
    """batch: ``x``, an input; ``label`` (B,) integer, below 0 unknown; optional ``valid``, which positions of x are
    real.

    ``smoothing`` of the labels: see ``losses.cross_entropy``. ``accuracy`` is that on the known labels of the batch.
    ``answer(x, valid)`` are the logits (B, classes).
    """

    def __init__(self, encoder: Encoder, *, classes: int, smoothing: float = 0.0, pool: nn.Module | None = None):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), nn.Linear(encoder.dim, classes))
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        label = batch["label"]
        logits = project_one(self.encoder, self.head, batch["x"], batch.get("valid"))
        loss, count = cross_entropy(logits, label, smoothing=self.smoothing), (label >= 0).sum()
        share, right = distributed.share(count), (logits.argmax(-1) == label).sum()
        return {"loss": loss * share, "items": count, "accuracy": right / count.clamp(min=1) * share}

    def answer(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return project_one(self.encoder, self.head, x, valid)
