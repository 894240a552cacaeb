"""Approximate convex decomposition of a bare point cloud: cut by planes, separate what is not connected, merge.

Greedy cutting by planes follows V-HACD (Mamou, 2016) and CoACD (Wei et al., 2022); on points it needs neither faces nor
a closed surface. What it is worth against labelled parts: tools/bench/decompositions.py.
Axis letters: P points, E edges, D directions, S slabs.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partwhole.shape3d.decompose import extent
from partwhole.shape3d.decompose.extent import Floats, Ints

SLABS = 16  # planes are tried between slabs of equal thickness: so many per axis at most
FEWEST = 8  # a smaller piece is not a part of its own: it joins a neighbour
GROWTH = 4  # spacings by which hulls are grown before their sizes are compared: see extent.size
FINER_GROWTH = 2  # the same, for the exact place of a cut


@dataclass(frozen=True)
class _Cloud:
    """A cleaned cloud: distinct points in canonical order, farthest at radius 1, and who neighbours whom."""

    points: Floats  # (P, 3)
    edges: Ints  # (E, 2): neighbours closer than a few spacings, sorted
    spacing: float  # distance between neighbouring points, if they stood on a square grid
    noise: float  # standard deviation of points from the plane of their neighbours


@dataclass(frozen=True)
class _Part:
    rows: Ints  # of the cloud, increasing
    cuts: Floats  # (n, 4) normal and offset of the planes that made it


def decompose_points(
    points: ArrayLike, *, tolerance: float = 0.05, seed: int = 0, normals: ArrayLike | None = None
) -> Ints:
    """Approximately convex parts of a cloud (P, 3) of surface points: labels (P,) int64, 0 for the largest part.

    `tolerance`: how far a part may differ from its convex hull, where the farthest point is at distance 1 from the
    mean; twice the noise found in the points is added to it. `seed` chooses the points that are cut where P > 2,048;
    the others take the label of their nearest. `normals` (P, 3), pointing outwards, keep surfaces apart that face each
    other across a narrow gap; rows of zeros are unknown. The partition does not depend on the order of the points, on
    their scale and place (but for rounding), or on points that occur twice. Takes about a fifth of a CPU-second.

    Raises ValueError for points that are not finite, or that are at fewer than four places.
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
    No more than `limit` points are cut.
    """
    given, facing = _checked(points, normals)
    if not tolerances or not all(0 < t < 1 for t in tolerances):
        raise ValueError(f"tolerances {tolerances}: expected one or more numbers between 0 and 1, such as (0.1, 0.05)")
    distinct, first, back = np.unique(given, axis=0, return_index=True, return_inverse=True)
    if len(distinct) < 4:
        raise ValueError(f"{len(distinct)} distinct points of {len(given)}: expected 4 or more; leave this shape out")
    distinct = distinct / np.abs(distinct).max()  # first, so that squares neither overflow nor vanish
    distinct = distinct - distinct.mean(0)
    distinct /= np.linalg.norm(distinct, axis=1).max()
    chosen = np.arange(len(distinct))
    if len(distinct) > limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:limit])
    cloud = _cloud(distinct[chosen], None if facing is None else facing[first[chosen]])
    parts = _absorb_crumbs(cloud, _cut(cloud, min(tolerances) + 2 * cloud.noise))
    nearest = chosen if len(chosen) == len(distinct) else _nearest(cloud.points, distinct)
    levels = np.empty((len(tolerances), len(given)), dtype=np.int64)
    for level in sorted(range(len(tolerances)), key=lambda i: tolerances[i]):
        parts = _merge(cloud, parts, tolerances[level] + 2 * cloud.noise)
        levels[level] = _by_size(_owners(parts, len(cloud.points))[nearest][back.reshape(-1)])
    return levels


def _checked(points: ArrayLike, normals: ArrayLike | None) -> tuple[Floats, Floats | None]:
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 3:
        raise ValueError(f"points of shape {given.shape}: expected (P, 3)")
    if not len(given):
        raise ValueError("no points: expected 4 or more")
    if wrong := int((~np.isfinite(given)).any(1).sum()):
        raise ValueError(f"{wrong} of {len(given)} points hold NaN or infinity: remove them or leave this shape out")
    if normals is None:
        return given, None
    facing = np.asarray(normals, dtype=np.float64)
    if facing.shape != given.shape:
        raise ValueError(f"normals of shape {facing.shape} for points of shape {given.shape}: expected the same")
    return given, np.nan_to_num(facing)


def _by_size(owners: Ints) -> Ints:
    """The same partition, numbered by falling size."""
    sizes = np.bincount(owners)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[owners]


# The cloud ------------------------------------------------------------------------------------------------------------


def _cloud(points: Floats, normals: Floats | None) -> _Cloud:
    from scipy.spatial import KDTree

    k = min(10, len(points) - 1)
    distance, index = map(np.asarray, KDTree(points).query(points, k=k + 1))
    # On a surface with one point per spacing^2 the kth neighbour is at spacing * sqrt(k / pi), roughly.
    ring = min(6, k)
    spacing = float(np.median(distance[:, ring])) * np.sqrt(np.pi / ring)
    pairs = np.stack([np.repeat(np.arange(len(points)), k), index[:, 1:].ravel()])
    pairs = np.sort(pairs[:, distance[:, 1:].ravel() <= 2.5 * spacing], axis=0)
    code = np.unique(pairs[0] * len(points) + pairs[1])
    a, b = code // len(points), code % len(points)
    if normals is not None:
        # Air is between points that are in front of each other and face each other, sharper than any right angle.
        way = points[b] - points[a]
        in_front = ((normals[a] * way).sum(1) > 0) & ((normals[b] * way).sum(1) < 0)
        bond = ~(in_front & ((normals[a] * normals[b]).sum(1) < -0.7))
        a, b = a[bond], b[bond]
    few = min(8, k) + 1  # few neighbours, else both sides of a thin plate look like noise
    around = points[index[:, :few]] - points[index[:, :few]].mean(1, keepdims=True)
    flatness = np.linalg.eigvalsh(np.einsum("pki,pkj->pij", around, around) / max(few - 3, 1))[:, 0]
    noise = float(np.sqrt(np.maximum(np.median(flatness), 0)))
    return _Cloud(points, np.stack([a, b], axis=1), spacing, noise)


def _nearest(points: Floats, queries: Floats) -> Ints:
    from scipy.spatial import KDTree

    return np.asarray(KDTree(points).query(queries)[1], dtype=np.int64)


def _inner_edges(cloud: _Cloud, rows: Ints) -> Ints:
    """The edges between some points of the cloud, as places in `rows` (increasing): (E, 2), sorted."""
    place = np.full(len(cloud.points), -1)
    place[rows] = np.arange(len(rows))
    edges = place[cloud.edges]
    return edges[(edges >= 0).all(1)]


def _pieces(edges: Ints, count: int) -> tuple[int, Ints]:
    """Connected pieces of a graph of `count` points with sorted edges (E, 2): how many, and the piece of each point."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    starts = np.searchsorted(edges[:, 0], np.arange(count + 1)).astype(np.int32)
    ends = np.ascontiguousarray(edges[:, 1], dtype=np.int32)
    graph = csr_array((np.ones(len(edges)), ends, starts), shape=(count, count))
    found, piece = connected_components(graph, directed=False)
    return int(found), piece.astype(np.int64)


def _connected(cloud: _Cloud, rows: Ints) -> list[Ints]:
    """The connected pieces of some points of the cloud."""
    count, piece = _pieces(_inner_edges(cloud, rows), len(rows))
    return [rows[piece == i] for i in range(count)]


# Cutting --------------------------------------------------------------------------------------------------------------


def _cut(cloud: _Cloud, tolerance: float) -> list[_Part]:
    done: list[_Part] = []
    waiting = [_Part(rows, np.empty((0, 4))) for rows in _connected(cloud, np.arange(len(cloud.points)))]
    while waiting:
        part = waiting.pop()
        plane = None
        if len(part.rows) >= 2 * FEWEST and _concavity(cloud, part) > tolerance:
            plane = _best_plane(cloud, part.rows)
        if plane is None:
            done.append(part)
            continue
        above = cloud.points[part.rows] @ plane[:3] > plane[3]
        cuts = np.concatenate([part.cuts, plane[None]])
        for side in (part.rows[above], part.rows[~above]):
            waiting += [_Part(rows, cuts) for rows in _connected(cloud, side)]
    return done


def _concavity(cloud: _Cloud, part: _Part) -> float:
    return extent.concavity(cloud.points[part.rows], part.cuts, cloud.spacing)


def _best_plane(cloud: _Cloud, rows: Ints) -> Floats | None:
    """The plane (4,), normal and offset, that leaves connected pieces of the least total hull size.

    None where nothing can be cut off. Planes across the coordinate axes and the principal axes are tried on a grid.
    About the best of them a finer grid finds the place; growing hulls less, as the place is about where parts end, not
    about which cut is short.
    """
    points, edges = cloud.points[rows], _inner_edges(cloud, rows)
    reach = extent.reach(points)
    axes = np.concatenate([np.eye(3), np.linalg.svd(points - points.mean(0), full_matrices=False)[2]])
    least, best, offset, width = np.inf, axes[0], 0.0, 0.0
    for axis in axes:
        heights = points @ axis
        slabs = int(np.clip(np.ptp(heights) / (2 * cloud.spacing), 4, SLABS))
        step = np.ptp(heights) / slabs
        offsets = heights.min() + step * np.arange(1, slabs)
        sizes = _sweep(points, reach, edges, heights, offsets, GROWTH * cloud.spacing)
        at = int(np.argmin(np.round(sizes, 9)))  # rounded: of equal planes the first, whatever the last bits say
        if sizes[at] < least * (1 - 1e-6):
            least, best, offset, width = float(sizes[at]), axis, float(offsets[at]), step
    if not np.isfinite(least):
        return None
    finer = offset + width * np.linspace(-0.75, 0.75, 7)
    sizes = _sweep(points, reach, edges, points @ best, finer, FINER_GROWTH * cloud.spacing)
    return np.append(best, finer[int(np.argmin(np.round(sizes, 9)))])


def _sweep(
    points: Floats, reach: NDArray[np.float32], edges: Ints, heights: Floats, offsets: Floats, thickness: float
) -> Floats:
    """The total hull size of the connected pieces left by each of some parallel planes (S - 1,).

    Infinite where a side has fewer than `FEWEST` points.

    All planes together cost little more than one. The points are contracted to pieces that are connected inside a slab;
    a side of a plane is a union of few such pieces, which grows slab by slab; a piece is known by its farthest point in
    each direction, and pieces that join keep the farther.
    """
    planes = len(offsets)
    slab = np.searchsorted(offsets, heights)
    inside = slab[edges[:, 0]] == slab[edges[:, 1]]
    count, piece = _pieces(edges[inside], len(points))
    slab_of = np.zeros(count, dtype=np.int64)
    slab_of[piece] = slab
    order = np.argsort(piece, kind="stable")
    ends = np.searchsorted(piece[order], np.arange(count + 1)).tolist()
    ordered = reach[:, order]
    first = np.stack([order[a + ordered[:, a:b].argmax(1)] for a, b in pairwise(ends)])  # (pieces, D)
    links = np.unique(np.sort(piece[edges[~inside]], axis=1), axis=0)
    every = np.arange(len(reach))

    total = np.zeros(planes)
    for upwards in (True, False):
        arrival = slab_of if upwards else planes - slab_of  # the step at which a piece comes to this side
        joined = arrival[links].max(1)
        root = list(range(count))
        corners: dict[int, Ints] = {}  # of each connected piece of the side
        latest: dict[int, int] = {}  # where in `hulls` it is
        hulls: list[Ints] = []
        uses: list[tuple[int, int]] = []  # a plane, and a hull that is on this side of it
        for step in range(planes):
            plane = step if upwards else planes - 1 - step
            arrived = np.flatnonzero(arrival == step).tolist()
            changed = dict.fromkeys(arrived)
            for new in arrived:
                corners[new] = first[new]
            for a, b in links[joined == step].tolist():
                a, b = _root(root, a), _root(root, b)
                if a != b:
                    root[b] = a
                    one, other = corners[a], corners.pop(b)
                    corners[a] = np.where(reach[every, other] > reach[every, one], other, one)
                    changed.pop(b, None)
                    latest.pop(b, None)
                    changed[a] = None
            for found in changed:
                latest[found] = len(hulls)
                hulls.append(corners[found])
            uses += [(plane, hull) for hull in latest.values()]
        at, which = np.array(uses, dtype=np.int64).reshape(-1, 2).T
        if len(at):
            np.add.at(total, at, extent.size(points[np.stack(hulls)], thickness)[which])
    below = np.cumsum(np.bincount(slab, minlength=planes + 1))[:-1]
    total[(below < FEWEST) | (len(points) - below < FEWEST)] = np.inf
    return total


def _root(root: list[int], a: int) -> int:
    while root[a] != a:
        root[a] = root[root[a]]
        a = root[a]
    return a


# Merging --------------------------------------------------------------------------------------------------------------


def _owners(parts: list[_Part], count: int) -> Ints:
    owners = np.full(count, -1)
    for number, part in enumerate(parts):
        owners[part.rows] = number
    return owners


def _absorb_crumbs(cloud: _Cloud, parts: list[_Part]) -> list[_Part]:
    """Give pieces of fewer than `FEWEST` points to the parts of their nearest points."""
    large = [part for part in parts if len(part.rows) >= FEWEST]
    if not large or len(large) == len(parts):
        return parts
    owners = _owners(large, len(cloud.points))
    crumbs, kept = np.flatnonzero(owners < 0), np.flatnonzero(owners >= 0)
    owners[crumbs] = owners[kept[_nearest(cloud.points[kept], cloud.points[crumbs])]]
    return [_Part(np.flatnonzero(owners == number), part.cuts) for number, part in enumerate(large)]


def _merge(cloud: _Cloud, parts: list[_Part], tolerance: float) -> list[_Part]:
    """Merge neighbours whose union is within the tolerance; first those whose hull grows least by it."""
    pairs = np.sort(_owners(parts, len(cloud.points))[cloud.edges], axis=1)
    alive = dict(enumerate(parts))
    sizes = {number: _size(cloud, part) for number, part in alive.items()}
    neighbours: dict[int, set[int]] = {number: set() for number in alive}
    growth: dict[tuple[int, int], float] = {}

    def meet(a: int, b: int) -> None:
        neighbours[a].add(b)
        neighbours[b].add(a)
        growth[a, b] = round(_size(cloud, _union(alive[a], alive[b])) - sizes[a] - sizes[b], 9)

    for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
        meet(a, b)
    while growth:
        a, b = min(growth, key=lambda pair: (growth[pair], pair))
        union = _union(alive[a], alive[b])
        if _concavity(cloud, union) > tolerance:
            del growth[a, b]
            continue
        around = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
        growth = {pair: value for pair, value in growth.items() if not {a, b} & set(pair)}
        new = max(max(sizes), a, b) + 1
        del alive[a], alive[b]
        alive[new], sizes[new], neighbours[new] = union, _size(cloud, union), set()
        for other in sorted(around):
            neighbours[other] -= {a, b}
            meet(other, new)
    return list(alive.values())


def _union(a: _Part, b: _Part) -> _Part:
    cuts = np.unique(np.concatenate([a.cuts, b.cuts]), axis=0)
    return _Part(np.sort(np.concatenate([a.rows, b.rows])), cuts)


def _size(cloud: _Cloud, part: _Part) -> float:
    return float(extent.size(extent.farthest(cloud.points[part.rows]), cloud.spacing))
