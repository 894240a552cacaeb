"""What the packets of a video file say: which frames there are, when each is shown, and where decoding may begin.

A file stores frames in the order in which they are decoded, which with frames that are predicted from later ones (B) is
not the order in which they are shown. Frames are counted as they are shown, from 0.

Nothing here imports torch: the processes that check files use it.
Letters: P packets, in the order of the file; N frames, in the order of showing; G packets where decoding may begin.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

AGAIN = "download or export it again"


class BadVideo(ValueError):
    """A video, or a place of videos, that cannot be used: which, what was found there, what to do about it."""

    def __init__(self, path: Any, found: str, do: str) -> None:
        super().__init__(str(path), found, do)
        self.path, self.found, self.do = str(path), found, do

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.do}"


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The index of one video file."""

    place: np.ndarray
    """(P,) int64: the byte where a packet lies, which is how it is known again after a jump."""
    frame: np.ndarray
    """(P,) int32: which frame a packet holds, -1 where it holds none that is shown."""
    start: np.ndarray
    """(G,) int32: the packets where decoding may begin, frames that hold a whole picture."""
    seek: np.ndarray
    """(2, G) int64: the time of showing and of decoding of these packets, in units of the file."""
    times: np.ndarray
    """(N,) float64: when each frame is shown, in seconds."""
    height: int
    width: int
    """Pixels as shown: after turning."""
    turn: int
    """Quarter turns against the clock that show the picture upright."""
    fps: float
    """Frames per second, on average."""
    codec: str
    """FFmpeg's name of how pictures are compressed."""
    container: str
    """The names that FFmpeg has for the kind of file."""
    counted: bool
    """The packets do not say which frames they hold: frames are counted by decoding from the first one."""
    lost: str
    """What is missing of the file, in words; "" where nothing is known to be."""

    ARRAYS: ClassVar[tuple[str, ...]] = ("place", "frame", "start", "seek", "times")

    def __len__(self) -> int:
        return len(self.times)

    def begin(self, frame: int) -> int:
        """Which of the G places to decode a frame from: the last whole picture that is not shown after it.

        Whatever is shown after a whole picture is predicted from nothing before it, open groups of pictures included.
        """
        if self.counted:
            return 0
        return max(0, int(np.searchsorted(self.frame[self.start], frame, side="right")) - 1)

    @property
    def reordered(self) -> bool:
        """Some frames are shown in another order than they are stored in."""
        held = self.frame[self.frame >= 0]
        return bool((np.diff(held) < 0).any())

    @property
    def leading(self) -> bool:
        """Some frames are shown before the whole picture that they are stored after (open groups of pictures)."""
        latest = np.full(len(self.frame), -1, np.int64)
        latest[self.start] = self.frame[self.start]
        latest = np.maximum.accumulate(latest)
        return bool(((self.frame >= 0) & (self.frame < latest)).any())

    def about(self) -> dict[str, Any]:
        """All but the arrays."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.ARRAYS}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> "Packets":
        return cls(**{name: arrays[name] for name in cls.ARRAYS}, **about)
