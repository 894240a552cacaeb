"""Recipes for clips with sound: which sound belongs to which picture, and whether it is in time."""

from dataclasses import dataclass
from typing import ClassVar

from partwhole.core.encoder import Encoder
from partwhole.multimodal import avts, contrast, l3
from partwhole.multimodal.recipe import Listening
from partwhole.multimodal.towers import Towers


@dataclass(frozen=True, kw_only=True)
class L3(Listening):
    """Does this sound belong to this picture? (Arandjelovic and Zisserman, 2017)"""

    hidden: int = 128
    """Width of the network that answers."""

    def method(self, encoder: Encoder, sound: Encoder) -> Towers:
        return l3.L3(encoder, sound, hidden=self.hidden)


@dataclass(frozen=True, kw_only=True)
class AVTS(Listening):
    """Is this sound in time with this clip? (Korbar et al., 2018)"""

    frames: int = 16
    crop: tuple[float, float] = (0.9, 1.0)
    dim: int = 128
    """Features of a vector."""
    margin: float = 0.99
    """How far apart what does not belong together is to be, at the least."""
    hard: float = 0.25
    """Share of the negatives that are the clip's own sound out of time, not another's."""
    begin: float = 50 / 90
    """Share of the training after which there are such."""

    shifted: ClassVar[bool] = True

    def method(self, encoder: Encoder, sound: Encoder) -> Towers:
        return avts.AVTS(encoder, sound, dim=self.dim, margin=self.margin, hard=self.hard, begin=self.begin)


@dataclass(frozen=True, kw_only=True)
class Contrast(Listening):
    """Tell a clip's sound among all, and a sound's clip (contrastive towers, as CLIP's)."""

    frames: int = 16
    dim: int = 128
    """Features of a vector."""
    temperature: float = 0.07
    """What cosines are divided by at first; it is learned."""

    def method(self, encoder: Encoder, sound: Encoder) -> Towers:
        return contrast.Contrast(encoder, sound, dim=self.dim, temperature=self.temperature)


TASKS = {"l3": L3, "avts": AVTS, "av-contrast": Contrast}
