"""From the bytes of an image file to RGB uint8; what cannot be shown so is refused with a reason.

Nothing here imports torch: the processes that check images use it.
Letters: H height, W width.
"""

import io
import warnings
from typing import Any

import numpy as np

# No EPS, whose reader starts another program, and nothing that PIL can only write or name.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX", "SGI")
AGAIN = "download or export it again"


class BadImage(ValueError):
    """An image, or a place of images, that cannot be used: which, what was found there, what to do about it."""

    def __init__(self, path: Any, found: str, do: str) -> None:
        super().__init__(str(path), found, do)
        self.path, self.found, self.do = str(path), found, do

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.do}"


def decode(
    data: bytes,
    name: str = "image",
    *,
    shorter: int | None = None,
    largest: int | None = None,
    upright: bool = True,
) -> np.ndarray:
    """The image file ``data`` as (H, W, 3) uint8 RGB, ``upright`` by its EXIF orientation, or as it is stored.

    Grey, palettes and CMYK are converted, 16 bits are divided by 257, transparency lies on white, and of animations and
    many pages the first counts. ``shorter``: where the shorter side is longer, the image is reduced to that many
    pixels, with antialiasing. ``largest``: most pixels H x W; more are refused by the header alone, before any memory
    is taken. PIL's own limit of 179 million holds too. Raises BadImage, and nothing else, for what cannot be read.
    """
    from PIL import Image

    if not data:
        raise BadImage(name, "an empty file", AGAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image is used or refused; PIL's remarks in between help nobody
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                width, height = image.size
                if largest is not None and width * height > largest:
                    raise BadImage(name, f"{width} x {height} pixels, more than {largest}", "reduce it, or allow more")
                size = width, height
                if shorter is not None and shorter < min(size):
                    size = tuple(max(shorter, round(side * shorter / min(size))) for side in size)
                    if image.format == "JPEG":
                        image.draft(None, (2 * size[0], 2 * size[1]))  # decodes at 1/2, 1/4, 1/8, where that is enough
                image.load()
                made = rgb(image, name)
                if made.size != size:
                    made = made.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
                return np.array(_upright(made, image) if upright else made)
        except BadImage:
            raise
        except Image.DecompressionBombError as error:
            raise BadImage(name, "more pixels than PIL reads", "reduce it") from error
        except Image.UnidentifiedImageError as error:
            raise BadImage(name, f"not an image ({data[:12]!r})", AGAIN) from error
        except MemoryError as error:
            raise BadImage(name, "more than fits into memory", "reduce it") from error
        except Exception as error:  # whatever a decoder throws at a broken file is a report about that file
            raise BadImage(name, f"a broken image ({type(error).__name__}: {str(error)[:120]})", AGAIN) from error


def _formats() -> list[str]:
    from PIL import Image

    if not set(FORMATS) <= Image.OPEN.keys():
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # some are missing from some builds


def _upright(image: Any, source: Any) -> Any:
    """``image`` turned as the EXIF of ``source`` says."""
    from PIL import Image

    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return image
    turns = Image.Transpose
    by = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
          6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}  # fmt: skip
    return image.transpose(by[orientation]) if orientation in by else image


def rgb(image: Any, name: str = "image") -> Any:
    """A PIL image in the mode RGB; see ``decode``."""
    from PIL import Image

    if image.mode == "F":
        raise BadImage(name, "floating point pixels, of unknown range", "save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImage(name, f"values from {wide.min()} to {wide.max()}", "save it with 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
