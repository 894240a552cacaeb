"""Any network of timm as an encoder.

Axis letters: B batch, H W pixels, h w of the map of features, L tokens, D features.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder
from partwhole.core.norm import BatchNorm


class Backbone(Encoder):
    """A network of timm by its name, without its classifier: images (B, 3, H, W) -> tokens (B, L, dim), fresh weights.

    Of a CNN the tokens are the h * w places of its last map; of a transformer its class token, if any, then its
    patches.
    ``size``: the side that a transformer learns its positions for; it takes others too.
    ``width`` multiplies the channels of a ResNet. ``stem`` "small" is the usual one for images of 32 to 64 pixels
    (Chen et al., 2020, B.9): a ResNet begins with a 3 x 3 convolution of stride 1 and no pooling.
    ``options``: more arguments of timm's, each as (name, value).
    BatchNorm's statistics are those of all processes.
    """

    incidental = frozenset({"size"})

    def __init__(
        self,
        name: str,
        *,
        size: int = 224,
        width: float = 1.0,
        stem: Literal["usual", "small"] = "usual",
        options: Sequence[Any] = (),
    ):
        super().__init__()
        import timm

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), 5, 0.4)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise ValueError(f"timm has no model {name!r}: {hint}timm.list_models() names all")
        if stem not in ("usual", "small"):
            raise ValueError(f'stem is "usual" or "small"; got {stem!r}')
        self.name, self.size, self.width, self.stem, self.options = name, size, width, stem, options
        self.arguments: dict[str, Any] = {k: v for k, v in options}
        if width != 1:
            channels = [max(8, round(width * c)) for c in (64, 128, 256, 512)]
            self.arguments |= {"channels": channels, "stem_width": channels[0]}
        sized = {"img_size": size, "dynamic_img_size": True}
        try:
            try:
                net = timm.create_model(name, num_classes=0, **self.arguments, **sized)
                self.arguments |= sized
            except TypeError:  # of a network that takes any size as it is
                net = timm.create_model(name, num_classes=0, **self.arguments)
        except TypeError as error:
            if options:
                raise ValueError(f"timm cannot make {name} with {dict(options)}: {error}") from error
            raise ValueError(f"only ResNets have a width to choose, not {name}: leave width at 1") from error
        if stem == "small":
            first = getattr(net, "conv1", None)
            if not isinstance(first, nn.Conv2d) or not hasattr(net, "maxpool"):
                raise ValueError(f"{name} has no stem that could be made small: choose a ResNet, or stem='usual'")
            net.conv1 = nn.Conv2d(3, first.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
            net.maxpool = nn.Identity()
        self.net: Any = joined(net)
        self.dim: int = self.net.num_features
        prefix = int(getattr(net, "num_prefix_tokens", 0))
        self.special = int(prefix > 0 and getattr(net, "cls_token", None) is not None)
        self.registers = prefix - self.special
        self.eval()
        try:
            with torch.no_grad():
                shape = self.net.forward_features(torch.zeros(1, 3, size, size)).shape
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"{name} takes no images of {size} pixels a side: {error}") from error
        self.last = len(shape) == 4 and shape[-1] == self.dim and shape[1] != self.dim  # channels last, as Swin's
        self.train()

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        if valid is not None:
            raise ValueError("an image has no padded positions: valid is of no use to it")
        y = self.net.forward_features(x)
        if y.ndim == 4:
            return y.flatten(1, 2) if self.last else y.flatten(2).mT
        return torch.cat([y[:, : self.special], y[:, self.special + self.registers :]], 1) if self.registers else y

    def stages(self) -> list[nn.Module]:
        parts = [m for m in self.net.children() if any(True for _ in m.parameters())]
        return [one for m in parts for one in (m if isinstance(m, nn.Sequential) else [m])]


class BatchNorm2d(BatchNorm):
    """Core's BatchNorm for maps (B, D, h, w), and what timm put behind it."""

    def __init__(self, old: nn.BatchNorm2d):
        super().__init__(old.num_features, momentum=0.1 if old.momentum is None else old.momentum, eps=old.eps)
        self.drop, self.act = (getattr(old, name, nn.Identity()) for name in ("drop", "act"))
        with torch.no_grad():
            self.weight.copy_(old.weight)
            self.bias.copy_(old.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if self.training and (distributed.world() > 1 or len(x) * x.shape[2] * x.shape[3] == 1):
            y = super().forward(x.movedim(1, -1), valid).movedim(-1, 1)
        else:
            kept = self.track_running_stats or not self.training
            mean, var = (self.running_mean, self.running_var) if kept else (None, None)
            y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        return self.act(self.drop(y))


def joined(net: nn.Module) -> nn.Module:
    """The network with every BatchNorm of maps replaced by ours."""
    for name, module in net.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(net, name, BatchNorm2d(module))
        else:
            joined(module)
    return net
