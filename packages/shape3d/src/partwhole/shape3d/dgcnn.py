"""DGCNN: convolutions on graphs that are drawn anew from the features of each layer (Wang et al., 2019).

Axis letters: B batch, P points, K neighbours, D features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, Max, blank
from partwhole.shape3d.norm import MLP, make_norm, rectify
from partwhole.shape3d.ops import gather, nearest
from partwhole.shape3d.pointnet2 import Propagate

SLOPE = 0.2  # of the leaky ReLU, as in the authors' code


class EdgeConv(nn.Module):
    """max over neighbours j of MLP([f_j - f_i; f_i]).

    The first layer is linear: W [f_j - f_i; f_i] = W_a f_j + (W_b - W_a) f_i, so it is applied to the points, not to
    their edges, in float32 also under autocast.
    """

    def __init__(self, dim: int, widths: Sequence[int], *, norm: str):
        super().__init__()
        self.first, self.norm = nn.Linear(2 * dim, widths[0], bias=False), make_norm(norm, widths[0])
        self.rest = MLP(*widths, norm=norm, slope=SLOPE)

    def forward(self, feature: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
        """feature (B, P, dim), index (B, P, K), valid (B, P) -> (B, P, widths[-1])."""
        D = feature.shape[-1]
        with torch.autocast(feature.device.type, enabled=False):
            weight = self.first.weight.to(torch.promote_types(self.first.weight.dtype, torch.float32))
            feature = feature.to(weight.dtype)
            own = F.linear(feature, weight[:, D:] - weight[:, :D])
            x = (
                (gather(F.linear(feature, weight[:, :D]), index) + own[:, :, None])
                .flatten(0, 2)
                .to(self.first.weight.dtype)
            )
        mask = None if valid is None else valid[..., None].expand(index.shape)
        x = self.rest(rectify(self.norm(x, mask), SLOPE), mask)
        return x.view(*index.shape, -1).max(2).values


class DGCNN(Encoder):
    """Points x (B, P, 3), or (B, P, 6) with normals, -> one token per point (B, P, dim): the segmentation network.

    ``width`` scales all channel counts; ``neighbours`` K counts the point itself. ``norm`` as for ``PointNet2``.
    Differences from the authors' code: neither spatial transformer, nor category input, nor dropout; the first graph
    is that of the places alone.
    """

    def __init__(
        self, channels: int = 3, *, width: float = 1.0, neighbours: int = 20, dim: int = 128, norm: str = "batch"
    ):
        super().__init__()
        if channels not in (3, 6) or neighbours < 1:
            raise ValueError(
                f"DGCNN: {channels} channels, {neighbours} neighbours: expected 3 or 6 channels, 1 or more"
            )
        self.channels, self.width, self.neighbours, self.dim, self.norm = channels, width, neighbours, dim, norm
        a, b, c = (max(8, round(w * width)) for w in (64, 256, 1024))
        self.edges = nn.ModuleList(
            EdgeConv(d, widths, norm=norm) for d, widths in ((channels, (a, a)), (a, (a, a)), (a, (a,)))
        )
        self.whole, self.most = MLP(3 * a, c, norm=norm, slope=SLOPE), Max()
        self.join = Propagate(3 * a, c, (b, b), norm=norm, slope=SLOPE)
        self.head = MLP(b, dim, norm=norm, slope=SLOPE)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        if x.dim() != 3 or x.shape[-1] != self.channels:
            raise ValueError(f"DGCNN: x is {tuple(x.shape)}: expected (B, P, {self.channels})")
        x = blank(x, valid)
        places, outs = x[..., :3], []
        for edge in self.edges:
            index = nearest(places, places, self.neighbours, valid)[1]
            x = places = edge(x, index, valid)
            outs.append(x)
        x = torch.cat(outs, -1)
        whole = self.most(self.whole(x, valid), valid)[:, None]
        return self.head(self.join(x, whole, None, valid), valid)

    def stages(self) -> list[nn.Module]:
        return [*self.edges, self.whole, self.join, self.head]
