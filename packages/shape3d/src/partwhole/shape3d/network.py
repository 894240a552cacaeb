"""The networks that a recipe can ask for."""

from dataclasses import dataclass
from typing import Literal

from partwhole.core.encoder import Encoder
from partwhole.core.transformer import TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class Network:
    """The encoder: a feature for every point. Defaults for two CPU cores; the paper's are width 1, samples 512 128,
    neighbours 1.
    """

    name: Literal["pointnet2", "dgcnn", "transformer"] = "pointnet2"
    """PointNet++ with multi-scale grouping, DGCNN, or a transformer over patches of points."""
    width: float = 0.25
    """Channels of PointNet++ and DGCNN, as a share of the paper's."""
    samples: tuple[int, int] = (128, 32)
    """Centres of PointNet++'s two levels."""
    neighbours: float = 0.25
    """Neighbours of a point, as a share of the paper's."""
    dim: int = 128
    """Features per point."""
    depth: int = 4
    """Blocks of the transformer."""
    patches: int = 64
    """Patches of the transformer, of 32 points each; at most one for 8 points."""

    def build(self, channels: int) -> Encoder:
        """With fresh weights, for points of 3 channels, or 6 with normals."""
        if self.name == "pointnet2":
            from partwhole.shape3d.pointnet2 import PointNet2

            return PointNet2(
                channels, width=self.width, samples=self.samples, neighbours=self.neighbours, dim=self.dim
            )  # fmt: skip
        if self.name == "dgcnn":
            from partwhole.shape3d.dgcnn import DGCNN

            return DGCNN(channels, width=self.width, neighbours=max(4, round(20 * self.neighbours)), dim=self.dim)
        from partwhole.shape3d.transformer import PerPoint

        return PerPoint(self.transformer(channels))

    def transformer(self, channels: int) -> TransformerEncoder:
        """Over patches of points."""
        from partwhole.shape3d.transformer import PointPatches

        embed = PointPatches(channels, self.dim, patches=self.patches, per=8)
        return TransformerEncoder(embed, dim=self.dim, depth=self.depth, heads=max(1, self.dim // 32))
