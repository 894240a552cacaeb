"""Audio-visual synchronisation: is this sound in time with this clip? (AVTS: Korbar et al., 2018).

Axes: B clips, N pairs, D features.
"""

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder
from partwhole.core.method import Batch
from partwhole.core.norm import BatchNorm
from partwhole.core.precision import in_float32
from partwhole.multimodal.towers import Towers, clips_of, next_other


@in_float32
def margin_contrast(picture: Tensor, sound: Tensor, together: Tensor, *, margin: float = 0.99) -> Tensor:
    """Bring together what belongs together, and the rest at least ``margin`` apart (Chopra et al., 2005).

        d[n] = |picture[n] - sound[n]|
        loss = mean over n:  d[n]^2 if together[n] else max(margin - d[n], 0)^2

    picture, sound (N, D); together (N,) bool. The mean of no pairs is 0.
    """
    if picture.shape != sound.shape or picture.ndim != 2 or together.shape != picture.shape[:1]:
        raise ValueError(
            "picture (N, D), sound (N, D) and together (N,) are needed; got "
            f"{tuple(picture.shape)}, {tuple(sound.shape)} and {tuple(together.shape)}"
        )
    if not margin > 0:
        raise ValueError(f"the margin is a distance above 0; got {margin}")
    distance = torch.linalg.vector_norm(picture - sound, dim=-1)
    each = torch.where(together, distance.square(), (margin - distance).clamp(min=0).square())
    return each.sum() / max(1, len(each))


class Normed(nn.Module):
    """A linear layer whose features are normalised over the batch: vectors (B, dim) of length 1 in the mean."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, out, bias=False), BatchNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x))
        return y / y.shape[-1] ** 0.5


class AVTS(Towers):
    """batch: as of ``Towers``, and ``shifted`` (B, T, F), sound of the same clip out of time, and ``draw`` (B,),
    numbers from 0 to 1: see ``views.Paired``.

    Each clip is paired with its own sound in time, and with one that is not: an easy one, of the next other clip of the
    batch, over all processes, or a hard one, its own out of time. Up to progress ``begin`` all are easy; from there on
    a share ``hard`` is not: the clips whose ``draw`` is below it. The paper has 0.25 of them from epoch 51 of 90 on,
    and finds that hard ones from the beginning do harm.

    Apart from the paper the features of both vectors are normalised over the batch. Without that all vectors, of
    whatever is seen or heard, soon were half of the margin apart, where the loss has next to no slope.

    ``near`` and ``far``: the mean distance of what is in time, and of the rest. ``accuracy``: of telling these pairs by
    whether they are nearer than half of the margin.
    """

    def __init__(
        self, encoder: Encoder, sound: Encoder, *, dim: int = 128, margin: float = 0.99, hard: float = 0.25,
        begin: float = 50 / 90,
    ):  # fmt: skip
        super().__init__(encoder, sound, *(Normed(one.dim, dim) for one in (encoder, sound)))
        for name, value in (("hard", hard), ("begin", begin)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a share from 0 to 1")
        self.dim, self.margin, self.hard, self.begin = dim, margin, hard, begin
        self.share: Tensor
        self.register_buffer("share", torch.tensor(hard if begin <= 0 else 0.0))

    def score(self, picture: Tensor, sound: Tensor) -> Tensor:
        return -torch.linalg.vector_norm(picture - sound, dim=-1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        picture = self.seen(batch["x"])
        own, shifted = self.heard(torch.cat([batch["sound"], batch["shifted"]])).chunk(2)
        index, everyone, start = clips_of(batch)
        other = next_other(index, everyone, start)
        hard = (batch["draw"] < self.share) | (other < 0)
        easy = distributed.gather(own)[other.clamp(min=0)]
        sounds = torch.cat([own, torch.where(hard[:, None], shifted, easy)])
        together = torch.arange(len(sounds), device=index.device) < len(index)
        loss = margin_contrast(picture.repeat(2, 1), sounds, together, margin=self.margin)
        share = distributed.share(len(index))
        with torch.no_grad():
            near, far = -self.score(picture, sounds[: len(index)]), -self.score(picture, sounds[len(index) :])
            right = torch.cat([near < self.margin / 2, far >= self.margin / 2]).double().mean()
        return {
            "loss": loss * share,
            "items": torch.tensor(len(index), device=index.device),
            "accuracy": right * share,
            "near": near.mean() * share,
            "far": far.mean() * share,
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.share.fill_(self.hard if progress >= self.begin else 0.0)
