"""Small videos for tests, in which every frame shows its own number, and what may be wrong with video files."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

H, W = 64, 96
ONE = 0x10000  # of a display matrix


def picture(i):
    """The bits of ``i`` as squares, above a ramp."""
    x = np.zeros((H, W, 3), np.uint8)
    for b in range(10):
        x[16 * (b // 5) :, 16 * (b % 5) : 16 * (b % 5) + 16] = 255 * (i >> b & 1)
    x[32:] = (np.indices((32, W)).sum(0) * 2 % 200)[..., None]
    return x


def number(x):
    """Which frame (H, W, 3) or (3, H, W) shows."""
    x = np.asarray(x)
    x = x.transpose(1, 2, 0) if x.shape[0] == 3 else x
    at = [(16 * (b // 5), 16 * (b % 5)) for b in range(10)]
    return sum(int(x[y + 4 : y + 12, z + 4 : z + 12].mean() > 127) << b for b, (y, z) in enumerate(at))


def write(path, n=60, codec="libx264", times=None, fps=25, container=None, sound=None, **options):
    """``times``: of the frames, in milliseconds. ``sound``: seconds of a tone."""
    context = {k: options.pop(k) for k in ("gop_size", "max_b_frames") if k in options}
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps, options={k.replace("_", "-"): str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        track = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i), "rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, fps if times is None else 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if track is not None:
            wave = np.sin(np.arange(int(16000 * sound)) * 0.2).astype(np.float32) / 2
            for k in range(0, len(wave) - 1023, 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, k : k + 1024], "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = 16000, k, Fraction(1, 16000)
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
    return Path(path)


def sequential(path):
    """(N, H, W, 3) as PyAV decodes a file from its beginning to its end, and the times in seconds."""
    with av.open(str(path)) as file:
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in file.decode(video=0)]
    return np.stack([x for x, _ in frames]), [t for _, t in frames]


LONG = {"g": 250, "bf": 3}
OPEN = {"g": 24, "bf": 3, "x264_params": "open-gop=1:scenecut=0"}
FILES = {
    "long.mp4": {**LONG},
    "short.mp4": {"g": 12, "bf": 2},
    "open.mp4": {**OPEN},
    "open.mkv": {**OPEN},
    "short.mov": {"g": 12, "bf": 0},
    "short.mkv": {"g": 12, "bf": 3},
    "plain.avi": {"codec": "mpeg4", "gop_size": 12, "max_b_frames": 0},
    "reordered.avi": {"codec": "mpeg4", "gop_size": 12, "max_b_frames": 2},
    "reordered264.avi": {"g": 12, "bf": 3},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 20, "deadline": "realtime"},
    "hevc.mp4": {"codec": "libx265", "x265_params": "keyint=20:bframes=3:log-level=none"},
    "short.ts": {"g": 12, "bf": 3},
    "one.mp4": {"n": 1},
    "uneven.mp4": {**LONG, "times": [40 * i + 3 * (i * 7 % 5) + 500 * (i > 30) for i in range(60)]},
}


def turned(source, path, quarters):
    """The file with a display matrix that turns pictures by so many quarters with the clock."""
    data = bytearray(Path(source).read_bytes())
    at = data.index(b"tkhd") + 44
    a, b = {1: (0, ONE), 2: (-ONE, 0), 3: (0, -ONE)}[quarters]
    data[at : at + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 0x40000000)
    Path(path).write_bytes(data)
    return Path(path)


def without_times(source, path):
    """The file with all frames at moment 0."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream, packet.pts, packet.dts = stream, 0, 0
                new.mux(packet)
    return Path(path)


def later(source, path, seconds):
    """The file with an edit list that leaves out its first ``seconds``."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        video = old.streams.video[0]
        stream = new.add_stream_from_template(video)
        for packet in old.demux(video):
            if packet.size:
                shift = round(seconds / video.time_base)
                packet.stream, packet.pts, packet.dts = stream, packet.pts - shift, packet.dts - shift
                new.mux(packet)
    return Path(path)
