"""Which convex component a point belongs to: half-spaces of the components' hulls, one vectorised pass.

Axis letters: P points, K components, H half-spaces of all components together.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Planes:
    """Half-spaces of K convex components: x is inside component k where `normals[i] @ x + offsets[i] <= 0` for all i
    from `starts[k]` to `starts[k + 1]`.  `normals` (H, 3) unit and outward, `offsets` (H,), float32; `starts` (K + 1,);
    `coarse` (K, 6): of each component, the half-spaces that face most nearly along +-x, +-y and +-z."""

    normals: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    coarse: np.ndarray


def planes(components: list[np.ndarray]) -> Planes:
    """The half-spaces of each component's convex hull; `components` are K arrays of vertices (n, 3).

    A flat component is joggled by Qhull, and a component of fewer than four distinct points is a bounding box.
    """
    from scipy.spatial import ConvexHull, QhullError

    equations = []
    for vertices in components:
        vertices = np.asarray(vertices, float)
        try:
            hull = ConvexHull(vertices).equations
        except (QhullError, ValueError):
            try:
                hull = ConvexHull(vertices, qhull_options="QJ Pp").equations
            except (QhullError, ValueError):
                low, high = vertices.min(0), vertices.max(0)
                hull = np.concatenate([np.c_[np.eye(3), -high], np.c_[-np.eye(3), low]])
        equations.append(_unique(hull))
    starts = np.cumsum([0, *(len(e) for e in equations)])
    every = np.concatenate(equations).astype(np.float32)
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    coarse = np.stack([start + (e[:, :3] @ axes.T).argmax(0) for start, e in zip(starts, equations, strict=False)])
    return Planes(np.ascontiguousarray(every[:, :3]), np.ascontiguousarray(every[:, 3]), starts, coarse)


def _unique(equations: np.ndarray) -> np.ndarray:
    """Qhull's facets are triangles: coplanar ones repeat the plane."""
    return equations[np.unique(np.round(equations, 6), axis=0, return_index=True)[1]]


def label(points: np.ndarray, hulls: Planes) -> np.ndarray:
    """Component of every point (P,) int64:  argmin_k max_{i in k} (a_i . p + b_i),  the component in whose hull the
    point lies deepest, or to which it is nearest if it lies in none (up to the corners of hulls, where the largest
    half-space value is a lower bound of the distance).

    The six coarse half-spaces of a component bound its value from below, so that most components are ruled out for a
    point without a look at their others: the same labels as computing everything, some forty times faster.
    """
    points = np.ascontiguousarray(points, np.float32)
    count, (components, _) = len(points), hulls.coarse.shape

    def value(k: int, rows: np.ndarray) -> np.ndarray:
        mine = slice(hulls.starts[k], hulls.starts[k + 1])
        return (hulls.normals[mine] @ points[rows].T + hulls.offsets[mine, None]).max(0)

    some = hulls.coarse.ravel()
    bound = hulls.normals[some] @ points.T
    bound += hulls.offsets[some, None]
    bound = bound.reshape(components, -1, count).max(1)
    labels = bound.argmin(0)
    best = np.full(count, np.inf, np.float32)
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(components + 1))
    for k in range(components):
        rows = order[ends[k] : ends[k + 1]]
        if len(rows):
            best[rows] = value(k, rows)
    maybe = bound <= best
    maybe[labels, np.arange(count)] = False
    for k in np.flatnonzero(maybe.any(1)).tolist():
        rows = np.flatnonzero(maybe[k])
        found = value(k, rows)
        closer = (found < best[rows]) | ((found == best[rows]) & (k < labels[rows]))
        best[rows[closer]], labels[rows[closer]] = found[closer], k
    return labels.astype(np.int64)


def merge_small(points: np.ndarray, labels: np.ndarray, minimum: int) -> np.ndarray:
    """`labels` (P,) where every component of fewer than `minimum` points has been given, point by point, to the nearest
    point's component that is large enough; numbered 0..K-1 by the order of the first number. Unchanged if all are
    small."""
    index, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    small = counts[index] < minimum
    if small.any() and not small.all():
        from scipy.spatial import KDTree

        nearest = KDTree(points[~small]).query(points[small])[1]
        index = index.copy()
        index[small] = index[~small][nearest]
        index = np.unique(index, return_inverse=True)[1]
    return index.astype(np.int64)
