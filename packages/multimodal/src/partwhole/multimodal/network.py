"""An encoder of clips by convolution over space and time.

Axes: B clips, C channels, T frames, H W pixels; t h w places of a map, L of them, D features.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.audio.network import in_turn
from partwhole.core.encoder import Encoder
from partwhole.core.norm import BatchNorm

STRIDES = ((1, 4, 4), (1, 2, 2), (2, 2, 2), (1, 1, 1))  # of the blocks, in time, down and across


class ClipCNN(Encoder):
    """Clips x (B, 3, T, H, W) -> tokens (B, 1 + L, dim): four blocks of convolution over space and time, of ``width``
    channels and twice as many in each that follows, as small as what it is for, on a CPU.

    The first token is of the whole: of every moment the mean and the greatest of each feature over space, then the same
    of these in each of ``segments`` consecutive parts of the clip, as the encoder of sounds has it, so that it is known
    when something happened; a linear layer on that. The others are the places of the map, ``map(x)`` (B, D, t, h, w),
    t half of T, h and w a sixteenth of H and W, rounded up. Convolutions see zeros beyond the border, so that what is
    near it is known.
    """

    special = 1

    def __init__(self, *, width: int = 16, segments: int = 8):
        super().__init__()
        if width < 1 or segments < 1:
            raise ValueError(f"width {width} and segments {segments}: expected 1 or more")
        self.width, self.segments = width, segments
        channels = [3] + [width * 2**i for i in range(len(STRIDES))]
        self.dim = channels[-1]
        kernels = [(3, 7, 7)] + [(3, 3, 3)] * (len(STRIDES) - 1)
        self.convolutions = nn.ModuleList(
            nn.Conv3d(a, b, k, stride=s, padding=(k[0] // 2, k[1] // 2, k[2] // 2), bias=False)
            for (a, b), k, s in zip(pairwise(channels), kernels, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(BatchNorm(c) for c in channels[1:])
        self.whole = nn.Linear(4 * segments * self.dim, self.dim)

    def map(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(f"ClipCNN got {tuple(x.shape)}: clips (B, 3, T, H, W) are needed")
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolved(convolution, x).movedim(1, -1)).relu().movedim(-1, 1)
        return x

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        if valid is not None:
            raise ValueError("a clip has no padded frames: valid is of no use to it")
        y = self.map(x)
        moments = torch.cat([y.mean((3, 4)), y.amax((3, 4))], 1).mT  # (B, t, 2 D)
        return torch.cat([self.whole(in_turn(moments, None, self.segments))[:, None], y.flatten(2).mT], 1)

    def stages(self) -> list[nn.Module]:
        blocks = [nn.ModuleList(pair) for pair in zip(self.convolutions, self.norms, strict=True)]
        return [*blocks, self.whole]


def convolved(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; on a CPU never in bfloat16, where the gradient of torch's convolution over space and time has at
    times numbers that are not finite."""
    assert isinstance(layer, nn.Conv3d)
    if x.device.type != "cpu":
        return layer(x)
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        y = F.conv3d(x.to(wide), layer.weight.to(wide), None, layer.stride, layer.padding)  # type: ignore[arg-type]
    return y.to(layer.weight.dtype)
