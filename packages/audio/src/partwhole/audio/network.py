"""The networks that a recipe can ask for.

Axes: B batch, T frames, F bands, C channels, L tokens, D features.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.audio.embed import Centre, SpectrogramPatches, normalised
from partwhole.core.encoder import Encoder, blank
from partwhole.core.norm import BatchNorm
from partwhole.core.transformer import TransformerEncoder


class Convolutional(Encoder):
    """Log-mel spectrograms x (B, T, bands) -> tokens (B, 1 + L, dim): blocks of convolution, each of which halves time
    and pitch and doubles the channels, then an MLP for every moment on all that is heard then, after BYOL-A (Niizumi et
    al., 2021 and 2022).

    The first token is of the whole: a linear layer on the mean and the greatest of each feature, which BYOL-A adds up,
    in each of ``segments`` consecutive parts of the sound, so that it may know their order. Spectrograms are
    ``normalised`` first, by ``centre`` and the ``mean`` and ``std`` of a data set. L = ceil(T / 2^blocks); a moment is
    real where one of its frames is. Apart from the paper, convolutions have a stride of two, where theirs are followed
    by max-pooling and cost ten times as much; and padded frames take no part in anything.
    """

    special = 1
    incidental = frozenset({"mean", "std"})

    def __init__(
        self,
        *,
        bands: int = 64,
        width: int = 32,
        blocks: int = 3,
        segments: int = 4,
        dim: int = 512,
        centre: Centre = "set",
        mean: float = 0.0,
        std: float = 1.0,
    ):
        super().__init__()
        self.bands, self.width, self.blocks, self.segments, self.dim = bands, width, blocks, segments, dim
        self.mean, self.std = mean, std
        self.centre: Centre = centre
        channels = [1] + [width * 2**i for i in range(blocks)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(channels)
        )
        self.norms = nn.ModuleList(BatchNorm(c) for c in channels[1:])
        left = -(-bands // 2**blocks)
        self.mlp = nn.Sequential(nn.Linear(channels[-1] * left, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.whole = nn.Linear(2 * segments * dim, dim)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.bands or x.shape[1] < 1:
            raise ValueError(f"Convolutional got {tuple(x.shape)}: spectrograms (B, T, {self.bands}) are needed")
        y = normalised(x, valid, self.centre, self.mean, self.std)[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            y, valid = convolution(y).permute(0, 2, 3, 1).contiguous(), halved(valid)  # (B, T, F, C)
            if valid is None:
                y = norm(y).relu()
            else:  # what is real alone, which costs less than to leave the rest out of the statistics
                rows, at = y.flatten(0, 1), valid.flatten().nonzero()[:, 0]
                y = torch.zeros_like(rows).index_copy(0, at, norm(rows[at]).relu()).view_as(y)
            y = y.permute(0, 3, 1, 2)
        moments = self.mlp(y.permute(0, 2, 1, 3).flatten(2))
        whole = self.whole(in_turn(moments, valid, self.segments))
        return torch.cat([whole[:, None], moments], 1)

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        for _ in range(self.blocks):
            valid = halved(valid)
        return None if valid is None else F.pad(valid, (1, 0), value=True)

    def stages(self) -> list[nn.Module]:
        return [
            *map(nn.ModuleList, zip(self.convolutions, self.norms, strict=True)),
            nn.ModuleList((self.mlp, self.whole)),
        ]


def in_turn(x: Tensor, valid: Tensor | None, count: int) -> Tensor:
    """x (B, L, D), none below 0 -> (B, 2 * count * D): mean and greatest of each feature in each of ``count``
    consecutive parts of what is real; parts of a short row overlap."""
    real = torch.ones_like(x[..., 0], dtype=torch.bool) if valid is None else valid
    place, length = real.cumsum(1)[:, None] - 1, real.sum(1)[:, None, None]
    k = torch.arange(count, device=x.device)[:, None]
    inside = (place >= k * length // count) & (place < -(-(k + 1) * length // count)) & real[:, None]  # (B, count, L)
    share = inside.to(x.dtype) / inside.sum(-1, keepdim=True).clamp(min=1)
    most = x[:, None].masked_fill(~inside[..., None], 0).amax(2)
    return torch.cat([share @ blank(x, valid), most], -1).flatten(1)


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
    segments: int = 4
    """Consecutive parts of a sound that the cnn pools apart, so that it knows their order; 1: it does not."""
    centre: Centre = "set"
    """What is taken from a spectrogram first. set: the mean of the data set. sound: of each band its own mean over the
    sound, for words by strangers: it hides who speaks, and all else that does not change."""
    dim: int | None = None
    """Features; default: 512 of the cnn, 192 of the vit."""
    depth: int = 6
    """Blocks of the vit."""
    tall: int = 16
    """Bands of a patch of the vit; as many as there are: whole frames."""
    wide: int = 8
    """Frames of a patch of the vit."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "segments", "dim", "depth", "tall", "wide"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"network.{name} is {value}; expected 1 or more")

    @property
    def unused(self) -> list[str]:
        """Options that were changed, and are of another network than this one."""
        of = ("width", "blocks", "segments") if self.name == "vit" else ("depth", "tall", "wide")
        return [name for name in of if getattr(self, name) != getattr(Network, name)]

    def build(self, bands: int, mean: float, std: float) -> Encoder:
        """For spectrograms of so many bands, of that mean and standard deviation; with fresh weights."""
        normal: dict[str, Any] = {"bands": bands, "centre": self.centre, "mean": mean, "std": std}
        if self.name == "cnn":
            dim = self.dim or 512
            return Convolutional(width=self.width, blocks=self.blocks, segments=self.segments, dim=dim, **normal)
        dim = self.dim or 192
        embed = SpectrogramPatches(dim, tall=self.tall, wide=self.wide, **normal)
        return TransformerEncoder(embed, dim=dim, depth=self.depth, heads=max(1, dim // 64), cls=True)
