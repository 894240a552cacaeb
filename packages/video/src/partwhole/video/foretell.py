"""Future prediction as halves of recipes: their options, what they see, and what they can be asked."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from partwhole.core.catalog import Given
from partwhole.core.data import View, some
from partwhole.core.encoder import Encoder
from partwhole.core.method import Method
from partwhole.core.sees import Seeing
from partwhole.video import future
from partwhole.video.clip_views import Blocks, Clip, dpc, too_short
from partwhole.vision.draw import Picture
from partwhole.vision.pretext import held_out
from partwhole.vision.recipe import Own

SHOWN = 6  # clips in a picture
AMONG = 16  # clips among whose blocks one is to be told, when it is asked


@dataclass(frozen=True, kw_only=True)
class Foretelling(Seeing, ABC):
    """Blocks of frames, of which the last ones are told by those before; colours are of each frame by itself."""

    size: int = 64
    """Side of the frames that the network sees, in pixels."""
    blocks: int = 6
    """Blocks of a clip, those to be told included."""
    frames: int = 3
    """Frames of a block."""
    stride: int = 2
    """Frames of the video from one to the next."""
    steps: int = 2
    """Blocks to be told: each further one is harder."""
    temperature: float = 0.1
    """What cosines are divided by: the lower, the more the nearest negatives count; the higher, the more all alike."""

    @property
    def long(self) -> int:
        """Frames of a clip."""
        return self.blocks * self.frames

    def short(self, video: Any) -> str | None:
        """Why a video is too short; None where it is not."""
        return too_short(video, self.long)

    def view(self, encoder: Encoder) -> View:
        clip = Clip(augment=dpc(self.size), frames=self.long, stride=self.stride, framewise=True)
        return Blocks(clip=clip, blocks=self.blocks)

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        """How many blocks of clips it was not trained on it tells, among those of 16 clips; and a picture."""
        assert isinstance(method, future.Foretelling)
        view: Any = self.view(method.encoder)
        numbers = held_out(method, view, samples, batch=AMONG)
        return Own(numbers, Picture(future.picture(method, view, some(samples, SHOWN)), future.CAPTION))


@dataclass(frozen=True, kw_only=True)
class DPC(Foretelling, ABC):
    """Tell the next blocks of a clip among all, by what came before (Han et al., 2019)."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return future.DPC(encoder, steps=self.steps, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class MemDPC(Foretelling, ABC):
    """The same as a mixture of what is remembered, forwards and backwards (Han et al., 2020)."""

    slots: int = 256
    """Features that are remembered: more tell finer things apart."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return future.MemDPC(encoder, steps=self.steps, temperature=self.temperature, slots=self.slots)
