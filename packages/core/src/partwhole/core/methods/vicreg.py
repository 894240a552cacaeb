"""VICReg: views agree, features vary and do not covary; views need not be treated alike (Bardes et al., 2022)."""

from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Norm, mlp, pool_for
from partwhole.core.evaluate import spread
from partwhole.core.losses import vicreg
from partwhole.core.method import Batch, Method
from partwhole.core.methods.views import project


class VICReg(Method):
    """batch: ``views``, a list of two inputs of one batch of things; optional ``valid``, a list parallel to it.

    The terms, those of ``losses.vicreg``, are logged by their names, before weighting: a ``variance`` near 1 is a
    collapse. They are those of the whole batch over all processes.
    Unlike the paper's, the expander has GELU and biases.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 8192,
        dim: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        norm: Norm = "batch",
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.head = Head(pool or pool_for(encoder), mlp(encoder.dim, hidden, hidden, dim, norm=norm))
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        if len(views) != 2:
            raise ValueError(f"VICReg compares one view with another: two are needed, got {len(views)}")
        z = project(self.encoder, self.head, views, batch.get("valid"))  # (2, B, D)
        first, second = distributed.gather(z.transpose(0, 1)).unbind(1)  # rows of all processes
        terms = vicreg(first, second)
        loss = sum((weight * terms[name] for name, weight in self.weights.items()), terms["variance"].new_zeros(()))
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, "std": spread(z[0])}
