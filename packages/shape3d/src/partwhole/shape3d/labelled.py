"""Labelled shapes: `read_labelled(path)` finds out the layout, reads all of it once, and gives samples.

Letters: S shapes, P points of a shape, T points of all shapes, C categories.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwhole.shape3d import files, layouts
from partwhole.shape3d.files import BadShape
from partwhole.shape3d.layouts import Found, Problem, Record

VERSION = 2  # of the files in the cache folder: raise it when the samples of unchanged files change
ARRAYS = ("points", "normals", "part", "starts")
EXPECTED = (
    "expected <synset>/<id>.txt and train_test_split/, <id>.off and <id>_labels.txt, or .npz of points and labels"
)


@dataclass(frozen=True, eq=False)
class Labelled(Sequence):
    """A sequence of labelled shapes, made by `read_labelled` or `generated`.

    A sample is {"points" (P, 3) float32 centred on their mean with the farthest at radius 1, "normals" (P, 3) float32
    (zeros where unknown), "part" (P,) int64 global part ids, "category" () int64}. Global part ids run over the
    categories in order: those of category c are ``first[c]`` to ``first[c] + len(parts[c]) - 1``.
    ``split`` is "train", "test" or None for each shape; ``paths`` the file each came from; ``problems`` (path, reason)
    pairs, where a reason begins with "skipped" or "kept"; ``note`` says in a sentence what was found.
    """

    categories: list[str]
    parts: list[list[str]]
    names: list[str]
    category: list[int]
    split: list[str | None]
    paths: list[str | None]
    problems: list[tuple[str, str]]
    note: str
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= i < len(self):
            raise IndexError(f"shape {index} of {len(self)}")
        rows = slice(int(self.arrays["starts"][i]), int(self.arrays["starts"][i + 1]))
        sample = {k: torch.from_numpy(np.array(self.arrays[k][rows], np.float32)) for k in ("points", "normals")}
        part = torch.from_numpy(np.array(self.arrays["part"][rows], np.int64))
        return {**sample, "part": part, "category": torch.tensor(self.category[i])}

    @cached_property
    def first(self) -> list[int]:
        """The first global part id of each category."""
        return [0, *np.cumsum([len(p) for p in self.parts])[:-1].tolist()]

    @cached_property
    def part_mask(self) -> Tensor:
        """(C, all parts) bool: which parts a category may have."""
        mask = torch.zeros(len(self.categories), sum(len(p) for p in self.parts), dtype=torch.bool)
        for c, (start, parts) in enumerate(zip(self.first, self.parts, strict=True)):
            mask[c, start : start + len(parts)] = True
        return mask

    def told(self, most: int = 10) -> list[str]:
        """Lines for a person: what was skipped and why, at most so many; what was kept all the same comes last."""
        order = sorted(self.problems, key=lambda problem: not problem[1].startswith("skipped"))
        lines = [f"{path}: {reason}" for path, reason in order[:most]]
        return lines + ([f"and {len(order) - most} more of the labelled set"] if len(order) > most else [])

    def of(self, category: str) -> list[int]:
        """The positions of the shapes of a category. Raises ValueError for one that is not there."""
        if category not in self.categories:
            raise ValueError(f"no category {category!r}; there are {', '.join(self.categories)}")
        wanted = self.categories.index(category)
        return [i for i, c in enumerate(self.category) if c == wanted]


def read_labelled(
    source: Any, *, points: int = 2048, seed: int = 0, cache: str | Path | None = None, watch: Any = None
) -> Labelled:
    """All labelled shapes of a folder in one of these layouts, or of a torch_geometric ``ShapeNet`` data set.

    - ShapeNetPart: ``<synset>/<id>.txt`` (x y z [nx ny nz] label) with ``synsetoffset2category.txt`` and
      ``train_test_split/``; also below ``raw/``, as torch_geometric keeps it (its processed files are never read).
    - meshes with labels of faces, as the Labeled Princeton Segmentation Benchmark: ``<Category>/<id>.off`` (any mesh
      format) and ``<id>_labels.txt``; ``points`` are drawn from each by area, with a fixed ``seed``.
    - simple: ``<category>/<id>.npz`` with ``points``, ``labels``; optional ``normals``, ``category``, ``split``.

    Broken files are skipped and told in ``.problems``; the rest goes on. ``cache`` is a folder that keeps what was
    read, so that the second time takes well under a second; it is read again when a file changed. ``watch.say(text)``
    is told what is going on. Raises BadShape where there is nothing of the kind, or nothing of it could be read.
    """
    if not isinstance(source, str | Path):
        if not hasattr(source, "categories"):
            raise TypeError(
                f"cannot read labelled shapes from {type(source).__name__}; expected a folder or a ShapeNet data set"
            )
        return _pack(layouts.geometric(source), "a torch_geometric ShapeNet data set", layouts.shapenet_parts())
    path = Path(source)
    if not path.is_dir():
        raise BadShape(path, "no such folder" if not path.exists() else "a file", "give the folder of a labelled set")
    path = path.absolute()  # what is kept must hold wherever it is read from
    layout, listed = _layout(path)
    key = _key(layout, path, listed, points if layout == "lpsb" else 0, seed)
    if cache is not None:
        kept = _load(Path(cache) / f"labelled-{key}")
        if kept is not None:
            return kept
    if watch is not None:
        watch.say(f"reading {len(listed)} labelled shapes from {path}")
    if layout == "shapenet":
        root = layouts.shapenet_root(path)
        assert root is not None
        made = _pack(layouts.shapenet(root), f"ShapeNetPart layout in {root}", layouts.shapenet_parts())
    elif layout == "lpsb":
        found = layouts.lpsb(path, listed, points, seed)
        made = _pack(found, f"meshes with face labels (LPSB layout) in {path}", {})
    else:
        made = _pack(layouts.simple(path, listed), f".npz files with points and labels in {path}", {})
    if watch is not None:
        watch.say(made.note)
    if cache is not None:
        _save(made, Path(cache) / f"labelled-{key}")
        return _load(Path(cache) / f"labelled-{key}") or made
    return made


@cache
def generated(count: int, *, points: int = 2048, seed: int = 0, categories: tuple[str, ...] | None = None) -> Labelled:
    """``count`` generated shapes (`partwhole.shape3d.generator`), sampled on their visible surface; no file needed."""
    from partwhole.shape3d import generator

    chosen = tuple(categories or generator.CATEGORIES)
    known = {c: generator.PARTS[c] for c in chosen if c in generator.PARTS}

    def records() -> Found:
        for made in generator.generate(count, seed=seed, categories=chosen):
            xyz, normals, part = generator.visible(made, points, seed=seed)
            yield Record(made.name, made.category, xyz, normals, part, generator.PARTS[made.category])

    return _pack(records(), f"generated shapes (seed {seed})", known)


def _layout(path: Path) -> tuple[str, list[Path]]:
    """Which layout a folder has, and the files that hold its labels."""
    root = layouts.shapenet_root(path)
    if root is not None:
        return "shapenet", sorted(root.glob("*/*.txt")) + sorted(root.glob("train_test_split/*.json"))
    labels = sorted(path.rglob("*_labels.txt"), key=_by_number)
    if labels:
        return "lpsb", labels
    boxes = sorted(path.rglob("*.npz"), key=_by_number)
    if boxes:
        return "simple", boxes
    pickled = any(path.rglob("processed/*.pt"))
    found = "only processed .pt files, which are pickles" if pickled else "no labelled shapes"
    raise BadShape(path, found, EXPECTED)


def _by_number(path: Path) -> list:
    """Sort 9.off before 10.off."""
    return [[(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", part)] for part in path.parts]


def _pack(found: Iterable[Record | Problem], what: str, known: dict[str, tuple[str, ...]]) -> Labelled:
    """Number the categories and parts and join the points.

    The categories of ``known`` come first, as they stand; others are sorted. So are the parts of a category whose
    shapes do not all bring the same list.
    """
    found = list(found)
    records = [r for r in found if isinstance(r, Record)]
    problems = [(p.path, p.reason) for p in found if isinstance(p, Problem)]
    if not records:
        first = f"; the first: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise BadShape(what, f"no shape could be read ({len(problems)} problems{first})", EXPECTED)
    seen: dict[str, set[tuple[str, ...]]] = {}
    for r in records:
        seen.setdefault(r.category, set()).add(r.parts)
    fixed = known if seen.keys() & known.keys() else {}
    order = [*fixed, *sorted(seen.keys() - fixed.keys())]
    parts = {c: list(fixed[c]) if c in fixed else _union(seen[c]) for c in order}
    start = {c: sum(len(parts[b]) for b in order[:i]) for i, c in enumerate(order)}
    part = [np.array([parts[r.category].index(p) for p in r.parts])[r.part] + start[r.category] for r in records]
    for c in order:
        mine = [r for r in records if r.category == c]
        if len(mine) == 1:
            problems.append((mine[0].path or mine[0].name, f"kept: the only shape of category {c}; it cannot be split"))
    skipped = sum(reason.startswith("skipped") for _, reason in problems)
    total = sum(map(len, parts.values()))
    note = f"{what}: {len(records)} shapes of {len(seen)} categories, {total} parts, {skipped} skipped"
    arrays = {
        "points": np.concatenate([files.normalise(r.points)[0].astype(np.float32) for r in records]),
        "normals": np.concatenate([r.normals.astype(np.float32) for r in records]),
        "part": np.concatenate(part).astype(np.int16),
        "starts": np.cumsum([0, *(len(r.points) for r in records)]),
    }
    return Labelled(
        categories=order,
        parts=list(parts.values()),
        names=[r.name for r in records],
        category=[order.index(r.category) for r in records],
        split=[r.split for r in records],
        paths=[r.path for r in records],
        problems=problems,
        note=note,
        arrays=arrays,
    )


def _union(lists: set[tuple[str, ...]]) -> list[str]:
    return list(*lists) if len(lists) == 1 else sorted({name for names in lists for name in names}, key=_numeric)


def _numeric(name: str) -> tuple:
    return (0, int(name), "") if re.fullmatch(r"-?\d+", name) else (1, 0, name)


# The cache: a folder of plain arrays and one JSON file, written beside and renamed: a reader never sees half of it.


def _key(layout: str, path: Path, listed: list[Path], points: int, seed: int) -> str:
    """Changes with any file's name, size or time, and with what is drawn from it."""
    state = hashlib.sha256(f"{VERSION} {layout} {path.resolve()} {points} {seed}".encode())
    beside = [p for p in (path / "parts.json", path / "synsetoffset2category.txt") if p.is_file()]
    for label in listed + beside:
        stems = [label] if layout != "lpsb" else [label, *_meshes(label)]
        for file in stems:
            status = file.stat()
            state.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return state.hexdigest()[:24]


def _meshes(label: Path) -> list[Path]:
    stem = label.name.removesuffix("_labels.txt")
    return [p for p in (label.with_name(stem + suffix) for suffix in files.MESHES) if p.is_file()]


def _save(made: Labelled, folder: Path) -> None:
    """Keep what was read. A full disk or a folder that cannot be written costs the cache, not the run."""
    folder_parts = ("categories", "parts", "names", "category", "split", "paths", "problems", "note")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        made.problems.append((str(folder), f"kept: the cache cannot be written ({error})"))
        return
    try:
        for name in ARRAYS:
            np.save(scratch / f"{name}.npy", made.arrays[name])
        (scratch / "meta.json").write_text(json.dumps({k: getattr(made, k) for k in folder_parts}))
        if folder.exists():  # another process was faster, or what lies there cannot be read
            if _load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            os.replace(scratch, folder)
    except OSError as error:
        made.problems.append((str(folder), f"kept: the cache cannot be written ({error})"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(folder: Path) -> Labelled | None:
    """What an earlier call kept, memory-mapped; None where there is nothing or it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        meta["problems"] = [(path, reason) for path, reason in meta["problems"]]
        sizes = {len(arrays[name]) for name in ARRAYS[:3]} | {int(arrays["starts"][-1])}
        return (
            Labelled(**meta, arrays=arrays)
            if len(sizes) == 1 and len(arrays["starts"]) == len(meta["names"]) + 1
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError):
        return None
