"""Every image looked at once before training, side by side in processes, and kept decoded where that fits.

A pack is one file: pixels of all images one after the other (H, W, 3) uint8, none where they are too many; then an .npz
of their sizes and of what is wrong with the others; then how long that is. Both have checksums.
Letters: N images, H height, W width.
Nothing here imports torch with the module: the processes that check images import it.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from partwhole.vision.decode import BadImage, decode
from partwhole.vision.find import Entry, read

VERSION = 1  # raised by a change that gives other pixels for the same files
CHUNK = 32  # images that travel between processes together
ALONE = 1.0  # seconds of work that this process does by itself before it starts others
KEPT = 8  # packs in one cache; they can be made again
END = struct.Struct("<8sQI")
MAGIC = b"pwimages"


class Ended(Exception):
    """A process that decoded images was ended from outside."""


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels: see ``decode``."""

    shorter: int | None
    largest: int | None


class Decoded(Sequence[dict[str, Any]]):
    """Images that are read and decoded whenever they are asked for: {"image": (3, H, W) uint8}."""

    def __init__(self, entries: list[Entry], decoding: Decoding):
        self.entries, self.decoding = entries, decoding

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return sample(_decoded(self.entries[index], self.decoding))


class Packed(Sequence[dict[str, Any]]):
    """Images from a memory-mapped file, which all processes of a machine share: {"image": (3, H, W) uint8}."""

    def __init__(self, path: Path, sizes: np.ndarray):
        self.path, self.sizes = path, sizes
        self.starts = np.cumsum([0, *(3 * sizes.prod(1))])
        self.pixels = _mapped(path, int(self.starts[-1]))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        start, end = self.starts[index], self.starts[index + 1]
        return sample(np.array(self.pixels[start:end]).reshape(*self.sizes[index], 3))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "sizes": self.sizes}  # a process of its own maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def sample(pixels: np.ndarray) -> dict[str, Any]:
    """{"image": (3, H, W) uint8} of (H, W, 3); its bytes stay as they lie (channels last), which resizing likes."""
    import torch

    return {"image": torch.from_numpy(pixels).permute(2, 0, 1)}


@dataclass(frozen=True)
class Checked:
    """Pixels of the images that can be used, which of the entries they are, (path, reason) of the others, and a name
    for all of it that changes with any of the files."""

    pixels: Sequence[dict[str, Any]]
    good: list[int]
    problems: list[tuple[str, str]]
    key: str


def check(
    entries: list[Entry], decoding: Decoding, *, cache: Path | None, memory: int, workers: int | None, watch: Any
) -> Checked:
    """Decode every image once, or find in ``cache`` what an earlier call found.

    Where all pixels fit into ``memory`` bytes they are kept in ``cache`` and read from there, else images are decoded
    when asked for. A cache that cannot be written costs the cache, not the run: it is told in ``problems``.
    ``workers`` processes, all cores by default. Raises Ended where one of them was killed.
    """
    key = _key(entries, decoding)
    path = None if cache is None else cache / f"{key}.pack"
    if path is not None:
        found = _load(path, len(entries), memory)
        if found is not None:
            return _checked(entries, decoding, key, *found)
    work = _Work(entries, decoding, memory if path is not None else 0, workers, watch)
    failed: list[tuple[str, str]] = []
    if path is not None:
        from partwhole.core import files

        try:
            files.write(path, work.fill)
            _sweep(path)
            found = _load(path, len(entries), memory)
            if found is not None:
                return _checked(entries, decoding, key, *found)
        except files.NotSaved as error:
            cause = error.__cause__ or error
            reason = f"kept: the cache cannot be written ({cause}); images are checked every time, and decoded when"
            failed.append((str(path.parent), f"{reason} asked for. Free some space or name another cache"))
    work.run(None)
    return _checked(entries, decoding, key, None, work.sizes, work.bad, failed)


class _Work:
    """Looks at every image; remembers sizes (N, 2), zeros where ``bad`` says what is wrong: (row, found, do)."""

    def __init__(self, entries: list[Entry], decoding: Decoding, memory: int, workers: int | None, watch: Any):
        self.entries, self.decoding, self.watch, self.workers = entries, decoding, watch, workers
        self.sizes = np.zeros((len(entries), 2), np.int32)
        self.bad: list[tuple[int, str, str]] = []
        self.room, self.sum, self.done = memory, 0, 0

    def fill(self, file: BinaryIO) -> None:
        """All of a pack."""
        self.run(file)
        about = {"sizes": self.sizes, "bad": np.frombuffer(json.dumps(self.bad).encode(), np.uint8)}
        text = io.BytesIO()
        np.savez(text, **about, pixels=np.array([file.tell(), self.sum], np.int64))
        file.write(text.getvalue())
        file.write(END.pack(MAGIC, len(text.getvalue()), zlib.crc32(text.getvalue())))

    def run(self, file: BinaryIO | None) -> None:
        """Look at what was not looked at yet; the pixels go to ``file`` while there is room for them."""
        if self.done == len(self.entries):
            return
        failure: OSError | None = None
        self.keep = file is not None
        for sizes, pixels, bad in self._chunks(self.entries[self.done :]):
            self.sizes[self.done : self.done + len(sizes)] = sizes
            self.bad += [(self.done + row, found, do) for row, found, do in bad]
            self.done += len(sizes)
            if self.keep and file is not None:
                self.room -= len(pixels)
                if self.room < 0:
                    self.keep = False
                    file.seek(0)
                    file.truncate()
                    self.sum = 0
                else:
                    self.sum = zlib.crc32(pixels, self.sum)
                    try:
                        file.write(pixels)
                    except OSError as error:  # goes on: what is wrong with the images is worth knowing all the same
                        failure, self.keep = error, False
            self.watch.step(self.done, {"total": len(self.entries), "failed": len(self.bad)})
        if failure is not None:
            raise failure

    def _chunks(self, entries: list[Entry]) -> Iterator[Any]:
        import joblib

        processes = joblib.cpu_count() if self.workers is None else self.workers
        began, at = time.monotonic(), 0
        while at < len(entries) and (processes < 2 or time.monotonic() - began < ALONE):
            yield _look(entries[at : at + CHUNK], self.decoding, self.keep)
            at += CHUNK
        if at >= len(entries):
            return
        from concurrent.futures.process import BrokenProcessPool

        from joblib.externals.loky import get_reusable_executor

        rest = [entries[i : i + CHUNK] for i in range(at, len(entries), CHUNK)]
        parallel: Any = joblib.Parallel(n_jobs=processes, backend="loky", return_as="generator")
        jobs = (joblib.delayed(_look)(chunk, self.decoding, self.keep, os.getpid()) for chunk in rest)
        try:
            yield from parallel(jobs)
        except BrokenProcessPool as error:
            raise Ended(
                f"a process that decodes images was killed near {self.entries[self.done].name}, most often because "
                "memory ran out: give fewer workers, or a smaller limit of pixels (largest)"
            ) from error
        finally:  # they hold memory, and their threads would be here when others are forked
            get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _look(entries: list[Entry], decoding: Decoding, keep: bool, parent: int | None = None) -> Any:
    """Sizes (n, 2), the joined pixels (b"" unless ``keep``), and (row, found, do) of what cannot be used."""
    if parent is not None and parent != os.getpid():
        end_with(parent)
    sizes = np.zeros((len(entries), 2), np.int32)
    pixels, bad = [], []
    for row, entry in enumerate(entries):
        try:
            image = _decoded(entry, decoding)
        except BadImage as error:
            bad.append((row, error.found, error.do))
            continue
        sizes[row] = image.shape[:2]
        if keep:
            pixels.append(image.tobytes())
    return sizes, b"".join(pixels), bad


def _decoded(entry: Entry, decoding: Decoding) -> np.ndarray:
    return decode(read(entry), entry.name, shorter=decoding.shorter, largest=decoding.largest)


@once
def end_with(parent: int) -> None:
    """Once in a process: have it end when its parent is gone, for after ``kill -9`` it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _checked(
    entries: list[Entry], decoding: Decoding, key: str, path: Path | None, sizes: np.ndarray,
    bad: list[tuple[int, str, str]], problems: list[tuple[str, str]] | None = None,
) -> Checked:  # fmt: skip
    """``path`` is a pack with pixels, or None."""
    wrong = {row for row, _, _ in bad}
    good = [i for i in range(len(entries)) if i not in wrong]
    told = [(entries[row].name, f"skipped: {found}; {do}") for row, found, do in bad]
    pixels = Decoded([entries[i] for i in good], decoding) if path is None else Packed(path, sizes[good])
    return Checked(pixels, good, told + (problems or []), key)


def _key(entries: list[Entry], decoding: Decoding) -> str:
    """Changes with any file's path, size or time, and with what makes other pixels of it."""
    import PIL

    state = hashlib.sha256(f"{VERSION} {PIL.__version__} {decoding}".encode())
    for e in entries:
        path = os.path.abspath(e.file)
        state.update(f"\n{path}\0{e.member}\0{e.offset} {e.size} {e.stamp}".encode(errors="surrogateescape"))
    return state.hexdigest()[:24]


def _load(path: Path, count: int, memory: int) -> Any:
    """(path or None where there are no pixels, sizes, bad) of a pack; None where there is none, it is damaged, or it
    has no pixels though they would fit."""
    try:
        with path.open("rb") as file:
            size = file.seek(-END.size, os.SEEK_END)
            magic, length, total = END.unpack(file.read())
            file.seek(size - length)
            text = file.read(length)
            if magic != MAGIC or zlib.crc32(text) != total:
                return None
            with np.load(io.BytesIO(text), allow_pickle=False) as about:
                sizes, (held, total), bad = about["sizes"], about["pixels"], json.loads(about["bad"].tobytes())
        needed = 3 * int(sizes.astype(np.int64).prod(1).sum())
        if len(sizes) != count or held not in (0, needed) or held != size - length or held == 0 < needed <= memory:
            return None
        if held and zlib.crc32(_mapped(path, held)) != total:
            return None
        with contextlib.suppress(OSError):  # the time of use is not ours to write in somebody else's cache
            os.utime(path)
        return (path if held else None), sizes, [(row, found, do) for row, found, do in bad]
    except Exception:  # whatever a damaged file makes of its readers: it is made again
        return None


def _mapped(path: Path, count: int) -> Any:
    return np.asarray(np.memmap(path, np.uint8, "r", shape=(count,))) if count else np.zeros(0, np.uint8)


def _sweep(path: Path) -> None:
    """Remove the packs that were not used for longest; whoever has mapped one keeps it."""
    with contextlib.suppress(OSError):
        packs = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda file: file.stat().st_mtime)
        for old in packs[:-KEPT]:
            old.unlink(missing_ok=True)
