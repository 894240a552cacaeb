"""CIE Lab colours, and the bins in which colorization names them.

Axes: H x W pixels, N colours, Q bins, M nearest bins. L is from 0 to 100; a, from green to red, and b, from blue to
yellow, are about from -110 to 110.
"""

import torch
from torch import Tensor, nn

from partwhole.core.losses.tiles import rows_of

# sRGB's primaries in XYZ, and the white of daylight (D65, 2 degrees): IEC 61966-2-1
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)

# The paper gives 313 pairs of a and b, ten apart, "in gamut", by a table and no rule. Here it is: for each a, the
# least and the greatest b. It is, but for a few ties, what is among the five nearest of any pair of whole numbers
# that some colour of sRGB has. So 52 of them are not the nearest of any colour, and serve as neighbours alone.
_ROWS = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip
BINS = 313
_EDGE = 14  # of the grid in which bins are looked for, in steps of ten: more than any colour needs


def bins() -> Tensor:
    """The a and b of each bin: (Q, 2), Q = 313, in the order of the authors' table."""
    return torch.tensor([(a, b) for a, (low, high) in _ROWS.items() for b in range(low, high + 1, 10)]).float()


def luminance(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] (..., 3, H, W) -> what share of white's light it has, (..., 1, H, W)."""
    return (_linear(rgb) * rgb.new_tensor(XYZ[1])[:, None, None]).sum(-3, keepdim=True)


def from_rgb(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] (..., 3, H, W) -> Lab (..., 3, H, W)."""
    to_xyz = rgb.new_tensor(XYZ) / rgb.new_tensor(WHITE)[:, None]
    light = torch.einsum("ij,...jhw->...ihw", to_xyz, _linear(rgb))
    f = torch.where(light > 0.008856, light.clamp(min=0.008856) ** (1 / 3), 7.787 * light + 16 / 116)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def to_rgb(lab: Tensor) -> Tensor:
    """Lab (..., 3, H, W) -> sRGB (..., 3, H, W), clamped to [0, 1] where there is no such colour."""
    L, a, b = lab.unbind(-3)
    y = (L + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -3)
    light = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * lab.new_tensor(WHITE)[:, None, None]
    from_xyz = torch.linalg.inv(torch.tensor(XYZ, dtype=torch.float64)).to(lab)
    return _encoded(torch.einsum("ij,...jhw->...ihw", from_xyz, light).clamp(0, 1))


def grey(rgb: Tensor) -> Tensor:
    """An image without its colours: the same L, and a and b of 0. sRGB (..., 3, H, W) -> sRGB (..., 3, H, W)."""
    return _encoded(luminance(rgb).clamp(0, 1)).expand_as(rgb)


class Bins(nn.Module):
    """A colour as a mixture of the five bins around it (Zhang et al., 2016): which, the nearest first, and shares.

        share[n, m] ~ exp(-|ab[n] - centres[index[n, m]]|^2 / 2 sigma^2),  adding up to 1 over m

    ab (N, 2) of colours that there are -> index (N, 5) int64, share (N, 5). Bins are looked for among the 5 x 5 of the
    grid around a colour, which takes a tenth of the time of a search of all.
    """

    centres: Tensor
    numbers: Tensor
    around: Tensor

    def __init__(self, sigma: float = 5.0):
        super().__init__()
        self.sigma = sigma
        centres, steps = bins(), torch.arange(-2, 3)
        numbers = torch.full((2 * _EDGE + 1, 2 * _EDGE + 1), -1)
        numbers[tuple((centres / 10).long().mT + _EDGE)] = torch.arange(BINS)
        self.register_buffer("centres", centres)
        self.register_buffer("numbers", numbers, persistent=False)  # of each place of the grid, -1 for none
        self.register_buffer("around", torch.cartesian_prod(steps, steps), persistent=False)

    def forward(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._found(ab[rows]) for rows in rows_of(len(ab), 1 << 15) or [slice(0, 0)]]
        return torch.cat([index for index, _ in found]), torch.cat([share for _, share in found])

    def _found(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        most = _EDGE - 2
        place = (ab / 10).round().long().clamp(-most, most)[:, None] + self.around  # (N, 25, 2)
        number = self.numbers[place[..., 0] + _EDGE, place[..., 1] + _EDGE]
        square = (ab[:, None] - 10 * place).square().sum(-1).masked_fill(number < 0, 1e6)
        near, which = square.topk(5, largest=False, sorted=True)
        share = (-near / (2 * self.sigma**2)).softmax(-1)
        return number.gather(1, which).clamp(min=0), share  # a fifth that is not there has no share


def _linear(rgb: Tensor) -> Tensor:
    return torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)


def _encoded(light: Tensor) -> Tensor:
    return torch.where(light > 0.0031308, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * light)
