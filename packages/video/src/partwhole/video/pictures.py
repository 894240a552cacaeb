"""Clips in pictures: frames side by side, what was hidden of them and what was made of it."""

from torch import Tensor

from partwhole.core.methods import MAE
from partwhole.vision.draw import Picture, png
from partwhole.vision.pictures import reconstructions, shown
from partwhole.vision.views import MEAN, STD, Three


def reconstruction_picture(
    method: MAE, x: Tensor, keep: Tensor, *, side: int = 64, columns: int = 8, mean: Three = MEAN, std: Three = STD
) -> Picture:
    """For every clip of x (B, 3, T, H, W) three rows of up to ``columns`` frames, ``side`` pixels high: itself, its
    visible tubes ``keep``, and what was rebuilt."""
    sets = reconstructions(method, x, keep)
    times = range(0, sets[0].shape[2], -(-sets[0].shape[2] // columns))
    rows = [[shown(clips[b, :, t], side, mean, std) for t in times] for b in range(len(x)) for clips in sets]
    caption = "Clips, the tubes that the network sees, and what it makes of them, between those tubes"
    told = "; the mean and contrast of each hidden tube are given" if method.normalise else ""
    return Picture(png(rows, limit=200_000), f"{caption}{told}.")
