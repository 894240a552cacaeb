"""The published layouts of labelled shapes, each read into `Record`s; `partwhole.shape3d.labelled` is the door.

A reader yields a Record for every shape that it could read and a Problem for whatever it could not, and goes on.
Letters: P points, F faces.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partwhole.shape3d import files
from partwhole.shape3d.files import BadShape, Geometry

# Category -> (folder, number of parts), in the published order: global part ids 0 to 49 run through it.
SHAPENET_PART = {
    "Airplane": ("02691156", 4),
    "Bag": ("02773838", 2),
    "Cap": ("02954340", 2),
    "Car": ("02958343", 4),
    "Chair": ("03001627", 4),
    "Earphone": ("03261776", 3),
    "Guitar": ("03467517", 3),
    "Knife": ("03624134", 2),
    "Lamp": ("03636649", 4),
    "Laptop": ("03642806", 2),
    "Motorbike": ("03790512", 6),
    "Mug": ("03797390", 2),
    "Pistol": ("03948459", 3),
    "Rocket": ("04099429", 3),
    "Skateboard": ("04225987", 3),
    "Table": ("04379243", 3),
}
SHAPENET_FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"


@dataclass(frozen=True)
class Record:
    """One labelled shape: points, normals (P, 3); part (P,) int indexing ``parts``, the part names it uses."""

    name: str
    category: str
    points: np.ndarray
    normals: np.ndarray
    part: np.ndarray
    parts: tuple[str, ...]
    split: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Problem:
    """Something that the user should know: where, and what (begins with "skipped" or "kept")."""

    path: str
    reason: str


Found = Iterator[Record | Problem]


def shapenet_parts() -> dict[str, tuple[str, ...]]:
    """Category -> its part names: the published ids, as text ("0" ... "49"; the files name no parts)."""
    parts, start = {}, 0
    for category, (_, count) in SHAPENET_PART.items():
        parts[category] = tuple(str(start + i) for i in range(count))
        start += count
    return parts


def shapenet_root(path: Path) -> Path | None:
    """Where the ShapeNetPart layout begins at or below ``path`` (torch_geometric keeps it in ``raw/``), or None."""
    for root in (path, path / "raw", path / SHAPENET_FOLDER):
        known = any((root / folder).is_dir() for folder, _ in SHAPENET_PART.values())
        if (root / "synsetoffset2category.txt").is_file() or (root / "train_test_split").is_dir() or known:
            return root
    return None


def shapenet(root: Path) -> Found:
    """``<folder>/<id>.txt`` with lines x y z [nx ny nz] label, ``synsetoffset2category.txt``, ``train_test_split/``.

    The official validation shapes count as "train" (the k labelled shapes of the paper come from both). Categories
    beyond the 16 get the part ids that occur in their files.
    """
    names = {folder: category for category, (folder, _) in SHAPENET_PART.items()}
    table = root / "synsetoffset2category.txt"
    if table.is_file():
        rows = [line.split() for line in table.read_text().splitlines() if line.strip()]
        names = {row[1]: row[0] for row in rows if len(row) == 2} or names
    else:
        yield Problem(str(table), "kept: no such file; the folders' usual names are used, others name themselves")
    split: dict[str, str] = {}
    for part, kind in (("train", "train"), ("val", "train"), ("test", "test")):
        listed = root / "train_test_split" / f"shuffled_{part}_file_list.json"
        try:
            split.update(
                dict.fromkeys(("/".join(name.split("/")[-2:]) for name in json.loads(listed.read_text())), kind)
            )
        except (OSError, ValueError, AttributeError) as error:
            yield Problem(str(listed), f"kept: no usable split file ({type(error).__name__}); its shapes have no split")
    official, seen = shapenet_parts(), set()
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name not in ("train_test_split", "processed"))
    for folder in folders:
        category = names.get(folder.name, folder.name)
        for path in sorted(folder.glob("*.txt")):
            key = f"{folder.name}/{path.stem}"
            seen.add(key)
            try:
                rows = _columns(path)
                labels = _whole(path, rows[:, -1])
                known = official.get(category)
                part, parts = _inferred(labels) if known is None else (labels - int(known[0]), known)
                _check_known(path, part, labels, category, parts)
                normals = rows[:, 3:6] if rows.shape[1] == 7 else np.zeros((len(rows), 3), np.float32)
                _check_finite(path, rows)
                name = f"{category}/{path.stem}"
                yield Record(name, category, rows[:, :3], normals, part, parts, split.get(key), str(path))
            except BadShape as error:
                yield Problem(error.path, f"skipped: {error.found}; {error.do}")
    missing = sorted(split.keys() - seen)
    if missing:
        where = str(root / "train_test_split")
        yield Problem(
            where, f"skipped: {len(missing)} shapes of the split files are not there, the first is {missing[0]}"
        )


def geometric(dataset: Any) -> Found:
    """A torch_geometric ``ShapeNet`` data set: items with pos (P, 3), x (P, 3) normals or None, y (P,), category."""
    official = shapenet_parts()
    for i in range(len(dataset)):
        item = dataset[i]
        category = list(dataset.categories)[int(item.category)]
        name = f"{category}/{i}"
        points, labels = np.asarray(item.pos, np.float32), np.asarray(item.y, np.int64)
        normals = np.zeros_like(points) if item.x is None else np.asarray(item.x, np.float32)[:, -3:]
        try:
            part = labels - int(official[category][0])
            _check_known(name, part, labels, category, official[category])
            _check_finite(name, points)
            yield Record(name, category, points, normals, part, official[category])
        except BadShape as error:
            yield Problem(error.path, f"skipped: {error.found}; {error.do}")


def lpsb(root: Path, labels: list[Path], count: int, seed: int) -> Found:
    """Meshes with ``<id>_labels.txt`` beside them: a line with a part's name, a line with its 1-based faces, and so on.

    ``count`` points are drawn by area from the labelled faces, with a fixed ``seed``; the folder is the category.
    """
    for path in labels:
        stem = path.name.removesuffix("_labels.txt")
        meshes = [path.with_name(stem + suffix) for suffix in files.MESHES if path.with_name(stem + suffix).is_file()]
        if not meshes:
            yield Problem(str(path), f"skipped: labels without a mesh {stem}.off (or {', '.join(files.MESHES[1:])})")
            continue
        mesh = meshes[0]
        try:
            geometry = _triangles(mesh)
            part, parts, twice = _face_labels(path, len(geometry.faces))
            marked = np.flatnonzero(part >= 0)
            points, normals, face = files.sample(Geometry(geometry.vertices, geometry.faces[marked]), count, seed)
        except BadShape as error:
            yield Problem(error.path, f"skipped: {error.found}; {error.do}")
            continue
        if len(marked) < len(part):
            missing = len(part) - len(marked)
            yield Problem(str(path), f"kept: {missing} of {len(part)} faces have no label and give no points")
        if twice:
            yield Problem(str(path), f"kept: {twice} faces are labelled more than once; the last label counts")
        category = mesh.parent.name
        yield Record(f"{category}/{stem}", category, points, normals, part[marked][face], parts, None, str(mesh))


def _triangles(path: Path) -> Geometry:
    """A mesh with its faces exactly as in the file, since the labels number them; checked, but nothing dropped."""
    try:
        geometry = files._read_off(path) if path.suffix.lower() == ".off" else files._read_trimesh(path)
    except BadShape:
        raise
    except Exception as error:  # whatever a parser throws at a broken file is a report about that file
        found = f"not a readable {path.suffix} file ({type(error).__name__}: {str(error)[:80]})"
        raise BadShape(path, found, "export or download it again") from error
    files.check(geometry, path)
    if not len(geometry.faces):
        raise BadShape(path, "points without faces", "labels of this layout number the faces of a mesh")
    return geometry


def _face_labels(path: Path, faces: int) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Part (F,) of each face (-1 where none), the part names, and how many faces are labelled more than once."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not lines or len(lines) % 2:
        raise BadShape(path, f"{len(lines)} lines", "expected pairs of lines: a part's name, then its faces")
    part = np.full(faces, -1, np.int64)
    names: dict[str, int] = {}
    total = 0
    for name, listed in zip(lines[::2], lines[1::2], strict=True):
        try:
            index = np.array(listed.split(), np.int64)
        except ValueError:
            raise BadShape(
                path, f"a line of faces of {name!r} that are not whole numbers", "correct the file"
            ) from None
        if index.min() < 1 or index.max() > faces:
            found = f"labels for faces {index.min()} to {index.max()} where the mesh has faces 1 to {faces}"
            raise BadShape(path, found, "labels and mesh do not belong together: find the right pair")
        part[index - 1] = names.setdefault(name, len(names))
        total += len(np.unique(index))
    order = sorted(names)  # not that of this file: another shape may list them in another
    part = np.where(part < 0, -1, np.array([order.index(name) for name in names])[part])
    return part, tuple(order), total - int((part >= 0).sum())


def simple(root: Path, paths: list[Path]) -> Found:
    """``.npz`` with ``points`` (P, 3) and ``labels`` (P,); optional ``normals`` (P, 3), ``category``, ``split``.

    The category is the file's ``category`` or else its folder. The part ids of a category are those that occur, unless
    ``parts.json`` beside or above ({"chair": ["back", "seat"]}) names them: then ids are positions in that list.
    The split is the file's ``split`` or a folder called train, val or test above it.
    """
    named: dict[str, list[str]] = {}
    listed = root / "parts.json"
    if listed.is_file():
        try:
            named = {str(c): [str(p) for p in parts] for c, parts in json.loads(listed.read_text()).items()}
        except (ValueError, AttributeError, TypeError) as error:
            yield Problem(
                str(listed),
                f'kept: not a list of part names for each category ({error}); expected {{"chair": ["back"]}}',
            )
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {key: data[key] for key in data.files}
            yield _simple_record(path, root, arrays, named)
        except BadShape as error:
            yield Problem(error.path, f"skipped: {error.found}; {error.do}")
        except Exception as error:  # whatever the parser throws at a broken file is a report about that file
            yield Problem(str(path), f"skipped: not a readable .npz ({files.plainly(error, 80)}); write it again")


def _simple_record(path: Path, root: Path, arrays: dict[str, np.ndarray], named: dict[str, list[str]]) -> Record:
    if "points" not in arrays or "labels" not in arrays:
        raise BadShape(path, f"arrays {sorted(arrays)}", "expected points (P, 3) and labels (P,)")
    points, raw = np.asarray(arrays["points"], np.float32), np.asarray(arrays["labels"]).reshape(-1)
    if points.ndim != 2 or points.shape[1] < 3 or len(points) == 0:
        raise BadShape(path, f"points of shape {points.shape}", "expected (P, 3)")
    if len(raw) != len(points):
        raise BadShape(path, f"{len(raw)} labels for {len(points)} points", "there must be one label for each point")
    labels = _whole(path, raw)
    folders = [p for p in path.relative_to(root).parts[:-1] if p not in ("train", "val", "test")]
    category = str(arrays["category"]) if "category" in arrays else folders[-1] if folders else root.name
    if category in named:
        part, parts = labels, tuple(named[category])
    else:
        part, parts = _inferred(labels)
    _check_known(path, part, labels, category, parts)
    normals = np.asarray(arrays.get("normals", np.zeros((len(points), 3))), np.float32)
    if normals.shape != (len(points), 3):
        raise BadShape(
            path, f"normals of shape {normals.shape} for {len(points)} points", "expected one for each point"
        )
    _check_finite(path, points)
    folder = next((p for p in reversed(path.relative_to(root).parts[:-1]) if p in ("train", "val", "test")), None)
    split = str(arrays["split"]) if "split" in arrays else folder
    split = {"val": "train"}.get(split or "", split)
    if split not in (None, "train", "test"):
        raise BadShape(path, f"split {split!r}", "expected train, val or test")
    return Record(f"{category}/{path.stem}", category, points[:, :3], normals, part, parts, split, str(path))


def _columns(path: Path) -> np.ndarray:
    """The numbers (P, 4 or 7) of a text file with the same count on every line."""
    text = path.read_bytes()
    lines = len(re.findall(rb"[^\n]*\S[^\n]*", text))
    try:
        values = np.array(text.split(), np.float32)
    except ValueError as error:
        raise BadShape(
            path, f"something that is not a number ({str(error)[:60]})", "expected x y z nx ny nz label"
        ) from error
    width = len(values) // max(lines, 1)
    if width not in (4, 7) or width * lines != len(values):
        raise BadShape(
            path, f"{len(values)} values on {lines} lines", "expected x y z [nx ny nz] label on each: is it cut off?"
        )
    return values.reshape(lines, width)


def _whole(path: Path | str, labels: np.ndarray) -> np.ndarray:
    """Labels as whole numbers."""
    if labels.dtype.kind not in "iufb" or not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise BadShape(path, "labels that are not whole numbers", "expected the number of a part for each point")
    return labels.astype(np.int64)


def _inferred(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The parts of a category nobody named: the ids that occur, in their order."""
    ids, part = np.unique(labels, return_inverse=True)
    return part.reshape(-1), tuple(str(i) for i in ids)


def _check_known(path: Path | str, part: np.ndarray, labels: np.ndarray, category: str, parts: tuple[str, ...]) -> None:
    wrong = labels[(part < 0) | (part >= len(parts))]
    if len(wrong):
        found = f"part id {wrong[0]} at {len(wrong)} points, which {category} does not have (it has {', '.join(parts)})"
        raise BadShape(path, found, "correct the labels or move the file to its category")


def _check_finite(path: Path | str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise BadShape(path, "points or normals that are NaN or infinite", "export it again")
