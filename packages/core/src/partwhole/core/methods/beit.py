"""BEiT: name the hidden tokens in a vocabulary made beforehand (Bao et al., 2022)."""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.losses import masked_cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.transformer import TransformerEncoder, pack, take


class BEiT(Method):
    """batch: ``x``, an input; ``hidden``, which of its tokens are hidden, a mask (B, L) bool or their indices (B, K),
    -1 beyond their number (with which torch.compile makes one graph); ``ids`` (B, L) int, what each token is called, of
    which only those of hidden tokens are read; optional ``valid``, which positions of x are real. Rows may hide
    different numbers of tokens. Names come from ``core.tokenizer``, masks from ``core.masks.hide_blocks``.

    A learned token enters the encoder in place of hidden ones. Only what it becomes reaches the head, one linear layer
    over ``vocabulary`` names.

    Apart from the paper, positions are as the encoder has them (there: added, and relative in attention), and names
    those of any tokenizer (there: a discrete variational autoencoder's, of 8192).
    """

    encoder: TransformerEncoder

    def __init__(self, encoder: TransformerEncoder, *, vocabulary: int = 8192):
        super().__init__(encoder)
        self.mask_token = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        self.head = nn.Linear(encoder.dim, vocabulary)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, hidden, valid = batch["x"], batch["hidden"], batch.get("valid")
        tokens = self.encoder(x, hidden=hidden, token=self.mask_token, valid=valid)[:, self.encoder.special :]
        index, real = pack(hidden, self.encoder.embed.tokens_valid(x, valid))
        logits = self.head(take(tokens, index))  # (B, K, V)
        loss = masked_cross_entropy(logits, batch["ids"].gather(1, index), real)
        count = real.sum()
        return {"loss": loss * distributed.share(count), "items": count}
