"""Spectrograms for core's transformer: rectangles of them as tokens.

Axis letters: B batch, T frames, F bands, L tokens, D features.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Mean, blank

Centre = Literal["set", "sound"]


def normalised(x: Tensor, valid: Tensor | None, centre: Centre, mean: float | Tensor, std: float) -> Tensor:
    """Spectrograms x (B, T, F) less their mean, over ``std``; 0 where not ``valid`` (B, T).

    ``centre``: "set", the mean of all, ``mean``; "sound", of each band its own over the real frames, as recognisers of
    speech do: it takes out what the room, the microphone and the voice are, and with it all that does not change.
    """
    if centre == "sound":
        mean = Mean()(x, valid)[:, None]
    return blank((x - mean) / std, valid)


class SpectrogramPatches(Embed):
    """Log-mel spectrograms x (B, T, bands) -> tokens (B, L, dim), one for each patch of ``wide`` frames by ``tall``
    bands; with ``tall = bands`` a token is ``wide`` whole frames.

    They are ``normalised`` first, by ``centre`` and the ``mean`` and ``std`` of a data set. Patches go from frame to
    frame, those of the same frames from low to high: so a longer sound has the tokens of a shorter one, and more. Sines
    and cosines of the place are added, half of the features for each axis; ``coordinates`` (B, L, 2) are the patch's
    numbers in time and pitch. ``target`` is the normalised patch, (B, L, wide * tall). ``valid`` (B, T) says which
    frames are real; a patch is real where one of its frames is, and what is missing of it is the mean, 0.
    """

    incidental = frozenset({"mean", "std"})

    def __init__(
        self,
        dim: int,
        *,
        bands: int = 64,
        tall: int = 16,
        wide: int = 8,
        centre: Centre = "set",
        mean: float = 0.0,
        std: float = 1.0,
    ):
        super().__init__()
        if tall < 1 or wide < 1 or bands % tall:
            raise ValueError(
                f"patches of {wide} frames by {tall} bands do not fit {bands} bands: tall must divide them"
            )
        if dim % 4:
            raise ValueError(f"positions of {dim} features: sines and cosines of two axes need a multiple of 4")
        self.dim, self.bands, self.tall, self.wide = dim, bands, tall, wide
        self.mean, self.std = mean, std
        self.centre: Centre = centre
        self.rows, self.target_dim = bands // tall, tall * wide
        self.project = nn.Linear(self.target_dim, dim)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.project(self.target(x, valid=valid)) + self.position(x)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        where = self.coordinates(x)
        speed = 1e4 ** -(torch.arange(self.dim // 4, device=x.device, dtype=where.dtype) / (self.dim // 4))
        angle = where[..., None] * speed  # (B, L, 2, D / 4)
        return torch.cat([angle.sin(), angle.cos()], -1).flatten(2).to(x.dtype)

    def coordinates(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        at = [torch.arange(n, device=x.device, dtype=kind) for n in (self.columns(x), self.rows)]
        return torch.stack(torch.meshgrid(*at, indexing="ij"), -1).flatten(0, 1).expand(len(x), -1, -1)

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        columns = self.columns(x)
        x = normalised(x, valid, self.centre, self.mean, self.std)
        x = F.pad(x, (0, 0, 0, columns * self.wide - x.shape[1]))
        return (
            x.unflatten(2, (self.rows, self.tall))
            .unflatten(1, (columns, self.wide))
            .transpose(2, 3)
            .flatten(3)
            .flatten(1, 2)
        )

    def picture(self, target: Tensor) -> Tensor:
        """The reverse of ``target``: (B, L, wide * tall) -> normalised spectrograms (B, T, bands)."""
        tiles = target.unflatten(2, (self.wide, self.tall)).unflatten(1, (-1, self.rows))
        return tiles.transpose(2, 3).flatten(3).flatten(1, 2)

    def tokens_valid(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is None:
            return None
        columns = self.columns(x)
        padded = F.pad(valid, (0, columns * self.wide - valid.shape[1]))
        return padded.unflatten(1, (columns, self.wide)).any(2).repeat_interleave(self.rows, 1)

    def count(self, frames: int) -> int:
        """How many patches L so many frames have."""
        return -(-frames // self.wide) * self.rows

    def columns(self, x: Tensor) -> int:
        if x.ndim != 3 or x.shape[2] != self.bands or x.shape[1] < 1:
            raise ValueError(f"SpectrogramPatches got {tuple(x.shape)}: spectrograms (B, T, {self.bands}) are needed")
        return -(-x.shape[1] // self.wide)
