"""Decomposed shapes as a sequence of samples: packed arrays in memory-mapped files, and small files to carry elsewhere.

Axis letters: P points of one shape, N points of all shapes.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partwhole.shape3d.decompose.cache import ARRAYS, Cache, CacheError, Damaged, Entry

FILES = ("points", "normals", "labels", "offsets")
KEPT = 8  # sets of packed arrays in one cache; they can be made again from the entries


@dataclass(frozen=True)
class Packed:
    """points f16 (N, 3), normals i8 (N, 3), labels u8 or u16 (levels, N), offsets i64 (shapes + 1)."""

    points: np.ndarray
    normals: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


class Prepared(Sequence[dict[str, Any]]):
    """A sequence of samples {"points" float32 (P, 3), "normals" float32 (P, 3), "component" int64 (levels, P)}
    (tensors).

    `names` and `records` (what the manifest says: engine, seconds, components, reasons) are parallel to the samples;
    `failures` lists (path, reason) of the shapes that could not be decomposed; `left` the paths of those that were not
    reached in the time allowed. `places` says which of the packed shapes they are, all by default.
    """

    def __init__(
        self,
        packed: Packed,
        names: list[str],
        records: list[dict[str, Any]],
        failures: list[tuple[str, str]],
        left: list[str] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        self.packed, self.names, self.records, self.failures, self.left = packed, names, records, failures, left or []
        self.places = range(len(names)) if places is None else places

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        import torch  # here: the children of the pool must not import it

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry = self.entry(range(len(self))[index])
        return {
            "points": torch.from_numpy(entry["points"].astype(np.float32)),
            "normals": torch.from_numpy(entry["normals"].astype(np.float32) / 127),
            "component": torch.from_numpy(entry["labels"].astype(np.int64)),
        }

    def entry(self, i: int) -> Entry:
        """The packed arrays of shape `i`."""
        return _slice(self.packed, self.places[i])

    def subset(self, indices: Sequence[int]) -> "Prepared":
        """The shapes of `indices` alone, in that order; their points stay where they are."""
        names, records = [self.names[i] for i in indices], [self.records[i] for i in indices]
        return Prepared(self.packed, names, records, self.failures, self.left, [self.places[i] for i in indices])

    def statistics(self) -> dict[str, Any]:
        """JSON values: how many shapes were done, cached and failed (with reasons), how many components they have at
        the first level, which engine made them, how many needed another engine than the first, CPU seconds."""
        counts = [record["components"][0] for record in self.records]
        fresh = [record for record in self.records if not record.get("cached")]
        return {
            "shapes": len(self.names) + len(self.failures) + len(self.left),
            "done": len(fresh),
            "cached": len(self.names) - len(fresh),
            "left": len(self.left),
            "failed": [list(failure) for failure in self.failures],
            "components": {
                "min": min(counts, default=0),
                "mean": sum(counts) / max(len(counts), 1),
                "max": max(counts, default=0),
                "histogram": sorted([list(item) for item in Counter(counts).items()]),
            },
            "engines": dict(Counter(record["engine"] for record in self.records)),
            "fallbacks": sum(bool(record["reasons"]) for record in self.records),
            "seconds": round(sum(record["seconds"] for record in self.records), 1),
        }

    def pack(self, folder: str | Path, *, max_bytes: int = 16 * 2**20) -> list[Path]:
        """Writes everything as compressed files of at most `max_bytes` (`load` and `restore` read them): about 7 bytes
        a point. A single shape that is larger than that still gets its file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("shapes-*.npz"):
            old.unlink()
        paths: list[Path] = []
        todo = list(range(len(self)))
        each = len(self.packed.points) / max(1, len(self.packed.offsets) - 1)
        size = max(1, round(max_bytes / (9 * max(1.0, each))))
        while todo or not paths:
            path = folder / f"shapes-{len(paths):04d}.npz"
            while True:
                self._write(path, todo[:size], first=not paths)
                if path.stat().st_size <= max_bytes or size == 1:
                    break
                size = max(1, int(size * 0.97 * max_bytes / path.stat().st_size))
            todo = todo[size:]
            paths.append(path)
        return paths

    def _write(self, path: Path, indices: list[int], first: bool) -> None:
        entries = [self.entry(i) for i in indices]
        about = {
            "names": [self.names[i] for i in indices],
            "records": [self.records[i] for i in indices],
            "failures": self.failures if first else [],
            "left": self.left if first else [],
        }
        packed = _concatenate(entries)
        np.savez_compressed(
            path,
            points=packed.points.view(np.uint16).T.copy(),  # coordinate by coordinate compresses better
            normals=packed.normals.T.copy(),
            labels=packed.labels,
            offsets=packed.offsets,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )


def load(folder: str | Path) -> Prepared:
    """Reads what `Prepared.pack` wrote, into memory."""
    paths = sorted(Path(folder).glob("shapes-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no shapes-*.npz there; name a folder that Prepared.pack wrote")
    entries: list[Entry] = []
    names, records, failures, left = [], [], [], []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            points, normals = data["points"].T.copy().view(np.float16), data["normals"].T.copy()
            packed = Packed(points, normals, data["labels"], data["offsets"])
            about = json.loads(data["about"].tobytes())
        entries += [_slice(packed, i) for i in range(len(about["names"]))]
        names += about["names"]
        records += about["records"]
        failures += [(str(a), str(b)) for a, b in about["failures"]]
        left += about.get("left", [])
    return Prepared(_concatenate(entries), names, records, failures, left)


def restore(folder: str | Path, cache: str | Path) -> int:
    """Puts what `Prepared.pack` wrote into a cache, so that `prepare` on the same files finds it done; returns how
    many.

    Both machines need the same options and engine versions, which are part of the key."""
    carried, store = load(folder), Cache(cache)
    for i, record in enumerate(carried.records):
        entry = carried.entry(i)
        meta = {k: record[k] for k in ("engine", "reasons", "seconds", "components", "thresholds")}
        store.write(record["key"], entry["points"], entry["normals"] / 127, entry["labels"], meta)
    return len(carried)


def pack_entries(
    cache: Cache, keys: list[str], name: str, damaged: Callable[[str], None], said: Callable[[str], None]
) -> Packed | None:
    """The packed arrays of `keys`, memory-mapped from `<cache>/packed/<name>`, made if they are not there.

    None if an entry turned out to be damaged: `damaged(key)` has been called for each. Where the cache has no space or
    may only be read, the arrays stay in memory."""
    folder = cache.folder / "packed" / name
    try:
        with contextlib.suppress(OSError):  # the time of use is not ours to write in somebody else's cache
            os.utime(folder)
        return _mapped(folder)
    except (OSError, ValueError):  # not there, or not whole
        shutil.rmtree(folder, ignore_errors=True)
    entries = []
    for key in keys:
        try:
            entries.append(cache.read(key))
        except (KeyError, Damaged) as error:
            said(f"decomposed again: {error}")
            damaged(key)
    if len(entries) < len(keys):
        return None
    packed = _concatenate(entries)
    try:
        _keep(packed, cache, folder)
    except CacheError as error:
        said(f"{error.folder}: {error.found}: the {len(keys)} shapes are held in memory this time")
        return packed
    return _mapped(folder)


def _keep(packed: Packed, cache: Cache, folder: Path) -> None:
    """Writes the arrays to `folder`, whole or not at all, and removes what was not used for longest."""
    with cache.errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            for file in FILES:
                np.save(made / f"{file}.npy", getattr(packed, file))
            os.chmod(made, 0o755)
            os.rename(made, folder)
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if not (isinstance(error, OSError) and folder.is_dir()):  # else another process was faster with the same
                raise
        older = sorted((f for f in folder.parent.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
        for old in older[:-KEPT]:  # whoever has mapped its files keeps them
            shutil.rmtree(old, ignore_errors=True)


def _mapped(folder: Path) -> Packed:
    return Packed(*(np.load(folder / f"{file}.npy", mmap_mode="r", allow_pickle=False) for file in FILES))


def _slice(packed: Packed, i: int) -> Entry:
    rows = slice(packed.offsets[i], packed.offsets[i + 1])
    return {"points": packed.points[rows], "normals": packed.normals[rows], "labels": packed.labels[:, rows]}


def _concatenate(entries: list[Entry]) -> Packed:
    levels = len(entries[0]["labels"]) if entries else 1
    empty = {"points": np.zeros((0, 3), np.float16), "normals": np.zeros((0, 3), np.int8)}
    empty["labels"] = np.zeros((levels, 0), np.uint8)
    joined = {
        name: np.concatenate([empty[name], *(e[name] for e in entries)], axis=1 if name == "labels" else 0)
        for name in ARRAYS[:3]
    }
    offsets = np.cumsum([0, *(len(e["points"]) for e in entries)], dtype=np.int64)
    return Packed(joined["points"], joined["normals"], joined["labels"], offsets)
