"""From a sound file, or a part of it, to mono float32 at the rate that is asked for; what cannot be used is refused.

soundfile reads wav, flac, ogg, mp3 and their kin; PyAV, where it is installed, what lies in containers of video.
Letters: N samples, C channels.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = frozenset("wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64".split())
BOXED = frozenset("m4a m4b aac mp4 mov webm mka mkv wma 3gp".split())  # for PyAV
WIDTH = 6  # zero crossings of the filter that resamples, on either side: torchaudio's own
AGAIN = "download or export it again"


class BadSound(ValueError):
    """A sound, or a place of sounds, that cannot be used: which, what was found there, what to do about it."""

    def __init__(self, path: Any, found: str, do: str) -> None:
        super().__init__(str(path), found, do)
        self.path, self.found, self.do = str(path), found, do

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.do}"


@dataclass(frozen=True)
class About:
    """What the header of a file says."""

    rate: int
    """Samples a second, as recorded."""
    length: int
    """Samples of each channel; of what PyAV reads about as many, 0 where it cannot tell."""
    channels: int

    def at(self, rate: int) -> int:
        """How many samples there are at another rate."""
        return -(-self.length * rate // self.rate)


def is_sound(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower().lstrip(".") in PLAIN | BOXED


def about(path: str | Path) -> About:
    """The header alone. BadSound where it is not one of a sound."""
    path = Path(path)
    with _told(path):
        if _boxed(path):
            with _container(path) as (container, stream):
                seconds = (container.duration or 0) / 1e6  # of all that is in it; 0 where nobody knows
                if stream.duration is not None:
                    seconds = float(stream.duration * stream.time_base)
                found = About(stream.rate, round(seconds * stream.rate), stream.channels)
        else:
            import soundfile

            info = soundfile.info(str(path))
            found = About(info.samplerate, info.frames, info.channels)
    if found.length < 1 and not _boxed(path):
        raise BadSound(path, "a sound of zero length", AGAIN)
    return found


def read(path: str | Path, rate: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Samples ``start`` to ``stop`` of the file as it is at ``rate`` samples a second: float32 (N,), in [-1, 1].

    Channels are averaged. The rest of the file is not decoded, and the part is what it would be in the whole:
    what lies beside it and under the resampling filter is read along. Beyond the end of the file there is nothing, so
    N may be less than asked. BadSound for a file that is no sound, of zero length, or with values that are not finite.
    """
    path, told = Path(path), about(path)
    if not 0 <= start < (math.inf if stop is None else stop):
        raise ValueError(f"samples {start} to {stop} of a sound are asked for: some are needed, from 0 on")
    common = math.gcd(rate, told.rate)
    old, new = told.rate // common, rate // common  # so many samples become so many
    margin = 0 if old == new else -(-math.ceil(WIDTH * old / (0.99 * min(old, new))) // old) + 1
    first = max(0, start // new - margin)
    last = None if stop is None else (-(-stop // new) + margin) * old
    with _told(path):
        x = _contained(path, first * old, last) if _boxed(path) else _plain(path, first * old, last)
    if not len(x):
        raise BadSound(path, f"nothing from second {start / rate:.1f} on", AGAIN)
    if not np.isfinite(x).all():
        raise BadSound(path, "values that are not finite (NaN or infinity)", AGAIN)
    sound = torch.from_numpy(np.ascontiguousarray(x.mean(1, dtype=np.float32)))
    if old != new:
        import torchaudio

        sound = torchaudio.functional.resample(sound, old, new, lowpass_filter_width=WIDTH)
    ahead = start - first * new
    return sound[ahead : None if stop is None else ahead + stop - start].clamp(-1, 1).contiguous()


# ------------------------------------------------------------------ inside


def _boxed(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in BOXED


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever a decoder throws at a broken file is a report about that file."""
    try:
        if path.stat().st_size == 0:
            raise BadSound(path, "an empty file", AGAIN)
        yield
    except (BadSound, ImportError):
        raise
    except FileNotFoundError as error:
        raise BadSound(path, "there is no such file", "correct the path") from error
    except Exception as error:
        raise BadSound(path, f"not a sound ({type(error).__name__}: {str(error)[:120]})", AGAIN) from error


def _plain(path: Path, start: int, stop: int | None) -> np.ndarray:
    """(N, C) float32."""
    import soundfile

    with soundfile.SoundFile(str(path)) as file:
        if start >= len(file):
            return np.zeros((0, 1), np.float32)
        file.seek(start)
        return file.read(-1 if stop is None else stop - start, dtype="float32", always_2d=True)


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise BadSound(path, "a container that soundfile does not read", "pip install av, or convert it") from error
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise BadSound(path, "a file without sound", "leave it out")
        yield container, container.streams.audio[0]


def _contained(path: Path, start: int, stop: int | None) -> np.ndarray:
    """(N, C) float32; a frame is placed by its own time, from which seeking is exact."""
    import av

    with _container(path) as (container, stream):
        rate, parts, end = stream.rate, [], None
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        if start:  # well ahead: a decoder of AAC or Opus needs some frames before it is right
            container.seek(int(max(0, start / rate - 1.0) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            at = round(float(frame.time or 0) * rate) if end is None else end
            for made in resampler.resample(frame):
                x = made.to_ndarray().T
                end = at + len(x)
                low, high = max(start, at), end if stop is None else min(stop, end)
                if low < high:
                    parts.append(x[low - at : high - at])
                at = end
            if stop is not None and end is not None and end >= stop:
                break
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
