"""Generated labelled sounds, of voices and of things: the default, which needs no data.

Letters: N samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from partwhole.audio.sounds import Sounds
from partwhole.core.data import mix

FORMANTS = {  # Hz, of the three lowest resonances of a grown man (Peterson and Barney, 1952)
    "ah": (730, 1090, 2440), "ee": (270, 2290, 3010), "eh": (530, 1840, 2480), "oo": (300, 870, 2240),
    "aw": (570, 840, 2410),
}  # fmt: skip
THINGS = ("bell", "falling", "hiss", "knock", "rising")
CLASSES = (*sorted(FORMANTS), *THINGS)
SPEAKERS = 12  # of whom the last third is heard in tests alone


def generated(count: int, rate: int, *, seed: int = 0, speakers: range = range(SPEAKERS)) -> Sounds:
    """So many sounds of half a second to a second, of all ``CLASSES`` in turn, by the given speakers: vowels with the
    pitch and the size of their throat, and bells, knocks, hisses, rising and falling tones of their own register."""
    who = [speakers[i // len(CLASSES) % len(speakers)] for i in range(count)]
    return Sounds(
        _Made(rate, seed, who), rate, [f"generated/{i}" for i in range(count)],
        labels=[i % len(CLASSES) for i in range(count)], classes=CLASSES,
        speakers=[f"voice {w:02d}" for w in who], key=f"generated {count} {rate} {seed} {speakers}",
    )  # fmt: skip


class _Made(Sequence):
    """The sounds, each made whenever it is asked for."""

    def __init__(self, rate: int, seed: int, who: Sequence[int]):
        self.rate, self.seed, self.who = rate, seed, who

    def __len__(self) -> int:
        return len(self.who)

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        generator = torch.Generator().manual_seed(mix(self.seed, i))
        return sound(CLASSES[i % len(CLASSES)], self.who[i], self.rate, generator)


def sound(kind: str, speaker: int, rate: int, generator: torch.Generator) -> Tensor:
    """One sound of a class by a speaker, (N,) in [-1, 1]."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    own = torch.rand(4, generator=torch.Generator().manual_seed(mix(7, speaker))).tolist()  # of the speaker
    length = round(draw(0.5, 1.0) * rate)
    t = torch.arange(length) / rate
    if kind in FORMANTS:
        x = _vowel(t, kind, 85 * 2 ** (1.6 * own[0]) * draw(0.93, 1.07), 0.95 + 0.35 * own[1], draw(-0.15, 0.15), rate)
    elif kind == "bell":
        base = 400 * 2 ** (1.5 * own[0]) * draw(0.9, 1.1)
        x = sum(((-t * (3 + 3 * own[1]) * k).exp() * (2 * math.pi * base * r * t).sin() / k
                 for k, r in ((1, 1.0), (2, 2.76), (3, 5.4)) if base * r < rate / 2), torch.zeros_like(t))  # fmt: skip
    elif kind in ("rising", "falling"):
        low, high = 250 * 2 ** (1.5 * own[0]) * draw(0.9, 1.1), 2 ** draw(0.7, 1.6)
        octaves = math.log2(high) * (t / t[-1] if kind == "rising" else 1 - t / t[-1])
        x = (2 * math.pi * (low * 2**octaves).cumsum(0) / rate).sin() * (1 + 0.3 * own[2])
    else:
        noise = torch.randn(length, generator=generator)
        middle = 700 * 2 ** (2 * own[0]) * draw(0.85, 1.15)
        x = _resonances(noise, [min(middle * (1, 2.2)[kind == "hiss"], 0.45 * rate)], 500, rate)
        if kind == "knock":
            beats = 3 + 4 * own[1] * draw(0.8, 1.2)
            x = x * (-((t * beats) % 1) * 12).exp()
    rise = torch.minimum(t, t[-1] - t).clamp(max=0.02) / 0.02
    x = x * rise / x.abs().max().clamp(min=1e-6) * 10 ** (-draw(3, 20) / 20)
    return (x + 10 ** (-draw(45, 70) / 20) * torch.randn(length, generator=generator)).clamp(-1, 1)


def _vowel(t: Tensor, kind: str, pitch: float, size: float, bend: float, rate: int) -> Tensor:
    """Pulses of the vocal folds, through the resonances of the vowel."""
    phase = (pitch * (1 + bend * t / t[-1])).cumsum(0) / rate
    pulses = torch.diff(phase.floor(), prepend=phase.new_zeros(1)).float()
    return _resonances(pulses, [min(f * size, 0.45 * rate) for f in FORMANTS[kind]], 110, rate)


def _resonances(x: Tensor, centres: Sequence[float], wide: float, rate: int) -> Tensor:
    """The sum of what resonates at each of the centres, in Hz, a peak so wide; weaker from low to high."""
    spectrum = torch.fft.rfft(x)
    f = torch.fft.rfftfreq(len(x), 1 / rate)
    shape = sum((1 / ((f - c).square() / (wide / 2) ** 2 + 1)).sqrt() / (k + 1) for k, c in enumerate(centres))
    return torch.fft.irfft(spectrum * shape, n=len(x))
