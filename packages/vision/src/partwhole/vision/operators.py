"""The operators of SimCLR's study of them, alone and in pairs (Chen et al., 2020, section 3.1 and figure 5)."""

import difflib
from collections.abc import Iterable, Mapping
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
    """Of ``OPERATORS``. A crop comes first, wherever it stands."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.names)

    def box(self, height: int, width: int) -> Tensor:
        if "crop" not in self.names:
            return random_box(height, width, None, (1, 1), 0.0)
        return random_box(height, width, CROP, (3 / 4, 4 / 3), 0.5)

    @cached_property
    def effects(self) -> Mapping[str, Effect]:
        all_of_them = [effect for name in self.names for effect in OPERATORS[name]]
        return {f"{i}": effect for i, effect in enumerate(all_of_them)}


def check(names: Iterable[str]) -> None:
    """ValueError for a name that no operator has, with the nearest one."""
    for name in names:
        if name not in OPERATORS:
            near = difflib.get_close_matches(name, OPERATORS, 1, 0.5)
            hint = f"did you mean {near[0]}? There are" if near else "there are"
            raise ValueError(f"no operator is called {name!r}; {hint} {', '.join(OPERATORS)}")


def applied(first: str, second: str) -> tuple[str, ...]:
    """The operators of a pair in the order in which they are applied: one alone where both are the same.

    A crop is always the first, since it is taken of the image in full, so that it stays sharp: a pair with it is the
    same either way round.
    """
    if first == second:
        return (first,)
    return (second, first) if second == "crop" else (first, second)


def pair(first: str, second: str, size: int) -> Looks:
    """Two views of the study: the image as it is, and changed by one operator, or by one after the other.

    As in the paper only one of the two branches is changed. It takes both of one random crop of an image, and a crop
    as an operator again of that; here both are of the square in the middle, and a crop as an operator is of the image.
    """
    plain = Augment(size=size, scale=None, flip=0.0)
    return Looks(plain, Operated(size=size, names=applied(first, second)))
