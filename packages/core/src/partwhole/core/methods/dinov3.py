"""DINOv3: DINOv2, whose tokens keep looking alike as they did to an earlier teacher (Simeoni et al., 2025)."""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Norm
from partwhole.core.losses import gram_anchoring
from partwhole.core.method import Batch, Method
from partwhole.core.methods.self_distillation import SelfDistillation, see, spread_apart
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import TransformerEncoder

KOLEO = 0.1


class DINOv3(Method):
    """batch: ``views``, ``hidden``, optional ``crops``, ``valid`` and ``crops_valid``: see
    ``SelfDistillation``. Up to progress ``start`` it is DINOv2, with a constant ``momentum``.

    At ``start`` the Gram teacher becomes what the teacher is then, and so again after every further ``refresh`` of the
    training. From then on ``gram_anchoring`` to it is added, ``gram`` times: of all real tokens, also those that are
    hidden from the student. ``whole``, ``hidden``, ``koleo`` and ``gram`` are the losses, without their weights.

    Otherwise than the authors' code: the Gram teacher sees the same views, not larger ones; prototypes keep length 1;
    the teacher's temperature rises for longer (``targets.WARMUP``); the Gram teacher is refreshed to the end, not three
    times; from ``start`` on the momentum and the weight of crops stay as they were (there: .999, and half).
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        gram: float = 2.0,
        start: float = 0.8,
        refresh: float = 0.01,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        momentum: float = 0.994,
        frozen: float = 0.005,
        norm: Norm = None,
    ):
        super().__init__(encoder)
        if refresh <= 0:
            raise ValueError(f"refresh is the share of the training between two refreshments, above 0; got {refresh}")
        self.gram, self.start, self.refresh, self.momentum = gram, start, refresh, momentum
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
        self.gram_teacher = Teacher(encoder)
        self.refreshed: Tensor
        self.register_buffer("refreshed", torch.zeros((), dtype=torch.int64))
        # whether it has been: known without a look at the buffer, for which a GPU would have to be waited for
        self.anchored = False
        self.register_load_state_dict_post_hook(_know)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.distillation(self.encoder, batch)
        apart = spread_apart(out.whole)
        loss, logs = out.loss + KOLEO * apart, {**out.logs, "koleo": apart.detach()}
        if self.anchored:
            views, valid = batch["views"], batch.get("valid")
            _, before = see(lambda x, v, at: self.gram_teacher(x, v), self.encoder, views, valid)
            tokens, before, real = (x.flatten(0, 1) for x in (out.tokens, before, out.real))
            unlike = gram_anchoring(tokens, before, valid=real) * distributed.share(real.sum(1).square().sum())
            loss, logs["gram"] = loss + self.gram * unlike, unlike.detach()
        return {"loss": loss, **logs}

    def after_step(self, progress: float) -> None:
        self.distillation.after_step(self.encoder, progress, self.momentum)
        if progress < self.start:
            return
        due = 1 + int((progress - self.start) / self.refresh + 1e-9)
        if due > int(self.refreshed):
            self.gram_teacher.update(self.distillation.teacher.chain[0], momentum=0.0)
            self.refreshed.fill_(due)
            self.anchored = True


def _know(method: nn.Module, _: object) -> None:
    assert isinstance(method, DINOv3)
    method.anchored = bool(method.refreshed)
