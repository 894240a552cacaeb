"""Which convex component a point belongs to: half-spaces of the components' hulls, one vectorised pass.

Axis letters: P points, K components, H half-spaces of all components together.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Planes:
    """Half-spaces of K convex components: x is inside component k where `normals[i] @ x + offsets[i] <= 0` for all i from
    `starts[k]` to `starts[k + 1]`.  `normals` (H, 3) unit and outward, `offsets` (H,), float32; `starts` (K,)."""

    normals: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray


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
    starts = np.cumsum([0, *(len(e) for e in equations[:-1])])
    every = np.concatenate(equations).astype(np.float32)
    return Planes(np.ascontiguousarray(every[:, :3]), np.ascontiguousarray(every[:, 3]), starts)


def _unique(equations: np.ndarray) -> np.ndarray:
    """Qhull's facets are triangles: coplanar ones repeat the plane."""
    return equations[np.unique(np.round(equations, 6), axis=0, return_index=True)[1]]


def label(points: np.ndarray, hulls: Planes, *, chunk: int = 1024) -> np.ndarray:
    """Component of every point (P,) int64:  argmin_k max_{i in k} (a_i . p + b_i),  the component in whose hull the point
    lies deepest, or to which it is nearest if it lies in none (up to the corners of hulls, where the largest half-space
    value is a lower bound of the distance)."""
    points = np.asarray(points, np.float32)
    labels = np.empty(len(points), np.int64)
    for start in range(0, len(points), chunk):  # the values of a chunk stay in the processor's cache
        values = hulls.normals @ points[start : start + chunk].T
        values += hulls.offsets[:, None]
        labels[start : start + chunk] = np.maximum.reduceat(values, hulls.starts, axis=0).argmin(0)
    return labels


def merge_small(points: np.ndarray, labels: np.ndarray, minimum: int) -> np.ndarray:
    """`labels` (P,) where every component of fewer than `minimum` points has been given, point by point, to the nearest
    point's component that is large enough; numbered 0..K-1 by the order of the first number. Unchanged if all are small."""
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    small = counts[index] < minimum
    if small.any() and not small.all():
        from scipy.spatial import cKDTree

        nearest = cKDTree(points[~small]).query(points[small])[1]
        index = index.copy()
        index[small] = index[~small][nearest]
        index = np.unique(index, return_inverse=True)[1]
    return index.astype(np.int64)
