"""Points for core's transformer: patches as tokens (Yu et al., 2022; Pang et al., 2022), and tokens back to points.

Axis letters: B batch, P points, L patches, K points of a patch, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Encoder, blank, mlp
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.ops import farthest_points, gather, interpolation, nearest
from partwhole.shape3d.pointnet2 import Propagate


class PointPatches(Embed):
    """Points x (B, P, 3), or (B, P, 6) with normals, -> tokens (B, L, dim), one per patch.

    A patch is a centre, spread by farthest point sampling, with its ``size`` nearest points; a small PointNet sees them
    relative to the centre, and the centre's place is added. L is ``patches``, or with ``per`` at most one for so many
    points, so that a crop costs less than the whole. A patch is real if its centre is no repetition, and if its shape
    has as many; where it has fewer points than ``size``, the centre is repeated.
    Nothing is random: ``forward``, ``position``, ``target`` and ``tokens_valid`` agree on the patches.
    ``target`` is the places relative to the centre, nearest first, (B, L, 3 * size).
    """

    def __init__(self, channels: int = 3, dim: int = 128, *, patches: int = 64, size: int = 32, per: int | None = None):
        super().__init__()
        if channels not in (3, 6) or patches < 1 or size < 1 or (per is not None and per < 1):
            raise ValueError(
                f"PointPatches: channels {channels}, patches {patches}, size {size}, per {per}: "
                "expected 3 or 6, 1 or more of each"
            )
        self.channels, self.dim, self.patches, self.size, self.per = channels, dim, patches, size, per
        self.length, self.target_dim = patches, 3 * size
        self.point, self.patch = mlp(channels, dim, dim, norm="layer"), mlp(2 * dim, 2 * dim, dim, norm="layer")
        self.place = mlp(3, dim, dim)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        x = blank(x, valid)
        centre, index = self._patches(x, valid)
        near = gather(x, index)  # (B, L, K, channels)
        near = torch.cat([near[..., :3] - centre[:, :, None], near[..., 3:]], -1)
        each = self.point(near)
        whole = each.amax(2, keepdim=True)
        first, *rest = self.patch.children()  # of [whole, each]: what points of a patch share is multiplied once
        assert isinstance(first, nn.Linear)
        common, own = first.weight.split(self.dim, 1)
        hidden = F.linear(whole, common, first.bias) + F.linear(each, own)
        for layer in rest:
            hidden = layer(hidden)
        return hidden.amax(2) + self.place(centre)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.place(self.centres(x, valid)[0])

    def coordinates(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return 2 * torch.pi * self.centres(x, valid)[0]  # one turn of the fastest pair from the centre to the edge

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        x = blank(x, valid)
        centre, index = self._patches(x, valid)
        return (gather(x[..., :3], index) - centre[:, :, None]).flatten(2)

    def count(self, points: int) -> int:
        """How many patches L so many points make."""
        return self.patches if self.per is None else min(self.patches, max(1, points // self.per))

    def tokens_valid(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        count = self.count(x.shape[1])
        if valid is None:
            if count <= x.shape[1]:
                return None
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        points = valid.sum(1, keepdim=True)
        many = points if self.per is None else (points // self.per).clamp(min=1).minimum(points)
        return torch.arange(count, device=x.device) < many

    def centres(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Where the patches are (B, L, 3), and which are real (B, L)."""
        xyz = blank(x[..., :3], valid)
        return gather(xyz, farthest_points(xyz, self.count(x.shape[1]), valid)), self.tokens_valid(x, valid)

    def _patches(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Centres (B, L, 3) and the points around them (B, L, K)."""
        centre, _ = self.centres(x, valid)
        return centre, nearest(centre, x[..., :3], self.size, valid)[1]


class PerPoint(Encoder):
    """A transformer over patches as an encoder of points: one token per point (B, P, dim).

    The tokens of the three nearest patches are interpolated at each point and joined with its own place and normal by
    a small MLP. ``encoder`` may come from masked autoencoding.
    """

    def __init__(self, encoder: TransformerEncoder):
        super().__init__()
        if not isinstance(encoder.embed, PointPatches):
            raise TypeError(
                f"PerPoint needs a TransformerEncoder over PointPatches, not {type(encoder.embed).__name__}"
            )
        self.encoder, self.dim = encoder, encoder.dim
        self.join = Propagate(encoder.embed.channels, encoder.dim, (encoder.dim, encoder.dim), norm="layer")
        self.out = nn.Linear(encoder.dim, encoder.dim)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        x = blank(x, valid)
        tokens = self.encoder(x, valid=valid)
        centre, real = self.encoder.embed.centres(x, valid)  # type: ignore[operator]
        at = interpolation(centre, x[..., :3], 3, real)
        return self.out(self.join(x, blank(tokens[:, self.encoder.special :], real), at, valid))

    def stages(self) -> list[nn.Module]:
        return [*self.encoder.stages(), self.join, self.out]
