"""Views of a clip with sound: the same seconds of it as frames and as a spectrogram, and other seconds of its sound.

Axes: T frames of a clip, S their side, N samples of sound, M frames of a spectrogram, F its bands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwhole.audio.mel import Mel
from partwhole.video.clip_views import Clip
from partwhole.vision.views import Random

Sample = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Which seconds of a clip are seen and heard."""

    seconds: float
    """Of a clip, seen and heard."""
    frames: int
    """Frames of it, at even distances; 1: the one in the middle."""
    gap: float = 0.0
    """Seconds by which sound that is out of time is early or late, at the least; 0: there is none."""

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.frames < 1 or not self.gap >= 0:
            raise ValueError(
                f"{self.frames} frames of {self.seconds} seconds, {self.gap} apart: 1 or more of more than 0, and 0 or "
                "more apart, are needed"
            )

    def starts(self, sample: Sample) -> Tensor:
        """When such a clip may begin, (K,) seconds: when a frame is shown. Where there is a ``gap``, so that its sound
        can be had out of time, too. None where the clip is too short."""
        times = torch.as_tensor(sample["video"].times(), dtype=torch.float64)
        times = times[times >= 0]
        last = length(sample) - self.seconds + 1e-6
        fits = times <= last
        if self.gap:
            fits &= (times >= self.gap) | (times + self.gap <= last)
        return times[fits]

    def short(self, sample: Sample) -> str | None:
        """Why a clip is too short; None where it is not."""
        if len(self.starts(sample)):
            return None
        apart = f" and {self.gap:g} s more out of time" if self.gap else ""
        return f"{length(sample):.2f} s of it are seen and heard, and {self.seconds:g} s{apart} are needed"

    def shown(self, sample: Sample, start: float) -> list[int]:
        """Which frames these are: those shown in the middle of as many equal parts of the time."""
        times = torch.as_tensor(sample["video"].times(), dtype=torch.float64)
        wanted = start + (torch.arange(self.frames, dtype=torch.float64) + 0.5) * (self.seconds / self.frames)
        at = torch.searchsorted(times, wanted + 1e-6, right=True) - 1
        return at.clamp(0, len(times) - 1).tolist()

    def heard(self, sample: Sample, start: float) -> Tensor:
        """The sound of these seconds, (N,)."""
        count = round(self.seconds * sample["rate"])
        first = min(round(start * sample["rate"]), len(sample["sound"]) - count)
        return sample["sound"][max(0, first) : max(0, first) + count]

    def others(self, sample: Sample, start: float) -> tuple[float, float]:
        """How many seconds there are to begin in, out of time: before, from 0 on, and after."""
        return max(0.0, start - self.gap), max(0.0, length(sample) - self.seconds - start - self.gap)

    def out_of_time(self, sample: Sample, start: float, share: float) -> float:
        """When sound out of time begins; ``share``, from 0 to 1, goes through all such moments."""
        before, after = self.others(sample, start)
        at = share * (before + after)
        return at if at < before or not after else start + self.gap + at - before


def length(sample: Sample) -> float:
    """Seconds of a clip that are both seen and heard."""
    video = sample["video"]
    return min(float(video.times()[-1]) + 1 / video.fps, len(sample["sound"]) / sample["rate"])


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Some seconds of a clip, {"x": (3, T, S, S), of one frame (3, S, S), "sound": (M, F)}, drawn at random.

    With a ``gap`` also {"shifted": (M, F)}, sound of the same clip, out of time, drawn evenly from all that is so by
    the gap or more, and {"draw": ()}, a number from 0 to 1, evenly, by which a method may choose. Loudness is changed
    by the same factor in both.
    """

    look: Random
    """What is done to the frames: one crop, flip and change of colours for all."""
    mel: Mel
    seconds: Seconds
    gain: float = 0.0
    """Louder or quieter by up to so many decibels."""

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        check(sample, self.mel.rate)
        if (why := self.seconds.short(sample)) is not None:
            raise ValueError(f"{why}: leave the clip out, or choose fewer --seconds")
        starts = self.seconds.starts(sample)
        start = float(starts[int(torch.randint(len(starts), ()))])
        out = {"x": self.frames(sample, start)}
        factor = 10 ** (self.gain * (2 * float(torch.rand(())) - 1) / 20)
        out["sound"] = self.spectrogram(self.seconds.heard(sample, start) * factor)
        if self.seconds.gap:
            other = self.seconds.out_of_time(sample, start, float(torch.rand(())))
            out["shifted"] = self.spectrogram(self.seconds.heard(sample, other) * factor)
            out["draw"] = torch.rand(())
        return out

    def frames(self, sample: Sample, start: float) -> Tensor:
        video = sample["video"]
        x = Clip(augment=self.look).augmented(video.frames(self.seconds.shown(sample, start)))
        return x[:, 0] if self.seconds.frames == 1 else x

    def spectrogram(self, sound: Tensor) -> Tensor:
        return self.mel(sound)[: max(1, len(sound) // self.mel.step)]  # without the frame that is centred on the end


def check(sample: Sample, rate: int) -> None:
    """ValueError for a sample that is not heard, or at another rate."""
    if "sound" not in sample:
        raise ValueError(f"a sample of {sorted(sample)}: it needs a sound")
    if sample["rate"] != rate:
        raise ValueError(f"a sound of {sample['rate']} samples a second; the spectrogram is made for {rate}: resample")
