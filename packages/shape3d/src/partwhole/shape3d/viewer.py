"""The interactive 3D viewer of the report: shapes packed into the page, drawn by ``viewer.html`` without any library.

Layout of the packed bytes, N points of all shapes one after the other, deflated and in base64: x, y, z as differences
from the point before (uint16, modulo 65536; the N low bytes, then the N high bytes, of each axis), normals as two
octahedral bytes (N, N), then for each shape and layer one byte a point, an index into that layer's ``values``. Points
of a shape stand in Morton order: neighbours in space are neighbours in the file, and deflate finds little that is new.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from partwhole.shape3d.gallery import Shown, label_name
from partwhole.shape3d.render import colours, surface

STEPS = 4095  # of a coordinate: finer than a pixel on a screen of 2,000
LABELS = 250  # of a layer; further components share a colour


def viewer(shapes: Sequence[Shown], *, points: int = 2048) -> str:
    """The viewer as an HTML fragment.

    Args:
        shapes: y up; in their order.
        points: at most so many of each shape, evenly drawn from it.
    """
    head, planes, labels = [], [], []
    for shape in shapes:
        entry, xyz, normal, named = pack(shape, points)
        head.append(entry)
        planes.append((xyz, normal))
        labels += named
    xyz = np.concatenate([p for p, _ in planes])
    step = np.diff(xyz.astype(np.int64), axis=0, prepend=0).astype(np.uint16)  # wraps, as the reader expects
    normal = np.concatenate([n for _, n in planes])
    halves = [((step[:, a] >> shift) & 255).astype(np.uint8) for a in range(3) for shift in (0, 8)]
    data = b"".join(part.tobytes() for part in (*halves, normal[:, 0], normal[:, 1], *labels))
    packed = base64.b64encode(zlib.compress(data, 9)).decode()
    # "<" must not appear inside a script element: a name could close it.
    listed = json.dumps(head, separators=(",", ":")).replace("<", "\\u003c")
    page = files("partwhole.shape3d").joinpath("viewer.html").read_text(encoding="utf-8")
    before, between = page.split("__SHAPES__")
    between, after = between.split("__PACKED__")
    return before + listed + between + packed + after


def pack(shape: Shown, points: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray, list[np.ndarray]]:
    """A shape as (entry of the list, xyz (P, 3) uint16, normals (P, 2) uint8, labels (P,) uint8 of each layer)."""
    xyz = np.asarray(shape.points, np.float64)
    keep = np.arange(len(xyz))
    if len(xyz) > points:
        keep = np.random.default_rng(0).permutation(len(xyz))[:points]
    xyz = xyz[keep]
    middle = (xyz.min(0) + xyz.max(0)) / 2
    xyz = (xyz - middle) / max(float(np.linalg.norm(xyz - middle, axis=1).max(initial=0.0)), 1e-9)
    found, radius = surface(xyz)
    normals = shape.normals_or(found, keep)
    grid = np.clip(np.rint((xyz + 1) / 2 * STEPS), 0, STEPS).astype(np.uint16)
    order = np.argsort(morton(grid), kind="stable")
    layers, labels = [], []
    for name, given in shape.layers.items():
        values, index = np.unique(np.asarray(given)[keep].astype(np.int64), return_inverse=True)
        values, index = values[:LABELS], index % LABELS
        rgb = colours(values, name).tolist()
        listed = [[label_name(shape, name, int(v)), c] for v, c in zip(values, rgb, strict=True)]
        layers.append({"name": name, "values": listed})
        labels.append(index[order].astype(np.uint8))
    entry = {
        "name": shape.title.encode("utf-8", "replace").decode(),
        "points": len(xyz),
        "radius": round(radius, 4),
        "score": None if shape.score is None else round(float(shape.score), 4),
        "layers": layers,
    }
    return entry, grid[order], octahedral(normals[order]), labels


def morton(grid: np.ndarray) -> np.ndarray:
    """The bits of (P, 3) integers below 4096 interleaved: (P,) int64."""
    code = np.zeros(len(grid), np.int64)
    for bit in range(12):
        for axis in range(3):
            code |= ((grid[:, axis].astype(np.int64) >> bit) & 1) << (3 * bit + axis)
    return code


def octahedral(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (P, 3) as two bytes (P, 2): an octahedron folded out to a square (Cigolle and others, 2014)."""
    n = normals / np.maximum(np.abs(normals).sum(1, keepdims=True), 1e-9)
    u, v = n[:, 0], n[:, 1]
    below = n[:, 2] < 0
    folded_u, folded_v = (1 - np.abs(v)) * np.where(u < 0, -1, 1), (1 - np.abs(u)) * np.where(v < 0, -1, 1)
    flat = np.stack([np.where(below, folded_u, u), np.where(below, folded_v, v)], 1)
    return np.clip(np.rint((flat + 1) * 127.5), 0, 255).astype(np.uint8)
