"""What methods of pictures and sounds share: an encoder of each, and how well a sound fits a picture.

Axes: B clips of this process, M of all, D features.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, pool_for
from partwhole.core.method import Method
from partwhole.core.methods.views import project_one


class Towers(Method, ABC):
    """batch: ``x``, frames or clips; ``sound`` (B, T, F), spectrograms of the same moments; ``index`` (B,), the number
    of the clip that each is of: one that comes twice is no negative of itself.

    ``encoder`` is the one of pictures, ``sound`` that of sounds. ``seen`` and ``heard`` are vectors (B, D) of each,
    ``score`` says how well vectors of both fit, the higher the better.
    """

    def __init__(self, encoder: Encoder, sound: Encoder, see: nn.Module, hear: nn.Module):
        super().__init__(encoder)
        self.sound = sound
        self.seeing, self.hearing = Head(pool_for(encoder), see), Head(pool_for(sound), hear)

    def seen(self, x: Tensor) -> Tensor:
        """Frames (B, 3, S, S) or clips (B, 3, T, S, S) -> (B, D)."""
        return project_one(self.encoder, self.seeing, x)

    def heard(self, sound: Tensor) -> Tensor:
        """Spectrograms (B, T, F) -> (B, D)."""
        return project_one(self.sound, self.hearing, sound)

    @abstractmethod
    def score(self, picture: Tensor, sound: Tensor) -> Tensor:
        """How well vectors (..., D) of both fit, (...)."""


def clips_of(batch: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """The numbers of the clips of this process (B,) and of all (M,), and where those of this one begin."""
    index = batch["index"]
    return index, distributed.gather(index), distributed.start(len(index))


def next_other(index: Tensor, everyone: Tensor, start: int) -> Tensor:
    """For each clip the first after it, around the end, that is another: places (B,) in ``everyone``, -1 where all are
    the same clip. index (B,) are ``everyone`` (M,) from ``start`` on."""
    M, B = len(everyone), len(index)
    me = torch.arange(start, start + B, device=index.device)
    ahead = (torch.arange(M, device=index.device) - me[:, None]) % M  # (B, M)
    nearest, place = ahead.masked_fill(index[:, None] == everyone, M).min(1)
    return torch.where(nearest < M, place, -1)
