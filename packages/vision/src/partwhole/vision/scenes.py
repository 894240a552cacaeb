"""Images that need no file: generated scenes of coloured objects with their masks, and scikit-learn's digits.

A scene has one large object in front, whose form is its class, and up to two small ones behind it, of any form. Form
alone tells the class: colours, textures, place, size, stretch, background and light are drawn without looking at it.
Light comes from above and shadows fall below, and objects lean by 20 degrees at most, so that up and down can be told.
Letters: S size of a side in pixels, G points of a coarse grid.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from partwhole.core.data import mix
from partwhole.vision.images import Images
from partwhole.vision.pack import sample

VERSION = 1  # raised by a change that gives other scenes
Form = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _hypot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(0.5 + y, 0.5 - 0.866 * np.abs(x) - 0.5 * y)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = np.abs((np.arctan2(x, y) / (0.4 * np.pi) + 0.5) % 1 - 0.5) * 0.4 * np.pi  # from the nearest tip
    r = _hypot(x, y)
    ax, ay = 0.42 * np.cos(0.2 * np.pi) - 1, 0.42 * np.sin(0.2 * np.pi)  # from a tip to the notch beside it
    return (ax * r * np.sin(angle) - ay * (r * np.cos(angle) - 1)) / np.hypot(ax, ay)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(0.3 - x, 0.95 - y), np.minimum(0.95 - x, 0.3 - y))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), y + 0.1
    return np.maximum((0.78 - x - np.abs(y)) * 0.707, 0.55 - _hypot(x - 0.39, y - 0.39))


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.minimum(x + 0.05, 0.707 * (0.9 - x - np.abs(y)))
    return np.maximum(head, np.minimum(np.minimum(0.24 - np.abs(y), x + 0.95), 0.2 - x))


FORMS: dict[str, Form] = {  # x right, y up; positive inside, about the distance to the edge where the radius is 1
    "disc": lambda x, y: 0.9 - _hypot(x, y),
    "square": lambda x, y: 0.8 - np.maximum(np.abs(x), np.abs(y)),
    "triangle": lambda x, y: _triangle(x, y + 0.15),
    "star": _star,
    "ring": lambda x, y: 0.24 - np.abs(_hypot(x, y) - 0.72),
    "cross": _cross,
    "crescent": lambda x, y: np.minimum(0.95 - _hypot(x, y), _hypot(x - 0.5, y - 0.1) - 0.7),
    "heart": _heart,
    "arrow": _arrow,
    "bow": lambda x, y: np.minimum(0.95 - np.abs(x), 0.707 * (0.08 + np.abs(x) - np.abs(y))),
}
CLASSES = list(FORMS)


def scenes(count: int, *, size: int = 64, seed: int = 0) -> Images:
    """``count`` scenes: "image" (3, S, S) uint8, "mask" (S, S) int64, 0 background, 1 the main object, 2 and on the
    others, and "label", the form of the main object, one after the other of ``CLASSES``.

    Scene i is a function of (seed, i, size) alone, drawn when it is asked for; the last few thousand are kept.
    """
    if count < 1 or size < 8:
        raise ValueError(f"{count} scenes of {size} pixels: expected 1 or more, of 8 pixels or more")
    return Images(
        _Scenes(count, size, seed),
        [f"scene/{seed}-{i}" for i in range(count)],
        labels=[i % len(CLASSES) for i in range(count)],
        classes=CLASSES,
        key=f"scenes-{VERSION}-{seed}-{size}-{count}",
    )


def digits() -> tuple[Images, Images]:
    """scikit-learn's handwritten digits (Alpaydin and Kaynak, 1998), 8 x 8 grey made 32 x 32 RGB: 1,347 for training,
    and the last 450 for testing. They are in the order of their writers, so that hardly one wrote in both."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in grey]
    pixels = [sample(np.repeat(one[..., None], 3, axis=2)) for one in large]
    whole = Images(
        pixels,
        [f"digit/{i}" for i in range(len(pixels))],
        labels=found.target.tolist(),
        classes=[str(i) for i in range(10)],
        key="digits",
    )
    return whole.subset(range(1347)), whole.subset(range(1347, len(whole)))


# ------------------------------------------------------------------ inside


class _Dice:
    """Plain numbers at random: those of numpy would make float64 of every array."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)

    def __call__(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))

    def below(self, count: int) -> int:
        return int(self.generator.integers(count))

    def many(self, *shape: int) -> np.ndarray:
        """float32, from 0 to 1."""
        return self.generator.random(shape, np.float32)


class _Scenes(Sequence):
    def __init__(self, count: int, size: int, seed: int):
        self.length, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        image, mask = _drawn(self.seed, range(self.length)[index], self.size)
        return {**sample(image.copy()), "mask": torch.from_numpy(mask.astype(np.int64))}


@lru_cache(maxsize=4096)
def _drawn(seed: int, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (S, S, 3) and mask (S, S), uint8."""
    dice = _Dice(mix(seed, number))
    light = _field(dice, size, 3)
    image = _background(dice, size)
    mask = np.zeros((size, size), np.uint8)
    for other in range(dice.below(3)):
        place = dice(0.05, 0.95), dice(0.05, 0.95)
        _paint(dice, image, mask, 2 + other, CLASSES[dice.below(len(CLASSES))], place, dice(0.07, 0.12))
    radius = dice(0.25, 0.4)
    place = dice(radius * 0.85, 1 - radius * 0.85), dice(radius * 0.85, 1 - radius * 0.85)
    _paint(dice, image, mask, 1, CLASSES[number % len(CLASSES)], place, radius)
    image *= 1 + 0.15 * light[..., None]
    image += dice(0, 0.1) * (dice.many(*image.shape) - 0.5)
    seen = np.unique(mask)  # objects may be covered: the numbers of the others have no gaps
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), np.searchsorted(seen, mask).astype(np.uint8)


def _background(dice: _Dice, size: int) -> np.ndarray:
    """(S, S, 3) float32: two colours that change from above to below, at a horizon, in waves or without order."""
    up = np.linspace(1, 0, size, dtype=np.float32)[:, None]
    kind = dice.below(4)
    if kind == 0:
        blend = np.broadcast_to(up, (size, size))
    elif kind == 1:
        hills = dice(0.3, 0.7) + 0.1 * _field(dice, size, 5)[:1]
        blend = np.clip((up - hills) * (size / 2) + 0.5, 0, 1)
    elif kind == 2:
        x = np.arange(size, dtype=np.float32) / size
        blend = 0.5 + 0.5 * np.sin(dice(-30, 30) * x + dice(-30, 30) * up + dice(0, 6))
    else:
        blend = 0.5 + 0.5 * _field(dice, size, 4 + dice.below(8))
    first, second = _colour(dice), _colour(dice)
    return first + 0.5 * blend[..., None] * (second - first) + 0.06 * _field(dice, size, 9)[..., None]


def _paint(
    dice: _Dice, image: np.ndarray, mask: np.ndarray, number: int, form: str, place: tuple[float, float], radius: float
) -> None:
    """Paint an object and its shadow; ``place`` and ``radius`` are parts of the side."""
    size = len(image)
    lean, stretch = dice(-0.35, 0.35), dice(0.85, 1.18)
    wave, turn, texture = dice(4, 9), dice(0, np.pi), dice.below(4)
    drop, dark = dice(0.08, 0.25), dice(0.2, 0.5)
    reach = 1.4 * radius
    top, bottom, left, right = (
        min(max(round(edge * size), 0), size)
        for edge in (place[1] - reach, place[1] + 1.2 * reach, place[0] - reach, place[0] + reach)
    )
    if top >= bottom or left >= right:
        return
    px = ((np.arange(left, right, dtype=np.float32) + 0.5) / size - place[0])[None, :] / radius
    py = -((np.arange(top, bottom, dtype=np.float32) + 0.5) / size - place[1])[:, None] / radius
    cos, sin = math.cos(lean), math.sin(lean)

    def cover(px: np.ndarray, py: np.ndarray, edge: float) -> tuple[np.ndarray, ...]:
        x, y = (cos * px + sin * py) * stretch**0.5, (cos * py - sin * px) / stretch**0.5
        return x, y, np.clip(FORMS[form](x, y) * edge + 0.5, 0, 1)

    cos_turn, sin_turn = math.cos(turn), math.sin(turn)
    patch, where = image[top:bottom, left:right], mask[top:bottom, left:right]
    first, second = _colour(dice, patch.mean((0, 1))), _colour(dice)
    _, _, shade = cover(px - 0.3 * drop, py + drop, 4.0)
    patch *= 1 - dark * shade[..., None]
    x, y, alpha = cover(px, py, radius * size)
    along, across = cos_turn * x + sin_turn * y, cos_turn * y - sin_turn * x
    if texture == 0:
        blend = np.zeros_like(along)
    elif texture == 1:
        blend = (np.sin(wave * along) > 0).astype(np.float32)
    elif texture == 2:
        blend = (np.sin(wave * along) * np.sin(wave * across) > 0).astype(np.float32)
    else:
        blend = (np.cos(wave * along) + np.cos(wave * across) > 0.8).astype(np.float32)
    colour = (first + 0.5 * blend[..., None] * (second - first)) * (1 + 0.25 * y[..., None])  # light from above
    patch += alpha[..., None] * (colour - patch)
    where[alpha > 0.5] = number


def _colour(dice: _Dice, away: np.ndarray | None = None) -> np.ndarray:
    """A colour (3,), not too near the colour ``away``."""
    while True:
        colour = 0.05 + 0.9 * dice.many(3)
        if away is None or np.abs(colour - away).max() > 0.35:
            return colour


def _field(dice: _Dice, size: int, points: int) -> np.ndarray:
    """Smooth noise (S, S) from -1 to 1."""
    between = _between(size, points)
    return between @ (2 * dice.many(points, points) - 1) @ between.T


@lru_cache(maxsize=64)
def _between(size: int, points: int) -> np.ndarray:
    """(S, G): weights of the two nearest points of a coarse grid for each pixel, smoothly changing."""
    at = np.linspace(0, points - 1, size)
    left = np.minimum(at.astype(int), points - 2)
    part = at - left
    part = part * part * (3 - 2 * part)
    weights = np.zeros((size, points), np.float32)
    weights[np.arange(size), left] = 1 - part
    weights[np.arange(size), left + 1] += part
    return weights
