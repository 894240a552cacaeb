"""Shapes on disk: find them, read them, refuse the broken ones, sample their surface.

Meshes: .off .obj .ply .stl .glb .gltf.  Point clouds: .ply .xyz .txt .pts .npy .npz, with or without normals.
Axis letters: V vertices, F faces, P points.  Nothing here imports torch: the children of the decomposition use it.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

MESHES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")
CLOUDS = (".ply", ".xyz", ".txt", ".pts", ".npy", ".npz")
NOT_SHAPES = re.compile(r"(_labels|labels|readme|licen[cs]e|copying|notes?|requirements)\.txt$", re.IGNORECASE)


class BadShape(ValueError):
    """A shape that cannot be used: which file, what was found there, what to do about it."""

    def __init__(self, path: str | Path, found: str, do: str) -> None:
        super().__init__(str(path), found, do)
        self.path, self.found, self.do = str(path), found, do

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.do}"


@dataclass(frozen=True)
class Geometry:
    """One shape: `vertices` (V, 3) float64; `faces` (F, 3) int64, empty for a point cloud; `normals` (V, 3) float64 or
    None; `component` (V,) int64 or None: convex components that came with the file, as in the published ACD data."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None
    component: np.ndarray | None = None

    @property
    def is_mesh(self) -> bool:
        return len(self.faces) > 0


# Finding


def find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """All shape files in `paths` (files, or folders of any layout), in a stable order and without repetition.

    A file named directly is taken whatever it is called. Hidden folders, and texts that are plainly not shapes (labels,
    readme), are passed over. Raises BadShape for a path that is not there and for a folder without any shape file.
    """
    found: dict[Path, None] = {}
    for path in [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]:
        try:
            found.update(dict.fromkeys(_below(path)))
        except PermissionError as error:
            raise BadShape(error.filename or path, "no permission to read it", "give yourself read access") from error
    return list(found)


def _below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadShape(path, "no such file or folder", "check the path")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    hidden = {p for p in files if any(part.startswith((".", "__")) for part in p.relative_to(path).parts)}
    shapes = [p for p in files if p.suffix.lower() in MESHES + CLOUDS and not NOT_SHAPES.search(p.name)]
    shapes = [p for p in shapes if p not in hidden]
    if not shapes:
        kinds = sorted({p.suffix.lower() or "no suffix" for p in files})
        what = f"{len(files)} files, none of them a shape ({', '.join(kinds[:8])})" if files else "an empty folder"
        raise BadShape(path, what, f"put meshes ({' '.join(MESHES)}) or point clouds ({' '.join(CLOUDS)}) there")
    return shapes


def names(files: list[Path], paths: str | Path | Iterable[str | Path]) -> list[str]:
    """A short name per file, the same on every machine: the path from the given folder on, with that folder's name.
    Where two files would get the same name, the whole path is used."""
    roots = {Path(paths)} if isinstance(paths, str | Path) else {Path(p) for p in paths}
    short = []
    for file in files:
        root = next((parent for parent in reversed(file.parents) if parent in roots), file.parent)
        short.append((Path(root.resolve().name) / file.relative_to(root)).as_posix())
    seen: dict[str, int] = {}
    for name in short:
        seen[name] = seen.get(name, 0) + 1
    return [name if seen[name] == 1 else file.as_posix() for name, file in zip(short, files, strict=True)]


# Reading


def read(path: str | Path) -> Geometry:
    """Reads and checks one shape. Scenes are joined with their transforms; polygons become triangle fans; faces that
    are degenerate (a repeated corner) or repeated are dropped.

    Raises BadShape (a ValueError) for anything that is not a usable shape: see `check`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESHES + CLOUDS:
        kinds = " ".join(dict.fromkeys(MESHES + CLOUDS))
        raise BadShape(path, f"a file of kind {suffix or '(no suffix)'}", f"shapes are read from {kinds}")
    try:
        if path.stat().st_size == 0:
            raise BadShape(path, "an empty file", "export or download it again")
        readers = {".off": _read_off, ".obj": _read_obj, ".npy": _read_npy, ".npz": _read_npz}
        readers |= dict.fromkeys((".xyz", ".txt", ".pts"), _read_columns)
        geometry = readers.get(suffix, _read_trimesh)(path)
        if not geometry.is_mesh and suffix not in CLOUDS and len(geometry.vertices):
            found = f"{len(geometry.vertices)} vertices and no faces"
            raise BadShape(path, found, "export its faces too, or save points as .ply, .xyz or .npy")
    except BadShape:
        raise
    except FileNotFoundError as error:
        raise BadShape(path, "no such file", "check the path") from error
    except PermissionError as error:
        raise BadShape(path, "no permission to read it", "give yourself read access") from error
    except MemoryError as error:
        raise BadShape(path, "more than fits into memory", "simplify it first") from error
    except Exception as error:  # whatever a parser throws at a broken file is a report about that file
        raise BadShape(
            path, f"not a readable {suffix} file ({plainly(error)})", "export or download it again"
        ) from error
    return check(geometry, path)


def plainly(error: Exception, most: int = 120) -> str:
    """What a parser said about a broken file, without advice to unpickle it."""
    if "pickle" in str(error) or "Object arrays" in str(error):
        return "no array of numbers, or Python objects, which are never loaded"
    return f"{type(error).__name__}: {str(error)[:most]}"


def check(geometry: Geometry, path: str | Path = "shape") -> Geometry:
    """`geometry` without degenerate and repeated faces. Raises BadShape where there are no vertices, NaN or infinite
    vertices, face indices out of range, no face left, or no area."""
    v, f = geometry.vertices, geometry.faces
    again = "export it again"
    if v.ndim != 2 or v.shape[1] != 3 or len(v) == 0:
        raise BadShape(path, "no vertices", again)
    if not np.isfinite(v).all():
        bad = np.flatnonzero(~np.isfinite(v).all(1))
        kind = "NaN" if np.isnan(v[bad]).any() else "infinite"
        raise BadShape(path, f"{len(bad)} vertices that are {kind} (the first is number {bad[0]})", again)
    if not len(f):
        if len(join(v)[0]) < 4:
            raise BadShape(path, f"{len(v)} points, fewer than 4 of them distinct", "a point cloud needs more points")
        return geometry
    if f.min() < 0 or f.max() >= len(v):
        bad = np.flatnonzero(((f < 0) | (f >= len(v))).any(1))
        found = f"{len(bad)} faces that name vertices outside 0..{len(v) - 1} (the first is face {bad[0]})"
        raise BadShape(path, found, again)
    f = proper(f)
    size = np.ptp(v, axis=0).max()
    area = _area_normals(v / size, f)[0] if size > 0 else np.zeros(len(f))
    if not area.sum() > 1e-12:
        raise BadShape(path, f"{len(f)} faces with no area", "it is a line or a point: leave it out")
    return replace(geometry, faces=f[area > 0])


def proper(faces: np.ndarray) -> np.ndarray:
    """The faces (F, 3) that have three different corners, each set of corners once, in their order."""
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    return faces[_first_of_each(np.sort(faces, axis=1))]


def join(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of `vertices` (V, 3), and for every vertex the row that it became (V,)."""
    order = np.lexsort(vertices.T)
    new = np.ones(len(vertices), bool)
    new[1:] = (vertices[order[1:]] != vertices[order[:-1]]).any(1)
    index = np.empty(len(vertices), np.int64)
    index[order] = np.cumsum(new) - 1
    return vertices[order[new]], index


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """The positions, ascending, at which a row of `rows` (n, 3) of integers occurs for the first time."""
    order = np.lexsort(rows.T)
    new = np.ones(len(rows), bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(1)
    return np.sort(order[new])  # lexsort is stable: the first of equal rows comes first


def _fans(counts: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles (F, 3) of polygons with `counts` corners each, listed one after the other in `corners`."""
    starts = np.cumsum(counts) - counts
    triangles = []
    for n in np.unique(counts[counts >= 3]):
        polygon = corners[starts[counts == n][:, None] + np.arange(n)]
        first = np.broadcast_to(polygon[:, :1], (len(polygon), n - 2))
        triangles.append(np.stack([first, polygon[:, 1:-1], polygon[:, 2:]], -1).reshape(-1, 3))
    return np.concatenate(triangles).astype(np.int64) if triangles else np.zeros((0, 3), np.int64)


def _numbers(lines: list[bytes]) -> np.ndarray:
    """All numbers of the lines (n,) float64. Raises ValueError for anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says that it met something else
        try:
            return np.fromstring(b" ".join(lines).decode(), sep=" ")
        except (DeprecationWarning, ValueError) as error:  # a warning or an error, as the version of numpy has it
            raise ValueError("something that is not a number") from error


def _read_off(path: Path) -> Geometry:
    text = path.read_bytes()
    if not text.lstrip()[:6].upper().startswith((b"OFF", b"COFF", b"NOFF")):
        raise BadShape(path, f"a file that does not begin with OFF ({text[:20]!r})", "is it another kind of file?")
    if b"#" in text:
        text = re.sub(rb"#[^\n]*", b"", text)
    head = re.match(rb"\s*(N|C)?OFF(\s+BINARY)?", text, re.IGNORECASE)
    assert head is not None
    if head[2]:
        return _read_trimesh(path)
    lines = [line for line in text[head.end() :].split(b"\n") if line.strip()]
    if not lines or len(lines[0].split()) < 2:
        raise BadShape(path, "no line with the numbers of vertices and faces", "the file is cut off")
    nv, nf = (int(n) for n in lines[0].split()[:2])
    if len(lines) < 1 + nv + nf:
        found = f"{len(lines) - 1} lines where {nv} vertices and {nf} faces are announced"
        raise BadShape(path, found, "the file is cut off: download or export it again")
    width = len(lines[1].split()) if nv else 3
    vertices = _numbers(lines[1 : 1 + nv]).reshape(nv, width)
    if len(lines[1 + nv : 1 + nv + nf]) and all(line.startswith(b"3 ") for line in lines[1 + nv : 1 + nv + nf]):
        flat = _numbers(lines[1 + nv : 1 + nv + nf])
        if len(flat) == 4 * nf:  # triangles without colours, as nearly all files have
            return Geometry(vertices[:, :3], flat.reshape(nf, 4)[:, 1:].astype(np.int64))
    rows = [line.split() for line in lines[1 + nv : 1 + nv + nf]]
    counts = np.array([int(row[0]) for row in rows], np.int64)
    if any(len(row) <= n for row, n in zip(rows, counts, strict=True)):
        raise BadShape(path, "a face with fewer corners than announced", "the file is cut off or broken")
    corners = np.array([c for row, n in zip(rows, counts, strict=True) for c in row[1 : 1 + n]], np.int64)
    return Geometry(vertices[:, :3], _fans(counts, corners))


def _read_obj(path: Path) -> Geometry:
    # Only v and f lines: no materials, and no vertex split along texture seams (which would break closed meshes).
    lines = [line.lstrip() for line in path.read_bytes().replace(b"\\\n", b" ").split(b"\n")]
    v = [line.split()[1:4] for line in lines if line.startswith((b"v ", b"v\t"))]
    f = [line.split()[1:] for line in lines if line.startswith((b"f ", b"f\t"))]
    if not v:
        raise BadShape(path, "a file without any 'v' line", "it is not an OBJ mesh, or it is cut off")
    if not f:
        return Geometry(np.array(v, float), np.zeros((0, 3), np.int64))
    counts = np.array([len(face) for face in f], np.int64)
    if counts[-1] < 3 and lines[-1]:
        raise BadShape(path, f"a last face of {counts[-1]} corners", "the file is cut off: download or export it again")
    flat = [corner.partition(b"/")[0] for face in f for corner in face]
    corners = np.array(flat, np.int64)
    if (corners < 0).any():  # counted back from the last vertex read so far
        before, so_far = [], 0
        for line in lines:
            so_far += line.startswith((b"v ", b"v\t"))
            if line.startswith((b"f ", b"f\t")):
                before.append(so_far)
        corners = np.where(corners < 0, corners + np.repeat(before, counts), corners - 1)
    else:
        corners = corners - 1
    return Geometry(np.array(v, float), _fans(counts, corners))


def _read_trimesh(path: Path) -> Geometry:
    import trimesh

    loaded: Any = trimesh.load(path, process=False)
    if isinstance(loaded, trimesh.Scene):
        meshes = [g for g in loaded.dump() if isinstance(g, trimesh.Trimesh | trimesh.PointCloud)]
        loaded = trimesh.util.concatenate(meshes) if len(meshes) > 1 else meshes[0] if meshes else None
    if loaded is None or len(getattr(loaded, "vertices", ())) == 0:
        raise BadShape(path, "no geometry", "export it again with its mesh")
    vertices = np.asarray(loaded.vertices, float)
    faces = np.asarray(getattr(loaded, "faces", np.zeros((0, 3))), np.int64).reshape(-1, 3)
    normals = None
    if not len(faces):
        raw: Any = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
        have = raw if isinstance(raw, dict) else getattr(getattr(raw, "dtype", None), "names", None) or ()
        if {"nx", "ny", "nz"} <= set(have):
            normals = np.stack([np.ravel(raw[k]) for k in ("nx", "ny", "nz")], -1).astype(float)
    return Geometry(vertices, faces, normals)


def _read_columns(path: Path) -> Geometry:
    text = path.read_bytes()
    lines = [line for line in text.replace(b",", b" ").split(b"\n") if line.strip() and line.lstrip()[:1] not in b"#/"]
    if path.suffix.lower() == ".pts" and lines and len(lines[0].split()) == 1:
        lines = lines[1:]
    width = len(lines[0].split()) if lines else 0
    if width < 3:
        raise BadShape(path, f"lines of {width} values", "a point cloud has x y z, or x y z nx ny nz, on every line")
    values = b" ".join(lines).split()
    if len(values) != width * len(lines):
        raise BadShape(
            path, f"lines of different lengths (the first has {width} values)", "the file is cut off or broken"
        )
    return _from_table(_numbers(lines).reshape(-1, width))


def _read_npy(path: Path) -> Geometry:
    table = np.load(path, allow_pickle=False)
    if table.ndim != 2 or table.shape[1] < 3:
        raise BadShape(path, f"an array of shape {table.shape}", "a point cloud is (points, 3 or more columns)")
    geometry = _from_table(np.asarray(table, float))
    last = table[:, -1]
    if table.shape[1] in (4, 7) and np.isfinite(last).all() and (last == np.round(last)).all() and (last >= 0).all():
        return replace(geometry, component=last.astype(np.int64))
    return geometry


def _read_npz(path: Path) -> Geometry:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
        key = next((k for k in ("points", "xyz", "pos", "vertices") if k in data), None)
        if key is None:
            raise BadShape(path, f"arrays {sorted(data)}", "one of them must be called points, xyz, pos or vertices")
        table = np.asarray(data[key], float)
        if table.ndim != 2 or table.shape[1] < 3:
            raise BadShape(path, f"'{key}' of shape {table.shape}", "it must be (points, 3 or 6)")
        faces = np.asarray(data["faces"], np.int64).reshape(-1, 3) if "faces" in data else np.zeros((0, 3), np.int64)
        geometry = replace(_from_table(table), faces=faces)
        if "normals" in data:
            geometry = replace(geometry, normals=np.asarray(data["normals"], float).reshape(-1, 3))
        if "component" in data:
            geometry = replace(geometry, component=np.asarray(data["component"], np.int64).reshape(-1))
    for what, values in (("normals", geometry.normals), ("component", geometry.component)):
        if values is not None and len(values) != len(table):
            raise BadShape(path, f"{len(values)} {what} for {len(table)} points", "there must be one for each point")
    return geometry


def _from_table(table: np.ndarray) -> Geometry:
    """Columns 4 to 6 are normals if they are unit vectors; colours and anything else are ignored."""
    normals = table[:, 3:6] if table.shape[1] >= 6 else None
    if normals is not None and not np.median(np.abs(np.linalg.norm(normals, axis=1) - 1)) < 0.05:
        normals = None
    return Geometry(table[:, :3], np.zeros((0, 3), np.int64), normals)


# Sampling


def sample(geometry: Geometry, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` points spread evenly over the area of a mesh: (points (P, 3), normals (P, 3), face or point index (P,)).

    A point cloud gives `count` of its own points without repetition, all of them if it has fewer (so P <= count); its
    normals are zeros where the file had none. A function of its arguments alone.
    """
    random = np.random.default_rng(seed)
    v, f = geometry.vertices, geometry.faces
    if not len(f):
        index = np.sort(random.permutation(len(v))[:count])
        normals = np.zeros((len(index), 3)) if geometry.normals is None else _unit(geometry.normals[index])
        return v[index], normals, index
    area, normals = _area_normals(v / np.abs(v).max(), f)
    ends = np.cumsum(area)
    index = np.minimum(np.searchsorted(ends, random.random(count) * ends[-1], side="right"), len(f) - 1)
    a, b = np.sqrt(random.random((count, 1))), random.random((count, 1))  # uniform in a triangle
    corner = v[f[index]]
    points = (1 - a) * corner[:, 0] + a * (1 - b) * corner[:, 1] + a * b * corner[:, 2]
    return points, normals[index], index


def normalise(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """`points` (P, 3) moved to their mean and scaled so that the farthest is at radius 1; the centre (3,); the
    radius."""
    size = float(np.abs(points).max()) or 1.0  # first, so that no square overflows
    inside = points / size
    centre = inside.mean(0)
    radius = float(np.linalg.norm(inside - centre, axis=1).max()) or 1.0
    return (inside - centre) / radius, centre * size, radius * size


def _unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=np.isfinite(length) & (length > 0))


def _area_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area (F,) and unit normal (F, 3) of every face."""
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    cross = np.cross(b - a, c - a)
    return np.linalg.norm(cross, axis=1) / 2, _unit(cross)
