"""Where a recipe's clips come from: paths, or generated ones where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from partwhole.core import distributed
from partwhole.core.watch import Quiet, Steps
from partwhole.video.backends import ReaderName

ANNOTATED_SEED = 1_000  # generated clips to follow objects in are never among those to train on
FINER = 4  # they are so many times larger, as videos are than the crops and reduced frames that are learned from


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where clips come from and how they are read."""

    cache: Path = Path(".cache/partwhole")
    """Folder of what is known of videos, and of what is made once for some clips; any number of runs and processes may
    share it."""
    reader: ReaderName = "auto"
    """What decodes video files; auto takes, for each file, the fastest that is installed and right for it."""
    fps: float = 25.0
    """Frames per second of folders of images, which do not say it."""
    limit: int | None = None
    """Use only so many of the videos, chosen at random."""
    workers: int | None = None
    """Processes that look at all videos before training; all cores by default."""
    loaders: int = 0
    """Processes that read clips and make views while training; 0: the training process itself."""
    generate: int = 200
    """Clips to generate where no path is given."""
    generate_annotated: int = 12
    """Clips to generate, with the masks of their objects, to follow them in, where no path is given."""
    frames: int = 24
    """Frames of a generated clip."""
    seed: int = 0
    """Of generated clips, and of the choice of ``limit`` videos."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache", "workers", "loaders", "generate_annotated"})

    def __post_init__(self) -> None:
        least = {"loaders": 0, "generate": 1, "generate_annotated": 1, "frames": 3, "limit": 1, "workers": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"source.{name} is {value}; expected {low} or more")
        if not self.fps > 0:
            raise ValueError(f"source.fps is {self.fps}; expected frames per second, more than 0")

    def unlabelled(self, paths: Sequence[str | Path], size: int, watch: Any = None) -> Any:
        """The clips to train on, looked at once by the first process and found by the others; generated ones are of
        ``size`` by ``size`` pixels."""
        from partwhole.video.clips import read_clips
        from partwhole.video.generator import clips

        if not paths:
            made = clips(self.generate, frames=self.frames, size=size, seed=self.seed)
            return made if self.limit is None else made.subset(range(min(self.limit, len(made))))
        watch = watch or Quiet()
        found = distributed.first(
            lambda: read_clips(
                paths, reader=self.reader, fps=self.fps, cache=self.cache, limit=self.limit, seed=self.seed,
                workers=self.workers, watch=watch,
            )
        )  # fmt: skip
        for line in found.told():
            watch.say(line)
        return found

    def annotated(self, path: str | Path | None, size: int, watch: Any = None) -> Any:
        """The videos to follow objects in, with their masks, without those that cannot be measured; generated ones are
        four times ``size`` pixels high."""
        from partwhole.video.generator import clips
        from partwhole.video.layouts import read_annotated
        from partwhole.video.measure import usable

        if path is None:
            seed = self.seed + ANNOTATED_SEED
            return clips(self.generate_annotated, frames=self.frames, size=FINER * size, seed=seed)
        watch = watch or Quiet()
        found = read_annotated(path, watch=Steps(watch))
        good, wrong = usable(found)
        if wrong:
            problems = [*found.problems, *((name, f"skipped: {what}") for name, what in wrong)]
            found = found.subset(good.values())
            found.problems = problems
        for line in found.told():
            watch.say(line)
        return found
