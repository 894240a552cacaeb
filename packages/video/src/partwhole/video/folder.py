"""Folders of images: frames in the natural order of their names, and masks in which a value is an object's id.

Nothing here imports torch: the processes that check files use it.
Letters: H height, W width.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partwhole.video.packets import AGAIN, BadVideo
from partwhole.vision.decode import BadImage, decode
from partwhole.vision.find import SUFFIXES

MOST = 254  # objects: 255 says that a pixel does not count


@dataclass(frozen=True)
class Pictures:
    """The images of one folder, in order."""

    folder: str
    names: tuple[str, ...]
    size: tuple[int, int]
    """(H, W) of all of them."""
    lost: str = ""
    """What cannot be read, in words."""


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers within names by their value."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if k % 2 else (1, 0, part) for k, part in enumerate(parts) if part]


def listed(folder: str | Path) -> list[str]:
    """The names of the images of a folder in their natural order, without hidden ones."""
    try:
        found = [
            entry.name
            for entry in os.scandir(folder)
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in SUFFIXES
            and entry.is_file()
        ]  # fmt: skip
    except FileNotFoundError as error:
        raise BadVideo(folder, "no such folder", "check the path") from error
    except OSError as error:
        raise BadVideo(folder, f"it cannot be opened ({error.strerror})", "give yourself read access") from error
    return sorted(found, key=natural)


def look(folder: str | Path) -> Pictures:
    """The frames of a folder, each decoded once. What cannot be read is left out and told; the frames then count
    without it. Raises BadVideo where none is left or sizes differ."""
    good: list[str] = []
    sizes: dict[tuple[int, int], str] = {}
    failed: list[str] = []
    for name in listed(folder):
        try:
            made = picture(os.path.join(folder, name))
        except BadVideo as error:
            failed.append(f"{name}: {error.found}")
            continue
        good.append(name)
        sizes.setdefault((made.shape[0], made.shape[1]), name)
    if not good:
        raise BadVideo(folder, f"no image that can be read ({failed[0]})" if failed else "no image in it", AGAIN)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        found = f"frames of different sizes: {first} has {a[1]} x {a[0]} pixels, {second} {b[1]} x {b[0]}"
        raise BadVideo(folder, found, "put frames of one video into a folder of its own")
    count = len(failed) + len(good)
    lost = f"{len(failed)} of {count} frames cannot be read (the first: {failed[0]})" if failed else ""
    return Pictures(str(folder), tuple(good), next(iter(sizes)), lost)


def picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as it is stored: frames, and masks beside them, are not turned by EXIF."""
    try:
        with open(path, "rb") as file:
            return decode(file.read(), path, upright=False)
    except OSError as error:
        raise BadVideo(path, f"it cannot be opened ({error.strerror})", "put it back, or start again") from error
    except BadImage as error:
        raise BadVideo(path, error.found, error.do) from error


def ids(path: str, *, binary: bool = False) -> np.ndarray:
    """(H, W) int64 ids of a mask: indices of a palette, or grey values. ``binary``: any value but 0 is 1."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                made = np.asarray(image.convert("RGB"))
                if not binary and (made != made[..., :1]).any():
                    do = "save masks as images with a palette, or grey, in which a value is an object's id"
                    raise BadVideo(path, f"a mask in colours (mode {image.mode})", do)
                made = made.max(-1)
            else:
                made = np.asarray(image)
    except BadVideo:
        raise
    except Exception as error:  # whatever a decoder throws at a broken file is a report about that file
        raise BadVideo(path, f"a mask that cannot be read ({type(error).__name__}: {error})", AGAIN) from error
    made = made.astype(np.int64)
    if binary:
        return (made > 0).astype(np.int64)
    count = len(set(np.unique(made).tolist()) - {0, 255})
    if made.max() > MOST + 1 or made.min() < 0:
        found = f"{count} ids, up to {made.max()}"
        raise BadVideo(path, found, f"ids from 1 to {MOST} are counted: number the objects anew, or leave some out")
    return made
