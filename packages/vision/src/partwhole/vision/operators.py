"""SimCLR's study of single operators and pairs of them (Chen et al., 2020, figure 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from partwhole.vision.effects import Blur, Cutout, Effect, Grey, Jitter, Noise, Quarters, Sobel
from partwhole.vision.views import Augment, Looks, Random, random_box

CROP = (0.08, 1.0)
OPERATORS: dict[str, tuple[Effect, ...]] = {
    "crop": (),
    "cutout": (Cutout((0.25, 0.5)),),
    "colour": (Jitter(0.8, 0.8, 0.8, 0.8, 0.2), Grey(0.2)),
    "sobel": (Sobel(1.0),),
    "noise": (Noise((0.02, 0.2)),),
    "blur": (Blur(1.0, (0.1, 2.0)),),
    "rotate": (Quarters(),),
}
"""Name -> what it does to an image. The strengths of cutout, sobel and noise are ours: the paper does not say them."""


@dataclass(frozen=True, kw_only=True)
class Operated(Random):
    """A view by some operators alone, in their order; of the square in the middle, resized, but for a crop."""

    names: tuple[str, ...] = ()
    """Of ``OPERATORS``. A crop comes first, wherever it stands: it is taken of the image in full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if name not in OPERATORS:
                raise ValueError(f"no operator is called {name!r}; there are {', '.join(OPERATORS)}")

    def box(self, height: int, width: int) -> Tensor:
        if "crop" not in self.names:
            return random_box(height, width, None, (1, 1), 0.0)
        return random_box(height, width, CROP, (3 / 4, 4 / 3), 0.5)

    @cached_property
    def effects(self) -> Mapping[str, Effect]:
        all_of_them = [effect for name in self.names for effect in OPERATORS[name]]
        return {f"{i}": effect for i, effect in enumerate(all_of_them)}


def pair(first: str, second: str, size: int) -> Looks:
    """Two views of the study: the image as it is, and changed by one operator, or by one after the other.

    The paper takes both of one random crop of an image; here it is the square in the middle.
    """
    names = (first,) if first == second else (first, second)
    return Looks(Augment(size=size, scale=None, flip=0.0), Operated(size=size, names=names))
