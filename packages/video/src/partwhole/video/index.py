"""What is known of each video of a data set, looked at once in parallel processes and kept in a file.

The file holds the indices of packets one after the other, which all processes of a machine map, then what else is known
as JSON, then how long that is. A video is known again by its path, size and time of the last change, so that one that
was added or changed is looked at, and the others are not.

Nothing here imports torch: the processes that check files use it.
"""

import contextlib
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from partwhole.video import folder, pyav
from partwhole.video.backends import ReaderName, choose
from partwhole.video.packets import BadVideo, Packets
from partwhole.vision.pack import end_with

VERSION = 1  # raised by a change that finds something else in the same files
CHUNK = 4  # videos that travel between processes together
ALONE = 1.0  # seconds of work that this process does by itself before it starts others
SAVED = 120.0  # seconds after which what is known so far is written down
KEPT = 8  # files in one cache; they can be made again
END = struct.Struct("<8sQI")
MAGIC = b"pwvideos"
KINDS = {"place": np.int64, "times": np.float64, "seek": np.int64, "frame": np.int32, "start": np.int32}
VIDEOS = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .mts .m2ts .flv .wmv .3gp .ogv".split())
Row = dict[str, Any]


class Entry(NamedTuple):
    """A video file, or a folder of frames."""

    path: str
    folder: bool
    stamp: str  # changes with the content


def find(root: str | Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The video files and the folders with images below a folder, or the one that ``root`` is, in natural order.

    Hidden files and folders are passed over, links are followed; of a folder with ``JPEGImages`` and ``Annotations``
    the latter are no videos, and images beside video files are no frames. Also (path, reason) of folders that cannot be
    read. Raises BadVideo where there is none.
    """
    root = Path(root)
    if not root.is_dir():
        if not root.exists():
            raise BadVideo(root, "no such file or folder", "check the path")
        return [_file(str(root))], []
    found: list[Entry] = []
    problems: list[tuple[str, str]] = []
    others: set[str] = set()
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        problems.append((str(error.filename), f"skipped: a folder that cannot be read ({error.strerror})"))

    for at, folders, names in os.walk(root, onerror=failed, followlinks=True):
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        truth = {"Annotations"} if "JPEGImages" in folders else set()
        folders[:] = [f for f in folders if not f.startswith(".") and f not in truth]
        count = len(found)
        for name in names:
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()
                path = os.path.join(at, name)
                if suffix in VIDEOS and os.path.isfile(path):
                    found.append(_file(path))
                others.add(suffix)
        if len(found) == count and not others.isdisjoint(folder.SUFFIXES) and (pictures := folder.listed(at)):
            found.append(pictured(at, pictures))
    if not found:
        kinds = f" (only {', '.join(sorted(others)[:8])})" if others else ""
        reason = problems[0][1] if problems else f"no video in it{kinds}"
        raise BadVideo(root, reason, "put videos (.mp4 .avi .mkv .webm .mov ...) or folders of images there")
    return sorted(found, key=lambda e: folder.natural(e.path)), problems


def _file(path: str) -> Entry:
    status = os.stat(path)
    return Entry(path, False, f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}")


def pictured(path: str, names: Sequence[str]) -> Entry:
    """A folder with these images as a video."""
    state = hashlib.sha256()
    for name in names:
        status = os.stat(os.path.join(path, name))
        state.update(f"{name}\0{status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return Entry(path, True, f"{os.path.abspath(path)} {state.hexdigest()[:24]}")


def looked(entry: Entry, reader: ReaderName) -> tuple[Row, bytes]:
    """What there is to know of a video: "bad" (found, what to do), or "about", and the bytes of its arrays."""
    try:
        if entry.folder:
            return {"about": asdict(folder.look(entry.path))}, b""
        packets = pyav.look(entry.path)
        chosen, why = choose(entry.path, packets, reader)
    except BadVideo as error:
        return {"bad": [error.found, error.do]}, b""
    arrays = {name: np.ascontiguousarray(getattr(packets, name), kind) for name, kind in KINDS.items()}
    shapes = [list(a.shape) for a in arrays.values()]
    row = {"about": packets.about(), "reader": chosen, "why": why, "shapes": shapes}
    return row, b"".join(a.tobytes() for a in arrays.values())


class Index:
    """What is known of videos, by their stamps. ``path``: the file where it is kept; None, nowhere."""

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: dict[str, Row] = {}
        self.old: np.ndarray = np.zeros(0, np.uint8)
        self.new: dict[str, bytes] = {}
        if path is not None:
            self._load(path)

    def add(self, entries: Sequence[Entry], reader: ReaderName, workers: int | None, watch: Any) -> None:
        """Look at those that are not known."""
        todo = [e for e in entries if e.stamp not in self.rows]
        known, saved, failed = len(entries) - len(todo), time.monotonic(), 0
        for done, (entry, (row, data)) in enumerate(zip(todo, _each(todo, reader, workers), strict=True), 1):
            self.rows[entry.stamp], self.new[entry.stamp] = row, data
            failed += "bad" in row
            watch.step(known + done, {"total": len(entries), "failed": failed})
            if time.monotonic() - saved > SAVED:
                self._save(entries)
                saved = time.monotonic()
        if todo:
            self._save(entries)

    def packets(self, stamp: str) -> Packets:
        """The index of a file that is no folder."""
        row = self.rows[stamp]
        data = self._bytes(stamp)
        arrays, at = {}, 0
        for (name, kind), shape in zip(KINDS.items(), row["shapes"], strict=True):
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays[name] = data[at : at + size].view(kind).reshape(shape)
            at += size
        return Packets.of(arrays, row["about"])

    # ------------------------------------------------------------------ inside

    def _bytes(self, stamp: str) -> np.ndarray:
        if stamp in self.new:
            return np.frombuffer(self.new[stamp], np.uint8)
        row = self.rows[stamp]
        return self.old[row["at"] : row["at"] + row["bytes"]]

    def _save(self, entries: Sequence[Entry]) -> None:
        if self.path is None:
            return
        from partwhole.core import files

        wanted = [e.stamp for e in entries if e.stamp in self.rows]

        def fill(file: BinaryIO) -> None:
            rows = {}
            for stamp in wanted:
                data = self._bytes(stamp).tobytes()
                rows[stamp] = {**self.rows[stamp], "at": file.tell(), "bytes": len(data)}
                file.write(data + bytes(-len(data) % 8))
            text = json.dumps(rows).encode()
            file.write(text)
            file.write(END.pack(MAGIC, len(text), zlib.crc32(text)))

        files.write(self.path, fill)
        self._load(self.path)
        with contextlib.suppress(OSError):
            kept = sorted(self.path.parent.glob(f"*{self.path.suffix}"), key=lambda file: file.stat().st_mtime)
            for old in kept[:-KEPT]:
                old.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        """Take what an earlier run wrote; a damaged file is none."""
        try:
            with path.open("rb") as file:
                size = file.seek(-END.size, os.SEEK_END)
                magic, length, total = END.unpack(file.read())
                file.seek(size - length)
                text = file.read(length)
            if magic != MAGIC or zlib.crc32(text) != total:
                return
            rows = json.loads(text)
            held = size - length
            self.old = np.asarray(np.memmap(path, np.uint8, "r", shape=(held,))) if held else np.zeros(0, np.uint8)
            self.rows, self.new = rows, {}
            with contextlib.suppress(OSError):  # the time of use is not ours to write in somebody else's cache
                os.utime(path)
        except Exception:  # whatever a damaged file makes of its readers: it is made again
            return


def _each(entries: list[Entry], reader: ReaderName, workers: int | None) -> Iterator[tuple[Row, bytes]]:
    """``looked`` of each, in their order: here at first, then in processes."""
    import joblib

    processes = joblib.cpu_count() if workers is None else workers
    began, at = time.monotonic(), 0
    while at < len(entries) and (processes < 2 or time.monotonic() - began < ALONE):
        yield looked(entries[at], reader)
        at += 1
    if at >= len(entries):
        return
    from concurrent.futures.process import BrokenProcessPool

    from joblib.externals.loky import get_reusable_executor

    rest = [entries[i : i + CHUNK] for i in range(at, len(entries), CHUNK)]
    parallel: Any = joblib.Parallel(n_jobs=processes, backend="loky", return_as="generator")
    try:
        for found in parallel(joblib.delayed(_apart)(chunk, reader, os.getpid()) for chunk in rest):
            for one in found:
                yield one
                at += 1
    except BrokenProcessPool as error:
        raise BadVideo(
            entries[at].path, "a process that looked at it or at one of the next was killed, most often because "
            "memory ran out", "give fewer workers, or take the video out",
        ) from error  # fmt: skip
    finally:  # they hold memory, and their threads would be here when others are forked
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _apart(entries: list[Entry], reader: ReaderName, parent: int) -> list[tuple[Row, bytes]]:
    if parent != os.getpid():
        end_with(parent)
    return [looked(entry, reader) for entry in entries]
