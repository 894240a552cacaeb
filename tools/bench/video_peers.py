"""The published arithmetic of label propagation and of J and F, written out: what tools/bench/video.py compares with.

Axes: C features, N places of a grid, T frames to look at, K labels.
"""

import importlib.util
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def seen(h: int, w: int, how: str, radius: int) -> Tensor:
    """(N, N) bool, by the definition: a table of the square of the places."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    dy, dx = (a.flatten()[:, None] - a.flatten()[None] for a in (y, x))
    if how == "square":
        return (dy.abs() <= radius) & (dx.abs() <= radius)
    far = (dy * dy + dx * dx).float().sqrt()
    return far <= radius if how == "disc" else far < radius


def crw(query: Tensor, keys: Tensor, labels: Tensor, mask: Tensor, topk: int, temperature: float) -> Tensor:
    """Jabri et al., 2020: all affinities, a hundred queries at a time, masked in all frames but the first, the topk of
    all. query (C, N), keys (C, T, N), labels (K, T, N), all of length 1; mask (N, N) bool -> (K, N)."""
    far = torch.where(mask, 0.0, -1e10)
    weights, ids = [], []
    for start in range(0, query.shape[1], 100):
        affinity = torch.einsum("ctm,cn->tmn", keys, query[:, start : start + 100])
        affinity[1:] += far[:, start : start + 100]
        affinity = affinity.flatten(0, 1)
        affinity /= temperature
        weight, index = torch.topk(affinity, topk, dim=0)
        weights.append(F.softmax(weight, dim=0))
        ids.append(index)
    weight, index = torch.cat(weights, 1), torch.cat(ids, 1)
    return (labels.flatten(1)[:, index] * weight[None]).sum(1)


def dino(query: Tensor, keys: Tensor, labels: Tensor, mask: Tensor, topk: int, temperature: float) -> Tensor:
    """Caron et al., 2021: every frame normalised anew, all affinities at once, their exponentials masked, what is below
    the topk-th made 0, and a product with all labels. query (N, C), keys (T, C, N), labels (T, K, N)."""
    count, places = len(keys), len(query)
    query, keys = F.normalize(query, dim=1, p=2), F.normalize(keys, dim=1, p=2)
    affinity = torch.exp(torch.bmm(query[None].repeat(count, 1, 1), keys) / temperature)
    affinity *= mask[None].repeat(count, 1, 1)
    affinity = affinity.transpose(2, 1).reshape(-1, places)
    best, _ = torch.topk(affinity, dim=0, k=topk)
    affinity[affinity < best.min(dim=0).values] = 0
    affinity = affinity / torch.sum(affinity, keepdim=True, dim=0)
    return torch.mm(labels.transpose(2, 1).reshape(-1, labels.shape[1]).T, affinity)


def dinov3(query: Tensor, keys: Tensor, labels: Tensor, mask: Tensor, topk: int, temperature: float) -> Tensor:
    """Siméoni et al., 2025: the same with a softmax. query (N, C), keys (T, N, C), of length 1, labels (T, N, K)."""
    dot = torch.einsum("qc,tkc->qtk", query, keys)
    dot = torch.where(mask[:, None], dot, -torch.inf).flatten(1)
    least = torch.topk(dot, dim=1, k=topk).values[:, -1:]
    dot = torch.where(dot >= least, dot, -torch.inf)
    found = torch.mm(F.softmax(dot / temperature, dim=1), labels.flatten(0, 1))
    return (found / found.sum(dim=1, keepdim=True)).mT


# ------------------------------------------------------------------ J and F


def dilate(edge: np.ndarray, radius: int) -> np.ndarray:
    """By a disc, over the whole frame: by OpenCV as the challenge's code does, or by SciPy where that is not there."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = x * x + y * y <= radius * radius
    try:
        return importlib.import_module("cv2").dilate(edge.astype(np.uint8), disc.astype(np.uint8)).astype(bool)
    except ImportError:
        from scipy.ndimage import binary_dilation

        return binary_dilation(edge, disc)


def dilates_by() -> str:
    return "OpenCV" if importlib.util.find_spec("cv2") else "SciPy"


def official(pred: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of two masks as the DAVIS challenge's code has them (Pont-Tuset et al., 2017): of whole frames."""
    either = np.sum(pred | truth)
    region = 1.0 if np.isclose(either, 0) else np.sum(pred & truth) / either
    radius = math.ceil(0.008 * np.linalg.norm(pred.shape))
    a, b = boundary(pred), boundary(truth)
    near_a, near_b = dilate(a, radius), dilate(b, radius)
    counts = np.sum(a), np.sum(b)
    if not counts[0] or not counts[1]:
        return region, float(counts[0] == counts[1])
    precision, recall = np.sum(a & near_b) / counts[0], np.sum(b & near_a) / counts[1]
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    east, south, both = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1], south[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = mask ^ east | mask ^ south | mask ^ both
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge
