"""Farthest points, nearest points, balls and interpolation on batches of point clouds. No compiled step, CPU and CUDA.

Axis letters: B batch, P points, Q queries, S samples (centres), K neighbours, D features.
``valid`` (B, P) bool is true where a point is real. Padding may hold any finite number and never changes a result;
no function here waits for the device.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}  # of the distance matrix held at once: in the cache; 256 MB


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, P, D) at index (B, ...) -> (B, ..., D). The gradient adds up over repeated rows."""
    B, P, D = x.shape
    if P == 0:
        raise ValueError(f"gather: x is {tuple(x.shape)}: there are no points to take; drop empty shapes first")
    start = torch.arange(0, B * P, P, device=index.device).view(B, *[1] * (index.dim() - 1))
    return x.reshape(B * P, D).index_select(0, (index + start).flatten()).view(*index.shape, D)


def farthest_points(xyz: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Spread ``count`` points over each shape: (B, P, 3) -> index (B, count) int64, in the order of choice.

    The first is the point farthest from the origin, each next one the point farthest from all before (the first of
    equals). Without an arbitrary start the choice follows the points when they are permuted, turned or padded.
    A shape with fewer than ``count`` points repeats some of them at the end: see ``chosen``. (Gonzalez, 1985;
    used for points by Qi et al., 2017.)
    """
    P = xyz.shape[1]
    if xyz.shape[2] != 3 or P == 0 or count < 1:
        raise ValueError(f"farthest_points: xyz {tuple(xyz.shape)}, count {count}: expected (B, P >= 1, 3), count >= 1")
    xyz = xyz.detach().float()
    radius = xyz.square().sum(-1)
    free = torch.full_like(radius, torch.inf)  # squared distance to the nearest chosen point; -1: never choose
    if valid is not None:
        radius, free = radius.masked_fill(~valid, -1), free.masked_fill(~valid, -1)
    first = radius.argmax(1)
    if not xyz.is_cuda:
        return _farthest_cpu(xyz, first, free, count)
    if P <= 1 << 14 and importlib.util.find_spec("triton"):
        from partwhole.shape3d.ops_triton import farthest

        return farthest(xyz, first, free, count)
    return _farthest_loop(xyz, first, free, count)


def _farthest_cpu(xyz: Tensor, first: Tensor, free: Tensor, count: int) -> Tensor:
    """One array per coordinate, everything in place; numpy's argmax is 20 times faster than torch's here."""
    x, y, z = xyz.permute(2, 0, 1).contiguous()
    out = torch.empty(count, len(xyz), dtype=torch.int64)
    out[0] = first
    chosen, far = out.numpy(), free.numpy()
    a, b = torch.empty_like(free), torch.empty_like(free)
    for j in range(count - 1):
        i = out[j][:, None]
        torch.sub(x, x.gather(1, i), out=a)
        torch.mul(a, a, out=a)
        torch.sub(y, y.gather(1, i), out=b)
        a.addcmul_(b, b)
        torch.sub(z, z.gather(1, i), out=b)
        a.addcmul_(b, b)
        torch.minimum(free, a, out=free)
        np.argmax(far, axis=1, out=chosen[j + 1])
    return out.T.contiguous()


def _farthest_loop(xyz: Tensor, first: Tensor, free: Tensor, count: int) -> Tensor:
    """Six kernels per choice, for devices without triton."""
    out = first[:, None].repeat(1, count)
    for j in range(1, count):
        last = xyz.gather(1, out[:, j - 1, None, None].expand(-1, -1, 3))
        free = torch.minimum(free, (xyz - last).square_().sum(-1))
        torch.argmax(free, 1, out=out[:, j])
    return out


def random_points(xyz: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Like ``farthest_points``, at random without repetition while there are points: cheap, less even."""
    B, P, _ = xyz.shape
    key = torch.rand(B, P, device=xyz.device)
    if valid is not None:
        key = key.masked_fill(~valid, 2)
    order = key.argsort(1)
    slot = torch.arange(count, device=xyz.device).expand(B, count)
    real = torch.full((B, 1), P, device=xyz.device) if valid is None else valid.sum(1, keepdim=True)
    return order.gather(1, slot % real.clamp(min=1))


def chosen(count: int, valid: Tensor | None) -> Tensor | None:
    """Which of the ``count`` chosen points are not repetitions: (B, count) bool, or None where all are new."""
    if valid is None:
        return None
    return torch.arange(count, device=valid.device) < valid.sum(1, keepdim=True)


def nearest(query: Tensor, xyz: Tensor, k: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query, nearest first: distance (B, Q, k), index (B, Q, k) int64.

    ``query`` (B, Q, D), ``xyz`` (B, P, D). Where a shape has fewer than k points the distance is infinite and the
    index that of the nearest point. No gradient. In three dimensions on the CPU scipy's tree, elsewhere the top k of
    distances without their square root, in chunks of bounded memory.
    """
    B, P, D = xyz.shape
    if query.shape[::2] != (B, D) or P == 0 or k < 1:
        raise ValueError(
            f"nearest: query {tuple(query.shape)}, xyz {tuple(xyz.shape)}, k {k}: expected (B, Q, D), "
            "(B, P >= 1, D) and k >= 1"
        )
    query, xyz = query.detach().float(), xyz.detach().float()
    if D == 3 and not xyz.is_cuda:
        return _nearest_tree(query, xyz, k, valid)
    return _nearest_top(query, xyz, k, valid)


def _nearest_tree(query: Tensor, xyz: Tensor, k: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    distance = np.empty((*query.shape[:2], k), np.float32)
    index = np.empty(distance.shape, np.int64)
    for b in range(len(xyz)):
        keep = None if valid is None else valid[b].nonzero().squeeze(1).numpy()
        if keep is not None and len(keep) == 0:
            distance[b], index[b] = np.inf, 0
            continue
        points = xyz[b].numpy() if keep is None else xyz[b].numpy()[keep]
        tree: Any = KDTree(points, leafsize=16, balanced_tree=False)
        d, i = tree.query(query[b].numpy(), k=range(1, k + 1))  # a range: (Q, k) also for k = 1
        missing = i == len(points)
        i = np.where(missing, i[:, :1], i)
        distance[b], index[b] = d, i if keep is None else keep[i]
    return torch.from_numpy(distance), torch.from_numpy(index)


def _nearest_top(query: Tensor, xyz: Tensor, k: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    B, P, D = xyz.shape
    query, xyz = query - xyz[:, :1], xyz - xyz[:, :1]  # far from the origin the expanded square would cancel
    square = xyz.square().sum(-1)[:, None]
    if valid is not None:
        square = square.masked_fill(~valid[:, None], torch.inf)
    found = []
    with torch.autocast(xyz.device.type, enabled=False):
        for part in query.split(max(1, ELEMENTS.get(xyz.device.type, 1 << 24) // (B * P)), 1):
            score, index = torch.baddbmm(square, part, xyz.mT, alpha=-2).topk(min(k, P), largest=False)
            if D <= 8:  # exact, unlike the score, and cheap
                apart = (gather(xyz, index) - part[:, :, None]).square().sum(-1)
            else:
                apart = (score + part.square().sum(-1, keepdim=True)).clamp(min=0)
            found.append((apart.masked_fill(score.isinf(), torch.inf), index))
    square, index = (torch.cat(x, 1) for x in zip(*found, strict=True))
    square, order = square.sort(-1)
    distance, index = square.sqrt(), index.gather(-1, order)
    index = torch.where(distance.isinf(), index[..., :1], index)
    if k > P:
        distance = torch.cat([distance, distance.new_full((*distance.shape[:2], k - P), torch.inf)], -1)
        index = torch.cat([index, index[..., :1].expand(-1, -1, k - P)], -1)
    return distance, index


def ball(query: Tensor, xyz: Tensor, radius: float, k: int, valid: Tensor | None = None) -> Tensor:
    """The points within ``radius`` of each query, the nearest k of them: index (B, Q, k) int64.

    Free places repeat the nearest point (which is taken even outside the radius, so that no group is empty).
    The usual code keeps the first k points by their number instead; keeping the nearest is a deviation that makes the
    result independent of their order.
    """
    return balls(query, xyz, [radius], [k], valid)[0]


def balls(
    query: Tensor, xyz: Tensor, radii: Sequence[float], counts: Sequence[int], valid: Tensor | None = None
) -> list[Tensor]:
    """``ball`` for several radii with their k, in one search."""
    distance, index = nearest(query, xyz, max(counts), valid)
    return [
        torch.where(distance[..., :k] <= r, index[..., :k], index[..., :1]) for r, k in zip(radii, counts, strict=True)
    ]


def interpolate(xyz_from: Tensor, feature: Tensor, xyz_to: Tensor, k: int = 3, valid: Tensor | None = None) -> Tensor:
    """Features at new places, the mean of the k nearest by inverse squared distance (Qi et al., 2017).

    ``xyz_from`` (B, P, 3) with ``feature`` (B, P, D) and ``valid`` (B, P) -> (B, Q, D) at ``xyz_to`` (B, Q, 3).
    Linear in ``feature``, differentiable in it; exact where a point lies on its source.
    """
    index, weight = interpolation(xyz_from, xyz_to, k, valid)
    return blend(feature, index, weight)


def interpolation(xyz_from: Tensor, xyz_to: Tensor, k: int = 3, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The index (B, Q, k) and weight (B, Q, k) that ``interpolate`` uses: weights sum to 1."""
    distance, index = nearest(xyz_to, xyz_from, k, valid)
    weight = 1 / (distance.square() + 1e-8)  # 0 at infinite distance
    # a shape without points has only zeros: keep it finite
    return index, weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)


def blend(feature: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of rows of feature (B, P, D): index, weight (B, Q, k) -> (B, Q, D)."""
    return (gather(feature, index) * weight.to(feature.dtype)[..., None]).sum(-2)
