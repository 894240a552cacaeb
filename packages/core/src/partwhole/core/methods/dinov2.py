"""DINOv2: iBOT with balanced targets and two heads, and vectors that keep their distance (Oquab et al., 2023)."""

from torch import Tensor

from partwhole.core.encoder import Norm
from partwhole.core.method import Batch, Method
from partwhole.core.methods.self_distillation import SelfDistillation, spread_apart
from partwhole.core.schedules import cosine
from partwhole.core.transformer import TransformerEncoder


class DINOv2(Method):
    """batch: ``views``, ``hidden``, optional ``crops``, ``valid`` and ``crops_valid``: see
    ``SelfDistillation``. Targets are balanced by Sinkhorn and Knopp's iteration over all processes.

    ``koleo`` is the weight of that loss, which is added for every view, on vectors before the head. ``whole``,
    ``hidden`` and ``koleo`` are the losses, the last without its weight.
    Otherwise than the authors' code: neighbours are sought among the things of all processes, not of each; prototypes
    keep length 1, where theirs learn it.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        koleo: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        momentum: float = 0.992,
        frozen: float = 0.01,
        norm: Norm = None,
    ):
        super().__init__(encoder)
        self.koleo, self.momentum = koleo, momentum
        self.distillation = SelfDistillation(
            encoder,
            prototypes=prototypes,
            hidden=hidden,
            bottleneck=bottleneck,
            shared=False,
            centring="sinkhorn",
            teacher_temperature=teacher_temperature,
            frozen=frozen,
            norm=norm,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.distillation(self.encoder, batch)
        apart = spread_apart(out.whole)
        return {"loss": out.loss + self.koleo * apart, **out.logs, "koleo": apart.detach()}

    def after_step(self, progress: float) -> None:
        self.distillation.after_step(self.encoder, progress, cosine(progress, self.momentum, 1.0))
