"""data2vec: predict a teacher's features of the whole at the hidden tokens (Baevski et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder
from partwhole.core.losses import masked_mse, masked_smooth_l1
from partwhole.core.method import Batch, Method
from partwhole.core.schedules import linear
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import TransformerEncoder, pack, take


class Data2Vec(Method):
    """batch: ``x``, an input; ``hidden``, which of its tokens are hidden, a mask (B, L) bool or their indices (B, K),
    -1 beyond their number (with which torch.compile makes one graph); optional ``valid``, which positions of x are
    real. Rows may hide different numbers of tokens: see ``core.masks.hide_blocks``.

    The student sees a learned token in place of hidden ones, the teacher all. The target of a token is the mean of what
    the teacher's last ``layers`` blocks give, each normalised over its features, and normalised again. ``beta`` is that
    of ``masked_smooth_l1``, None the squared error. ``momentum`` is three numbers: it rises along a line from the first
    to the second until the third, a fraction of the training, has passed.

    As the paper's code for images, whose published commands keep the momentum at .9998; for speech and text the paper
    takes what the MLP of a block gives before it is added, and for speech normalises over time, which is left out.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        layers: int = 6,
        beta: float | None = 2.0,
        momentum: tuple[float, float, float] = (0.999, 0.9998, 0.1),
    ):
        super().__init__(encoder)
        self.count, self.beta, self.momentum = layers, beta, momentum
        self.mask_token = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        self.predict = nn.Linear(encoder.dim, encoder.dim)
        self.teacher = Teacher(TopLayers(encoder, layers))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, hidden, valid = batch["x"], batch["hidden"], batch.get("valid")
        special = self.encoder.special
        known = self.teacher(x, valid)[:, special:]
        tokens = self.encoder(x, hidden=hidden, token=self.mask_token, valid=valid)[:, special:]
        index, real = pack(hidden, self.encoder.embed.tokens_valid(x, valid))
        prediction, target = self.predict(take(tokens, index)), take(known, index)  # (B, K, D)
        if self.beta is None:
            loss = masked_mse(prediction, target, real)
        else:
            loss = masked_smooth_l1(prediction, target, real, beta=self.beta)
        count = real.sum()
        return {"loss": loss * distributed.share(count), "items": count}

    def after_step(self, progress: float) -> None:
        start, end, until = self.momentum
        self.teacher.update(TopLayers(self.encoder, self.count), momentum=linear(progress, start, end, until=until))


class TopLayers(Encoder):
    """The mean of an encoder's last layers, each normalised over its features; the mean is normalised again."""

    def __init__(self, encoder: TransformerEncoder, count: int):
        super().__init__()
        self.encoder, self.count, self.dim, self.special = encoder, count, encoder.dim, encoder.special

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        layers = self.encoder.layers(x, self.count, valid=valid)
        return F.layer_norm(torch.stack([F.layer_norm(y, y.shape[-1:]) for y in layers]).mean(0), (self.dim,))

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        return self.encoder.real(x, valid)
