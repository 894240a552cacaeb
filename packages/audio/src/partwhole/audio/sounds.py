"""Sounds as a sequence of samples, from folders, lists of files or single ones; decoded once and kept.

Letters: N samples.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwhole.audio import decode
from partwhole.audio.decode import BadSound
from partwhole.audio.find import Entry
from partwhole.core import files
from partwhole.core.watch import Quiet

QUIET = 1e-4  # no sample is above: silence
LOUD, CLIPPED = 0.999, 0.01  # a sound of which such a share is so loud was cut off


class Sounds(Sequence):
    """A sequence of samples {"sound": (N,) float32 in [-1, 1], "rate": int}, with "label" and "speaker", ints, where
    they are known. Lengths differ.

    ``names`` says where each came from, ``labels`` its class as a number or None, ``classes`` the names of the classes
    ([] without), ``speakers`` who is heard, a name or None, ``voices`` the names of all of them; ``problems`` (path,
    reason) of what is wrong, where a reason begins with "skipped" or "kept"; ``key`` changes with the sounds, for what
    is made of them and kept.
    """

    def __init__(
        self,
        waves: Sequence[Tensor],
        rate: int,
        names: Sequence[str],
        *,
        labels: Sequence[int | None] | None = None,
        classes: Sequence[str] = (),
        speakers: Sequence[str | None] | None = None,
        problems: Sequence[tuple[str, str]] = (),
        key: str = "",
    ):
        self.waves, self.rate, self.names, self.classes = waves, rate, list(names), list(classes)
        self.labels: list[int | None] = [None] * len(self.names) if labels is None else list(labels)
        self.speakers: list[str | None] = [None] * len(self.names) if speakers is None else list(speakers)
        self.voices = sorted({s for s in self.speakers if s is not None})
        self.problems, self.key = list(problems), key

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        sample: dict[str, Any] = {"sound": self.waves[i], "rate": self.rate}
        if self.labels[i] is not None:
            sample["label"] = self.labels[i]
        if (speaker := self.speakers[i]) is not None:
            sample["speaker"] = self.voices.index(speaker)
        return sample

    def subset(self, indices: Iterable[int]) -> "Sounds":
        """The sounds of ``indices`` alone, in that order; classes and problems stay what they are."""
        chosen = [range(len(self))[i] for i in indices]
        key = hashlib.sha256(f"{self.key} {chosen}".encode()).hexdigest()[:24]
        made = Sounds(
            _Chosen(self.waves, chosen), self.rate, [self.names[i] for i in chosen],
            labels=[self.labels[i] for i in chosen], classes=self.classes,
            speakers=[self.speakers[i] for i in chosen], problems=self.problems, key=key,
        )  # fmt: skip
        made.voices = self.voices
        return made

    def told(self, most: int = 10) -> list[str]:
        """Lines for a person: what was skipped and why, at most so many; what was kept all the same comes last."""
        order = sorted(self.problems, key=lambda problem: not problem[1].startswith("skipped"))
        lines = [f"{path}: {reason}" for path, reason in order[:most]]
        return lines + ([f"and {len(order) - most} more"] if len(order) > most else [])


@dataclass(frozen=True)
class Part:
    """A sound: a file, or a piece of a long one."""

    entry: int
    """Which file."""
    start: int
    stop: int
    """Samples of it, at the rate that is asked for."""


def read_sounds(
    entries: Sequence[Entry],
    rate: int,
    *,
    longest: float = 10.0,
    cache: str | Path = ".cache/partwhole",
    memory: int = 2**31,
    workers: int | None = None,
    problems: Sequence[tuple[str, str]] = (),
    watch: Any = None,
) -> Sounds:
    """The sounds of files, each decoded once: what cannot be used is skipped and told in ``.problems``.

    longest  seconds of a sound; a longer file is cut into pieces, each a sound of its own.
    cache    folder where is kept what was found, and the sounds where they fit into ``memory`` bytes; else a sound, a
             piece of a long file too, is read again whenever it is asked for, without the rest of its file.
    workers  threads that decode; all cores by default.  ``watch`` is told how far the work is.

    Raises BadSound where none is left.
    """
    about = [(str(e.file), *_stamp(e.file)) for e in entries]
    key = hashlib.sha256(json.dumps([1, about, rate, longest]).encode()).hexdigest()[:24]
    folder = Path(cache) / "sounds"
    index, floats = folder / f"{key}.json", folder / f"{key}.f32"
    if not index.exists():
        _decode(entries, rate, longest, index, floats, memory, workers, watch or Quiet())
    found = json.loads(index.read_text())
    parts = [Part(*row) for row in found["parts"]]
    told = [*problems, *((str(path), str(why)) for path, why in found["problems"])]
    if not parts:
        first = f"; the first: {told[0][0]}: {told[0][1]}" if told else ""
        raise BadSound("sounds", f"none of {len(entries)} files can be used{first}", "give others")
    paths = [e.file for e in entries]
    waves = _Kept(floats, parts) if found["kept"] else _Files(paths, parts, rate)
    classes = sorted({label for p in parts if (label := entries[p.entry].label) is not None})
    number = {name: i for i, name in enumerate(classes)}
    return Sounds(
        waves, rate, [_name(entries[p.entry], p, rate) for p in parts],
        labels=[None if (label := entries[p.entry].label) is None else number[label] for p in parts],
        classes=classes, speakers=[entries[p.entry].speaker for p in parts], problems=told, key=key,
    )  # fmt: skip


# ------------------------------------------------------------------ inside


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _name(entry: Entry, part: Part, rate: int) -> str:
    return entry.name if part.start == 0 else f"{entry.name} from {part.start / rate:g} s"


def _decode(
    entries: Sequence[Entry], rate: int, longest: float, index: Path, floats: Path, memory: int, workers: int | None,
    watch: Any,
) -> None:  # fmt: skip
    """Decode every file once; write what was found and, where there is room, the sounds."""
    rows: list[tuple[int, int, int]] = []
    problems: list[tuple[str, str]] = []
    piece = max(1, round(longest * rate))
    kept = sum(_size(e.file, rate) for e in entries) <= memory

    def fill(file: Any) -> None:
        count = min(workers or os.cpu_count() or 1, max(1, len(entries)))
        ahead = 4 * count  # not all at once: decoded sounds wait in memory
        with ThreadPoolExecutor(count) as pool:
            for begin in range(0, len(entries), ahead):
                some_ = entries[begin : begin + ahead]
                made = pool.map(partial(_pieces, rate=rate, piece=piece), [e.file for e in some_])
                for i, (found, told) in enumerate(made, begin):
                    problems.extend(told)
                    for start, wave in found:
                        rows.append((i, start, start + len(wave)))
                        if kept:
                            file.write(wave.numpy().tobytes())
                watch.step(min(begin + ahead, len(entries)), {"total": len(entries)})

    files.write(floats, fill)
    files.write_json(index, {"parts": rows, "problems": problems, "kept": kept})


def _size(path: Path, rate: int) -> int:
    try:
        return 4 * decode.about(path).at(rate)
    except BadSound:
        return 0


def _pieces(path: Path, *, rate: int, piece: int) -> tuple[list[tuple[int, Tensor]], list[tuple[str, str]]]:
    """The usable pieces of a file with their beginnings, and what is wrong."""
    found, told, start = [], [], 0
    try:
        length = decode.about(path).at(rate) or sys.maxsize  # where nobody knows, it is read until it ends
        while start == 0 or length - start >= piece // 10:  # what little is left says nothing
            wave = decode.read(path, rate, start, start + piece)
            loud = wave.abs()
            if len(wave) == 0 or float(loud.max()) < QUIET:
                told.append((str(path), f"skipped: silence{_from(start, rate)}"))
            else:
                if float((loud > LOUD).float().mean()) > CLIPPED:
                    told.append((str(path), f"kept: clipped, too loud when it was recorded{_from(start, rate)}"))
                found.append((start, wave))
            if len(wave) < piece:
                break
            start += piece
    except BadSound as error:
        if not start:
            told.append((str(path), f"skipped: {error.found}"))
        elif length < sys.maxsize:
            told.append((str(path), f"skipped{_from(start, rate)}: {error.found}"))
    return found, told


def _from(start: int, rate: int) -> str:
    return f", from second {start / rate:g} on" if start else ""


class _Kept(Sequence):
    """Decoded sounds in a file that is mapped into memory."""

    def __init__(self, path: Path, parts: Sequence[Part]):
        self.path = path
        self.ends = np.cumsum([p.stop - p.start for p in parts])
        self.map: Any = None

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        if self.map is None:
            self.map = np.memmap(self.path, np.float32, "r")
        return torch.from_numpy(np.array(self.map[self.ends[i - 1] if i else 0 : self.ends[i]]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "map": None}  # another process opens it itself


@dataclass(frozen=True)
class _Files(Sequence):
    """Sounds that are decoded whenever they are asked for."""

    paths: Sequence[Path]
    parts: Sequence[Part]
    rate: int

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: Any) -> Any:
        part = self.parts[i]
        return decode.read(self.paths[part.entry], self.rate, part.start, part.stop)


class _Chosen(Sequence):
    def __init__(self, waves: Any, places: list[int]):
        if isinstance(waves, _Chosen):
            waves, places = waves.waves, [waves.places[i] for i in places]
        self.waves, self.places = waves, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: Any) -> Any:
        return self.waves[self.places[i]]
