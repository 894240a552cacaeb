"""Look, listen and learn: does this sound belong to this picture? (Arandjelovic and Zisserman, 2017).

Axes: B clips, D features.
"""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, mlp
from partwhole.core.losses import cross_entropy
from partwhole.core.method import Batch
from partwhole.multimodal.towers import Towers, clips_of, next_other


class L3(Towers):
    """batch: as of ``Towers``. Each picture is shown with its own sound, and with that of the next other clip of the
    batch, over all processes; a small network that is given both vectors tells which of the two it is.

    ``accuracy``: of these answers; half of them are right by chance. Apart from the paper the vectors are what the
    encoders mean by one (a mean or a CLS token), where it has the greatest of each feature, and a sound is that of
    another clip of the batch, so that it is encoded once for both questions.
    """

    def __init__(self, encoder: Encoder, sound: Encoder, *, hidden: int = 128):
        super().__init__(encoder, sound, nn.Identity(), nn.Identity())
        self.hidden = hidden
        self.fuse = mlp(encoder.dim + sound.dim, hidden, 2)

    def answer(self, picture: Tensor, sound: Tensor) -> Tensor:
        """Vectors (..., D) of both -> logits (..., 2), of "another's" and "its own"."""
        shape = torch.broadcast_shapes(picture.shape[:-1], sound.shape[:-1])
        return self.fuse(torch.cat([picture.expand(*shape, -1), sound.expand(*shape, -1)], -1))

    def score(self, picture: Tensor, sound: Tensor) -> Tensor:
        logits = self.answer(picture, sound)
        return logits[..., 1] - logits[..., 0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        picture, own = self.seen(batch["x"]), self.heard(batch["sound"])
        index, everyone, start = clips_of(batch)
        other = next_other(index, everyone, start)
        sounds = torch.cat([own, distributed.gather(own)[other.clamp(min=0)]])
        logits = self.answer(picture.repeat(2, 1), sounds)
        label = torch.cat([torch.ones_like(other), torch.where(other >= 0, 0, -1)])
        count = (label >= 0).sum()
        share, right = distributed.share(count), (logits.argmax(-1) == label).sum()
        return {
            "loss": cross_entropy(logits, label) * share,
            "items": count,
            "accuracy": right / count.clamp(min=1) * share,
        }
