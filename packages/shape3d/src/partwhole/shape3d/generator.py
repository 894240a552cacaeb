"""Generated shapes with known parts: furniture, vehicles, vessels and animals, twelve categories of 2 to 5 parts.

The data that is always there: for the demo, the tests, and a look at what a method does before real shapes are at hand.
Parts are joined as in real meshes: closed solids that run into each other (legs into a seat) or touch (a mug's handle),
or one skin over two parts (a bottle and its neck, a hind leg that goes on as the back's post), so that convex
components and parts agree only roughly.
y is up; a shape is a function of (category, seed, number) alone, however many are asked for.
Letters: F faces, P points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partwhole.shape3d.files import BadShape, Geometry, sample
from partwhole.shape3d.generate import animals, furniture, lamps, vehicles, vessels
from partwhole.shape3d.generate.solids import Dice

VERSION = 1  # raised by a change that gives other shapes: generated meshes are kept on disk by it
BUILDERS = furniture.BUILDERS | lamps.BUILDERS | vehicles.BUILDERS | vessels.BUILDERS | animals.BUILDERS
PARTS: dict[str, tuple[str, ...]] = {category: parts for category, (parts, _) in BUILDERS.items()}
CATEGORIES = tuple(PARTS)


@dataclass(frozen=True)
class Shape:
    """One generated mesh: ``part`` (F,) within ``PARTS[category]``; ``solid`` (F,) numbers its closed pieces."""

    name: str
    category: str
    geometry: Geometry
    part: np.ndarray
    solid: np.ndarray


def shape(category: str, number: int, *, seed: int = 0) -> Shape:
    """The ``number``-th shape of a category. Raises ValueError for a category that is not in ``CATEGORIES``."""
    if category not in BUILDERS:
        raise ValueError(f"no generated category {category!r}; there are {', '.join(CATEGORIES)}")
    key = [seed, CATEGORIES.index(category), number]
    dice = Dice(np.random.default_rng(key))
    solids = BUILDERS[category][1](dice)
    stretch = np.array([dice(0.9, 1.1) for _ in range(3)])
    if category in ("quadruped", "bird", "fish", "car", "plane"):
        stretch[0] = dice(0.85, 1.15)  # still mirror-symmetric
    vertices, faces, start = [], [], 0
    for solid in solids:
        vertices.append(solid.vertices)
        faces.append(solid.faces + start)
        start += len(solid.vertices)
    which = np.repeat(np.arange(len(solids)), [len(s.faces) for s in solids])
    geometry = Geometry(np.concatenate(vertices) * stretch, np.concatenate(faces))
    return Shape(
        f"{category}/{seed}-{number:04d}", category, geometry, np.concatenate([s.labels for s in solids]), which
    )


def generate(count: int, *, seed: int = 0, categories: Sequence[str] = CATEGORIES) -> list[Shape]:
    """``count`` shapes, the categories in turn: shape i is number i // C of category i % C, whatever ``count`` is."""
    return [shape(categories[i % len(categories)], i // len(categories), seed=seed) for i in range(count)]


def visible(made: Shape, points: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (P, 3), normals (P, 3) and parts (P,) on the surface that can be seen: none inside another solid.

    Samples by area twice as often as needed and drops the hidden ones; more rounds where that is not enough.
    """
    found: list[tuple[np.ndarray, ...]] = []
    have, rounds = 0, 0
    while have < points:
        xyz, normals, face = sample(made.geometry, 2 * points, seed * 1_000 + rounds)
        keep = ~hidden(made, xyz, made.solid[face])
        found.append((xyz[keep], normals[keep], made.part[face[keep]]))
        have, rounds = have + int(keep.sum()), rounds + 1
        if rounds == 50:
            raise BadShape(
                made.name, f"only {have} of {50 * 2 * points} samples lie on the outside", "report this shape"
            )
    xyz, normals, part = (np.concatenate(columns)[:points] for columns in zip(*found, strict=True))
    return xyz, normals, part


def hidden(made: Shape, points: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """(P,) bool: which points, each on the skin of ``solid`` (P,), lie inside any of the other solids."""
    triangles = made.geometry.vertices[made.geometry.faces]
    inside = np.zeros(len(points), dtype=bool)
    for number in range(int(made.solid.max()) + 1):
        skin = triangles[made.solid == number]
        low, high = skin.min((0, 1)), skin.max((0, 1))
        asked = np.flatnonzero((solid != number) & ~inside & (points > low).all(1) & (points < high).all(1))
        if len(asked):
            inside[asked] = winding(points[asked], skin) > 0.5
    return inside


def winding(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(P,) how many times the closed surface ``triangles`` (F, 3, 3) winds around each point: 1 inside, 0 outside.

    The sum of the triangles' signed solid angles over 4 pi (van Oosterom and Strackee, 1983).
    """
    total = np.zeros(len(points), dtype=np.float32)
    t = triangles.astype(np.float32)
    step = max(1, 2_000_000 // (9 * len(t)))
    for start in range(0, len(points), step):
        a, b, c = (t[None, :, i] - points[start : start + step, None].astype(np.float32) for i in range(3))
        la, lb, lc = (np.sqrt(np.einsum("pfi,pfi->pf", x, x)) for x in (a, b, c))
        volume = np.einsum("pfi,pfi->pf", a, np.cross(b, c))
        ab, bc, ca = (np.einsum("pfi,pfi->pf", x, y) for x, y in ((a, b), (b, c), (c, a)))
        angle = 2 * np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb)
        total[start : start + step] = angle.sum(1) / (4 * np.pi)
    return total


def write(
    folder: str | Path, count: int, *, seed: int = 0, categories: Sequence[str] = CATEGORIES, suffix: str = ".off"
) -> list[Path]:
    """Write ``count`` shapes as ``folder/<category>/<seed>-<number>.off`` (or .ply) with ``_labels.txt`` beside each.

    The labels are in the layout of the Labeled Princeton Segmentation Benchmark (a line with a part's name, a line
    with its 1-based faces), so that ``read_labelled(folder)`` and ``prepare`` read it like any other set. Returns the
    meshes' paths.
    """
    if suffix not in (".off", ".ply"):
        raise ValueError(f"meshes are written as .off or .ply, not as {suffix!r}")
    paths = []
    for made in generate(count, seed=seed, categories=categories):
        path = Path(folder) / f"{made.name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        v, f = made.geometry.vertices, made.geometry.faces
        rows = [*(f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in v), *(f"3 {a} {b} {c}" for a, b, c in f)]
        if suffix == ".off":
            head = ["OFF", f"{len(v)} {len(f)} 0"]
        else:
            head = [
                "ply",
                "format ascii 1.0",
                f"element vertex {len(v)}",
                *(f"property double {axis}" for axis in "xyz"),
                f"element face {len(f)}",
                "property list uchar int vertex_indices",
                "end_header",
            ]
        path.write_text("\n".join(head + rows) + "\n")
        lines = []
        for part, name in enumerate(PARTS[made.category]):
            faces = np.flatnonzero(made.part == part) + 1
            if len(faces):
                lines += [name, " ".join(map(str, faces))]
        path.with_name(f"{path.stem}_labels.txt").write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths
