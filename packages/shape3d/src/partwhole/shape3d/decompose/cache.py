"""Decompositions on disk: one file per shape, named by its content, and a manifest of what is done and what failed.

    <folder>/<key[:2]>/<key>.npz     points f16 (P, 3), normals i8 (P, 3), labels u8 or u16 (levels, P), meta JSON
    <folder>/manifest.jsonl          one line per shape and attempt, appended; the last line of a file counts

An entry is written beside its place and renamed, so it is whole or absent, whoever is killed when; several processes
may use one folder. The key is the SHA-256 of the geometry and of everything that decides the result.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from partwhole.shape3d.files import Geometry, plainly

Entry = dict[str, Any]
ARRAYS = ("points", "normals", "labels", "meta")


class CacheError(OSError):
    """The folder cannot be written or read: which one, what happened, what to do."""

    def __init__(self, folder: str | Path, found: str, do: str) -> None:
        super().__init__(str(folder), found, do)
        self.folder, self.found, self.do = str(folder), found, do

    def __str__(self) -> str:
        return f"cache {self.folder}: {self.found}; {self.do}"


class Damaged(ValueError):
    """An entry that is not whole, or that another version wrote. It is made again."""


def digest(settings: dict[str, object]) -> str:
    """A short name of the settings, for the manifest."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def key_of(geometry: Geometry, settings: dict[str, object]) -> str:
    """64 hexadecimal digits: the geometry's bytes and the settings'."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in (geometry.vertices, geometry.faces, geometry.normals, geometry.component):
        if array is not None:
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


class Cache:
    """The entries and the manifest in one folder, which is made when the first entry is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = self.folder / "manifest.jsonl"

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def write(self, key: str, points: np.ndarray, normals: np.ndarray, labels: np.ndarray, meta: dict) -> int:
        """Writes one entry whole and returns its size in bytes. `points` (P, 3) within radius 1, `normals` (P, 3) unit
        or zero, `labels` (levels, P) from 0. Raises CacheError where the folder cannot take it."""
        kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
        arrays = {
            "points": points.astype(np.float16),
            "normals": np.round(normals * 127).astype(np.int8),
            "labels": labels.astype(kind),
            "meta": np.frombuffer(json.dumps({**meta, "key": key}).encode(), np.uint8),
        }
        path = self.path(key)
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            return path.stat().st_size

    def read(self, key: str) -> Entry:
        """{"points", "normals", "labels", "meta"}. Raises KeyError if there is none, Damaged if it is not whole."""
        try:
            with open(self.path(key), "rb") as file, np.load(file, allow_pickle=False) as data:
                entry: Entry = {name: data[name] for name in ARRAYS}
            entry["meta"] = json.loads(entry["meta"].tobytes())
        except FileNotFoundError:
            raise KeyError(key) from None
        except PermissionError as error:
            raise CacheError(self.path(key), "no permission to read it", "give yourself read access") from error
        except Exception as error:  # zipfile, numpy and json each have their own way to say that bytes are missing
            raise Damaged(f"{self.path(key)} is not whole ({plainly(error)})") from error
        count = len(entry["points"])
        if (
            entry["meta"].get("key") != key
            or entry["normals"].shape != (count, 3)
            or entry["labels"].shape[-1] != count
        ):
            raise Damaged(f"{self.path(key)} does not hold what its name says")
        return entry

    def remember(self, record: dict[str, Any]) -> None:
        """Appends one line to the manifest, in a single write."""
        line = json.dumps(record, sort_keys=True).encode() + b"\n"
        with self.errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.manifest, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":  # somebody was killed in the middle of a line
                    line = b"\n" + line
                os.write(handle, line)
            finally:
                os.close(handle)

    def records(self) -> Iterator[dict[str, Any]]:
        """The manifest's lines; a line that is cut off is passed over: its shape is looked at again."""
        try:
            text = self.manifest.read_bytes()
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise CacheError(self.folder, "a file is where the folder should be", "name another folder") from error
        except OSError as error:
            raise CacheError(
                self.manifest, f"it cannot be read ({error.strerror})", "check the path and access"
            ) from error
        for line in text.split(b"\n"):
            if line.strip():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the system says about this folder into a CacheError."""
        try:
            yield
        except CacheError:
            raise
        except OSError as error:
            kept = "what was finished is kept, and the same call goes on from there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise CacheError(self.folder, "no space left", f"free some or name another folder: {kept}") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise CacheError(
                    self.folder, "no permission to write", f"name a folder that you own: {kept}"
                ) from error
            if error.errno in (errno.ENOTDIR, errno.EEXIST):
                raise CacheError(self.folder, "a file is where the folder should be", "name another folder") from error
            raise CacheError(self.folder, f"it cannot be written ({error})", kept) from error
