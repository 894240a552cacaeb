"""Readers of other libraries, and which one to take for a file.

decord and torchcodec have an index of their own and are wrong for some files: both for AVI with frames that are
predicted from later ones, decord in open groups of pictures too. So their index is compared with the file's packets
before they are trusted with a file, and some of their frames with PyAV's.

Nothing here imports torch with the module: the processes that check files use it.
Letters: T frames, H height, W width.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from partwhole.video.packets import AGAIN, BadVideo, Packets
from partwhole.video.pyav import PASSED_OVER, PyAV

ReaderName = Literal["auto", "pyav", "decord", "torchcodec"]
LOOKS = 4  # frames that are compared
SLACK = 0.5  # of 255: how much nearer a neighbour may be, where frames hardly differ


class Reader(Protocol):
    """An opened video file."""

    def frames(self, indices: Sequence[int], /) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of any frames, in the order asked; repeats are allowed."""
        ...

    def close(self) -> None:
        """Give back the file and all memory."""


class Decord:
    """A video file by decord. It is opened for every call and closed again: an idle reader goes on decoding into
    memory, and one that was opened before a fork is of no use in the child."""

    def __init__(self, path: str | Path, packets: Packets, *, threads: int = 1):
        self.path, self.packets, self.threads = str(path), packets, threads

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        reader = self._open()
        try:
            batch = reader.get_batch(list(indices))
            return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # by decord.bridge
        except Exception as error:  # decord throws whatever its C++ does
            raise BadVideo(self.path, f"decord cannot read the frames {list(indices)[:5]} ({error})", AGAIN) from error
        finally:
            del reader

    def index(self) -> tuple[int, np.ndarray, list[int]]:
        """Number of frames, their times in seconds, and which of them are whole pictures, as decord sees them."""
        reader = self._open()
        count = len(reader)
        times = np.asarray(reader.get_frame_timestamp(range(count)), float).reshape(count, -1)[:, 0]
        return count, times, [int(k) for k in reader.get_key_indices()]

    def close(self) -> None:
        """It is closed."""

    def _open(self) -> Any:
        import decord

        try:
            return decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=self.threads)
        except Exception as error:
            raise BadVideo(self.path, f"decord cannot open it ({str(error).splitlines()[0]})", AGAIN) from error


class TorchCodec:
    """A video file by torchcodec."""

    def __init__(self, path: str | Path, packets: Packets, *, threads: int = 1):
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage, reportMissingImports]

        self.path, self.packets = str(path), packets
        try:
            made = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise BadVideo(path, f"torchcodec cannot open it ({str(error).splitlines()[0]})", AGAIN) from error
        self.decoder: Any = made

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        try:
            return self.decoder.get_frames_at(list(indices)).data.numpy()
        except (RuntimeError, IndexError) as error:
            found = f"torchcodec cannot read the frames {list(indices)[:5]} ({error})"
            raise BadVideo(self.path, found, AGAIN) from error

    def index(self) -> tuple[int, np.ndarray, list[int]]:
        """As ``Decord.index``; the times of the first frames and of the last alone."""
        count = len(self.decoder)
        few = sorted({*range(min(8, count)), count - 1})
        times = np.full(count, np.nan)
        times[few] = self.decoder.get_frames_at(few).pts_seconds.numpy()
        return count, times, []

    def close(self) -> None:
        self.decoder = None


READERS: dict[str, Callable[..., Reader]] = {"torchcodec": TorchCodec, "decord": Decord, "pyav": PyAV}


@cache
def missing(name: str) -> str:
    """Why a reader cannot be used here; "" where it can."""
    package = {"pyav": "av"}.get(name, name)
    if find_spec(package) is None:
        return f"{package} is not installed"
    try:
        if name == "torchcodec":
            from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage, reportMissingImports]

            VideoDecoder(b"no video")  # only this loads FFmpeg
        elif name == "decord":
            import decord  # noqa: F401
    except Exception as error:
        if name != "torchcodec" or "libtorchcodec" in str(error):
            found = "it finds no FFmpeg" if name == "torchcodec" else (str(error).splitlines() or [""])[0][:80]
            return f"{package} does not load ({found})"
    return ""


def usable(reader: str) -> None:
    """Raises ValueError where a reader is unknown or cannot be used here."""
    if reader not in get_args(ReaderName):
        raise ValueError(f"reader is {reader!r}; expected one of {', '.join(get_args(ReaderName))}")
    if reader != "auto" and missing(reader):
        raise ValueError(f"reader {reader!r} was asked for, and {missing(reader)}; 'auto' takes one that is there")


def choose(path: str | Path, packets: Packets, reader: ReaderName = "auto") -> tuple[str, str]:
    """(name of a reader, why it is taken): the fastest one here that is right for this file, or the one asked for where
    it is right; else PyAV, which reads by the packets themselves.

    As measured by tools/bench/video_reading.py, PyAV is the fastest where it can pass over pictures (h264 and MPEG-4
    with frames that are predicted from later ones), torchcodec elsewhere by a tenth or so, decord nowhere. Raises
    ValueError as ``usable`` does.
    """
    usable(reader)
    if reader == "pyav":
        return reader, "asked for"
    if reader == "auto" and packets.codec in PASSED_OVER and packets.reordered:
        return "pyav", f"the fastest for {packets.codec} with pictures that can be passed over"
    name = "torchcodec" if reader == "auto" else reader
    doubt = missing(name) or doubted(path, packets, name)
    if doubt:
        return "pyav", f"not by {name}: {doubt}"
    return name, "asked for" if reader != "auto" else f"the fastest for {packets.codec}, and it agrees with the packets"


def doubted(path: str | Path, packets: Packets, name: str) -> str:
    """Why a reader should not be trusted with a file; "" where its index is that of the packets."""
    if packets.counted:
        return "the packets do not say which frames they hold"
    if packets.lost:
        return "a part of the file is missing"
    if packets.reordered and "avi" in packets.container.split(","):
        return "an AVI with frames stored in another order than they are shown in"
    if packets.leading and name == "decord":
        return "open groups of pictures"
    if (packets.frame < 0).any():
        return "frames that are stored and not shown"
    try:
        reader: Any = READERS[name](path, packets)
        count, times, keys = reader.index()
        if count != len(packets):
            return f"it counts {count} frames, the packets {len(packets)}"
        if np.nanmax(np.abs(times - packets.times)) > 0.5 / packets.fps:
            return "its times of the frames are not those of the packets"
        if keys and keys != packets.frame[packets.start].tolist():
            return "its whole pictures are not those of the packets"
        wrong = _differs(path, packets, reader)
        reader.close()
        return wrong
    except BadVideo as error:
        return error.found


def _differs(path: str | Path, packets: Packets, reader: Reader) -> str:
    """What is wrong with some frames of a reader, beside those of PyAV; "" where nothing is."""
    n = len(packets)
    chosen = sorted({n - 1, *np.random.default_rng(n).integers(0, n, LOOKS - 1).tolist()})
    near = sorted({j for i in chosen for j in (i - 1, i, i + 1) if 0 <= j < n})
    own = PyAV(path, packets)
    try:
        truth = dict(zip(near, own.frames(near).astype(np.int16), strict=True))
    finally:
        own.close()
    for i, frame in zip(chosen, reader.frames(chosen), strict=True):
        if frame.shape != truth[i].shape:
            return f"its frames are {frame.shape[1]} x {frame.shape[0]}, shown are {packets.width} x {packets.height}"
        off = {j: float(np.abs(frame - truth[j]).mean()) for j in (i - 1, i, i + 1) if j in truth}
        if off[i] > min(off.values()) + SLACK:
            return f"its frame {i} is another one"
    return ""
