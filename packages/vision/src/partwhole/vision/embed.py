"""Images for core's transformer: patches as tokens (Dosovitskiy et al., 2021).

Axis letters: B batch, C channels, H W pixels, L patches, row by row, D features, S side of a patch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed


class Patches(Embed):
    """Images x (B, C, H, W) -> tokens (B, L, dim), one for each patch of ``patch`` by ``patch`` pixels.

    ``positions`` are added: "sincos", fixed sines and cosines of the place (half of the features for each axis), or
    "learned", a table for images of ``size`` pixels. An image of another size, such as a crop, is laid over the same
    extent: its patches lie further apart, as in DINO (Caron et al., 2021). ``coordinates`` (B, L, 2), row and column,
    go from -2 pi to 2 pi across the image whatever its size.
    ``target`` is the pixels of each patch, (B, L, C * patch * patch): channel, row, column.
    """

    incidental = frozenset({"size"})

    def __init__(
        self,
        dim: int,
        *,
        size: int = 64,
        patch: int = 8,
        channels: int = 3,
        positions: Literal["sincos", "learned"] = "sincos",
    ):
        super().__init__()
        if positions not in ("sincos", "learned"):
            raise ValueError(f'positions are "sincos" or "learned"; got {positions!r}')
        if patch < 1 or size < patch:
            raise ValueError(f"patches of {patch} pixels do not fit into an image of {size}: choose a smaller patch")
        if positions == "sincos" and dim % 4:
            raise ValueError(f"positions of {dim} features: sines and cosines of two axes need a multiple of 4")
        self.dim, self.size, self.patch, self.channels, self.positions = dim, size, patch, channels, positions
        self.side, self.target_dim = size // patch, channels * patch * patch
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)
        bound = (6 / (self.target_dim + dim)) ** 0.5  # of a linear layer, as ViT and MAE have it
        nn.init.uniform_(self.project.weight, -bound, bound)
        self.table = nn.Parameter(torch.randn(self.side**2, dim) * 0.02) if positions == "learned" else None

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.project(self.whole(x)).flatten(2).mT + self.position(x)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        h, w = self.grid(x)
        if self.table is not None:
            places = self.table
            if (h, w) != (self.side, self.side):
                square = places.unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
                places = F.interpolate(square, (h, w), mode="bicubic", align_corners=False)[0].flatten(1).mT
            return places.expand(len(x), -1, -1)
        kind = torch.promote_types(x.dtype, torch.float32)
        at = [(torch.arange(n, device=x.device, dtype=kind) + 0.5) * (self.side / n) - 0.5 for n in (h, w)]
        speed = 1e4 ** -(torch.arange(self.dim // 4, device=x.device, dtype=kind) / (self.dim // 4))
        row, column = (torch.cat([(p[:, None] * speed).sin(), (p[:, None] * speed).cos()], -1) for p in at)
        both = torch.cat([row[:, None].expand(h, w, -1), column[None].expand(h, w, -1)], -1)
        return both.flatten(0, 1).to(x.dtype).expand(len(x), -1, -1)

    def coordinates(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        at = [2 * torch.pi * ((torch.arange(n, device=x.device, dtype=kind) + 0.5) * 2 / n - 1) for n in self.grid(x)]
        return torch.stack(torch.meshgrid(*at, indexing="ij"), -1).flatten(0, 1).expand(len(x), -1, -1)

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        (h, w), s = self.grid(x), self.patch
        return (
            self.whole(x).unflatten(3, (w, s)).unflatten(2, (h, s)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        )

    def picture(self, target: Tensor, x: Tensor) -> Tensor:
        """The reverse of ``target``: (B, L, C * S * S) -> images as large as the whole patches of x."""
        (h, w), s = self.grid(x), self.patch
        tiles = target.unflatten(2, (self.channels, s, s)).unflatten(1, (h, w))
        return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def tokens_valid(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is not None:
            raise ValueError("an image has no padded patches: valid is of no use to it")
        return None

    def count(self, size: int) -> int:
        """How many patches L an image of ``size`` by ``size`` pixels has."""
        return (size // self.patch) ** 2

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < self.patch:
            raise ValueError(
                f"Patches got {tuple(x.shape)}: images (B, {self.channels}, H, W) of {self.patch} pixels or more"
            )
        return x.shape[2] // self.patch, x.shape[3] // self.patch

    def whole(self, x: Tensor) -> Tensor:
        """x without what is left of its last row and column of patches."""
        h, w = self.grid(x)
        return x[..., : h * self.patch, : w * self.patch]
