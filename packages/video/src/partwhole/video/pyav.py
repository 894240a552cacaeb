"""Frames of a video file by PyAV (FFmpeg), any of them by its exact index.

After a jump a decoder tells the time of a frame, if it knows one, and no index. Here every packet is known again by its
place in the file and is told its frame's index as its time, so that what the decoder gives is an index, whatever the
container does with times. Nothing is decoded but what lies between the whole picture before a frame and the frame;
pictures in between which no other needs are passed over (h264 and MPEG-4), and colours are converted for the frames
that are asked for alone.

Nothing here imports torch: the processes that check files use it.
Letters: T frames, H height, W width.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from partwhole.video.packets import AGAIN, BadVideo, Packets

ENDS = 16  # frames at the beginning that are decoded to see whether the index says what comes out
PASSED_OVER = {"h264", "mpeg4"}  # in others a picture that its own layer does not need may be needed by a higher one


class PyAV:
    """An opened video file. ``threads``: for decoding; 0, as many as there are cores."""

    def __init__(self, path: str | Path, packets: Packets, *, threads: int = 1):
        from av.video.reformatter import VideoReformatter

        self.path, self.packets, self.threads = str(path), packets, threads
        self.ordinal = {int(place): i for i, place in enumerate(packets.place)}
        self.colours = VideoReformatter()
        self.needed: set[int] = set()
        self.latest = 0  # of those needed
        self.hopeless = False
        self._open()

    def _open(self) -> None:
        self.container, self.stream = opened(self.path, self.threads)
        self.context: Any = self.stream.codec_context
        self.thrifty, self.passing = self.context.name in PASSED_OVER, False
        self._fresh()

    def _fresh(self) -> None:
        self.demux: Iterator[Any] = self.container.demux(self.stream)
        self.ready: deque[tuple[int, Any]] = deque()
        self.first: Any = None  # a packet that was read to see where a jump led
        self.last: Any = None  # the last picture that was shown
        self.at, self.shown, self.count, self.ended = 0, -1, 0, False

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB, in the order of ``indices``.

        Where damage within the file leaves no picture for a frame, it is the last that was decoded before it, as
        players show it, or else the first after it. Raises BadVideo where there is none.
        """
        wanted = sorted(set(indices))
        self.needed, self.latest = set(wanted), wanted[-1]
        found: dict[int, np.ndarray] = {}
        try:
            for frame in wanted:
                if frame not in found:
                    self._reach(frame, found)
        except BaseException:
            self.shown = len(self.packets)  # a decoder in an unknown state begins anew
            raise
        return np.stack([found[i] for i in indices])

    def close(self) -> None:
        """Give back the file and what the decoder holds; PyAV does not do it by itself."""
        self.ready.clear()
        self.demux, self.first, self.last, self.stream, self.context = iter(()), None, None, None, None
        self.container.close()

    # ------------------------------------------------------------------ inside

    def _reach(self, frame: int, found: dict[int, np.ndarray]) -> None:
        """Decode until ``frame`` is there, from ever earlier places where it does not come."""
        begin = self.packets.begin(frame)
        onward = self.shown < frame and self.at >= self.packets.start[begin]
        if onward and (self.ready or not self.ended) and self._until(frame, found):
            return
        can = self.context.name in PASSED_OVER
        ways = [(begin, can), (begin, False), (max(0, begin - 1), False), (0, False)]
        for place, thrifty in dict.fromkeys([(begin, False)] if self.hopeless else ways):
            self.thrifty = thrifty
            self._jump(place)
            if self._until(frame, found):
                self.thrifty = can
                return
        if self.last is None:
            raise BadVideo(self.path, f"no picture for frame {frame}, nor for any before it", AGAIN)
        self.hopeless = True  # damage within the file: it is not decoded from its beginning for every frame
        found[frame] = self._converted(self.last)

    def _until(self, frame: int, found: dict[int, np.ndarray]) -> bool:
        while self.shown < frame and (one := self._next()) is not None:
            self.shown, picture = one
            if self.shown in self.needed and self.shown not in found:
                found[self.shown] = self._converted(picture)
            if self.last is None or self.shown <= frame:
                self.last = picture
        return frame in found

    def _next(self) -> tuple[int, Any] | None:
        """The next picture that the decoder gives, and its index."""
        from av.error import FFmpegError

        while not self.ready:
            if self.ended:
                return None
            try:
                packet, self.first = self.first or next(self.demux, None), None
            except FFmpegError:  # the file is cut off or damaged: what was read so far is decoded
                packet = None
            if packet is not None and not packet.size:
                continue  # a frame that repeats the last, in AVI; or the end
            self.ended = packet is None
            try:
                pictures = self.context.decode(self._told(packet))
            except FFmpegError:  # a damaged packet is no picture
                continue
            for picture in pictures:
                index = self.count if self.packets.counted else picture.pts
                self.count += 1
                if index is not None and index >= 0:
                    self.ready.append((index, picture))
        return self.ready.popleft()

    def _told(self, packet: Any) -> Any:
        """The packet, which knows now which frame it holds; and whether its picture is needed."""
        if packet is None or self.packets.counted:
            return packet
        at = self.ordinal.get(packet.pos)
        frame = -1 if at is None else int(self.packets.frame[at])  # the file has grown since
        packet.pts, packet.dts = frame, at
        self.at = self.at if at is None else at + 1
        passed = self.thrifty and frame not in self.needed and frame < self.latest
        if passed != self.passing:
            self.context.skip_frame, self.passing = "NONREF" if passed else "DEFAULT", passed
        return packet

    def _jump(self, begin: int) -> None:
        """Have the packet where decoding may ``begin`` come next."""
        from av.error import FFmpegError

        target = int(self.packets.start[begin])
        for place in [] if self.packets.counted else [p for p in (begin, begin - 1, begin - 2) if p >= 0]:
            for time in self.packets.seek[:, place]:
                try:
                    self.container.seek(int(time), stream=self.stream)
                    self._fresh()
                    if self._skip_to(target):
                        return
                except FFmpegError:
                    continue
        self.close()
        self._open()
        if not self.packets.counted:
            self._skip_to(target)

    def _skip_to(self, target: int) -> bool:
        """Drop packets before ``target``; false where the jump led too far."""
        for packet in self.demux:
            at = self.ordinal.get(packet.pos)
            if at is None or at > target:
                return False
            if at == target:
                self.at, self.first = target, packet
                return True
        return False

    def _converted(self, picture: Any) -> np.ndarray:
        height, width = self.packets.height, self.packets.width
        if self.packets.turn % 2:
            height, width = width, height
        made = self.colours.reformat(picture, width, height, "rgb24").to_ndarray()
        return np.rot90(made, self.packets.turn)


def opened(path: str | Path, threads: int) -> tuple[Any, Any]:
    """The opened file and its first stream of moving pictures. Raises BadVideo."""
    import av
    from av.error import FFmpegError

    try:
        if not Path(path).stat().st_size:
            raise BadVideo(path, "an empty file", AGAIN)
        container = av.open(str(path), metadata_errors="ignore")
    except FFmpegError as error:
        raise BadVideo(path, f"not a video that can be read ({error.strerror})", AGAIN) from error
    except PermissionError as error:
        raise BadVideo(path, "no permission to read it", "give yourself read access") from error
    except OSError as error:
        raise BadVideo(path, f"it cannot be opened ({error.strerror})", "check the path") from error
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        kinds = ", ".join(s.type for s in container.streams) or "nothing"
        container.close()
        raise BadVideo(path, f"no moving pictures in it ({kinds})", "give a file with pictures")
    streams[0].codec_context.thread_count = threads
    if threads != 1:
        streams[0].codec_context.thread_type = "AUTO"
    return container, streams[0]


def look(path: str | Path, *, threads: int = 1) -> Packets:
    """The index of a video file, from its packets; its beginning and its end are decoded to see whether it is true.

    What cannot be decoded there is left out and told in ``lost``. Where frames come out in another order than the
    packets say, or the packets do not say it, all of the file is decoded once and its frames are counted.
    Raises BadVideo where there is no frame.
    """
    from av.error import FFmpegError

    container, stream = opened(path, threads)
    try:
        told: list[tuple[int, int | None, int | None, bool, bool]] = []
        cut, empty = "", 0
        try:
            for packet in container.demux(stream):
                place = -1 if packet.pos is None else packet.pos
                if not packet.size:
                    empty += place >= 0  # AVI: the last frame stays
                else:
                    told.append((place, packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard))
        except FFmpegError as error:
            cut = f"the file is cut off or damaged after {len(told)} frames ({error.strerror})"
        whole, last = (container.duration or 0) / 1e6, max((t[1] for t in told if t[1] is not None), default=0)
        if len(told) + empty < stream.frames:
            cut = f"the file says it has {stream.frames} frames, and holds {len(told)}"
        elif not cut and whole > 1 and float(last * (stream.time_base or 0)) < 0.9 * whole - 1:
            cut = f"the file says it lasts {whole:.1f} s, and its frames end at {float(last * stream.time_base):.1f} s"
        base = stream.time_base or 1
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        about = {
            "height": stream.codec_context.height, "width": stream.codec_context.width, "turn": 0, "fps": rate,
            "codec": stream.codec_context.name, "container": container.format.name, "lost": cut,
        }  # fmt: skip
    finally:
        stream = None
        container.close()
    if not told:
        raise BadVideo(path, cut or "no frame in it", AGAIN)
    made = _packets(told, float(base), about)
    seen = None if made is None else _seen(path, made, threads)
    return seen or _counted(path, about, threads)


def _packets(told: list[Any], base: float, about: dict[str, Any]) -> Packets | None:
    """The index that packets tell: (place, time of showing, of decoding, whole picture, shown); None where they do not
    tell one."""
    places, shown = [t[0] for t in told], [t[1] for t in told if t[4]]
    if len(set(places)) < len(places) or min(places) < 0 or None in shown or len(set(shown)) < len(shown) or not shown:
        return None
    order = {time: frame for frame, time in enumerate(sorted(shown))}
    frame = np.array([order[t[1]] if t[4] else -1 for t in told], np.int32)
    begun = int(np.argmax(frame >= 0))
    start = np.array(sorted({0, *(i for i, t in enumerate(told) if t[3] and (t[4] or i < begun))}), np.int32)
    if (np.diff(frame[start]) < 0).any():
        return None
    seek = [[next((t for t in (told[i][k], told[i][3 - k]) if t is not None), 0) for i in start] for k in (1, 2)]
    times = np.array(sorted(shown)) * base
    return Packets(
        place=np.array(places, np.int64), frame=frame, start=start, seek=np.array(seek, np.int64), times=times,
        counted=False, **{**about, "fps": about["fps"] or _rate(times)},
    )  # fmt: skip


def _rate(times: np.ndarray) -> float:
    return float((len(times) - 1) / (times[-1] - times[0])) if len(times) > 1 and times[-1] > times[0] else 25.0


def _seen(path: str | Path, made: Packets, threads: int) -> Packets | None:
    """The index without the frames at either end that give no picture; None where it is not true."""
    reader = PyAV(path, made, threads=threads)
    try:
        head: list[int] = []
        picture = None
        while len(head) < ENDS and (one := reader._next()) is not None:
            head.append(one[0])
            picture = picture or one[1]
        begin, tail = len(made.start), []
        while not tail and begin > 0:
            begin -= 1
            reader._jump(begin)
            while (one := reader._next()) is not None:
                tail.append(one[0])
                picture = picture or one[1]
        if picture is None:
            raise BadVideo(path, f"none of its {len(made)} frames can be decoded", AGAIN)
        if any(b <= a for come in (head, tail) for a, b in pairwise(come)):
            return None
        upto = head[-1] if head else -1
        since = max(upto + 1, int(made.frame[made.start[begin]]))
        keep = np.ones(len(made), bool)
        keep[: upto + 1] = np.isin(np.arange(upto + 1), head)
        keep[since:] = np.isin(np.arange(since, len(made)), tail)
        return _kept(made, keep, **_shape(picture))
    finally:
        reader.close()


def _shape(picture: Any) -> dict[str, int]:
    turn = round(picture.rotation / 90) % 4
    height, width = picture.height, picture.width
    return {"turn": turn, "height": width if turn % 2 else height, "width": height if turn % 2 else width}


def _kept(made: Packets, keep: np.ndarray, **shape: int) -> Packets:
    """The index with the frames of ``keep`` (N,) alone."""
    if keep.all():
        return replace(made, **shape)
    number = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
    gone = f"{int((~keep).sum())} of {len(keep)} frames give no picture (the first: {int(np.argmin(keep))})"
    frame = np.where(made.frame >= 0, number[made.frame], np.int32(-1))
    held = made.frame[made.start]
    good = (held < 0) | keep[held]  # a whole picture that gives none is no place to begin
    good[0] = True
    return replace(
        made, frame=frame, start=made.start[good], seek=made.seek[:, good], times=made.times[keep],
        lost="; ".join(filter(None, [made.lost, gone])), **shape,
    )  # fmt: skip


def _counted(path: str | Path, about: dict[str, Any], threads: int) -> Packets:
    """The index of a file whose packets tell none: all of it is decoded."""
    none = np.zeros(1, np.int64)
    base = Packets(
        place=none, frame=none.astype(np.int32), start=none.astype(np.int32), seek=np.zeros((2, 1), np.int64),
        times=np.zeros(1), counted=True, **about,
    )  # fmt: skip
    reader = PyAV(path, base, threads=threads)
    try:
        times, shape = [], {}
        while (one := reader._next()) is not None:
            times.append(one[1].time)
            shape = shape or _shape(one[1])
    finally:
        reader.close()
    if not times:
        raise BadVideo(path, "no frame in it can be decoded", AGAIN)
    if any(t is None for t in times) or any(b <= a for a, b in pairwise(times)):
        times = [i / (about["fps"] or 25.0) for i in range(len(times))]
    return replace(base, times=np.array(times, float), fps=about["fps"] or _rate(np.array(times)), **shape)
