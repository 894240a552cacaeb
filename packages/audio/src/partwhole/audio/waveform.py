"""Sounds as they are for core's transformer: strided convolutions make tokens of samples (Baevski et al., 2020).

Axes: B sounds, N samples, L tokens, C channels, D features, K kernel of a convolution.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, blank


class Waveform(Embed):
    """Sounds x (B, N), mono, at any rate -> tokens (B, L, dim), one for every ``hop`` samples, of ``window`` of them.

    Token l is made of the samples [l * hop, l * hop + window) and of no others, so that there are
    L = (N - window) // hop + 1; it is real where all of them are. ``kernels`` and ``strides`` are those of the
    convolutions, of ``channels`` each. By default hop and window are 160 and 225 samples (20 and 28 ms at 8 kHz);
    wav2vec 2.0's, meant for 16 kHz, are ``PAPER``. A sound is brought to mean 0 and variance 1 over its real samples.

    ``positions`` "conv": each token is told its place by the ``reach`` tokens around it, by a convolution over what
    entered, and nothing is added to it by its number (``position`` is 0: the decoder of a masked autoencoder needs the
    other). "sincos": fixed sines and cosines of its number.
    ``target`` is the ``hop`` samples in the middle of a token's window, of the sound at variance 1.
    Where the same sounds are needed twice, x may be their ``features`` already (B, L, channels), with valid (B, L).

    Of the paper's two variants this is the one with a layer norm after every convolution (its "large" networks), which
    knows nothing of other tokens, so that no padding reaches it. The convolution of positions has no weight norm.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 128,
        kernels: Sequence[int] = (10, 4, 3, 3, 2),
        strides: Sequence[int] = (5, 4, 2, 2, 2),
        positions: Literal["conv", "sincos"] = "conv",
        reach: int = 31,
    ):
        super().__init__()
        if len(kernels) != len(strides) or not kernels or min(*kernels, *strides) < 1:
            raise ValueError(
                f"kernels and strides are as many numbers of 1 or more, one each for every convolution; got {kernels} "
                f"and {strides}"
            )
        if positions not in ("conv", "sincos"):
            raise ValueError(f'positions are "conv" or "sincos"; got {positions!r}')
        if reach < 1 or reach % 2 == 0:
            raise ValueError(f"reach counts a token and as many on either side: an odd number; got {reach}")
        if positions == "sincos" and dim % 2:
            raise ValueError(f"positions of {dim} features: sines and cosines need an even number")
        self.dim, self.channels, self.kernels, self.strides = dim, channels, kernels, strides
        self.positions, self.reach = positions, reach
        self.hop = self.target_dim = math.prod(strides)
        self.window = 1
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            self.window = (self.window - 1) * stride + kernel
        widths = [1, *[channels] * len(kernels)]
        self.layers = nn.ModuleList(
            Strided(a, b, k, s) for a, b, k, s in zip(widths, widths[1:], kernels, strides, strict=False)
        )
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, dim)
        self.around = Around(dim, reach) if positions == "conv" else None

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        tokens = self.project(self.features(x, valid=valid))
        return tokens if self.around is not None else tokens + self.position(x)

    def features(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """What the convolutions make of sounds (B, N): (B, L, channels), normalised, without positions."""
        if x.ndim == 3:
            return x
        self._check(x)
        y = standardised(x, valid)[..., None]
        for layer in self.layers:
            y = layer(y)
        return self.norm(y)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        place = self.coordinates(x)
        if self.around is not None:
            return place.new_zeros(1).to(x.dtype).expand(*place.shape[:2], self.dim)
        half = self.dim // 2
        angle = place * 1e4 ** -(torch.arange(half, device=x.device, dtype=place.dtype) / half)
        return torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)

    def coordinates(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        length = x.shape[1] if x.ndim == 3 else self.count(x.shape[1])
        place = torch.arange(length, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return place[None, :, None].expand(len(x), -1, -1)

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        self._check(x)
        if self.window < self.hop:
            raise ValueError(f"windows of {self.window} samples leave gaps at every {self.hop}: nothing to rebuild all")
        before = (self.window - self.hop) // 2
        middle = standardised(x, valid)[:, before : before + self.count(x.shape[1]) * self.hop]
        return middle.unflatten(1, (-1, self.hop))

    def tokens_valid(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is None or x.ndim == 3:
            return valid
        self._check(x)
        total = F.pad(valid.cumsum(1), (1, 0))
        start = torch.arange(self.count(x.shape[1]), device=x.device) * self.hop
        return total[:, start + self.window] - total[:, start] == self.window

    def situated(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        return tokens if self.around is None else tokens + self.around(blank(tokens, seen))

    def count(self, samples: int) -> int:
        """How many tokens L so many samples have; 0 for less than ``window``."""
        return max(0, (samples - self.window) // self.hop + 1)

    def samples(self, tokens: int) -> int:
        """How many samples so many tokens are made of, 1 or more."""
        return (tokens - 1) * self.hop + self.window

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] < self.window:
            raise ValueError(
                f"Waveform got {tuple(x.shape)}: sounds (B, N) of at least {self.window} samples, of which a token is "
                "made, are needed; pad shorter ones, and say so in valid"
            )


PAPER: dict[str, Any] = {
    "channels": 512,
    "kernels": (10, 3, 3, 3, 3, 2, 2),
    "strides": (5, 2, 2, 2, 2, 2, 2),
    "reach": 127,
}
"""``Waveform(768, **PAPER)``: as wav2vec 2.0 and HuBERT, 400 samples every 320: 25 and 20 ms at 16 kHz."""


class Strided(nn.Module):
    """A strided convolution, layer norm over channels, GELU: (B, N, C) -> (B, L, channels), without padding.

    As a linear layer on what each place sees, which takes a CPU half of the time of torch's convolution.
    """

    def __init__(self, before: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.linear, self.norm = nn.Linear(before * kernel, channels), nn.LayerNorm(channels)
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.linear(x.unfold(1, self.kernel, self.stride).flatten(2))))


class Around(nn.Module):
    """Tokens (B, L, D), 0 where there is none -> what each is told by the ``reach`` ones around it, (B, L, D)."""

    def __init__(self, dim: int, reach: int):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, reach, padding=reach // 2, groups=math.gcd(dim, 16))
        nn.init.normal_(self.conv.weight, std=(4 / (reach * dim)) ** 0.5)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        return F.gelu(self.conv(tokens.mT)).mT


def standardised(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """x (B, N) less its mean, over its standard deviation, each row's over its real samples; 0 where it is not real.

    Silence stays silent.
    """
    x = blank(x, valid)
    count = x.shape[1] if valid is None else valid.sum(1, keepdim=True).clamp(min=1)
    x = blank(x - x.sum(1, keepdim=True) / count, valid)
    return x / (x.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
