"""Contrastive towers: tell a clip's sound among all sounds, and a sound's clip among all clips (Radford et al., 2021,
of pictures and texts; Morgado et al., 2021, of clips and sounds).

Axes: B clips, M of all processes, D features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder
from partwhole.core.losses import info_nce
from partwhole.core.method import Batch
from partwhole.multimodal.towers import Towers, clips_of

HIGHEST = math.log(100.0)  # CLIP's: a higher scale does not train stably


class Contrast(Towers):
    """batch: as of ``Towers``. Cosines of linear projections times a learned ``scale``, at first 1 / 0.07 and never
    above 100, as CLIP has it; cross entropy both ways, over the clips of all processes.

    ``accuracy``: how many clips and sounds are told right, the mean of both ways; it depends on how many there are to
    be told from.
    """

    def __init__(self, encoder: Encoder, sound: Encoder, *, dim: int = 128, temperature: float = 0.07):
        super().__init__(encoder, sound, nn.Linear(encoder.dim, dim), nn.Linear(sound.dim, dim))
        if not 0.01 <= temperature:
            raise ValueError(f"temperature is {temperature}; it may not begin below 0.01, where the scale ends")
        self.dim, self.temperature = dim, temperature
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # one axis: it can be sharded

    def score(self, picture: Tensor, sound: Tensor) -> Tensor:
        return F.cosine_similarity(picture, sound, dim=-1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        picture, sound = self.seen(batch["x"]), self.heard(batch["sound"])
        index, everyone, start = clips_of(batch)
        own = torch.arange(start, start + len(index), device=index.device)
        same = index[:, None] == everyone  # a clip that comes twice: neither is wrong
        temperature = (-self.log_scale[0]).exp()
        ways = [(picture, distributed.gather(sound)), (sound, distributed.gather(picture))]
        losses = [info_nce(q, k, own, temperature=temperature, exclude=same) for q, k in ways]
        share = distributed.share(len(index))
        with torch.no_grad():
            right = [told(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, own, same) for q, k in ways]
        return {
            "loss": torch.stack(losses).mean() * share,
            "items": torch.tensor(len(index), device=index.device),
            "accuracy": torch.stack(right).mean() * share,
            "scale": self.log_scale.detach()[0].exp(),
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.log_scale.clamp_(max=HIGHEST)


def told(cosine: Tensor, own: Tensor, same: Tensor) -> Tensor:
    """Share of the queries (B,) whose own key (its number among M) is nearer than all of other clips."""
    best = cosine.masked_fill(same, -torch.inf).amax(1)
    return (cosine.gather(1, own[:, None])[:, 0] > best).double().mean()
