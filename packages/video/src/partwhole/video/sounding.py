"""Generated clips with sound: objects that make a tone when they bounce off the sides of the frame.

How an object looks says how it sounds, and when it bounces says when: so it can be learned which sound belongs to which
clip, and whether it is in time.
"""

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from partwhole.core.data import mix
from partwhole.video.generator import FPS, Generated, clips, world_of

PITCH = 50.0  # Hz for each wave in a texture: 200 where it is coarse, 800 where it is fine
DECAY = 0.12  # seconds after which a tone is 1 / e as loud
NOISE = 0.003


class Sounding(Sequence):
    """Clips with their sound; see ``sounding``."""

    problems: Sequence[tuple[Any, str]] = ()

    def __init__(self, silent: Generated, rate: int):
        self.silent, self.rate = silent, rate

    def __len__(self) -> int:
        return len(self.silent)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return {**self.silent[index], "sound": self.sound(self.silent.numbers[int(index)]), "rate": self.rate}

    def sound(self, number: int) -> Tensor:
        """Of the clip of that number: float32 (N,), as long as the clip."""
        making = self.silent.making
        at = np.arange(round(making.length / FPS * self.rate)) / self.rate
        noise = np.random.default_rng(mix(making.seed, number, self.rate)).standard_normal(len(at))
        wave = NOISE * noise
        for thing in world_of(making, number).things:
            pitch = 2 * math.pi * PITCH * thing.waves
            for time, pace in thing.bounces(making.length).tolist():
                begin = math.ceil(time / FPS * self.rate)
                since = at[begin:] - time / FPS
                tone = np.sin(pitch * since) + 0.4 * np.sin(2 * pitch * since) + 0.2 * np.sin(3 * pitch * since)
                wave[begin:] += min(0.3, 5 * pace) * tone * np.exp(-since / DECAY)
        return torch.from_numpy((wave / max(1.0, np.abs(wave).max(initial=0))).astype(np.float32))

    @property
    def names(self) -> list[str]:
        return self.silent.names

    @property
    def key(self) -> str:
        return f"{self.silent.key}-{self.rate}"

    def subset(self, indices: Sequence[int]) -> "Sounding":
        return Sounding(self.silent.subset(indices), self.rate)


def sounding(
    count: int,
    *,
    frames: int = 24,
    size: int = 64,
    seed: int = 0,
    rate: int = 8000,
    objects: tuple[int, int] = (1, 2),
    speed: float = 2.0,
) -> Sounding:
    """``count`` clips as ``generator.clips`` makes them, each with its "sound", float32 (N,) in [-1, 1], and "rate".

    Each object has a tone of its own, the higher the finer its texture is; it is heard when the object bounces off a
    side of the frame, the louder the faster it comes. What is heard is a function of (seed, i, rate) and of what is
    seen. ``rate`` is in samples a second.
    """
    if rate < 4800:
        raise ValueError(f"{rate} samples a second; expected 4800 or more, or the tones could not be heard")
    return Sounding(
        clips(count, frames=frames, size=size, seed=seed, objects=objects, speed=speed, tint=1.0, coarse=0.0), rate
    )
