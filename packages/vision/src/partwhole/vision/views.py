"""Views of an image: what is random about each is drawn, then applied; to one image in a data worker, or to a batch
on the device.

Axes: B images, H and W their height and width, S the side of a view.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from partwhole.vision import resample
from partwhole.vision.effects import Blur, Cutout, Effect, Grey, Jitter, RandAugment, Shift, Solarize, uniform

Sample = Mapping[str, Any]
Drawn = dict[str, Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
Three = tuple[float, float, float]
CACHE = 1 << 16  # numbers that stay in the cache of a core while all is done to them
TRIES = 10  # for a crop of the drawn size and shape that lies within the image, as in torchvision


@dataclass(frozen=True)
class Size:
    """Stands for an image of which only the size is known yet: a view of it is drawn now and made later."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Random(ABC):
    """One random view of a sample: x (3, S, S), float32.

    It is ``apply`` of what ``draw`` draws; so it is the same view, whether it is made here of one image, or of a batch
    on another device.
    """

    size: int = 224
    """Side of the view, in pixels."""
    mean: Three = MEAN
    """Of red, green and blue in [0, 1]: subtracted. Default: ImageNet's."""
    std: Three = STD
    """Of red, green and blue: what is left is divided by it. Default: ImageNet's."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; expected 1 pixel or more")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std is {self.std}; expected numbers above 0")

    @abstractmethod
    def box(self, height: int, width: int) -> Tensor:
        """The crop of an image, (5,) int64: top, left, height, width, and 1 where it is mirrored."""

    @property
    @abstractmethod
    def effects(self) -> Mapping[str, Effect]:
        """What is done to the crop, in this order."""

    def draw(self, height: int, width: int) -> Drawn:
        """All that is random about the view of one image of that size, by torch's global generator alone."""
        return {"box": self.box(height, width), **{name: e.draw(self.size) for name, e in self.effects.items()}}

    def apply(self, images: Tensor | Sequence[Tensor], drawn: Drawn) -> Tensor:
        """The views of uint8 images (B, 3, H, W), or B of (3, H, W) of any sizes, on any device: (B, 3, S, S).

        ``drawn`` is of each, on the CPU: (B, ...). Nothing is random.
        """
        with torch.no_grad(), torch.autocast(images[0].device.type, enabled=False):
            x = resample.crops(images, drawn["box"], self.size)
            mean, std = _moments(self.mean, self.std, x.device)
            step = max(1, CACHE // x[0].numel()) if resample.one_by_one(x) else len(x)
            parts = (
                zip(*(drawn[name].split(step) for name in self.effects), strict=True) if self.effects else repeat(())
            )
            for some, numbers in zip(x.split(step), parts, strict=False):
                for effect, its in zip(self.effects.values(), numbers, strict=True):
                    effect.apply(some, its)
                some.sub_(mean).div_(std)
            return x

    def __call__(self, sample: Sample) -> Any:
        """x; of an image that is a ``Size``, what is needed to make x later."""
        image = sample["image"]
        if isinstance(image, Size):
            return {"of": self, "drawn": self.draw(image.height, image.width)}
        check(image)
        drawn = self.draw(*image.shape[1:])
        return self.apply(image[None], {name: numbers[None] for name, numbers in drawn.items()})[0]


def check(image: Any) -> None:
    """ValueError, if it is no image."""
    if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3):
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"an image is {found}; expected a uint8 tensor (3, H, W)")
    if 0 in image.shape:
        raise ValueError(f"an image is {tuple(image.shape)}: it has no pixels. Leave it out")


@lru_cache(maxsize=32)
def _moments(mean: Three, std: Three, device: torch.device) -> list[Tensor]:
    return [torch.tensor(numbers, device=device).view(3, 1, 1) for numbers in (mean, std)]


@dataclass(frozen=True, kw_only=True)
class Augment(Random):
    """A random view: crop, flip, shift, colours, RandAugment, grey, blur, solarize, cutout; in this order."""

    scale: tuple[float, float] | None = (0.2, 1.0)
    """Share of the image's area that a random crop has. None: the square in the middle, as large as may be."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of a random crop; it is resized to a square."""
    flip: float = 0.5
    """Chance to be mirrored, left to right."""
    shift: float = 0.0
    """Moved by up to this share of the side, whole pixels; what comes in is mirrored at the border."""
    jitter: float = 0.0
    """Chance that colours are changed: all of the next four, in random order."""
    brightness: float = 0.4
    """Brightness times a factor from 1 less to 1 more this."""
    contrast: float = 0.4
    """Contrast times a factor from 1 less to 1 more this."""
    saturation: float = 0.4
    """Saturation times a factor from 1 less to 1 more this."""
    hue: float = 0.1
    """Hue turned by up to this share of the circle, either way; 0.5 at the most."""
    operations: int = 0
    """Operations of RandAugment, of fourteen."""
    grey: float = 0.0
    """Chance to lose all colour."""
    blur: float = 0.0
    """Chance to be blurred, by a kernel of a tenth of the side."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, in pixels."""
    solarize: float = 0.0
    """Chance that the bright half is made negative."""
    cutout: float = 0.0
    """Greatest side of a grey square that hides what is under it, as a share of the view's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; expected (low, high) with 0 < low <= high <= 1, or None")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; expected (low, high) with 0 < low <= high")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma is {self.sigma}; expected (low, high) with 0 < low <= high")
        for name, most in {
            "flip": 1,
            "jitter": 1,
            "hue": 0.5,
            "grey": 1,
            "blur": 1,
            "solarize": 1,
            "cutout": 1,
        }.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to {most}")
        for name in ("brightness", "contrast", "saturation", "operations"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift is {self.shift}; expected a share of the side, 0 or more and less than 1")

    def box(self, height: int, width: int) -> Tensor:
        return random_box(height, width, self.scale, self.ratio, self.flip)

    @cached_property
    def effects(self) -> Mapping[str, Effect]:
        wanted: dict[str, tuple[float, Effect]] = {
            "shift": (self.shift, Shift(self.shift)),
            "jitter": (self.jitter, Jitter(self.jitter, self.brightness, self.contrast, self.saturation, self.hue)),
            "operations": (self.operations, RandAugment(self.operations)),
            "grey": (self.grey, Grey(self.grey)),
            "blur": (self.blur, Blur(self.blur, self.sigma)),
            "solarize": (self.solarize, Solarize(self.solarize)),
            "cutout": (self.cutout, Cutout((0.0, self.cutout))),
        }
        return {name: effect for name, (much, effect) in wanted.items() if much}


def random_box(
    height: int, width: int, scale: tuple[float, float] | None, ratio: tuple[float, float], flip: float
) -> Tensor:
    """A crop as torchvision's ``RandomResizedCrop`` draws it, (5,): top, left, height, width, mirrored or not.

    Its area is uniform in ``scale``, the logarithm of its width to height in that of ``ratio``; after ten that do not
    fit into the image it is the middle, as large as ``ratio`` allows. Without scale: the square in the middle.
    """
    mirrored = flip > 0 and uniform(1)[0] < flip
    if scale is None:
        side = min(height, width)
        return torch.tensor([(height - side) // 2, (width - side) // 2, side, side, mirrored])
    numbers = uniform(2 * TRIES + 2)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[2 * i])
        shape = math.exp(low + (high - low) * numbers[2 * i + 1])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(numbers[-2] * (height - h + 1)), int(numbers[-1] * (width - w + 1))
            return torch.tensor([top, left, h, w, mirrored])
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    return torch.tensor([(height - h) // 2, (width - w) // 2, h, w, mirrored])


@dataclass(frozen=True)
class Looks:
    """Two views of a sample and crops of it: {"views": [x, x], "crops": [x, ...]}, without "crops" where there are
    none."""

    first: Random
    second: Random
    crops: int = 0
    local: Random | None = None
    """What a crop is."""

    def __post_init__(self) -> None:
        if self.crops < 0:
            raise ValueError(f"{self.crops} crops; expected 0 or more")
        if self.crops and self.local is None:
            raise ValueError(f"{self.crops} crops were asked for: say by ``local`` what a crop is")

    def __call__(self, sample: Sample) -> dict[str, Any]:
        views = {"views": [self.first(sample), self.second(sample)]}
        if not self.crops or self.local is None:
            return views
        return {**views, "crops": [self.local(sample) for _ in range(self.crops)]}
