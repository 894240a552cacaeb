"""Views as papers have them, by the side of what a network sees.

Below 96 pixels (CIFAR, Tiny ImageNet) the published numbers are too strong: as usual there (SimCLR, appendix B.9;
solo-learn's and lightly's settings for CIFAR) nothing is blurred and SimCLR's colours change half as much. Where a
policy differs in more than that from its paper, it says so. All crops are resized bilinearly, where some papers' are
bicubic. ``dataclasses.replace`` makes variants.
"""

from collections.abc import Callable
from dataclasses import replace

from partwhole.vision.views import Augment, Looks

SMALL = 96  # pixels: below are small images


def _blurred(augment: Augment) -> Augment:
    return augment if augment.size >= SMALL else replace(augment, blur=0.0)


def simclr(size: int) -> Augment:
    """Chen et al., 2020: colours changed by strength 1 (0.5 for small images)."""
    s = 0.8 if size >= SMALL else 0.4
    colours = Augment(size=size, jitter=0.8, brightness=s, contrast=s, saturation=s, hue=s / 4, grey=0.2)
    return _blurred(replace(colours, scale=(0.08, 1.0), blur=0.5))


def mocov2(size: int) -> Augment:
    """Chen et al., 2020 (MoCo v2): larger crops, weaker colours."""
    return _blurred(Augment(size=size, scale=(0.2, 1.0), jitter=0.8, grey=0.2, blur=0.5))


def byol(size: int) -> tuple[Augment, Augment]:
    """Grill et al., 2020: the first always blurred, the second seldom, but solarized at times."""
    base = Augment(size=size, scale=(0.08, 1.0), jitter=0.8, saturation=0.2, grey=0.2)
    return _blurred(replace(base, blur=1.0)), _blurred(replace(base, blur=0.1, solarize=0.2))


def dino(size: int) -> tuple[Augment, Augment, Augment]:
    """Caron et al., 2021: two views of much of the image, by BYOL's colours, and what a local crop is.

    A crop's side is 3/7 of a view's (96 of 224), to the nearest multiple of 8, so that it can be cut into patches.
    """
    first, second = (replace(one, scale=(0.4, 1.0)) for one in byol(size))
    side = max(8, round(size * 3 / 7 / 8) * 8)
    blur = first.blur and 0.5  # as for the views: a small crop of a large image is not a small image
    return first, second, replace(first, size=side, scale=(0.05, 0.4), blur=blur)


def infomin(size: int) -> Augment:
    """Tian et al., 2020: SimCLR's colours at full strength and RandAugment; the blur comes after it, here."""
    return replace(simclr(size), scale=(0.2, 1.0), operations=2)


def mae(size: int) -> Augment:
    """He et al., 2021: a crop and a flip are enough where most of the image is hidden."""
    return Augment(size=size, scale=(0.2, 1.0))


def weak(size: int) -> Augment:
    """Sohn et al., 2020 (FixMatch), for labels and guesses: a flip and a shift of up to an eighth of the side."""
    return Augment(size=size, scale=None, shift=0.125)


def strong(size: int) -> Augment:
    """Sohn et al., 2020 (FixMatch): the weak view, two operations of RandAugment, and a grey square on it."""
    return replace(weak(size), operations=2, cutout=0.5)


def plain(size: int) -> Augment:
    """Nothing random: the square in the middle, as large as may be. What an evaluation sees."""
    return Augment(size=size, scale=None, flip=0.0)


SINGLE: dict[str, Callable[[int], Augment]] = {
    "simclr": simclr, "mocov2": mocov2, "infomin": infomin, "mae": mae, "weak": weak, "strong": strong, "plain": plain
}  # fmt: skip
PAIRS: dict[str, Callable[[int], tuple[Augment, ...]]] = {"byol": byol, "dino": dino}


def looks(name: str, size: int, crops: int = 0) -> Looks:
    """The two views of a policy, and so many of DINO's local crops, with this policy's colours."""
    if name in PAIRS:
        first, second, *_ = PAIRS[name](size)
    elif name in SINGLE:
        first = second = SINGLE[name](size)
    else:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join([*SINGLE, *PAIRS])}")
    if not crops:
        return Looks(first, second)
    like = dino(size)[2]
    local = like if name == "dino" else replace(first, size=like.size, scale=like.scale)
    return Looks(first, second, crops, local)
