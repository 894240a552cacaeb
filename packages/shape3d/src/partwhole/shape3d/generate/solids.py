"""Closed solids with a part label on every face: everything here is a loft, a skin over a row of rings.

Letters: R rings, S points of a ring, V vertices, F faces. Coordinates: x to the right, y up, z to the front.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Vector = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Solid:
    """vertices (V, 3) float64, faces (F, 3) int64 seen counter-clockwise from outside, labels (F,) int64."""

    vertices: np.ndarray
    faces: np.ndarray
    labels: np.ndarray


class Dice:
    """The few draws that a builder makes, from one numpy generator."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator

    def __call__(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.generator.integers(low, high + 1))

    def pick(self, *options):
        return options[int(self.generator.integers(len(options)))]


def vec(x: float, y: float, z: float) -> np.ndarray:
    """A point or a direction (3,)."""
    return np.array([x, y, z], dtype=np.float64)


def loft(rings: np.ndarray, labels: int | Sequence[int], *, cap: float = 0.0) -> Solid:
    """The skin over rings (R, S, 3), closed at both ends by fans around the end rings' centres.

    ``labels``: one for all, or one for each of the R - 1 bands; a fan has the label of the band beside it.
    ``cap`` pushes the fans' centres outward along the rings' centres, in the units of the rings.
    """
    rings = np.asarray(rings, dtype=np.float64)
    count, sides, _ = rings.shape
    of_band = np.broadcast_to(np.asarray(labels, dtype=np.int64), (count - 1,))
    centres = rings.mean(1)
    first, last = centres[0] - centres[1], centres[-1] - centres[-2]
    ends = [
        end + cap * along / max(float(np.linalg.norm(along)), 1e-12)
        for end, along in ((centres[0], first), (centres[-1], last))
    ]
    vertices = np.concatenate([rings.reshape(-1, 3), ends])
    j = np.arange(sides)
    k = (j + 1) % sides
    a = (np.arange(count - 1)[:, None] * sides + j).reshape(-1)
    b = (np.arange(count - 1)[:, None] * sides + k).reshape(-1)
    bottom, top = count * sides, count * sides + 1
    faces = np.concatenate(
        [
            np.stack([a, b, b + sides], 1),
            np.stack([a, b + sides, a + sides], 1),
            np.stack([k, j, np.full(sides, bottom)], 1),
            np.stack([(count - 1) * sides + j, (count - 1) * sides + k, np.full(sides, top)], 1),
        ]
    )
    bands = np.repeat(of_band, sides)
    face_labels = np.concatenate([bands, bands, np.repeat(of_band[0], sides), np.repeat(of_band[-1], sides)])
    return outward(Solid(vertices, faces, face_labels))


def outward(solid: Solid) -> Solid:
    """Turn the faces over if the enclosed volume is negative."""
    a, b, c = (solid.vertices[solid.faces[:, i]] for i in range(3))
    volume = np.einsum("fi,fi->", a, np.cross(b, c))
    return solid if volume >= 0 else Solid(solid.vertices, solid.faces[:, ::-1].copy(), solid.labels)


def oval(sides: int, power: float = 2.0) -> np.ndarray:
    """(S, 2) points of the superellipse |x|^power + |y|^power = 1: 2 a circle, above it ever more a square."""
    angle = (np.arange(sides) + 0.5) / sides * 2 * np.pi
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.sign(unit) * np.abs(unit) ** (2 / power)


SQUARE = np.inf  # as a power: with four points, a square


def tube(
    path: np.ndarray,
    radii: np.ndarray | float,
    labels: int | Sequence[int],
    *,
    sides: int = 10,
    power: float = 2.0,
    across: Vector = (1.0, 0.0, 0.0),
    cap: float = 0.0,
) -> Solid:
    """Sweep an oval along ``path`` (R, 3); ``radii``: a float, (R,), or (R, 2) along ``across`` and at right angles.

    The frame is carried along the path without twist, starting with the direction nearest to ``across``.
    """
    path = np.asarray(path, dtype=np.float64)
    count = len(path)
    sizes = np.asarray(radii, dtype=np.float64)
    sizes = np.broadcast_to(sizes[:, None] if sizes.ndim == 1 else sizes, (count, 2))
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.asarray(across, dtype=np.float64)
    flat = oval(sides, power)
    rings = []
    for i in range(count):
        side = side - tangents[i] * (side @ tangents[i])
        if np.linalg.norm(side) < 1e-6:  # the path runs along ``across``: any other direction will do
            side = np.cross(tangents[i], np.roll(np.abs(tangents[i]), 1) + vec(0.1, 0.2, 0.3))
        side = side / np.linalg.norm(side)
        other = np.cross(tangents[i], side)
        rings.append(path[i] + flat[:, :1] * sizes[i, 0] * side + flat[:, 1:] * sizes[i, 1] * other)
    return loft(np.stack(rings), labels, cap=cap)


def bar(
    start: Vector,
    end: Vector,
    radius: float | Vector,
    label: int,
    *,
    tip: float = 1.0,
    sides: int = 8,
    power: float = 2.0,
    across: Vector = (1.0, 0.0, 0.0),
) -> Solid:
    """A straight bar that ends at ``tip`` times its first radius (a float, or two: along ``across`` and the other)."""
    size = np.broadcast_to(np.asarray(radius, dtype=np.float64), (2,))
    path = np.stack([np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)])
    return tube(path, np.stack([size, size * tip]), label, sides=sides, power=power, across=across)


def post(
    top: Vector,
    foot: Vector,
    radius: float,
    label: int,
    *,
    tip: float = 1.0,
    sides: int = 8,
    power: float = 2.0,
) -> Solid:
    """A leg from ``top`` down to ``foot``, leaning or not, with level ends; ``tip`` as in `bar`."""
    flat = oval(sides, power)
    rings = []
    for end, size in ((top, radius), (foot, radius * tip)):
        x, y, z = (float(value) for value in end)
        rings.append(np.stack([x + flat[:, 0] * size, np.full(sides, y), z + flat[:, 1] * size], 1))
    return loft(np.stack(rings), label)


def box(
    centre: Vector,
    size: Vector,
    label: int,
    *,
    bevel: float = 0.0,
    top: float | Vector = 1.0,
    lean: Vector = (0.0, 0.0),
    sides: int = 4,
    power: float = SQUARE,
) -> Solid:
    """A block standing on y: its top is ``top`` times as large and shifted by ``lean`` (x, z); ``bevel`` in units."""
    half = np.asarray(size, dtype=np.float64) / 2
    flat = oval(sides, power)
    scale = np.broadcast_to(np.asarray(top, dtype=np.float64), (2,))
    levels = [(-half[1], 0.0)] if bevel == 0 else [(-half[1], bevel), (-half[1] + bevel, 0.0)]
    levels += [(-y, inset) for y, inset in reversed(levels)]
    rings = []
    for y, inset in levels:
        t = (y + half[1]) / (2 * half[1])
        extent = (half[[0, 2]] - inset) * (1 + (scale - 1) * t)
        x, z = (flat * extent + np.asarray(lean) * t).T
        rings.append(np.stack([x, np.full(len(flat), y), z], 1))
    return loft(np.stack(rings) + np.asarray(centre, dtype=np.float64), label)


def revolve(
    profile: Sequence[Vector] | np.ndarray,
    labels: int | Sequence[int],
    *,
    centre: Vector = (0.0, 0.0, 0.0),
    sides: int = 16,
    power: float = 2.0,
    stretch: Vector = (1.0, 1.0),
) -> Solid:
    """Turn a profile (R, 2) of (radius > 0, y) about the y axis; ``stretch`` scales it along x and z."""
    flat = oval(sides, power) * np.asarray(stretch)
    rings = [np.stack([flat[:, 0] * r, np.full(sides, y), flat[:, 1] * r], 1) for r, y in profile]
    return loft(np.stack(rings) + np.asarray(centre, dtype=np.float64), labels)


def shell(
    profile: Sequence[Vector] | np.ndarray,
    thickness: float,
    label: int,
    *,
    centre: Vector = (0.0, 0.0, 0.0),
    sides: int = 16,
    floor: float = 0.0,
    power: float = 2.0,
) -> Solid:
    """A hollow vessel, open at the top: the outer profile (R, 2) and back down inside it, ``floor`` thick below."""
    outer = np.asarray(profile, dtype=np.float64)
    inner = outer[::-1] - [thickness, 0.0]
    inner[:, 1] = np.maximum(inner[:, 1], outer[0, 1] + (floor or thickness))
    keep = np.append(True, np.diff(inner[:, 1]) < -1e-9)
    return revolve(np.concatenate([outer, inner[keep]]), label, centre=centre, sides=sides, power=power)


def bezier(points: Sequence[Vector], count: int) -> np.ndarray:
    """``count`` points (count, 3) of the Bezier curve with these control points."""
    control = np.asarray(points, dtype=np.float64)
    t = np.linspace(0, 1, count)[:, None, None]
    level = np.broadcast_to(control, (count, *control.shape))
    while level.shape[1] > 1:
        level = (1 - t) * level[:, :-1] + t * level[:, 1:]
    return level[:, 0]


def blade(
    root: Vector,
    tip: Vector,
    chords: Vector,
    thickness: Vector,
    label: int,
    *,
    flat: int = 1,
    sweep: float = 0.0,
    sides: int = 8,
) -> Solid:
    """A wing or fin from ``root`` to ``tip``: ovals with ``chords`` along z and ``thickness`` along axis ``flat``.

    ``sweep`` bends the middle of the blade to the front (+z) by that much.
    """
    start, end = np.asarray(root, dtype=np.float64), np.asarray(tip, dtype=np.float64)
    section = oval(sides, 2.0)
    rings = []
    for t in (0.0, 0.5, 1.0):
        chord, thick = (pair[0] + (pair[1] - pair[0]) * t for pair in (np.asarray(chords), np.asarray(thickness)))
        centre = start + (end - start) * t + vec(0.0, 0.0, sweep * 4 * t * (1 - t))
        ring = np.tile(centre, (sides, 1))
        ring[:, 2] += section[:, 0] * chord / 2
        ring[:, flat] += section[:, 1] * thick / 2
        rings.append(ring)
    return loft(np.stack(rings), label)


def turned(solid: Solid, degrees: float, axis: int = 1, centre: Vector = (0.0, 0.0, 0.0)) -> Solid:
    """Rotated about the coordinate axis ``axis`` through ``centre``."""
    angle, at = np.deg2rad(degrees), np.asarray(centre, dtype=np.float64)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return Solid((solid.vertices - at) @ matrix.T + at, solid.faces, solid.labels)


def mirrored(solid: Solid, axis: int = 0) -> Solid:
    """The mirror image across the plane where coordinate ``axis`` is 0."""
    vertices = solid.vertices.copy()
    vertices[:, axis] *= -1
    return Solid(vertices, solid.faces[:, ::-1].copy(), solid.labels)


def both(solid: Solid, axis: int = 0) -> list[Solid]:
    """A solid and its mirror image."""
    return [solid, mirrored(solid, axis)]
