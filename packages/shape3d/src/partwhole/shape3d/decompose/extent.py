"""How large hulls of points are, for many sets of points at once, and how far points and their hull are apart.

Axis letters: P points, D directions, T triangles of directions, F facets.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAMPLES = 256  # points of a hull's surface that look for the cloud; about as many points have their depth measured


@lru_cache(maxsize=1)
def sphere(subdivisions: int = 2) -> tuple[Floats, Ints]:
    """Directions (D, 3) spread over the sphere and the triangles (T, 3) between them: an icosahedron, subdivided."""
    golden = (1 + 5**0.5) / 2
    corners = [(x, y * golden, 0.0) for x in (-1, 1) for y in (-1, 1)]
    points = [np.roll(corner, shift) for shift in range(3) for corner in corners]
    vertices = [p / np.linalg.norm(p) for p in points]
    near = np.array(vertices) @ np.array(vertices).T > 0.4
    faces = [
        (i, j, k) if np.linalg.det([vertices[i], vertices[j], vertices[k]]) > 0 else (i, k, j)
        for i in range(12)
        for j in range(i)
        for k in range(j)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}
        finer = []
        for face in faces:
            inner = []
            for a, b in zip(face, face[1:] + face[:1], strict=True):
                edge = (min(a, b), max(a, b))
                if edge not in middle:
                    middle[edge] = len(vertices)
                    vertices.append((vertices[a] + vertices[b]) / np.linalg.norm(vertices[a] + vertices[b]))
                inner.append(middle[edge])
            (a, b, c), (ab, bc, ca) = face, inner
            finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = finer
    return np.array(vertices), np.array(faces)


def reach(points: Floats) -> NDArray[np.float32]:
    """How far points (P, 3) go in each direction of `sphere`: (D, P)."""
    return sphere()[0].astype(np.float32) @ points.T.astype(np.float32)


def farthest(points: Floats) -> Floats:
    """The farthest of some points (P, 3) in each direction of `sphere`: (D, 3)."""
    return points[reach(points).argmax(1)]


def size(corners: Floats, thickness: float) -> Floats:
    """Volume of hulls grown by `thickness`, from their `farthest` points (..., D, 3).

    The map from a direction to the farthest point there carries the triangulated sphere onto the hull's surface, so
    volume and area are sums over triangles, without finding facets. Growing adds thickness * area (Steiner's formula to
    first order): flat sets then have a size too, and cutting a solid through costs what the cut is wide.
    """
    triangles = sphere()[1]
    ax, ay, az = np.moveaxis(corners[..., triangles[:, 0], :], -1, 0)
    bx, by, bz = np.moveaxis(corners[..., triangles[:, 1], :], -1, 0)
    cx, cy, cz = np.moveaxis(corners[..., triangles[:, 2], :], -1, 0)
    ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    volume = (ax * nx + ay * ny + az * nz).sum(-1) / 6
    area = np.sqrt(nx * nx + ny * ny + nz * nz).sum(-1) / 2
    return volume + thickness * area


def concavity(points: Floats, cuts: Floats, spacing: float, depth: float = 0.98, gap: float = 0.8) -> float:
    """How far points (P, 3) are from the surface of their hull, in both directions: 0 where they are convex.

    From points to hull: the depth that a fraction `depth` of the points do not exceed. From hull to points: the
    distance that a fraction `gap` of its surface do not exceed, less two spacings; surface along `cuts` (planes as rows
    normal, offset: (n, 4)) does not count, as no point was ever on it. `gap` is so low that a cup is one part, whose
    mouth is a sixth of the hull; of what only the hull holds together, as four legs, more than that is in the air.
    """
    from scipy.spatial import KDTree

    if len(points) < 4:
        return 0.0
    normals, offsets, triangles = _hull(points)
    some = points[:: max(1, len(points) // SAMPLES)]
    deep = float(np.quantile(np.maximum(-(some @ normals.T + offsets).max(1), 0), depth))
    surface, owner = _spread(triangles, SAMPLES)
    along = np.abs(normals[owner] @ cuts[:, :3].T) > 0.9
    near = np.abs(surface @ cuts[:, :3].T - cuts[:, 3]) < 2 * spacing
    free = ~(along & near).any(1)
    if not free.any():
        return deep
    return max(deep, float(np.quantile(KDTree(points).query(surface[free])[0], gap)) - 2 * spacing)


def _hull(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Facets of the hull of the farthest of points (P, 3): normals (F, 3), offsets (F,), triangles (F, 3, 3)."""
    from scipy.spatial import ConvexHull, QhullError

    corners = np.unique(farthest(points), axis=0)
    axes = np.linalg.svd(corners - corners.mean(0), full_matrices=True)[2]
    for axis in axes[np.ptp(corners @ axes.T, axis=0) < 1e-3]:  # flat or thin: a hull needs some thickness
        corners = np.concatenate([corners - 1e-3 * axis, corners + 1e-3 * axis])
    try:
        hull = ConvexHull(corners)
    except QhullError:
        hull = ConvexHull(corners, qhull_options="QJ")
    return hull.equations[:, :3], hull.equations[:, 3], corners[hull.simplices]


def _spread(triangles: Floats, count: int) -> tuple[Floats, Ints]:
    """`count` points spread evenly over triangles (F, 3, 3), and the triangle of each: no randomness."""
    across = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    ends = np.cumsum(np.linalg.norm(across, axis=1))
    owner = np.minimum(np.searchsorted(ends, (np.arange(count) + 0.5) / count * ends[-1]), len(ends) - 1)
    u = (np.arange(count) * 0.7548776662466927 + 0.5) % 1  # the R2 sequence (Roberts, 2018)
    v = (np.arange(count) * 0.5698402909980532 + 0.5) % 1
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = triangles[owner, 0], triangles[owner, 1], triangles[owner, 2]
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), owner
