"""What is done to a crop, one effect at a time: ``draw`` all that is random about it, ``apply`` what was drawn.

Letters: B images, S their side, n numbers that an effect draws.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from partwhole.vision import colour, resample
from partwhole.vision.resample import affine_, blur_, on_rows, translate


def uniform(count: int) -> list[float]:
    """Numbers in [0, 1) of torch's global generator."""
    return torch.rand(count).tolist()


class Effect(ABC):
    """One change of images, at random."""

    @abstractmethod
    def draw(self, size: int) -> Tensor:
        """What is random about one image of that side, (n,) float32, by torch's global generator alone."""

    @abstractmethod
    def apply(self, x: Tensor, drawn: Tensor) -> None:
        """Change x (B, 3, S, S) in [0, 1] in place, as drawn (B, n) on the CPU says. Nothing is random."""


class Chance(Effect, ABC):
    """Something that is done or not."""

    chance: float

    def draw(self, size: int) -> Tensor:
        return (torch.rand(1) < self.chance).float()

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        on_rows(x, [row for row, yes in enumerate(drawn[:, 0].tolist()) if yes], self.change)

    @abstractmethod
    def change(self, x: Tensor) -> Tensor:
        """In place."""


@dataclass(frozen=True)
class Grey(Chance):
    """Without colours."""

    chance: float

    def change(self, x: Tensor) -> Tensor:
        return colour.grey_(x)


@dataclass(frozen=True)
class Solarize(Chance):
    """The bright half negative."""

    chance: float

    def change(self, x: Tensor) -> Tensor:
        return colour.solarize_(x)


@dataclass(frozen=True)
class Sobel(Chance):
    """Edges alone."""

    chance: float

    def change(self, x: Tensor) -> Tensor:
        return colour.sobel_(x)


JITTERS = (colour.brightness_, colour.contrast_, colour.saturation_, colour.hue_)


@dataclass(frozen=True)
class Jitter(Effect):
    """Brightness, contrast and saturation times a factor from [1 - b, 1 + b], hue turned by a share of [-h, h], in
    random order, as torchvision's ``ColorJitter``. Drawn: which at each place, -1 for none; then the four amounts."""

    chance: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def draw(self, size: int) -> Tensor:
        yes, *rest = uniform(9)
        order = sorted(range(4), key=lambda i: rest[i])
        amounts = []
        for i, strength in enumerate((self.brightness, self.contrast, self.saturation, self.hue)):
            low, high = (max(0.0, 1 - strength), 1 + strength) if i < 3 else (-strength, strength)
            amounts.append(low + (high - low) * rest[4 + i])
            if strength == 0:
                order[order.index(i)] = -1
        return torch.tensor([*(order if yes < self.chance else [-1] * 4), *amounts])

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        table = drawn.tolist()
        if resample.one_by_one(x):
            for image, numbers in zip(x, table, strict=True):
                for i in map(int, numbers[:4]):
                    if i >= 0:
                        JITTERS[i](image, numbers[4 + i])
            return
        for place in range(4):
            for i, change in enumerate(JITTERS):
                rows = [row for row, numbers in enumerate(table) if numbers[place] == i]
                on_rows(x, rows, change, [table[row][4 + i] for row in rows])


@dataclass(frozen=True)
class Blur(Effect):
    """By a Gaussian whose standard deviation, in pixels, is from this range. Drawn: it, 0 for none."""

    chance: float
    sigma: tuple[float, float]

    def draw(self, size: int) -> Tensor:
        yes, where = uniform(2)
        low, high = self.sigma
        return torch.tensor([low + (high - low) * where if yes < self.chance else 0.0])

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        sigma = drawn[:, 0].tolist()
        rows = [row for row, s in enumerate(sigma) if s > 0]
        on_rows(x, rows, blur_, [sigma[row] for row in rows])


@dataclass(frozen=True)
class Shift(Effect):
    """Moved by up to this share of the side, mirrored at the border. Drawn: pixels down and to the right."""

    most: float

    def draw(self, size: int) -> Tensor:
        reach = int(self.most * size)
        return torch.randint(-reach, reach + 1, (2,)).float()

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        for image, (down, right) in zip(x, drawn.tolist(), strict=True):
            if down or right:
                image.copy_(translate(image, int(down), int(right)))


@dataclass(frozen=True)
class Cutout(Effect):
    """A grey square anywhere, partly outside too (DeVries and Taylor, 2017); its side from this range of shares, as in
    FixMatch. Drawn: top, left, bottom, right."""

    side: tuple[float, float]

    def draw(self, size: int) -> Tensor:
        where, down, right = uniform(3)
        half = (self.side[0] + (self.side[1] - self.side[0]) * where) * size / 2
        ends = [down * size - half, right * size - half, down * size + half, right * size + half]
        return torch.tensor([float(min(max(round(end), 0), size)) for end in ends])

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        for image, ends in zip(x, drawn.tolist(), strict=True):
            top, left, bottom, right = map(int, ends)
            image[:, top:bottom, left:right] = 0.5


@dataclass(frozen=True)
class Noise(Effect):
    """Gaussian noise of a standard deviation from this range, cut to [0, 1]. Drawn: it, and the seed of the noise."""

    std: tuple[float, float]

    def draw(self, size: int) -> Tensor:
        where, seed = uniform(2)
        return torch.tensor([self.std[0] + (self.std[1] - self.std[0]) * where, float(int(seed * 2**24))])

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        for image, (std, seed) in zip(x, drawn.tolist(), strict=True):
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(int(seed)))
            image.add_(noise.to(image.device), alpha=std).clamp_(0, 1)


@dataclass(frozen=True)
class Quarters(Effect):
    """Turned by 90, 180 or 270 degrees. Drawn: how many quarters."""

    def draw(self, size: int) -> Tensor:
        return torch.randint(1, 4, (1,)).float()

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        for image, turns in zip(x, drawn[:, 0].tolist(), strict=True):
            image.copy_(image.rot90(int(turns), (-2, -1)))


# ------------------------------------------------------------------ RandAugment


# name -> how it changes an image by a number, and the range of that
PIXELS: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "brightness": (colour.brightness_, 0.05, 0.95),
    "saturation": (colour.saturation_, 0.05, 0.95),
    "contrast": (colour.contrast_, 0.05, 0.95),
    "sharpness": (colour.sharpness_, 0.05, 0.95),
    "posterize": (colour.posterize_, 4, 8),
    "solarize": (colour.solarize_, 0, 1),
    "autocontrast": (lambda x, _: colour.autocontrast_(x), 0, 0),
    "equalize": (lambda x, _: colour.equalize_(x), 0, 0),
    "identity": (lambda x, _: x, 0, 0),
}
MOVES: dict[str, tuple[Callable[[float, int], list[float]], float, float]] = {
    "rotate": (lambda v, S: _turn(math.radians(v)), -30, 30),
    "shear_x": (lambda v, S: [1, v, v * S / 2, 0, 1, 0], -0.3, 0.3),  # the first row stays
    "shear_y": (lambda v, S: [1, 0, 0, v, 1, v * S / 2], -0.3, 0.3),
    "translate_x": (lambda v, S: [1, 0, -float(int(v * S)), 0, 1, 0], -0.3, 0.3),
    "translate_y": (lambda v, S: [1, 0, 0, 0, 1, -float(int(v * S))], -0.3, 0.3),
}
RANGES = {name: (low, high) for name, (_, low, high) in (PIXELS | MOVES).items()}
NAMES = list(RANGES)


def _turn(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0]


@dataclass(frozen=True)
class RandAugment(Effect):
    """So many of fourteen operations, each as likely as another, as strong as may be (Cubuk et al., 2020), with the
    operations and ranges of FixMatch (Sohn et al., 2020, table 12).

    What is moved is interpolated, and grey fills what is free: there it is the nearest pixel, and black.
    Drawn: which, and how strong; for one after the other.
    """

    count: int

    def draw(self, size: int) -> Tensor:
        drawn = []
        for _ in range(self.count):
            which, level = uniform(2)
            number = int(which * len(NAMES))
            low, high = RANGES[NAMES[number]]
            drawn += [number, low + int(level * 5) if NAMES[number] == "posterize" else low + (high - low) * level]
        return torch.tensor(drawn, dtype=torch.float32)

    def apply(self, x: Tensor, drawn: Tensor) -> None:
        S = x.shape[-1]
        for place in drawn.view(len(x), self.count, 2).unbind(1):
            chosen = [(NAMES[int(number)], level) for number, level in place.tolist()]
            for name, (change, _, _) in PIXELS.items():
                rows = [row for row, (one, _) in enumerate(chosen) if one == name]
                on_rows(x, rows, change, [chosen[row][1] for row in rows])
            rows = [row for row, (one, _) in enumerate(chosen) if one in MOVES]
            if rows:
                matrices = torch.tensor([MOVES[chosen[row][0]][0](chosen[row][1], S) for row in rows])
                x[rows] = affine_(x[rows], matrices)
