"""Clips for core's transformer: tubes of pixels as tokens (Tong et al., 2022; Arnab et al., 2021).

Axis letters: B batch, C channels, T frames, H W pixels, L tubes, time by time and row by row, D features, S side of a
patch, R frames of a tube; t h w places of tubes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Encoder
from partwhole.core.transformer import TransformerEncoder
from partwhole.video.maps import trained_map


class Tubes(Embed):
    """Clips x (B, C, T, H, W) -> tokens (B, L, dim), one for each tube of ``tube`` frames by ``patch`` by ``patch``
    pixels.

    An image (B, C, H, W) is taken as a clip that stands still, as long as one tube: it has the tokens of one time, in
    the middle of those that a clip has, so that an encoder of clips makes maps of images too.

    ``positions`` are added: "sincos", fixed sines and cosines of the place (a third of the features for each axis), or
    "learned", a table for clips of ``frames`` frames of ``size`` by ``size`` pixels. A clip of another size or length
    is laid over the same extent, as ``vision.embed.Patches`` has it. ``coordinates`` (B, L, 3), time, row and column,
    go from -2 pi to 2 pi across the clip. ``target`` is the pixels of each tube, (B, L, C * R * S * S): channel, time,
    row, column.
    """

    incidental = frozenset({"size", "frames"})

    def __init__(
        self,
        dim: int,
        *,
        size: int = 64,
        frames: int = 8,
        patch: int = 8,
        tube: int = 2,
        channels: int = 3,
        positions: Literal["sincos", "learned"] = "sincos",
    ):
        super().__init__()
        if positions not in ("sincos", "learned"):
            raise ValueError(f'positions are "sincos" or "learned"; got {positions!r}')
        if patch < 1 or size < patch:
            raise ValueError(f"patches of {patch} pixels do not fit into a frame of {size}: choose a smaller patch")
        if tube < 1 or frames < tube:
            raise ValueError(f"tubes of {tube} frames do not fit into a clip of {frames}: choose a shorter tube")
        if positions == "sincos" and dim % 6:
            raise ValueError(f"positions of {dim} features: sines and cosines of three axes need a multiple of 6")
        self.dim, self.size, self.frames, self.patch, self.tube = dim, size, frames, patch, tube
        self.channels, self.positions = channels, positions
        self.extent = (frames // tube, size // patch, size // patch)
        self.target_dim = channels * tube * patch * patch
        step = (tube, patch, patch)
        self.project = nn.Conv3d(channels, dim, step, stride=step)
        bound = (6 / (self.target_dim + dim)) ** 0.5  # of a linear layer, as ViT and MAE have it
        nn.init.uniform_(self.project.weight, -bound, bound)
        count = self.extent[0] * self.extent[1] * self.extent[2]
        self.table = nn.Parameter(torch.randn(count, dim) * 0.02) if positions == "learned" else None

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.project(self.clips(x)).flatten(2).mT + self.position(x)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        places = self.places(x)
        if self.table is not None:
            table = self.table.unflatten(0, self.extent)
            if places != self.extent:
                space = table.permute(0, 3, 1, 2)  # (t, D, h, w)
                if places[1:] != self.extent[1:]:
                    space = F.interpolate(space, places[1:], mode="bicubic", align_corners=False)
                time = space.permute(2, 3, 1, 0).flatten(0, 1)  # (h w, D, t)
                time = F.interpolate(time, places[0], mode="linear", align_corners=False)
                table = time.permute(2, 0, 1)
            return table.reshape(-1, self.dim).expand(len(x), -1, -1)
        kind = torch.promote_types(x.dtype, torch.float32)
        part = self.dim // 6
        speed = 1e4 ** -(torch.arange(part, device=x.device, dtype=kind) / part)
        along = []
        for axis, (n, usual) in enumerate(zip(places, self.extent, strict=True)):
            at = (torch.arange(n, device=x.device, dtype=kind) + 0.5) * (usual / n) - 0.5
            waves = torch.cat([(at[:, None] * speed).sin(), (at[:, None] * speed).cos()], -1)
            shape = [n if other == axis else 1 for other in range(3)]
            along.append(waves.view(*shape, -1).expand(*places, -1))
        return torch.cat(along, -1).flatten(0, 2).to(x.dtype).expand(len(x), -1, -1)

    def coordinates(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        at = [2 * torch.pi * ((torch.arange(n, device=x.device, dtype=kind) + 0.5) * 2 / n - 1) for n in self.places(x)]
        return torch.stack(torch.meshgrid(*at, indexing="ij"), -1).flatten(0, 2).expand(len(x), -1, -1)

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        (t, h, w), s = self.places(x), self.patch
        parts = (
            self.clips(x).unflatten(4, (w, s)).unflatten(3, (h, s)).unflatten(2, (t, self.tube))
        )  # (B, C, t, R, h, S, w, S)
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def picture(self, target: Tensor, x: Tensor) -> Tensor:
        """The reverse of ``target``: (B, L, C * R * S * S) -> clips as long and large as the whole tubes of x."""
        (t, h, w), s = self.places(x), self.patch
        parts = target.unflatten(2, (self.channels, self.tube, s, s)).unflatten(1, (t, h, w))
        return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)

    def tokens_valid(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is not None:
            raise ValueError("a clip has no padded tubes: valid is of no use to it")
        return None

    def count(self, size: int, frames: int | None = None) -> int:
        """How many tubes L a clip of so many frames (default: the usual) of ``size`` by ``size`` pixels has."""
        return ((self.frames if frames is None else frames) // self.tube) * (size // self.patch) ** 2

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Times, rows and columns of a clip; rows and columns of an image."""
        return self.places(x)[-2:] if x.ndim == 4 else self.places(x)

    def clips(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) without what is left of its last tubes; an image is repeated."""
        t, h, w = self.places(x)
        if x.ndim == 4:
            x = x[:, :, None].expand(-1, -1, self.tube, -1, -1)
        return x[:, :, : t * self.tube, : h * self.patch, : w * self.patch]

    def places(self, x: Tensor) -> tuple[int, int, int]:
        """Times, rows and columns of tubes: an image has one time."""
        if x.ndim not in (4, 5) or x.shape[1] != self.channels or min(x.shape[-2:]) < self.patch:
            raise ValueError(
                f"Tubes got {tuple(x.shape)}: clips (B, {self.channels}, T, H, W), or images (B, {self.channels}, H, "
                f"W), of {self.patch} pixels or more are needed"
            )
        if x.ndim == 5 and x.shape[2] < self.tube:
            raise ValueError(f"Tubes got clips of {x.shape[2]} frames: a tube has {self.tube}, give as many or more")
        times = 1 if x.ndim == 4 else x.shape[2] // self.tube
        return times, x.shape[-2] // self.patch, x.shape[-1] // self.patch


def clip_map(encoder: Encoder, x: Tensor) -> Tensor:
    """The tokens of clips x (B, 3, T, H, W) where they lie in time and space: (B, D, t, h, w), without special tokens.

    An encoder of clips (over ``Tubes``) sees each as a whole; any other is one of images, sees frame by frame, and
    has as many times as frames. The encoder stays in the mode it is in, and gradients flow.
    """
    if x.ndim != 5:
        raise ValueError(f"clips are {tuple(x.shape)}: (B, 3, T, H, W) is needed")
    if isinstance(encoder, TransformerEncoder) and isinstance(encoder.embed, Tubes):
        return encoder(x)[:, encoder.special :].mT.unflatten(-1, encoder.embed.grid(x))
    frames = trained_map(encoder, x.transpose(1, 2).flatten(0, 1))  # (B T, D, h, w)
    return frames.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
