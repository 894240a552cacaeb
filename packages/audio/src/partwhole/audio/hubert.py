"""HuBERT: name the units of the hidden frames, found by clustering beforehand (Hsu et al., 2021).

Axes: B sounds, L tokens, K of them, D features, U units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.losses import masked_cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.transformer import TransformerEncoder, pack, take


class HuBERT(Method):
    """batch: ``x``, an input; ``hidden`` (B, L) bool, which of its tokens are hidden; ``ids`` (B, L) int, the unit of
    each token; optional ``valid``, which positions of x are real. Units come from ``audio.units``, and spans of hidden
    tokens from ``audio.wave_sees.hide_spans``.

        logits[b, l, u] = cos(project(tokens[b, l]), codewords[u]) / temperature
        loss            = cross entropy of the hidden tokens + unmasked * cross entropy of the others

    ``codewords`` (U, dim) are learned. ``unmasked`` is 0 in the paper, which finds that naming what is seen helps only
    where units are good. ``accuracy`` is the share of hidden tokens that are named rightly.

    This is BEiT (``core.methods``) with another head, cosines with codewords in place of a linear layer, and with a
    word for the tokens that are seen.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        units: int,
        dim: int = 256,
        temperature: float = 0.1,
        unmasked: float = 0.0,
    ):
        super().__init__(encoder)
        if not temperature > 0 or not unmasked >= 0:
            raise ValueError(f"temperature is above 0 and unmasked 0 or more; got {temperature} and {unmasked}")
        self.temperature, self.unmasked = temperature, unmasked
        self.mask_token = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        self.project = nn.Linear(encoder.dim, dim)
        self.codewords = nn.Parameter(torch.randn(units, dim))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, hidden, valid = batch["x"], batch["hidden"], batch.get("valid")
        tokens = self.encoder(x, hidden=hidden, token=self.mask_token, valid=valid)[:, self.encoder.special :]
        real = self.encoder.embed.tokens_valid(x, valid)
        loss, count, right = self.named(tokens, hidden, real, batch["ids"])
        out = {"items": count, "accuracy": right / count.clamp(min=1)}
        if self.unmasked:
            seen, *_ = self.named(tokens, ~hidden, real, batch["ids"])
            loss = loss + self.unmasked * seen
        return {"loss": loss, **out}

    def named(self, tokens: Tensor, which: Tensor, real: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of those of the tokens (B, L, D), this process's share of it; how many there are; how many of them
        are named rightly."""
        index, there = pack(which, real)
        logits = self.logits(take(tokens, index))
        target, count = ids.gather(1, index).long(), there.sum()
        right = ((logits.detach().argmax(-1) == target) & there).sum()
        return masked_cross_entropy(logits, target, there) * distributed.share(count), count, right

    def logits(self, tokens: Tensor) -> Tensor:
        """Of each unit, (..., D) -> (..., U)."""
        cosine = F.normalize(self.project(tokens), dim=-1) @ F.normalize(self.codewords, dim=-1).mT
        return cosine / self.temperature
