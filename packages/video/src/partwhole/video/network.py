"""Networks that see a frame, with maps as fine as following things through a video needs.

Axes: B frames, H W their pixels, h w places of a map, L tokens, D features.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from partwhole.core.encoder import Encoder
from partwhole.vision.backbone import Backbone
from partwhole.vision.network import Network

STAGES = 4


class FrameResNet(Encoder):
    """A ResNet whose maps are fine (Jabri et al., 2020): frames (B, 3, H, W) -> tokens (B, L, dim) of the last stage.

    ``dense``: its last two stages do not halve the map, which has a place for every 8 pixels then (with the small stem,
    2); else it is trained as usual, with a place for every 32 (8), at a tenth of the cost.
    ``map(x)`` (B, D, h, w) is what objects are followed by: features of stage ``read``, 1 to 4, always of a fine map.
    The paper trains all four stages and follows by the third, of 256 features at width 1. VFS (Xu and Wang, 2021)
    trains the usual network and takes away its strides afterwards, as here without ``dense``.

    ``name``, ``size``, ``width`` and ``stem`` are as of ``vision.backbone.Backbone``, which it is made of. The paper's
    convolutions reflect at the border of a map, these see zeros there.
    """

    incidental = frozenset({"size", "read"})

    def __init__(
        self,
        name: str = "resnet18",
        *,
        dense: bool = True,
        read: int = 3,
        size: int = 64,
        width: float = 1.0,
        stem: Literal["usual", "small"] = "usual",
    ):
        super().__init__()
        if not 1 <= read <= STAGES:
            raise ValueError(f"read is {read}: a ResNet has the stages 1 to {STAGES}")
        self.name, self.dense, self.read, self.size, self.width, self.stem = name, dense, read, size, width, stem
        self.trunk = Backbone(name, size=size, width=width, stem=stem)
        self.dim = self.trunk.dim
        self.halving = tuple(_halving(self.trunk.net, name))  # in a tuple they are no modules of this one, too
        if dense:
            self.stride(1)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.trunk(channels_last(x), valid=valid)

    def map(self, x: Tensor) -> Tensor:
        """(B, D, h, w) of stage ``read``."""
        net: Any = self.trunk.net
        if not self.dense:
            self.stride(1)
        try:
            y = net.maxpool(net.act1(net.bn1(net.conv1(channels_last(x)))))
            for stage in range(1, self.read + 1):
                y = getattr(net, f"layer{stage}")(y)
            return y
        finally:
            if not self.dense:
                self.stride(2)

    def stride(self, pixels: int) -> None:
        """That of the last two stages, from now on."""
        for layer in self.halving:
            layer.stride = (pixels, pixels)

    def stages(self) -> list[nn.Module]:
        return self.trunk.stages()


def channels_last(x: Tensor) -> Tensor:
    """x, laid out as convolutions are fastest on: small maps in two thirds of the time on a CPU."""
    return x.contiguous(memory_format=torch.channels_last)


def _halving(net: Any, name: str) -> Iterator[nn.Conv2d]:
    """The convolutions by which the last two stages halve a map."""
    stages: list[Any] = [getattr(net, f"layer{i}", None) for i in range(1, STAGES + 1)]
    if None in stages or any(isinstance(m, nn.AvgPool2d) for m in net.modules()):
        raise ValueError(f"{name} is no plain ResNet, whose strides could be taken away: take resnet18, 34 or 50")
    for stage in stages[2:]:
        yield from (m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2))


def plain(name: str) -> bool:
    """Whether it is the name of a ResNet whose maps can be made fine."""
    return re.fullmatch(r"resnet\d+", name) is not None


def build(network: Network, size: int, *, dense: bool) -> Encoder:
    """The encoder of frames of ``size`` by ``size`` pixels that a recipe's network describes: of a plain ResNet the one
    with fine maps."""
    if not plain(network.name):
        return network.build(size)
    encoder = FrameResNet(network.name, dense=dense, size=size, width=network.width, stem=network.stem)
    if (weights := network.given()) is not None:
        from partwhole.vision.exchange import load_weights

        load_weights(encoder.trunk, weights)
    return encoder
