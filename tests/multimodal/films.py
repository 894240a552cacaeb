"""What tests of several files share: video files with sound, without, and silent."""

from fractions import Fraction

import numpy as np


def film(path, *, frames=20, fps=10, tone=None, silent=False):
    """A video file; ``tone``: seconds of sound, 440 Hz or silence."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=Fraction(fps))
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = None if tone is None else container.add_stream("pcm_s16le", rate=8_000)
        for t in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * t, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        if audio is not None:
            at = np.arange(round(tone * 8_000)) / 8_000
            x = np.zeros_like(at) if silent else 0.5 * np.sin(2 * np.pi * 440 * at)
            frame = av.AudioFrame.from_ndarray((x * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.rate = 8_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
