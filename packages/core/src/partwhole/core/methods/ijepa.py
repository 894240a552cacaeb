"""I-JEPA: predict a teacher's features of blocks from the features of what is around (Assran et al., 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import blank
from partwhole.core.losses import masked_mse, masked_smooth_l1
from partwhole.core.method import Batch, Method
from partwhole.core.schedules import linear
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import Transformer, TransformerEncoder, pack, take


class IJEPA(Method):
    """batch: ``x``, an input; ``keep``, which of its tokens the encoder sees, a mask (B, L) bool or indices (B, K), -1
    beyond their number; ``targets``, blocks of tokens to predict, (B, T, L) bool or (B, T, M) indices; optional
    ``valid``, which positions of x are real. With indices, torch.compile makes one graph. See
    ``core.masks.target_blocks``. Blocks may differ in size; a block that overlaps with ``keep`` shows its answer.

    A target is what the teacher makes of a token of the block, seeing the whole, normalised over features. Each block
    is predicted by itself, by a narrow transformer over what the encoder makes of ``keep`` and one learned token for
    each place of the block. ``momentum`` rises to 1 along a line.

    ``beta=1`` is the official code's smooth L1; None is the paper's squared error. Apart from the paper, the
    predictor's positions are a linear function of the encoder's, not sines of its own, and every token counts alike,
    in whatever block.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        dim: int = 384,
        depth: int = 6,
        heads: int = 12,
        beta: float | None = 1.0,
        momentum: float = 0.996,
    ):
        super().__init__(encoder)
        self.beta, self.momentum = beta, momentum
        self.narrow = nn.Linear(encoder.dim, dim)
        self.narrow_position = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.predictor = Transformer(dim, depth, heads)
        self.predict = nn.Linear(dim, encoder.dim)
        self.teacher = Teacher(encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, keep, targets, valid = batch["x"], batch["keep"], batch["targets"], batch.get("valid")
        embed, special, given = self.encoder.embed, self.encoder.special, {} if valid is None else {"valid": valid}
        B, T = targets.shape[:2]

        context = self.narrow(self.encoder(x, keep=keep, valid=valid))  # (B, S + K, dim), of S special tokens
        real = embed.tokens_valid(x, valid)
        place = blank(embed.position(x, **given), real)
        index, seen = pack(keep, real)
        context = context + F.pad(self.narrow_position(take(place, index)), (0, 0, special, 0))
        seen = F.pad(seen, (special, 0), value=True)

        # from here on a row is a block: (B T, M)
        at, asked = pack(targets.flatten(0, 1), None if real is None else real.repeat_interleave(T, 0))
        among = at.reshape(B, -1)
        query = self.mask_token + self.narrow_position(take(place, among)).unflatten(1, (T, -1)).flatten(0, 1)
        context, seen = context.repeat_interleave(T, 0), seen.repeat_interleave(T, 0)
        tokens = self.predictor(torch.cat([context, query.to(context.dtype)], 1), torch.cat([seen, asked], 1))
        prediction = self.predict(tokens[:, context.shape[1] :])

        target = take(self.teacher(x, valid)[:, special:], among).unflatten(1, (T, -1)).flatten(0, 1)
        target = F.layer_norm(target, target.shape[-1:])
        if self.beta is None:
            loss = masked_mse(prediction, target, asked)
        else:
            loss = masked_smooth_l1(prediction, target, asked, beta=self.beta)
        count = asked.sum()
        return {"loss": loss * distributed.share(count), "items": count}

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.encoder, momentum=linear(progress, self.momentum, 1.0))
