"""Clips that need no file: textured objects that move, turn, deform and cover each other over a moving ground, with
their masks.

An object is told from the ground by its texture, a band of noise with a grain of its own, and a little by its colours:
of the palette of its clip each object has a variant of its own, and every texture uses all of a palette alike. Coarser
noise tells the places of a surface apart. Light wanders over the frame and each frame has noise of its own, so that
pixels do not match where things do. Surfaces go along with what they belong to.

Letters: S size of a side in pixels, T frames, P size of a texture. Places and lengths are shares of the side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from partwhole.core.data import mix
from partwhole.video.readers import checked

VERSION = 2  # raised by a change that gives other clips
FPS = 10.0
WAVES = (2, 3, 5)  # of an outline: how often it bulges


def clips(
    count: int,
    *,
    frames: int = 16,
    size: int = 64,
    seed: int = 0,
    objects: tuple[int, int] = (2, 3),
    speed: float = 1.0,
    tint: float = 0.4,
    coarse: float = 1.0,
) -> "Generated":
    """``count`` clips: {"video": a video of ``frames`` frames, "masks": its ids}, of size x size pixels.

    objects  how many a clip has, from the first to the second number; a higher id is in front of a lower one. All are
             seen in the first frame.
    speed    1 moves an object by about its radius in five frames.

    Frame t of clip i is a function of (seed, i, t) and of these options alone, drawn when it is asked for: a longer
    clip goes on where a shorter one ends. Only the textures of the last few clips are kept.
    """
    if count < 1 or size < 16 or frames < 1:
        raise ValueError(
            f"{count} clips of {frames} frames of {size} pixels: expected 1 or more, of 1 frame or more, of 16 pixels "
            "or more"
        )
    if not 1 <= objects[0] <= objects[1] <= 8:
        raise ValueError(f"objects are {objects}: from 1 to 8, the lower number first")
    if not (math.isfinite(speed) and speed >= 0):
        raise ValueError(f"speed is {speed}; expected 0 or more")
    if not 0 <= tint <= 1:
        raise ValueError(f"tint is {tint}; expected a share, from 0 to 1")
    if not coarse >= 0:
        raise ValueError(f"coarse is {coarse}; expected 0 or more")
    return Generated(Making(seed, size, frames, objects, speed, tint, coarse), range(count))


@dataclass(frozen=True)
class Making:
    """What a generated clip is a function of, but for its number."""

    seed: int
    size: int
    length: int
    objects: tuple[int, int]
    speed: float
    tint: float
    coarse: float


class Generated(Sequence):
    """Clips that are drawn when they are asked for; see ``clips``."""

    problems: Sequence[tuple[Any, str]] = ()

    def __init__(self, making: Making, numbers: Sequence[int]):
        self.making, self.numbers = making, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = self.numbers[int(index)]
        return {"video": DrawnVideo(self.making, number), "masks": DrawnIds(self.making, number)}

    @property
    def names(self) -> list[str]:
        return [f"clip/{self.making.seed}-{i}" for i in self.numbers]

    @property
    def key(self) -> str:
        m = self.making
        parts = [
            VERSION,
            m.seed,
            m.size,
            m.length,
            *m.objects,
            m.speed,
            m.tint,
            m.coarse,
            mix(len(self), *self.numbers),
        ]
        return "-".join(["clips", *map(str, parts)])

    def subset(self, indices: Sequence[int]) -> "Generated":
        return Generated(self.making, [self.numbers[i] for i in indices])


@dataclass(frozen=True)
class _Handle:
    making: Making
    number: int

    def __len__(self) -> int:
        return self.making.length

    @property
    def size(self) -> tuple[int, int]:
        return self.making.size, self.making.size

    @property
    def name(self) -> str:
        return f"clip/{self.making.seed}-{self.number}"

    def drawn(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        made = {t: _frame(self.making, self.number, t) for t in set(checked(indices, len(self), self.name))}
        return [made[int(t)] for t in indices]


class DrawnVideo(_Handle):
    """The pictures of a generated clip, as a video."""

    fps = FPS

    def times(self) -> Tensor:
        """When each frame is shown, in seconds: (T,) float64."""
        return torch.arange(len(self), dtype=torch.float64) / self.fps

    def frames(self, indices: Sequence[int]) -> Tensor:
        """The frames of these numbers, in this order: (len(indices), 3, S, S) uint8."""
        size = self.making.size
        found = [image for image, _ in self.drawn(indices)]
        return torch.from_numpy(np.stack(found)) if found else torch.empty(0, 3, size, size, dtype=torch.uint8)


class DrawnIds(_Handle):
    """The ids of a generated clip's pixels."""

    def frames(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), S, S) int64."""
        size = self.making.size
        found = [ids.astype(np.int64) for _, ids in self.drawn(indices)]
        return torch.from_numpy(np.stack(found)) if found else torch.empty(0, size, size, dtype=torch.int64)


# ------------------------------------------------------------------ inside


@dataclass(frozen=True)
class _Thing:
    """An object: where it is, how it moves, turns, stretches and bulges, and what its surface shows."""

    radius: float
    place: np.ndarray  # (2,), x and y
    pace: np.ndarray  # (2,), a frame
    turn: tuple[float, float]  # angle, and by how much it grows in a frame
    stretch: tuple[float, float, float]  # how much, its phase, and by how much that grows in a frame
    bulges: tuple[tuple[float, float, float], ...]  # the same of each of WAVES
    texture: np.ndarray
    palette: np.ndarray  # (3, 3), as of the clip
    waves: float  # in its texture

    def at(self, t: float) -> np.ndarray:
        """Where its middle is: it bounces off the frame's sides."""
        inside = 1 - 2 * self.radius
        way = (self.place - self.radius + self.pace * t) % (2 * inside)
        return self.radius + np.minimum(way, 2 * inside - way)

    def bounces(self, end: float) -> np.ndarray:
        """When it bounces off a side before frame ``end``, and how fast it comes: (N, 2), in frames and in sides a
        frame."""
        inside, found = 1 - 2 * self.radius, []
        for place, pace in zip((self.place - self.radius).tolist(), self.pace.tolist(), strict=True):
            if pace:
                first, last = sorted((place / inside, (place + pace * end) / inside))
                turns = np.arange(math.ceil(first), math.floor(last) + 1)
                times = (turns * inside - place) / pace
                found += [(t, abs(pace)) for t in times.tolist() if 0 < t < end]
        return np.array(sorted(found)).reshape(-1, 2)

    def surface(self, x: np.ndarray, y: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of places relative to its middle: where they lie on its surface, and how far within the outline, in radii."""
        angle = self.turn[0] + self.turn[1] * t
        cos, sin = math.cos(angle), math.sin(angle)
        wide = math.exp(self.stretch[0] * math.sin(self.stretch[1] + self.stretch[2] * t))
        u, v = (cos * x + sin * y) / (self.radius * wide), (cos * y - sin * x) * wide / self.radius
        theta, r = np.arctan2(v, u), np.sqrt(u * u + v * v)
        edge = np.ones_like(r)
        for wave, (much, phase, pace) in zip(WAVES, self.bulges, strict=True):
            edge += much * math.sin(phase + pace * t) * np.cos(wave * theta + phase)
        return u / edge, v / edge, edge - r


@dataclass(frozen=True)
class _World:
    """All that a clip's frames have in common."""

    palette: np.ndarray  # (3, 3): what a texture's 0, .5 and 1 look like
    light: np.ndarray  # (5,): waves across, down and in a frame, phase, strength
    drift: np.ndarray  # (2,), of the ground, a frame
    spin: float  # of the ground, a frame
    ground: np.ndarray
    things: tuple[_Thing, ...]
    noise: float


@lru_cache(maxsize=32)
def world_of(making: Making, number: int) -> _World:
    """What clip ``number`` is made of."""
    dice = np.random.default_rng(mix(making.seed, number))
    size, speed = making.size, making.speed
    count = int(dice.integers(making.objects[0], making.objects[1] + 1))
    small = min(1.0, (3 / count) ** 0.5)
    radii = dice.uniform(0.15, 0.21, count) * small
    places = _apart(dice, radii)
    grains = _grains(dice, count + 1)  # of the ground, and of each object
    palette, things = _palette(dice), []
    for radius, place, grain in zip(radii.tolist(), places, grains[1:], strict=True):
        way, pace = dice.uniform(0, 2 * math.pi), speed * dice.uniform(0.025, 0.045)
        things.append(
            _Thing(
                radius=radius,
                place=place,
                pace=pace * np.array([math.cos(way), math.sin(way)]),
                turn=(dice.uniform(0, 2 * math.pi), speed * dice.uniform(-0.12, 0.12)),
                stretch=(dice.uniform(0.05, 0.2), dice.uniform(0, 2 * math.pi), speed * dice.uniform(0.1, 0.3)),
                bulges=tuple(
                    (dice.uniform(0.03, 0.12), dice.uniform(0, 2 * math.pi), speed * dice.uniform(0.1, 0.3))
                    for _ in WAVES
                ),
                texture=_texture(dice, grain, size, making.coarse),
                palette=(1 - making.tint) * palette + making.tint * _palette(dice),
                waves=grain.scale,
            )
        )
    way, pace = dice.uniform(0, 2 * math.pi), speed * dice.uniform(0.004, 0.012)
    return _World(
        palette=palette,
        light=np.concatenate(
            [
                dice.uniform(-1.2, 1.2, 2),
                dice.uniform(-0.25, 0.25, 1),
                dice.uniform(0, 6.3, 1),
                dice.uniform(0.15, 0.4, 1),
            ]
        ),
        drift=pace * np.array([math.cos(way), math.sin(way)]),
        spin=speed * dice.uniform(-0.008, 0.008),
        ground=_texture(dice, replace(grains[0], scale=2 * grains[0].scale), 2 * size, making.coarse),
        things=tuple(things),
        noise=dice.uniform(0.05, 0.15),
    )


def _frame(making: Making, number: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (3, S, S) and ids (S, S), uint8."""
    world, size = world_of(making, number), making.size
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = at[None, :], at[:, None]
    cos, sin = math.cos(world.spin * t), math.sin(world.spin * t)
    right, down = x - 0.5, y - 0.5
    shade = _sampled(
        world.ground,
        (cos * right + sin * down + world.drift[0] * t) / 2,
        (cos * down - sin * right + world.drift[1] * t) / 2,
    )
    image, ids = _coloured(shade, world.palette), np.zeros((size, size), np.uint8)
    for label, thing in enumerate(world.things, 1):
        middle, reach = thing.at(t), 1.8 * thing.radius
        box = [slice(*(min(max(round((m + d) * size), 0), size) for d in (-reach, reach))) for m in middle]
        columns, rows = box
        u, v, inside = thing.surface(x[:, columns] - middle[0], y[rows] - middle[1], t)
        cover = np.clip(inside * (thing.radius * size) + 0.5, 0, 1)
        under = image[:, rows, columns]
        surface = _coloured(_sampled(thing.texture, u * thing.radius, v * thing.radius), thing.palette)
        under += cover.astype(np.float32) * (surface - under)
        ids[rows, columns][cover > 0.5] = label
    across, along, onward, phase, strength = world.light.tolist()
    light = 1 + strength * np.sin(2 * math.pi * (across * x + along * y + onward * making.speed * t) + phase)
    image *= light.astype(np.float32)
    noise = np.random.default_rng(mix(making.seed, number, t)).random(image.shape, np.float32)
    image += world.noise * (2 * noise - 1)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), ids


def _apart(dice: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """Places (N, 2) within the frame, the best of some draws: the gap between the two nearest is the largest."""
    best, widest = np.empty(0), -math.inf
    for _ in range(40):
        places = radii[:, None] + dice.random((len(radii), 2)) * (1 - 2 * radii[:, None])
        gap = np.hypot(*(places[:, None] - places[None]).T) - radii - radii[:, None]
        np.fill_diagonal(gap, math.inf)
        if gap.min() > widest:
            best, widest = places, gap.min()
    return best


@dataclass(frozen=True)
class _Grain:
    """What tells one texture from another."""

    scale: float  # waves in a texture
    width: float  # of the band around it, in octaves of e
    angle: float  # of the waves
    order: float  # 0: they go all ways; the higher, the more they go one way


def _grains(dice: np.random.Generator, count: int) -> list[_Grain]:
    """So many, unlike each other: scales and angles are spread evenly, and dealt out at random."""
    scales, angles = (dice.permutation(count) + dice.uniform(0.25, 0.75, count) for _ in range(2))
    start = dice.uniform(0, math.pi)
    return [
        _Grain(
            scale=4 * 4 ** (scale / count),
            width=dice.uniform(0.15, 0.4),
            angle=start + math.pi * angle / count,
            order=dice.uniform(0, 3),
        )
        for scale, angle in zip(scales.tolist(), angles.tolist(), strict=True)
    ]


def _texture(dice: np.random.Generator, grain: _Grain, points: int, coarse: float) -> np.ndarray:
    """Noise of one band of frequencies, and coarser noise: (P, P) float32, every value from 0 to 1 as often; periodic.

    ``grain.scale`` waves go around it.
    """
    f = np.fft.fftfreq(points)[:, None] * points, np.fft.rfftfreq(points)[None] * points
    r, angle = np.hypot(*f), np.arctan2(*f)
    band = np.exp(-0.5 * (np.log(np.maximum(r, 0.5) / grain.scale) / grain.width) ** 2)
    way = np.exp(grain.order * (np.cos(2 * (angle - grain.angle)) - 1))
    wide = 1 / np.maximum(r, 1.0) ** 2
    field = np.zeros((points, points))
    for share, part in ((1.0, band * way), (coarse, wide)):
        spectrum = part * np.exp(2j * math.pi * dice.random(r.shape))
        spectrum[0, 0] = 0
        noise = np.fft.irfft2(spectrum, s=(points, points))
        field += share * noise / noise.std()
    order = np.empty(points * points, np.float32)
    order[field.ravel().argsort()] = np.linspace(0, 1, points * points, dtype=np.float32)
    return order.reshape(points, points)


def _sampled(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The texture at (u, v), of which 1 is once around, between its points."""
    points = len(texture)
    u, v = np.broadcast_arrays(u * points, v * points)
    left, top = np.floor(u), np.floor(v)
    across, down = (u - left).astype(np.float32), (v - top).astype(np.float32)
    i, j = left.astype(np.int64) % points, top.astype(np.int64) % points
    i1, j1 = (i + 1) % points, (j + 1) % points
    upper = texture[j, i] * (1 - across) + texture[j, i1] * across
    lower = texture[j1, i] * (1 - across) + texture[j1, i1] * across
    return upper * (1 - down) + lower * down


def _palette(dice: np.random.Generator) -> np.ndarray:
    """Three colours, of which the first and the last are far apart."""
    while True:
        colours = dice.random((3, 3), np.float32) * 0.8 + 0.1
        if np.abs(colours[0] - colours[2]).sum() > 1.0:
            return colours


def _coloured(shade: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(S, S) -> (3, S, S)."""
    first, middle, last = (c[:, None, None] for c in palette)
    low, high = np.minimum(2 * shade, 1), np.maximum(2 * shade - 1, 0)
    return first + low * (middle - first) + high * (last - middle)
