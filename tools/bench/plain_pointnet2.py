"""What the benchmark compares with: PointNet++ and the ACD pair loss in the operations that most PyTorch code uses.

Written for this purpose after the widely used formulation: distances by expansion, full sorts, a distance matrix per
query, layers as 1 x 1 convolutions on (B, D, K, S), a (B, P, P) loss. Slow on purpose, and not for use.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared, (B, N, 3), (B, M, 3) -> (B, N, M)."""
    return -2 * a @ b.mT + a.square().sum(-1, keepdim=True) + b.square().sum(-1)[:, None]


def pick(x: Tensor, index: Tensor) -> Tensor:
    batch = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.dim() - 1)).expand_as(index)
    return x[batch, index]


def farthest(xyz: Tensor, count: int) -> Tensor:
    B, N, _ = xyz.shape
    chosen = torch.zeros(B, count, dtype=torch.long, device=xyz.device)
    nearest = xyz.new_full((B, N), 1e10)
    current = torch.zeros(B, dtype=torch.long, device=xyz.device)
    shapes = torch.arange(B, device=xyz.device)
    for i in range(count):
        chosen[:, i] = current
        centre = xyz[shapes, current].view(B, 1, 3)
        d = ((xyz - centre) ** 2).sum(-1)
        closer = d < nearest
        nearest[closer] = d[closer]
        current = nearest.max(-1)[1]
    return chosen


def ball(radius: float, k: int, xyz: Tensor, query: Tensor) -> Tensor:
    B, N, _ = xyz.shape
    S = query.shape[1]
    index = torch.arange(N, device=xyz.device).view(1, 1, N).repeat(B, S, 1)
    index[distances(query, xyz) > radius**2] = N
    index = index.sort(dim=-1)[0][:, :, :k]
    first = index[:, :, :1].repeat(1, 1, k)
    missing = index == N
    index[missing] = first[missing]
    return index


def interpolate(xyz: Tensor, feature: Tensor, to: Tensor) -> Tensor:
    d, index = distances(to, xyz).sort(dim=-1)
    weight = 1 / (d[:, :, :3].clamp(min=0) + 1e-8)
    weight = weight / weight.sum(2, keepdim=True)
    return (pick(feature, index[:, :, :3]) * weight[..., None]).sum(2)


def neighbours(x: Tensor, k: int) -> Tensor:
    return (-distances(x, x)).topk(k, dim=-1)[1]


def layers2d(dims: list[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(dims))


def layers1d(dims: list[int]) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(dims)))


class Abstract(nn.Module):
    def __init__(self, count: int, scales: list[tuple[float, int, list[int]]], dim: int):
        super().__init__()
        self.count, self.scales = count, scales
        self.mlps = nn.ModuleList(layers2d([dim + 3, *widths]) for _, _, widths in scales)

    def forward(self, xyz: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """xyz (B, N, 3), feature (B, N, D)."""
        centre = pick(xyz, farthest(xyz, self.count))
        outs = []
        for (radius, k, _), mlp in zip(self.scales, self.mlps, strict=True):
            index = ball(radius, k, xyz, centre)
            near = pick(xyz, index) - centre[:, :, None]
            x = torch.cat([pick(feature, index), near], -1).permute(0, 3, 2, 1)  # (B, D, K, S)
            for layer in mlp:  # type: ignore[union-attr]
                x = layer(x)
            outs.append(x.max(2)[0])
        return centre, torch.cat(outs, 1).mT


class PlainPointNet2(nn.Module):
    """The part segmentation network (multi-scale grouping) up to its 128 features: (B, N, 3) -> (B, N, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Abstract(512, [(0.1, 32, [32, 32, 64]), (0.2, 64, [64, 64, 128]), (0.4, 128, [64, 96, 128])], 3)
        self.second = Abstract(128, [(0.4, 64, [128, 128, 256]), (0.8, 128, [128, 196, 256])], 320)
        self.whole = layers1d([515, 256, 512, 1024])
        self.up2, self.up1 = layers1d([1536, 256, 256]), layers1d([576, 256, 128])
        self.up0 = layers1d([131, 128, 128, 128])

    def forward(self, xyz: Tensor) -> Tensor:
        xyz1, x1 = self.first(xyz, xyz)
        xyz2, x2 = self.second(xyz1, x1)
        x3 = self.whole(torch.cat([xyz2, x2], -1).mT).max(2)[0]
        x2 = self.up2(torch.cat([x2.mT, x3[..., None].repeat(1, 1, xyz2.shape[1])], 1)).mT
        x1 = self.up1(torch.cat([x1, interpolate(xyz2, x2, xyz1)], -1).mT).mT
        return self.up0(torch.cat([xyz, interpolate(xyz1, x1, xyz)], -1).mT).mT


def pair_loss(feature: Tensor, component: Tensor, margin: float = 0.5) -> Tensor:
    """All pairs of a shape, as matrices (B, P, P): cosine, margin, all positives and as many negatives at random."""
    z = F.normalize(feature, dim=-1)
    similarity = z @ z.mT
    same = (component[:, :, None] == component[:, None, :]).float()
    other = (torch.rand_like(same) < same.mean()).float() * (1 - same)
    loss = same * (1 - similarity) + (1 - same) * (similarity - margin).clamp(min=0)
    off = 1 - torch.eye(component.shape[1], device=feature.device)[None]
    return 0.5 * (loss * (same + other) * off).mean()
