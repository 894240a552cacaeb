"""The networks that a recipe can ask for.

Axes: B batch, T frames, F bands, C channels, L tokens, D features.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, Max, Mean, blank
from partwhole.core.norm import BatchNorm
from partwhole.core.transformer import TransformerEncoder


class Convolutional(Encoder):
    """Log-mel spectrograms x (B, T, bands) -> tokens (B, 1 + L, dim): blocks of convolution, each of which halves time
    and pitch and doubles the channels, then an MLP for every moment on all that is heard then, after BYOL-A (Niizumi et
    al., 2021 and 2022).

    The first token is the mean of the moments plus the greatest of each feature, as BYOL-A pools. ``mean`` and ``std``
    of the spectrograms of a data set are taken out first. L = ceil(T / 2^blocks); a moment is real where one of its
    frames is. Apart from the paper, convolutions have a stride of two, where theirs are followed by max-pooling and
    cost ten times as much; and padded frames take no part in anything.
    """

    special = 1
    incidental = frozenset({"mean", "std"})

    def __init__(
        self, *, bands: int = 64, width: int = 32, blocks: int = 3, dim: int = 512, mean: float = 0.0, std: float = 1.0
    ):
        super().__init__()
        self.bands, self.width, self.blocks, self.dim, self.mean, self.std = bands, width, blocks, dim, mean, std
        channels = [1] + [width * 2**i for i in range(blocks)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(channels)
        )
        self.norms = nn.ModuleList(BatchNorm(c) for c in channels[1:])
        left = -(-bands // 2**blocks)
        self.mlp = nn.Sequential(nn.Linear(channels[-1] * left, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.bands or x.shape[1] < 1:
            raise ValueError(f"Convolutional got {tuple(x.shape)}: spectrograms (B, T, {self.bands}) are needed")
        y = blank((x - self.mean) / self.std, valid)[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            y, valid = convolution(y).permute(0, 2, 3, 1).contiguous(), halved(valid)  # (B, T, F, C)
            if valid is None:
                y = norm(y).relu()
            else:  # what is real alone, which costs less than to leave the rest out of the statistics
                rows, at = y.flatten(0, 1), valid.flatten().nonzero()[:, 0]
                y = torch.zeros_like(rows).index_copy(0, at, norm(rows[at]).relu()).view_as(y)
            y = y.permute(0, 3, 1, 2)
        moments = self.mlp(y.permute(0, 2, 1, 3).flatten(2))
        whole = Mean()(moments, valid) + Max()(moments, valid)
        return torch.cat([whole[:, None], moments], 1)

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is None:
            return None
        for _ in range(self.blocks):
            valid = halved(valid)
        return F.pad(valid, (1, 0), value=True)

    def stages(self) -> list[nn.Module]:
        return [*map(nn.ModuleList, zip(self.convolutions, self.norms, strict=True)), self.mlp]


def halved(valid: Tensor | None) -> Tensor | None:
    """valid (B, T) -> (B, ceil(T / 2)), true where one of the two is."""
    return None if valid is None else F.pad(valid, (0, valid.shape[1] % 2)).unflatten(1, (-1, 2)).any(2)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The encoder of sounds. Defaults for a second of sound on two CPU cores."""

    name: Literal["cnn", "vit"] = "cnn"
    """cnn, BYOL-A's convolutions over the spectrogram; vit, our transformer over patches of it."""
    width: int = 32
    """Channels of the first block of the cnn."""
    blocks: int = 3
    """Blocks of the cnn: each halves time and pitch, and doubles the channels."""
    dim: int | None = None
    """Features; default: 512 of the cnn, 192 of the vit."""
    depth: int = 6
    """Blocks of the vit."""
    tall: int = 16
    """Bands of a patch of the vit; as many as there are: whole frames."""
    wide: int = 8
    """Frames of a patch of the vit."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "dim", "depth", "tall", "wide"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"network.{name} is {value}; expected 1 or more")

    @property
    def unused(self) -> list[str]:
        """Options that were changed, and are of another network than this one."""
        of = ("width", "blocks") if self.name == "vit" else ("depth", "tall", "wide")
        return [name for name in of if getattr(self, name) != getattr(Network, name)]

    def build(self, bands: int, mean: float, std: float) -> Encoder:
        """For spectrograms of so many bands, of that mean and standard deviation; with fresh weights."""
        if self.name == "cnn":
            dim = self.dim or 512
            return Convolutional(bands=bands, width=self.width, blocks=self.blocks, dim=dim, mean=mean, std=std)
        from partwhole.audio.embed import SpectrogramPatches

        dim = self.dim or 192
        embed = SpectrogramPatches(dim, bands=bands, tall=self.tall, wide=self.wide, mean=mean, std=std)
        return TransformerEncoder(embed, dim=dim, depth=self.depth, heads=max(1, dim // 64), cls=True)
