"""Where a recipe's clips come from: videos, or generated clips where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from partwhole.core import distributed
from partwhole.core.watch import Quiet


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where clips come from and how they are read."""

    cache: Path = Path(".cache/partwhole")
    """Folder of what is found in videos, and made of them once; any number of runs and processes may share it."""
    reader: Literal["auto", "pyav", "decord", "torchcodec"] = "auto"
    """What decodes videos; auto: for each the fastest of those installed that is right for it."""
    limit: int | None = None
    """Use only so many of the videos, chosen at random."""
    workers: int | None = None
    """Processes that look at all videos before training; all cores by default."""
    loaders: int = 0
    """Processes that read clips and make views while training; 0: the training process itself."""
    generate: int = 200
    """Clips to generate where no path is given."""
    frames: int = 16
    """Frames of a generated clip."""
    seed: int = 0
    """Of generated clips, and of the choice of ``limit`` videos."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache", "workers", "loaders"})  # change nothing that is trained

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "workers": 0, "loaders": 0, "generate": 1, "frames": 2}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"source.{name} is {value}; expected {least} or more")

    def unlabelled(self, paths: Sequence[str | Path], *, size: int, watch: Any = None) -> Any:
        """The clips to train on, looked at once by the first process and found by the others; generated ones are of
        ``size`` by ``size`` pixels."""
        if not paths:
            from partwhole.video.generator import clips

            return clips(self.generate, frames=self.frames, size=size, seed=self.seed)
        from partwhole.video.clips import read_clips

        watch = watch or Quiet()
        found = distributed.first(
            lambda: read_clips(
                paths, reader=self.reader, cache=self.cache, limit=self.limit, seed=self.seed, workers=self.workers,
                watch=watch,
            )
        )  # fmt: skip
        for line in found.told():
            watch.say(line)
        return found
