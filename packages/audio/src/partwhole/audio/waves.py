"""Recipes for sounds as they are: HuBERT and wav2vec 2.0."""

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from partwhole.audio import wave_sees
from partwhole.audio.mel import Mel
from partwhole.audio.recipe import Policy, SoundRecipe
from partwhole.core.data import View
from partwhole.core.encoder import Encoder
from partwhole.core.probe import Probe


@dataclass(frozen=True, kw_only=True)
class WaveRecipe(SoundRecipe, ABC):
    """Whose network sees waveforms."""

    policy: ClassVar[Policy] = "plain"  # type: ignore[misc]  # so it is no field: a random piece is all that is drawn
    batch: int = 32
    measure: Probe = Probe(arms=("random", "scratch", "frozen"), shots=(1, 5, 20))

    @property
    def longest(self) -> int:
        """Samples that the network sees, at the most."""
        return round(self.seconds * self.mel.rate)

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from super().unused()
        for field in fields(Mel):
            if field.name != "rate" and getattr(self.mel, field.name) != field.default:
                yield f"mel.{field.name}", f"{type(self).__name__} sees waveforms, which are only drawn as spectrograms"

    def weak(self) -> View:
        return self.look()

    def drawn(self, x: Tensor, hidden: Tensor | None, encoder: Encoder) -> Tensor:
        spectrogram = self.mel(x)
        if hidden is None:
            return spectrogram
        embed: Any = encoder.embed
        at = torch.arange(len(spectrogram)) * self.mel.step  # in samples, the middle of each frame
        token = ((at - embed.window / 2) / embed.hop).round().long().clamp(0, len(hidden) - 1)
        return spectrogram.masked_fill(hidden[token][:, None], torch.nan)


@dataclass(frozen=True, kw_only=True)
class HuBERT(wave_sees.HuBERT, WaveRecipe):
    """Name the units of hidden frames, found by clustering beforehand (Hsu et al., 2021)."""

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from super().unused()
        if self.layer is not None and self.teacher is None:
            yield "layer", "it is one of a --teacher, and there is none"


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2(wave_sees.Wav2Vec2, WaveRecipe):
    """Tell the quantised features of a hidden frame from those of others of its sound (Baevski et al., 2020)."""
