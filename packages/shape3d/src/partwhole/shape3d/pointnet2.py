"""PointNet++ with multi-scale grouping: features of every point from balls around it (Qi et al., 2017).

Axis letters: B batch, P points, S centres, K neighbours, D features.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, blank
from partwhole.shape3d.grouped import group_max
from partwhole.shape3d.norm import MLP, make_norm, rectify
from partwhole.shape3d.ops import balls, blend, chosen, farthest_points, gather, interpolation, random_points

# radius, neighbours, widths of the layers: the part segmentation network of the paper
FIRST = ((0.1, 32, (32, 32, 64)), (0.2, 64, (64, 64, 128)), (0.4, 128, (64, 96, 128)))
SECOND = ((0.4, 64, (128, 128, 256)), (0.8, 128, (128, 196, 256)))


class Group(nn.Module):
    """An MLP on every neighbour's [feature; place relative to the centre], then the maximum over the neighbours.

    The first layer is linear, so it is applied to the points before they are gathered, not to their many copies:
    W [f_j; p_j - c_i] = W [f_j; p_j] - W_p c_i. In float32 also under autocast, for the difference is small.
    """

    def __init__(self, dim: int, widths: Sequence[int], *, norm: str):
        super().__init__()
        self.first, self.norm = nn.Linear(dim + 3, widths[0], bias=False), make_norm(norm, widths[0])
        self.rest = MLP(*widths, norm=norm)
        self.cached = norm == "batch" and len(widths) == 3

    def forward(self, feature: Tensor, xyz: Tensor, centre: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """feature (B, P, dim), xyz (B, P, 3), centre (B, S, 3), index (B, S, K), mask (B, S) -> (B, S, widths[-1])."""
        with torch.autocast(xyz.device.type, enabled=False):
            weight = self.first.weight
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            point = F.linear(torch.cat([feature, xyz], -1).to(weight.dtype), weight)
            place = F.linear(centre.to(weight.dtype), weight[:, -3:])
            if self.cached and not point.is_cuda and point.dtype == self.first.weight.dtype and self.alone():
                return self.pieces(point, place, index, mask)
            x = (gather(point, index) - place[:, :, None]).flatten(0, 2).to(self.first.weight.dtype)
        if mask is not None:
            mask = mask[..., None].expand(index.shape)
        x = self.rest(self.norm(x, mask).relu_(), mask)
        return x.view(*index.shape, -1).max(2).values

    def alone(self) -> bool:
        """Whether ``group_max`` serves: it knows of no other processes, nor of gradients through fixed statistics."""
        return distributed.world() == 1 if self.training else not torch.is_grad_enabled()

    def pieces(self, point: Tensor, place: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """The same on the CPU, two to three times as fast and in a tenth of the memory."""
        B, P, _ = point.shape
        rows = (index + torch.arange(0, B * P, P)[:, None, None]).flatten(0, 1)
        x = group_max(
            point.flatten(0, 1),
            place.flatten(0, 1),
            rows,
            None if mask is None else mask.flatten(),
            [w.to(point.dtype) for w in self.rest.weights()],
            [self.norm, *self.rest.norms],  # type: ignore[list-item]
        )
        return x.view(B, -1, x.shape[1])


class Abstract(nn.Module):
    """Set abstraction: one ``Group`` per radius around each centre, side by side."""

    def __init__(self, dim: int, scales: Sequence[tuple[float, int, Sequence[int]]], *, norm: str):
        super().__init__()
        self.radii, self.counts = [r for r, _, _ in scales], [k for _, k, _ in scales]
        self.groups = nn.ModuleList(Group(dim, widths, norm=norm) for _, _, widths in scales)
        self.dim = sum(widths[-1] for _, _, widths in scales)

    def forward(
        self, feature: Tensor, xyz: Tensor, centre: Tensor, valid: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        indices = balls(centre, xyz, self.radii, self.counts, valid)  # one search for all radii
        outs = [group(feature, xyz, centre, i, mask) for group, i in zip(self.groups, indices, strict=True)]
        return torch.cat(outs, -1)


class Propagate(nn.Module):
    """Coarse features brought to finer points by interpolation, joined with the features there, through an MLP.

    Interpolation is linear as well: the first layer is applied to the coarse points before.
    """

    def __init__(self, fine: int, coarse: int, widths: Sequence[int], *, norm: str, slope: float = 0.0):
        super().__init__()
        self.slope = slope
        self.fine = nn.Linear(fine, widths[0], bias=False)
        self.coarse = nn.Linear(coarse, widths[0], bias=False)
        self.norm, self.rest = make_norm(norm, widths[0]), MLP(*widths, norm=norm, slope=slope)

    def forward(self, fine: Tensor, coarse: Tensor, at: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """fine (B, L, .), coarse (B, M, .), ``at`` index and weight (B, L, 3) or None for M = 1 -> (B, L, D)."""
        brought = self.coarse(coarse)
        x = (self.fine(fine) + (brought if at is None else blend(brought, *at))).flatten(0, 1)
        return self.rest(rectify(self.norm(x, mask), self.slope), mask).view(*fine.shape[:2], -1)


class PointNet2(Encoder):
    """Points x (B, P, 3), or (B, P, 6) with normals, -> one token per point (B, P, dim).

    Shapes are expected centred, the farthest point at radius 1: the radii are 0.1 to 0.8. ``width`` scales all
    channel counts, ``neighbours`` the numbers of neighbours, ``samples`` are the centres of the two abstractions.
    ``norm="batch"`` takes the statistics of real points only, over all processes; ``"layer"`` has none.
    ``sampling="random"`` takes random centres while training.
    Differences from the authors' code: no category input; a ball that holds more points than its places keeps the
    nearest ones.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        width: float = 1.0,
        samples: Sequence[int] = (512, 128),
        neighbours: float = 1.0,
        dim: int = 128,
        norm: str = "batch",
        sampling: str = "farthest",
    ):
        super().__init__()
        if channels not in (3, 6) or len(samples) != 2 or sampling not in ("farthest", "random"):
            raise ValueError(
                f"PointNet2: channels {channels}, samples {samples}, sampling {sampling!r}: expected 3 or 6 channels, "
                'two numbers of centres, "farthest" or "random"'
            )
        self.channels, self.width, self.samples, self.dim = channels, width, tuple(samples), dim
        self.neighbours, self.norm, self.sampling = neighbours, norm, sampling

        def wide(*widths: int) -> list[int]:
            return [max(8, round(w * width)) for w in widths]

        def scaled(scales: Sequence[tuple[float, int, Sequence[int]]]):
            return [(r, max(2, round(k * neighbours)), wide(*w)) for r, k, w in scales]

        self.first = Abstract(channels, scaled(FIRST), norm=norm)
        self.second = Abstract(self.first.dim, scaled(SECOND), norm=norm)
        self.whole = MLP(self.second.dim + 3, *wide(256, 512, 1024), norm=norm)
        self.up2 = Propagate(self.second.dim, wide(1024)[0], wide(256, 256), norm=norm)
        self.up1 = Propagate(self.first.dim, wide(256)[0], wide(256, 128), norm=norm)
        self.up0 = Propagate(channels, wide(128)[0], wide(128, 128), norm=norm)
        self.head = MLP(*wide(128), dim, norm=norm)
        self.everywhere_dim = dim + wide(128)[0] + wide(256)[0] + channels

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self._run(x, valid)[0][-1][0]

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second, self.whole, self.up2, self.up1, self.up0, self.head]

    def levels(self, x: Tensor, *, valid: Tensor | None = None) -> list[tuple[Tensor, Tensor | None]]:
        """Features and validity at the second centres, the first centres and all points, none of them negative.

        Pooled (mean over valid, square root, L2 normalised, side by side) they describe a shape, as the ACD paper
        does for classification.
        """
        return self._run(x, valid)[0]

    def everywhere(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """What every level knows of every point, side by side: (B, P, ``everywhere_dim``).

        The last features, then those of the first and the second centres, interpolated, then the input.
        """
        ((x2, _), (x1, _), (x0, _)), first, second = self._run(x, valid)
        return torch.cat([x0, blend(x1, *first), blend(blend(x2, *second), *first), blank(x, valid).to(x0.dtype)], -1)

    def _run(self, x: Tensor, valid: Tensor | None) -> tuple[list[tuple[Tensor, Tensor | None]], Any, Any]:
        """The levels, and how to interpolate from the first centres to the points and from the second to the first."""
        if x.dim() != 3 or x.shape[-1] != self.channels:
            raise ValueError(f"PointNet2: x is {tuple(x.shape)}: expected (B, P, {self.channels})")
        x = blank(x, valid)
        xyz0 = x[..., :3]
        xyz1, valid1 = self.centres(xyz0, self.samples[0], valid)
        xyz2, valid2 = self.centres(xyz1, self.samples[1], valid1)
        x1 = self.first(x, xyz0, xyz1, valid, valid1)
        x2 = self.second(x1, xyz1, xyz2, valid1, valid2)
        x3 = self.whole(torch.cat([x2, xyz2.to(x2.dtype)], -1), valid2)
        if valid2 is not None:
            x3 = x3.masked_fill(~valid2[..., None], 0)  # nothing is below 0
        x2 = self.up2(x2, x3.amax(1, keepdim=True), None, valid2)
        second = interpolation(xyz2, xyz1, 3, valid2)
        x1 = self.up1(x1, x2, second, valid1)
        first = interpolation(xyz1, xyz0, 3, valid1)
        x0 = self.up0(x, x1, first, valid)
        return [(x2, valid2), (x1, valid1), (self.head(x0, valid), valid)], first, second

    def centres(self, xyz: Tensor, count: int, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        take = random_points if self.sampling == "random" and self.training else farthest_points
        count = min(count, xyz.shape[1])
        return gather(xyz, take(xyz, count, valid)), chosen(count, valid)


class Everywhere(Encoder):
    """A PointNet2 whose token of a point is what all its levels know of it: for telling parts, from few labels.

    Contrast makes the last features forget what does not serve it; a linear layer finds it in those before.
    """

    def __init__(self, encoder: PointNet2):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.everywhere_dim

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.encoder.everywhere(x, valid=valid)

    def stages(self) -> list[nn.Module]:
        return self.encoder.stages()

    def levels(self, x: Tensor, *, valid: Tensor | None = None) -> list[tuple[Tensor, Tensor | None]]:
        """As ``PointNet2.levels``."""
        return self.encoder.levels(x, valid=valid)
