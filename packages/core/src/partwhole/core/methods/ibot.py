"""iBOT: DINO on the whole, and on the tokens that are hidden from the student (Zhou et al., 2022)."""

from torch import Tensor

from partwhole.core.encoder import Norm
from partwhole.core.method import Batch, Method
from partwhole.core.methods.self_distillation import SelfDistillation
from partwhole.core.schedules import cosine
from partwhole.core.transformer import TransformerEncoder


class IBOT(Method):
    """batch: ``views``, ``hidden``, optional ``crops``, ``valid`` and ``crops_valid``: see
    ``SelfDistillation``. The paper hides blocks of 10 to 50 % of the tokens, in half of the views.

    The rest is DINO's. ``whole`` and ``hidden`` are the two losses, which are added up.
    Otherwise than the authors' code: the centre of tokens is that of hidden ones, since no other passes a head; the MLP
    of the head starts as torch starts it, here and in the methods that follow.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        shared: bool = True,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        momentum: float = 0.996,
        frozen: float = 0.01,
        norm: Norm = None,
    ):
        super().__init__(encoder)
        self.momentum = momentum
        self.distillation = SelfDistillation(
            encoder,
            prototypes=prototypes,
            hidden=hidden,
            bottleneck=bottleneck,
            shared=shared,
            centring="mean",
            teacher_temperature=teacher_temperature,
            frozen=frozen,
            norm=norm,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.distillation(self.encoder, batch)
        return {"loss": out.loss, **out.logs}

    def after_step(self, progress: float) -> None:
        self.distillation.after_step(self.encoder, progress, cosine(progress, self.momentum, 1.0))
