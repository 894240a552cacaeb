"""Log-mel spectrograms: what is loud when, on the ear's scale of pitch.

Axes: N samples, T frames, F bands of pitch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mel:
    """How a spectrogram is made. ``mel(sound)``: (..., N) -> (..., T, F) with T = N // step + 1, on any device."""

    rate: int = 16_000
    """Samples a second; sounds of other rates are resampled."""
    bands: int = 64
    """Bands of pitch, of equal width in mel."""
    window: float = 0.025
    """Seconds of sound in a frame."""
    hop: float = 0.01
    """Seconds from frame to frame."""
    low: float = 60.0
    """Lowest pitch, in Hz."""
    high: float | None = None
    """Highest pitch, in Hz; default: half of the rate, all there is."""
    floor: float = 1e-4
    """Added to the power before its logarithm: what is quieter counts as silence. A sine as loud as can be has a power
    of about (window * rate / 4) squared."""

    def __post_init__(self) -> None:
        for name in ("rate", "bands", "window", "hop", "floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"mel.{name} is {getattr(self, name)}; expected a number above 0")
        if not 0 <= self.low < self.top <= self.rate / 2:
            raise ValueError(
                f"mel.low and mel.high are {self.low} and {self.top} Hz: expected 0 <= low < high <= {self.rate / 2}, "
                "half of the rate"
            )
        if self.step < 1 or self.hop > self.window:
            raise ValueError(
                f"mel.hop is {self.hop} s: at least one sample, and not beyond the window of {self.window}"
            )

    @property
    def top(self) -> float:
        return self.rate / 2 if self.high is None else self.high

    @property
    def step(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop * self.rate)

    @property
    def width(self) -> int:
        """Samples in a frame."""
        return round(self.window * self.rate)

    @property
    def size(self) -> int:
        """Samples of the Fourier transform, a power of two: so many that no band falls between two frequencies."""
        low, top = (math.log10(1 + f / 700) for f in (self.low, self.top))
        lowest = 700 * (10 ** (low + (top - low) / (self.bands + 1)) - 1) - self.low  # half of its width in Hz
        return 1 << max(self.width - 1, int(self.rate / lowest)).bit_length()

    @property
    def silence(self) -> float:
        """What a band without any sound holds."""
        return math.log(self.floor)

    def frames(self, seconds: float) -> int:
        """How many frames so much sound has."""
        return max(1, round(seconds * self.rate / self.step))

    def __call__(self, sound: Tensor) -> Tensor:
        return (_transform(self, sound.device, sound.dtype)(sound) + self.floor).log().mT


@lru_cache(maxsize=16)
def _transform(mel: Mel, device: torch.device, dtype: torch.dtype) -> Any:
    """torchaudio's, with silence before the beginning and after the end."""
    import torchaudio

    made = torchaudio.transforms.MelSpectrogram(
        mel.rate, n_fft=mel.size, win_length=mel.width, hop_length=mel.step, f_min=mel.low, f_max=mel.top,
        n_mels=mel.bands, pad_mode="constant",
    )  # fmt: skip
    return made.to(device=device, dtype=dtype)


@torch.no_grad()
def moments(mel: Mel, sounds: Sequence[Any], most: int = 500) -> tuple[float, float]:
    """Mean and standard deviation of the spectrograms of at most so many of the sounds, evenly spread."""
    count = min(most, len(sounds))
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(count):
        x = mel(sounds[i * len(sounds) // count]["sound"]).double()
        total += torch.stack([torch.tensor(float(x.numel()), dtype=torch.float64), x.sum(), x.square().sum()])
    mean = total[1] / total[0]
    return float(mean), float((total[2] / total[0] - mean.square()).clamp(min=1e-6).sqrt())
