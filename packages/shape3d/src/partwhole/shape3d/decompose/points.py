"""Approximate convex decomposition of a bare point cloud: cut by planes, separate what is not connected, merge.

The greedy cutting by planes follows V-HACD (Mamou, 2016) and CoACD (Wei et al., 2022); working on points needs neither
faces nor a closed surface. Axis letters: P points, D directions, T triangles of directions, A cutting axes, S slabs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Plane = tuple[Floats, float]  # unit normal and offset: the plane of all x with normal . x == offset

SLABS = 16  # cuts tried per axis: one between each two slabs of equal thickness
CANDIDATES = 12  # cuts whose halves are separated into connected pieces before they are compared
HULL_SAMPLES = 256  # points of a hull's surface that look for the cloud; also points whose depth is measured
FEWEST = 8  # a smaller piece is not a part of its own: it joins a neighbour


@dataclass(frozen=True)
class _Cloud:
    """A cleaned cloud: distinct points in canonical order, farthest at radius 1, and who neighbours whom."""

    points: Floats  # (P, 3)
    edges: Ints  # (E, 2): neighbours closer than a few spacings
    spacing: float  # distance between neighbouring points, if they stood on a square grid
    noise: float  # standard deviation of points from the plane of their neighbours


@dataclass(frozen=True)
class _Part:
    points: Ints  # rows of the cloud
    planes: tuple[Plane, ...]  # the cuts that made it: hull surface there is not a gap


def decompose_points(
    points: ArrayLike, *, tolerance: float = 0.05, seed: int = 0, normals: ArrayLike | None = None
) -> Ints:
    """Approximately convex parts of a cloud (P, 3) of surface points: labels (P,) int64, 0 for the largest part.

    `tolerance`: how far a part may differ from its convex hull, where the farthest point is at distance 1 from the
    mean. It is raised with the noise found in the points. `seed` chooses the points that are cut where P > 2,048; the
    others take the label of their nearest. The result does not depend on the order of the points, on their scale or
    place, or on points that occur twice. Raises ValueError for points that are not finite, or of fewer than four places.
    """
    return decompose_points_levels(points, tolerances=(tolerance,), seed=seed, normals=normals)[0]


def decompose_points_levels(
    points: ArrayLike,
    *,
    tolerances: tuple[float, ...] = (0.1, 0.05, 0.03),
    seed: int = 0,
    normals: ArrayLike | None = None,
    limit: int = 2048,
) -> Ints:
    """As `decompose_points` at several tolerances: labels (levels, P), in the order of `tolerances`.

    The cloud is cut once, at the smallest tolerance; coarser levels merge the parts of finer ones, so levels nest.
    """
    given = _checked(points, normals)
    if not tolerances or not all(0 < t < 1 for t in tolerances):
        raise ValueError(f"tolerances {tolerances}: expected one or more numbers between 0 and 1, such as (0.1, 0.05)")
    distinct, back = np.unique(given, axis=0, return_inverse=True)
    if len(distinct) < 4:
        raise ValueError(f"{len(distinct)} distinct points of {len(given)}: expected 4 or more; leave this shape out")
    distinct = distinct - distinct.mean(0)
    distinct /= np.linalg.norm(distinct, axis=1).max()
    chosen = np.arange(len(distinct))
    if len(distinct) > limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:limit])
    cloud = _cloud(distinct[chosen])
    parts = _cut(cloud, min(tolerances) + 2 * cloud.noise)
    parts = _absorb_crumbs(cloud, parts)
    levels = np.empty((len(tolerances), len(given)), dtype=np.int64)
    nearest = _nearest(cloud.points, distinct) if len(chosen) < len(distinct) else np.arange(len(distinct))
    for level in sorted(range(len(tolerances)), key=lambda i: tolerances[i]):
        parts = _merge(cloud, parts, tolerances[level] + 2 * cloud.noise)
        labels = _labels(parts, len(cloud.points))
        levels[level] = labels[nearest][back.reshape(-1)]
    return levels


def _checked(points: ArrayLike, normals: ArrayLike | None) -> Floats:
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 3:
        raise ValueError(f"points of shape {given.shape}: expected (P, 3)")
    if not len(given):
        raise ValueError("no points: expected 4 or more")
    if wrong := int((~np.isfinite(given)).any(1).sum()):
        raise ValueError(f"{wrong} of {len(given)} points hold NaN or infinity: remove them or leave this shape out")
    if normals is not None and np.shape(normals) != given.shape:
        raise ValueError(f"normals of shape {np.shape(normals)} for points of shape {given.shape}: expected the same")
    return given


# The cloud ------------------------------------------------------------------------------------------------------------


def _cloud(points: Floats, neighbours: int = 16) -> _Cloud:
    from scipy.spatial import cKDTree

    k = min(neighbours, len(points) - 1)
    distance, index = cKDTree(points).query(points, k=k + 1)
    # On a surface with one point per spacing^2 the kth neighbour is at spacing * sqrt(k / pi), roughly.
    ring = min(6, k)
    spacing = float(np.median(distance[:, ring])) * np.sqrt(np.pi / ring)
    start = np.repeat(np.arange(len(points)), k)
    near = distance[:, 1:].ravel() <= 2.5 * spacing
    edges = np.stack([start, index[:, 1:].ravel()], axis=1)[near]
    around = points[index] - points[index].mean(1, keepdims=True)
    flatness = np.linalg.eigvalsh(np.einsum("pki,pkj->pij", around, around) / (k + 1))[:, 0]
    noise = float(np.sqrt(np.maximum(np.median(flatness), 0)))
    return _Cloud(points, edges.astype(np.int64), spacing, noise)


def _nearest(points: Floats, queries: Floats) -> Ints:
    from scipy.spatial import cKDTree

    return cKDTree(points).query(queries)[1].astype(np.int64)


def _connected(cloud: _Cloud, rows: Ints) -> list[Ints]:
    """The connected pieces of some points of the cloud, largest first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    place = np.full(len(cloud.points), -1)
    place[rows] = np.arange(len(rows))
    a, b = place[cloud.edges[:, 0]], place[cloud.edges[:, 1]]
    keep = (a >= 0) & (b >= 0)
    graph = coo_matrix((np.ones(keep.sum(), dtype=np.int8), (a[keep], b[keep])), shape=(len(rows), len(rows)))
    count, piece = connected_components(graph, directed=False)
    if count == 1:
        return [rows]
    order = np.argsort(piece, kind="stable")
    pieces = np.split(rows[order], np.cumsum(np.bincount(piece))[:-1])
    return sorted(pieces, key=len, reverse=True)


# Hulls ----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _sphere(subdivisions: int = 2) -> tuple[Floats, Ints]:
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


def _size(corners: Floats, thickness: float) -> Floats:
    """Volume of hulls grown by `thickness`, from their farthest points (..., D, 3) in the directions of `_sphere`.

    The map from a direction to the farthest point there carries the triangulated sphere onto the hull's surface, so
    volume and area are sums over triangles, of any number of hulls at once. Growing adds thickness * area (Steiner):
    flat parts then have a size too, and cuts through much surface cost.
    """
    triangles = _sphere()[1]
    a = corners[..., triangles[:, 0], :]
    across = np.cross(corners[..., triangles[:, 1], :] - a, corners[..., triangles[:, 2], :] - a)
    volume = np.einsum("...ti,...ti->...", a, across) / 6
    area = np.sqrt(np.einsum("...ti,...ti->...t", across, across)).sum(-1) / 2
    return volume + thickness * area


def _farthest(points: Floats) -> Floats:
    """The farthest of some points (P, 3) in each direction: (D, 3)."""
    return points[np.argmax(points @ _sphere()[0].T, axis=0)]


def _hull(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Facets of the hull of points (P, 3): outward normals (F, 3), offsets (F,), triangles (F, 3, 3)."""
    from scipy.spatial import ConvexHull, QhullError

    corners = np.unique(_farthest(points), axis=0)
    centred = corners - corners.mean(0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]
    extent = np.ptp(centred @ axes.T, axis=0)
    for axis in axes[extent < 1e-3]:  # flat or thin: a hull needs some thickness
        corners = np.concatenate([corners - 1e-3 * axis, corners + 1e-3 * axis])
    try:
        hull = ConvexHull(corners)
    except QhullError:
        hull = ConvexHull(corners, qhull_options="QJ")
    return hull.equations[:, :3], hull.equations[:, 3], corners[hull.simplices]


def _spread(triangles: Floats, areas: Floats, count: int) -> tuple[Floats, Ints]:
    """`count` points spread evenly over triangles (F, 3, 3), and the triangle of each: no randomness."""
    ends = np.cumsum(areas)
    step = (np.arange(count) + 0.5) / count
    owner = np.minimum(np.searchsorted(ends, step * ends[-1]), len(areas) - 1)
    u, v = (np.arange(count) * 0.7548776662466927 + 0.5) % 1, (np.arange(count) * 0.5698402909980532 + 0.5) % 1
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = triangles[owner, 0], triangles[owner, 1], triangles[owner, 2]
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), owner


def _concavity(cloud: _Cloud, part: _Part) -> float:
    """How far the points of a part are from the surface of their hull, in both directions; 0 for a convex part.

    From points to hull: the depth that 98 % of the points do not exceed. From hull to points: the distance that 95 %
    of its surface do not exceed, less two spacings; the surface along the cuts that made the part does not count.
    """
    from scipy.spatial import cKDTree

    points = cloud.points[part.points]
    if len(points) < 4:
        return 0.0
    normals, offsets, triangles = _hull(points)
    some = points[:: max(1, len(points) // HULL_SAMPLES)]
    depth = np.quantile(np.maximum(-(some @ normals.T + offsets).max(1), 0), 0.98)
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    surface, owner = _spread(triangles, areas, HULL_SAMPLES)
    free = np.ones(len(surface), dtype=bool)
    for normal, offset in part.planes:
        along = np.abs(normals[owner] @ normal) > 0.9
        free &= ~(along & (np.abs(surface @ normal - offset) < 2 * cloud.spacing))
    if not free.any():
        return float(depth)
    gap = np.quantile(cKDTree(points).query(surface[free])[0], 0.95) - 2 * cloud.spacing
    return float(max(depth, gap))


# Cutting --------------------------------------------------------------------------------------------------------------


def _cut(cloud: _Cloud, tolerance: float) -> list[_Part]:
    done: list[_Part] = []
    waiting = [_Part(rows, ()) for rows in _connected(cloud, np.arange(len(cloud.points)))]
    while waiting:
        part = waiting.pop()
        if len(part.points) < 2 * FEWEST or _concavity(cloud, part) <= tolerance:
            done.append(part)
            continue
        plane = _best_plane(cloud, part)
        if plane is None:
            done.append(part)
            continue
        above = cloud.points[part.points] @ plane[0] > plane[1]
        for side in (part.points[above], part.points[~above]):
            waiting += [_Part(rows, (*part.planes, plane)) for rows in _connected(cloud, side)]
    return done


def _best_plane(cloud: _Cloud, part: _Part) -> Plane | None:
    """The plane whose two sides, separated into connected pieces, have the least total hull volume."""
    points = cloud.points[part.points]
    axes = np.concatenate([np.eye(3), np.linalg.svd(points - points.mean(0), full_matrices=False)[2]])
    low, high = (points @ axes.T).min(0), (points @ axes.T).max(0)
    offsets = low[:, None] + (high - low)[:, None] * (np.arange(1, SLABS) / SLABS)
    scores = np.stack([_sweep(points, axis, offset, cloud.spacing) for axis, offset in zip(axes, offsets, strict=True)])
    order = np.argsort(np.round(scores, 9), axis=None, kind="stable")[:CANDIDATES]
    best, found = np.inf, None
    for at in order:
        axis, number = np.unravel_index(at, scores.shape)
        if not np.isfinite(scores[axis, number]):
            continue
        step = (high[axis] - low[axis]) / SLABS
        total = _pieces_size(cloud, part, (axes[axis], float(offsets[axis, number])))
        if total < best * (1 - 1e-6):
            best, found = total, (axes[axis], float(offsets[axis, number]), step)
    if found is None:
        return None
    axis, offset, step = found
    finer = offset + step * np.linspace(-0.75, 0.75, 7)
    totals = np.array([_pieces_size(cloud, part, (axis, float(o))) for o in finer])
    at = int(np.argmin(np.round(totals, 9)))
    return (axis, float(finer[at])) if totals[at] < best else (axis, offset)


def _sweep(points: Floats, axis: Floats, offsets: Floats, thickness: float) -> Floats:
    """Total hull size of the two sides of each of some parallel planes (S - 1,): inf where a side is empty."""
    directions = _sphere()[0]
    slab = np.searchsorted(offsets, points @ axis)
    order = np.argsort(slab, kind="stable")
    ends = np.searchsorted(slab[order], np.arange(len(offsets) + 2))
    sorted_points = points[order]
    reach = sorted_points @ directions.T
    count = len(offsets) + 1
    farthest = np.full((count, len(directions)), -np.inf)
    corners = np.zeros((count, len(directions), 3))
    for s in range(count):
        if ends[s] < ends[s + 1]:
            at = ends[s] + np.argmax(reach[ends[s] : ends[s + 1]], axis=0)
            farthest[s] = reach[at, np.arange(len(directions))]
            corners[s] = sorted_points[at]
    below, above = np.empty((count - 1, *corners.shape[1:])), np.empty((count - 1, *corners.shape[1:]))
    for side, slabs in ((below, range(count - 1)), (above, range(count - 1, 0, -1))):
        best, where = np.full(len(directions), -np.inf), np.zeros((len(directions), 3))
        for s in slabs:
            better = farthest[s] > best
            best, where = np.where(better, farthest[s], best), np.where(better[:, None], corners[s], where)
            side[s if side is below else s - 1] = where
    total = _size(below, thickness) + _size(above, thickness)
    inside = ends[1:-1]
    total[(inside < FEWEST) | (len(points) - inside < FEWEST)] = np.inf
    return total


def _pieces_size(cloud: _Cloud, part: _Part, plane: Plane) -> float:
    above = cloud.points[part.points] @ plane[0] > plane[1]
    if min(above.sum(), (~above).sum()) < FEWEST:
        return np.inf
    pieces = [rows for side in (above, ~above) for rows in _connected(cloud, part.points[side])]
    return float(sum(_size(_farthest(cloud.points[rows]), cloud.spacing) for rows in pieces))


# Merging --------------------------------------------------------------------------------------------------------------


def _labels(parts: list[_Part], count: int) -> Ints:
    """Labels (P,) by falling size of the part."""
    labels = np.empty(count, dtype=np.int64)
    for label, part in enumerate(sorted(parts, key=lambda p: (-len(p.points), int(p.points.min())))):
        labels[part.points] = label
    return labels


def _absorb_crumbs(cloud: _Cloud, parts: list[_Part]) -> list[_Part]:
    """Give pieces of fewer than `FEWEST` points to the parts of their nearest points."""
    big = [part for part in parts if len(part.points) >= FEWEST]
    if not big or len(big) == len(parts):
        return parts
    labels = _labels(parts, len(cloud.points))
    owner = np.full(len(cloud.points), -1)
    for number, part in enumerate(big):
        owner[part.points] = number
    del labels
    crumbs, kept = np.flatnonzero(owner < 0), np.flatnonzero(owner >= 0)
    owner[crumbs] = owner[kept[_nearest(cloud.points[kept], cloud.points[crumbs])]]
    return [_Part(np.flatnonzero(owner == number), part.planes) for number, part in enumerate(big)]


def _merge(cloud: _Cloud, parts: list[_Part], tolerance: float) -> list[_Part]:
    """Merge neighbours, the union of least concavity first, while it is within the tolerance."""
    owner = np.empty(len(cloud.points), dtype=np.int64)
    for number, part in enumerate(parts):
        owner[part.points] = number
    pairs = np.sort(owner[cloud.edges], axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    alive = dict(enumerate(parts))
    neighbours: dict[int, set[int]] = {number: set() for number in alive}
    for a, b in pairs.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    cost = {(a, b): _concavity(cloud, _union(alive[a], alive[b])) for a, b in pairs.tolist()}
    number = len(parts)
    while cost:
        (a, b), least = min(cost.items(), key=lambda item: (item[1], item[0]))
        if least > tolerance:
            break
        alive[number] = _union(alive.pop(a), alive.pop(b))
        around = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
        cost = {pair: value for pair, value in cost.items() if a not in pair and b not in pair}
        for other in sorted(around):
            neighbours[other] = (neighbours[other] - {a, b}) | {number}
            cost[(other, number)] = _concavity(cloud, _union(alive[other], alive[number]))
        neighbours[number] = around
        number += 1
    return list(alive.values())


def _union(a: _Part, b: _Part) -> _Part:
    planes = {id(plane): plane for plane in (*a.planes, *b.planes)}
    return _Part(np.sort(np.concatenate([a.points, b.points])), tuple(planes.values()))
