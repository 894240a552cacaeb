"""Videos as small handles that are read where their frames are needed: files, folders of frames, tensors in memory.

A handle can be pickled and holds no open file; a process that reads opens the file, keeps a few open, and closes those
that were not used for longest.
Letters: T frames that are asked for, N frames, H height, W width.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from partwhole.video.backends import READERS, Reader, ReaderName, choose
from partwhole.video.folder import Pictures, ids, picture
from partwhole.video.packets import BadVideo, Packets
from partwhole.video.pyav import look

OPEN = 4  # files that a process keeps open, each with what its decoder holds
IGNORED = 255  # an id that is not counted


class Video(Protocol):
    """Frames that can be had by their index, and when each of them is shown. Masks are such videos too."""

    def __len__(self) -> int: ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every frame, as shown."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        ...

    def times(self) -> Tensor:
        """(N,) float64: when each frame is shown, in seconds."""
        ...

    def frames(self, indices: Sequence[int], /) -> Tensor:
        """(T, 3, H, W) uint8 RGB of any frames, in the order asked; of masks, (T, H, W) int64 ids.

        Repeats are allowed. Raises IndexError for a frame that is not there, BadVideo for one that cannot be read.
        """
        ...


class FileVideo:
    """A video file, with the index of its packets.

    ``reader`` decodes it, and ``why`` says why this one was taken: see ``backends.choose``.
    """

    def __init__(
        self, path: str | Path, packets: Packets, *, reader: str = "pyav", why: str = "", name: str | None = None,
        threads: int = 1,
    ):  # fmt: skip
        self.path, self.packets, self.reader, self.why, self.threads = str(path), packets, reader, why, threads
        self.name, self.size, self.fps = name or self.path, (packets.height, packets.width), packets.fps

    def __len__(self) -> int:
        return len(self.packets)

    def times(self) -> Tensor:
        return torch.from_numpy(np.array(self.packets.times))

    def frames(self, indices: Sequence[int]) -> Tensor:
        return _channels(_opened.frames(self, checked(indices, len(self), self.name)))


class _Even(ABC):
    """Frames at equal distances in time."""

    fps: float

    @abstractmethod
    def __len__(self) -> int: ...

    def times(self) -> Tensor:
        return torch.arange(len(self), dtype=torch.float64) / self.fps


class FolderVideo(_Even):
    """A folder of images, which are the frames; see ``folder.look``."""

    def __init__(self, pictures: Pictures, *, name: str | None = None, fps: float = 25.0):
        self.pictures, self.name = pictures, name or pictures.folder
        self.size, self.fps = pictures.size, fps

    def __len__(self) -> int:
        return len(self.pictures.names)

    def frames(self, indices: Sequence[int]) -> Tensor:
        asked = checked(indices, len(self), self.name)
        made = {i: picture(os.path.join(self.pictures.folder, self.pictures.names[i])) for i in set(asked)}
        return _channels(np.stack([made[i] for i in asked]))


class MaskFolder(_Even):
    """Masks of a video in images of ids, one for each frame that has one; the others do not count anywhere.

    ``files`` (N): the image of each frame, None where there is none. ``binary``: any value but 0 is object 1.
    """

    def __init__(
        self, folder: str | Path, files: Sequence[str | None], size: tuple[int, int], *, name: str | None = None,
        fps: float = 25.0, binary: bool = False,
    ):  # fmt: skip
        self.folder, self.files, self.size, self.fps, self.binary = str(folder), list(files), size, fps, binary
        self.name = name or self.folder

    def __len__(self) -> int:
        return len(self.files)

    @property
    def known(self) -> list[bool]:
        """(N,): which frames have a mask."""
        return [file is not None for file in self.files]

    def frames(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._one(i) for i in checked(indices, len(self), self.name)])

    def _one(self, i: int) -> Tensor:
        file = self.files[i]
        if file is None:
            return torch.full(self.size, IGNORED, dtype=torch.int64)
        made = ids(os.path.join(self.folder, file), binary=self.binary)
        if made.shape != self.size:
            found = f"a mask of {made.shape[1]} x {made.shape[0]} pixels"
            raise BadVideo(os.path.join(self.folder, file), found, f"the frames have {self.size[1]} x {self.size[0]}")
        return torch.from_numpy(made)


class Frames(_Even):
    """Frames in memory, ``x`` (N, 3, H, W) uint8."""

    def __init__(self, x: Tensor, *, fps: float = 25.0, name: str = "frames"):
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3 or not len(x):
            raise ValueError(f"frames {tuple(x.shape)} of {x.dtype}; expected (N, 3, H, W) of uint8")
        if not fps > 0:
            raise ValueError(f"fps is {fps}; expected frames per second, more than 0")
        self.x, self.fps, self.name, self.size = x, fps, name, (x.shape[2], x.shape[3])

    def __len__(self) -> int:
        return len(self.x)

    def frames(self, indices: Sequence[int]) -> Tensor:
        return self.x[checked(indices, len(self), self.name)]


class Ids(_Even):
    """Masks in memory, ``x`` (N, H, W) int64: ids of objects, 0 the background, 255 not counted."""

    def __init__(self, x: Tensor, *, fps: float = 25.0, name: str = "masks"):
        if x.dtype != torch.int64 or x.ndim != 3 or not len(x):
            raise ValueError(f"masks {tuple(x.shape)} of {x.dtype}; expected (N, H, W) of int64")
        if int(x.amin()) < 0 or int(x.amax()) > IGNORED:
            raise ValueError(f"ids from {int(x.amin())} to {int(x.amax())}; expected 0 to 254, and 255 for not counted")
        self.x, self.fps, self.name, self.size = x, fps, name, (x.shape[1], x.shape[2])

    def __len__(self) -> int:
        return len(self.x)

    def frames(self, indices: Sequence[int]) -> Tensor:
        return self.x[checked(indices, len(self), self.name)]


def read_video(
    path: str | Path, *, reader: ReaderName = "auto", threads: int = 1, fps: float = 25.0, name: str | None = None
) -> Video:
    """A video file, or a folder of images as its frames, in the natural order of their names (2 before 10).

    ``reader`` decodes a file; "auto" takes the fastest that is right for it. ``threads``: of decoding; 0, as many as
    there are cores, for long sequential work in one process. ``fps``: of a folder. Raises BadVideo.
    """
    if Path(path).is_dir():
        from partwhole.video import folder

        return FolderVideo(folder.look(path), name=name, fps=fps)
    packets = look(path, threads=threads)
    chosen, why = choose(path, packets, reader)
    return FileVideo(path, packets, reader=chosen, why=why, name=name, threads=threads)


def checked(indices: Sequence[int], count: int, name: str) -> list[int]:
    """The indices as plain numbers; IndexError where a video of so many frames has no such frame, or none is asked."""
    asked = [int(i) for i in indices]
    if not asked:
        raise IndexError(f"{name}: no frame was asked for")
    wrong = [i for i in asked if not 0 <= i < count]
    if wrong:
        raise IndexError(f"{name}: frame {wrong[0]} was asked for; it has {count}, from 0 to {count - 1}")
    return asked


# ------------------------------------------------------------------ inside


def _channels(x: np.ndarray) -> Tensor:
    """(T, 3, H, W) of (T, H, W, 3); the bytes stay as they lie (channels last), which resizing likes."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


class _Opened:
    """The files that this process has open, the last used ones."""

    def __init__(self) -> None:
        self.others: list[Any] = []
        self._fresh()

    def _fresh(self) -> None:
        self.process, self.lock = os.getpid(), threading.Lock()
        self.readers: OrderedDict[tuple[Any, ...], Reader] = OrderedDict()

    def frames(self, video: FileVideo, indices: Sequence[int]) -> np.ndarray:
        if self.process != os.getpid():
            self.others.append(self.readers)  # the parent's, after a fork: to close them is for the parent
            self._fresh()
        try:
            changed = os.stat(video.path).st_mtime_ns
        except OSError as error:
            found = f"it can no longer be read ({error.strerror})"
            raise BadVideo(video.path, found, "put it back, or start again without it") from error
        with self.lock:
            key = (video.path, video.reader, video.threads, len(video.packets), changed)
            reader = self.readers.pop(key, None)
            if reader is None:
                while len(self.readers) >= OPEN:
                    self.readers.popitem(last=False)[1].close()
                reader = READERS[video.reader](video.path, video.packets, threads=video.threads)
            try:
                made = reader.frames(indices)
            except BaseException:
                reader.close()
                raise
            self.readers[key] = reader
            return made

    def close(self) -> None:
        with self.lock:
            while self.readers:
                self.readers.popitem()[1].close()


_opened = _Opened()


def close_all() -> None:
    """Close all files that this process has open; they are opened again when frames are asked for."""
    _opened.close()
