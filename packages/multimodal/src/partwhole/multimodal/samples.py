"""Clips with their sound, as samples {"video", "sound", "rate"}: generated ones, and video files.

Letters: N samples of a sound.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from partwhole.core import distributed, files
from partwhole.core.watch import Quiet
from partwhole.video.backends import ReaderName
from partwhole.video.clips import Clips, read_clips
from partwhole.video.packets import BadVideo
from partwhole.video.readers import FileVideo, Frames
from partwhole.video.sound import sound
from partwhole.video.sounding import sounding

QUIET = 1e-4  # no sample is above: silence
MEMORY = 2**30  # bytes of generated clips that are drawn once and kept; more are drawn whenever they are asked for
TEST_SEED = 1_000  # generated clips to measure on are never among those to train on


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where clips with sound come from and how they are read."""

    cache: Path = Path(".cache/partwhole")
    """Folder of what is known of videos, and of their sounds; any number of runs and processes may share it."""
    reader: ReaderName = "auto"
    """What decodes pictures; auto takes, for each file, the fastest that is installed and right for it."""
    limit: int | None = None
    """Use only so many of the videos, chosen at random."""
    workers: int | None = None
    """Processes that look at all videos before training; all cores by default."""
    loaders: int = 0
    """Processes that read clips and make views while training; 0: the training process itself."""
    generate: int = 400
    """Clips to generate where no path is given."""
    generate_test: int = 100
    """Clips to generate to measure on, where no path is given."""
    frames: int = 40
    """Frames of a generated clip, ten a second."""
    seed: int = 0
    """Of generated clips, and of the choice of ``limit`` videos."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache", "workers", "loaders", "generate_test"})

    def __post_init__(self) -> None:
        least = {"loaders": 0, "generate": 1, "generate_test": 2, "frames": 3, "limit": 1, "workers": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"source.{name} is {value}; expected {low} or more")

    def train(self, paths: Sequence[str | Path], size: int, rate: int, watch: Any = None) -> Clips:
        """The clips to train on, with sounds of ``rate`` samples a second; generated ones are of ``size`` by ``size``
        pixels."""
        if not paths:
            return generated(self.generate, frames=self.frames, size=size, seed=self.seed, rate=rate)
        return self.read(paths, rate, watch)

    def test(self, paths: Sequence[str | Path], size: int, rate: int, watch: Any = None) -> Clips:
        """The same of clips to measure on."""
        if not paths:
            seed = self.seed + TEST_SEED
            return generated(self.generate_test, frames=self.frames, size=size, seed=seed, rate=rate)
        return self.read(paths, rate, watch)

    def read(self, paths: Sequence[str | Path], rate: int, watch: Any = None) -> Clips:
        watch = watch or Quiet()

        def work() -> Clips:
            found = read_clips(
                paths, reader=self.reader, cache=self.cache, limit=self.limit, seed=self.seed, workers=self.workers,
                watch=watch,
            )  # fmt: skip
            return with_sound(found, rate, self.cache)

        found = distributed.first(work)
        for line in found.told():
            watch.say(line)
        return found


@lru_cache(maxsize=2)  # those to train on and those to measure on, in training and after it
def generated(count: int, *, frames: int, size: int, seed: int, rate: int) -> Clips:
    """So many bouncing, sounding clips (``video.sounding``), drawn once where they fit into memory."""
    made = sounding(count, frames=frames, size=size, seed=seed, rate=rate)
    if count * frames * size * size * 3 > MEMORY:
        return Clips(made, made.names, key=made.key)
    samples = []
    for sample in made:
        video = sample["video"]
        samples.append({**sample, "video": Frames(video.frames(range(frames)), fps=video.fps, name=video.name)})
    return Clips(samples, made.names, key=made.key)


def with_sound(clips: Clips, rate: int, cache: str | Path) -> Clips:
    """Those of the clips that can be heard, each with its "sound", float32 (N,) in [-1, 1], and "rate".

    Each file's sound is decoded once and kept in the folder ``cache``, from which the part that is asked for is read.
    What has no sound, or a silent one, is skipped and told in ``.problems``. Raises BadVideo where none is left.
    """
    kept, waves, problems = [], [], list(clips.problems)
    for i in range(len(clips)):
        video, name = clips[i]["video"], clips.names[i]
        if not isinstance(video, FileVideo):
            problems.append((name, "skipped: a folder of frames has no sound"))
            continue
        found = _decoded(Path(video.path), rate, Path(cache) / "heard")
        if "bad" in found:
            problems.append((name, f"skipped: {found['bad']}"))
        else:
            kept.append(i)
            waves.append(Wave(str(found["wave"]), found["length"]))
    if not kept:
        first = f"; the first: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise BadVideo("videos", f"none of {len(clips)} has a sound{first}", "give videos with sound")
    chosen = clips.subset(kept)
    key = hashlib.sha256(f"{chosen.key} {rate}".encode()).hexdigest()[:24]
    return Clips(_Heard(chosen, waves, rate), chosen.names, problems=problems, key=key)


@dataclass(frozen=True)
class Wave:
    """A sound in a file of plain numbers."""

    path: str
    length: int

    def tensor(self) -> Tensor:
        """float32 (N,), of which only what is looked at is read."""
        return torch.from_numpy(np.memmap(self.path, np.float32, "c", shape=(self.length,)))


class _Heard(Sequence):
    def __init__(self, clips: Clips, waves: list[Wave], rate: int):
        self.clips, self.waves, self.rate = clips, waves, rate

    def __len__(self) -> int:
        return len(self.waves)

    def __getitem__(self, i: Any) -> dict[str, Any]:
        return {**self.clips[i], "sound": self.waves[i].tensor(), "rate": self.rate}


def _decoded(path: Path, rate: int, folder: Path) -> dict[str, Any]:
    """{"wave", "length"} of a file's sound, or what is "bad" about it; decoded where that is not known yet."""
    about = path.stat()
    digest = hashlib.sha256(json.dumps([str(path.resolve()), about.st_size, about.st_mtime_ns, rate]).encode())
    note, wave = (folder / f"{digest.hexdigest()[:24]}.{end}" for end in ("json", "f32"))
    if not note.exists():
        try:
            heard, _ = sound(path, rate=rate)
            if float(heard.abs().max()) < QUIET:
                raise BadVideo(path, "its sound is silence", "leave it out")
            files.write(wave, lambda file: file.write(heard.numpy().tobytes()))
            files.write_json(note, {"length": len(heard)})
        except BadVideo as error:
            files.write_json(note, {"bad": error.found})
    found = json.loads(note.read_text())
    return found if "bad" in found else {"wave": wave, **found}
