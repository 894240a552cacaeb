"""Where a recipe's clips come from: generated ones where no path is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where clips come from."""

    cache: Path = Path(".cache/partwhole")
    """Folder of what is made once for some clips; any number of runs and processes may share it."""
    loaders: int = 0
    """Processes that read clips and make views while training; 0: the training process itself."""
    generate: int = 200
    """Clips to generate where no path is given."""
    frames: int = 16
    """Frames of a generated clip."""
    seed: int = 0
    """Of generated clips."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache", "loaders"})  # they do not change what is trained

    def __post_init__(self) -> None:
        for name, least in {"loaders": 0, "generate": 1, "frames": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"source.{name} is {getattr(self, name)}; expected {least} or more")

    def unlabelled(self, paths: Sequence[str | Path], size: int, watch: Any = None) -> Sequence[Any]:
        """The clips to train on; generated ones are of ``size`` by ``size`` pixels."""
        from partwhole.video.generator import clips

        return clips(self.generate, frames=self.frames, size=size, seed=self.seed)
