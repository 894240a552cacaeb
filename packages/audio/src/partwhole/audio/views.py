"""Random views of a sound: a piece of it as a log-mel spectrogram, changed as the policies of papers have it.

Axes: N samples, T frames, F bands.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partwhole.audio.mel import Mel

Sample = Mapping[str, Any]
Range = tuple[float, float]


def uniform(low: float, high: float) -> float:
    """One number by torch's global generator."""
    return low + (high - low) * float(torch.rand(()))


def chance(p: float) -> bool:
    """True with probability p; nothing is drawn where that is certain."""
    return p >= 1 or (p > 0 and float(torch.rand(())) < p)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """sample {"sound": (N,), "rate"} -> x (T, F), a log-mel spectrogram of a random piece, ``frames`` long at the most.

    A shorter sound gives fewer frames, and a batch of them is padded and says which are ``valid``; ``fill``: it is
    repeated instead until it is as long. In this order: crop, gain and noise of the sound; mix-up, resize, fader, masks
    of the spectrogram.
    """

    mel: Mel = field(default_factory=Mel)
    frames: int = 96
    """Frames at the most."""
    fill: bool = False
    """Repeat a short sound until there are so many."""
    crop: Range | None = (0.6, 1.0)
    """Length of the piece, as a share of the sound or of ``frames``, whichever is less. None: the middle, all of it."""
    gain: float = 0.0
    """Louder or quieter by up to so many decibels."""
    noise: float = 0.0
    """Chance of white noise."""
    loudness: Range = (5.0, 30.0)
    """How many decibels the sound is above it."""
    mixup: float = 0.0
    """Greatest share of the power of another sound that is mixed in, drawn from 0 on (BYOL-A: 0.4)."""
    stretch: Range = (1.0, 1.0)
    """Duration times a factor of this range, its logarithm uniform, while pitch stays."""
    pitch: Range = (1.0, 1.0)
    """Bands that are seen, as a share of all, from a random place on, resized to all; what is above or below is
    silence. The logarithm of the share is uniform."""
    fader: float = 0.0
    """Chance that loudness rises or falls along the piece, from one random level to another."""
    levels: float = 1.0
    """Greatest change of either level, in the logarithm of power."""
    masks: tuple[int, int] = (0, 0)
    """Stretches of time, and of pitch, that are hidden (SpecAugment)."""
    widths: Range = (0.2, 0.2)
    """Greatest width of each, as a share of the frames, and of the bands."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; expected 1 or more")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}; expected (low, high) with 0 < low <= high <= 1, or None")
        for name in ("stretch", "pitch"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {low, high}; expected (low, high) with 0 < low <= high")
        for name in ("noise", "fader", "mixup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if min(self.masks) < 0 or not all(0 < w <= 1 for w in self.widths):
            raise ValueError(
                f"masks {self.masks} of widths {self.widths}: expected 0 or more, of shares above 0 up to 1"
            )

    def __call__(self, sample: Sample) -> Tensor:
        sound = check(sample, self.mel.rate)
        factor = log_uniform(self.stretch)
        length = max(1, round(self.frames / factor)) * self.mel.step  # so that it has frames, once stretched
        x = self.spectrogram(self.piece(sound, length))
        if self.mixup:
            x = mixed(x, self.other(sample, len(x)), uniform(0, self.mixup))
        long = self.frames if self.fill else min(self.frames, max(1, round(len(x) * factor)))
        if long != len(x):
            x = lines(len(x), 0.0, float(len(x)), long) @ x
        if self.pitch != (1.0, 1.0):
            x = self.shifted(x)
        if chance(self.fader):
            a, b = uniform(-self.levels, self.levels), uniform(-self.levels, self.levels)
            x = x + torch.linspace(a, b, len(x))[:, None]
        return self.masked(x)

    def piece(self, sound: Tensor, length: int) -> Tensor:
        """At most ``length`` samples of it."""
        if self.crop is None:
            there, start = min(length, len(sound)), max(0, len(sound) - length) // 2
        else:
            there = max(1, round(min(length, len(sound)) * uniform(*self.crop)))
            start = int(torch.randint(len(sound) - there + 1, ()))
        part = sound[start : start + there]
        if self.fill and there < length:
            part = part.repeat(-(-length // there))[:length]
        if self.gain:
            part = part * 10 ** (uniform(-self.gain, self.gain) / 20)
        if chance(self.noise):
            level = part.square().mean().sqrt() * 10 ** (-uniform(*self.loudness) / 20)
            part = part + level * torch.randn(len(part))
        return part

    def spectrogram(self, part: Tensor) -> Tensor:
        x = self.mel(part)
        return x[: max(1, len(part) // self.mel.step)]  # without the frame that is centred on the end

    def other(self, sample: Sample, length: int) -> Tensor:
        """A piece of another sound, repeated until it has as many frames."""
        others = sample.get("others")
        if others is None:
            raise ValueError("mix-up needs other sounds: the sample has none under 'others' (sources.Among gives them)")
        sound = check(others[int(torch.randint(len(others), ()))], self.mel.rate)
        start = int(torch.randint(max(0, len(sound) - length * self.mel.step) + 1, ()))
        x = self.spectrogram(sound[start : start + length * self.mel.step])
        return x.repeat(-(-length // len(x)), 1)[:length]

    def shifted(self, x: Tensor) -> Tensor:
        """Another span of pitch, resized to all bands."""
        bands = x.shape[1]
        span = bands * log_uniform(self.pitch)
        start = uniform(min(0.0, bands - span), max(0.0, bands - span))
        weights = lines(bands, start, span, bands)
        return x @ weights.mT + (1 - weights.sum(1)) * self.mel.silence

    def masked(self, x: Tensor) -> Tensor:
        """Stretches of time and pitch at the mean of the whole."""
        if not any(self.masks):
            return x
        hidden = torch.zeros_like(x, dtype=torch.bool)
        for axis, (count, share) in enumerate(zip(self.masks, self.widths, strict=True)):
            size = x.shape[axis]
            for _ in range(count):
                wide = int(torch.randint(int(share * size) + 1, ()))
                start = int(torch.randint(size - wide + 1, ()))
                hidden.narrow(axis, start, wide).fill_(True)
        return x.masked_fill(hidden, float(x.mean()))


def check(sample: Sample, rate: int) -> Tensor:
    """The sound of a sample; ValueError, if it is none, or of another rate."""
    sound = sample["sound"]
    if not (isinstance(sound, Tensor) and sound.ndim == 1 and sound.is_floating_point() and len(sound)):
        found = f"{sound.dtype} {tuple(sound.shape)}" if isinstance(sound, Tensor) else type(sound).__name__
        raise ValueError(f"a sound is {found}; expected floats (N,), one sample or more")
    if sample["rate"] != rate:
        raise ValueError(f"a sound of {sample['rate']} samples a second; the spectrogram is made for {rate}: resample")
    return sound


def log_uniform(span: Range) -> float:
    """Drawn with a uniform logarithm; nothing is drawn where there is one value."""
    return span[0] if span[0] == span[1] else math.exp(uniform(math.log(span[0]), math.log(span[1])))


def mixed(x: Tensor, other: Tensor, share: float) -> Tensor:
    """Two spectrograms together, in the power: log((1 - share) exp(x) + share exp(other)) (BYOL-A)."""
    if share <= 0:
        return x
    return torch.logaddexp(x + math.log1p(-share), other + math.log(share)) if share < 1 else other


def lines(size: int, start: float, span: float, count: int) -> Tensor:
    """Weights (count, size) of linear interpolation: ``count`` cells over cells ``start`` to ``start + span`` of
    ``size``. Within, a row sums to 1; a place beyond the ends by more than half a cell has weight 0."""
    at = start + (torch.arange(count) + 0.5) * (span / count) - 0.5
    inside = (at >= -0.5) & (at <= size - 0.5)
    near = 1 - (at.clamp(0, size - 1)[:, None] - torch.arange(size)).abs()
    return near.clamp(min=0) * inside[:, None]


@dataclass(frozen=True)
class Looks:
    """Two views of a sample and crops of it: {"views": [x, x], "crops": [x, ...]}, without "crops" where there are
    none."""

    first: Augment
    second: Augment
    crops: int = 0
    local: Augment | None = None
    """What a crop is."""

    def __post_init__(self) -> None:
        if self.crops < 0 or (self.crops and self.local is None):
            raise ValueError(f"{self.crops} crops: expected 0 or more, and what a crop is by ``local``")

    def __call__(self, sample: Sample) -> dict[str, Any]:
        views = {"views": [self.first(sample), self.second(sample)]}
        if not self.crops or self.local is None:
            return views
        return {**views, "crops": [self.local(sample) for _ in range(self.crops)]}
