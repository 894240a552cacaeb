"""The sound of a video file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partwhole.video.packets import AGAIN, BadVideo


def sound(path: str | Path, *, rate: int | None = None) -> tuple[Tensor, int]:
    """The first sound track as (waveform (N,) float32 in [-1, 1], samples per second), its channels averaged.

    ``rate``: resampled to it; by default as it is. Sample 0 is at the moment 0 of the pictures' ``times``: where sound
    begins later there is silence before it, where it begins earlier it is cut. A damaged end is left out. Raises
    BadVideo where there is no sound.
    """
    import av
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    parts: list[np.ndarray] = []
    begin: float | None = None
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise BadVideo(path, "no sound in it", "give a file that has some, or leave it out")
            track = container.streams.audio[0]
            rate = rate or track.rate
            made = AudioResampler(format="fltp", layout=track.layout, rate=rate)
            packets = container.demux(track)
            while True:
                try:
                    packet = next(packets, None)
                    frames = [] if packet is None else track.decode(packet)
                except FFmpegError:  # damage: what comes after it is not in time any more
                    packet, frames = None, []
                for frame in frames:
                    begin = frame.time if begin is None else begin
                    parts += [piece.to_ndarray().mean(0) for piece in made.resample(frame)]
                if packet is None:
                    break
            parts += [piece.to_ndarray().mean(0) for piece in made.resample(None)]
    except OSError as error:
        raise BadVideo(path, f"it cannot be opened ({error.strerror})", "check the path") from error
    except FFmpegError as error:
        raise BadVideo(path, f"not a file that can be read ({error.strerror})", AGAIN) from error
    if not parts:
        raise BadVideo(path, "no sound in it that can be decoded", AGAIN)
    wave = np.concatenate(parts)
    shift = round((begin or 0.0) * rate)
    wave = wave[-shift:] if shift < 0 else np.concatenate([np.zeros(shift, wave.dtype), wave])
    return torch.from_numpy(np.clip(wave, -1, 1).astype(np.float32)), rate
