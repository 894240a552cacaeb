"""SimSiam: predict one's own embedding of the other view, held constant (Chen and He, 2021)."""

from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.evaluate import spread
from partwhole.core.losses import negative_cosine
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project
from partwhole.core.norm import BatchNorm


class SimSiam(Method):
    """batch: ``views``, a list of two inputs of one batch of things; optional ``valid``, a list parallel to it.

    BYOL without its teacher, and with other networks: the projector has three layers and ends in a norm without
    weights, the predictor is narrow in the middle (``bottleneck``). With ``norm=None`` nothing is normalised.
    ``std`` is near 1 where embeddings fill the sphere, 0 where they have collapsed.
    Unlike the paper's, the networks have GELU and biases before norms, and the predictor's learning rate falls too.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        dim: int = 2048,
        bottleneck: int = 512,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        layers = mlp(encoder.dim, hidden, hidden, dim, norm=norm)
        if norm is not None:
            last = BatchNorm(dim) if norm == "batch" else nn.LayerNorm(dim)
            layers.append(last.requires_grad_(False))
        self.head = Head(pool or pool_for(encoder), layers)
        self.predict = mlp(dim, bottleneck, dim, norm=norm)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        if len(views) != 2:
            raise ValueError(f"SimSiam predicts one view from the other: two are needed, got {len(views)}")
        z = project(self.encoder, self.head, views, batch.get("valid"))  # (2, B, D)
        prediction = self.predict(z.flatten(0, 1)).unflatten(0, (2, -1))
        loss = negative_cosine(prediction, z.flip(0))
        return {"loss": loss * distributed.share(z.shape[1]), "std": spread(z[0])}
