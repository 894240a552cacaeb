"""A sheet of pictures: what views look like."""

import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.vision.draw import pasted
from partwhole.vision.views import MEAN, STD, Three

GAP = 2  # pixels between pictures


def contact(views: Sequence[Sequence[Tensor] | Tensor], mean: Three = MEAN, std: Three = STD) -> bytes:
    """The PNG of a sheet: a row for each sample, such as the original and then its views.

    views: columns; each holds one picture for every row, x (3, h, w) as a network sees it, or uint8 as it is read.
    All are shown with the height of the tallest x; a uint8 picture is shrunk to it, a smaller x keeps its size.
    """
    columns = [list(column) for column in views]
    if not columns or len({len(column) for column in columns}) != 1 or not columns[0]:
        raise ValueError(f"columns of {[len(c) for c in columns]} pictures; expected as many in each, and one or more")
    side = max((x.shape[-2] for column in columns for x in column if x.dtype != torch.uint8), default=96)
    shown = [[_shown(x, side, mean, std) for x in column] for column in columns]
    widths = [max(x.shape[-1] for x in column) for column in shown]
    cells = [[F.pad(x / 255, (0, width - x.shape[2], 0, side - x.shape[1]), value=1.0) for x in column]
             for column, width in zip(shown, widths, strict=True)]  # fmt: skip
    file = io.BytesIO()
    pasted(list(zip(*cells, strict=True)), GAP).save(file, "PNG", optimize=True)
    return file.getvalue()


def _shown(x: Tensor, side: int, mean: Three, std: Three) -> Tensor:
    """uint8 (3, h, w), h no more than side."""
    x = x.detach().cpu()
    if x.dtype != torch.uint8:
        x = x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        return (x * 255).round().clamp(0, 255).byte()
    width = max(1, min(2 * side, round(x.shape[2] * side / x.shape[1])))
    return F.interpolate(x[None], (side, width), mode="bilinear", antialias=True)[0]
