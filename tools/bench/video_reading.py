"""Random clips out of video files: PyAV by our index of packets, decord and torchcodec, each in a process of its own.

    python tools/bench/video_reading.py                              # some minutes
    python tools/bench/video_reading.py --quick
    python tools/bench/video_reading.py --videos FOLDER              # files of your own
    python tools/bench/video_reading.py --memory 10000               # does memory grow over so many clips?

A clip is 4 frames, 8 apart, from a moment drawn at random. "opened anew" opens a file for every clip, as a data set of
many files does, "kept open" reads all from one file. ms are of the process's own time, one thread, the median of some
rounds; clips/s are by the clock, with clips of all files in turn, in this process and in two workers of a DataLoader.
The peak of memory counts torch in, as every reader here has it. Files are made of moving noise, unless they are given.
torchcodec is measured where it finds FFmpeg.
"""

import argparse
import ctypes
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from partwhole.core.data import Stream
from partwhole.video.backends import READERS, missing
from partwhole.video.index import VIDEOS
from partwhole.video.packets import BadVideo
from partwhole.video.pyav import look
from partwhole.video.readers import OPEN, FileVideo, close_all

COUNT, STEP = 4, 8
MADE = {  # height, width, frames, codec, options
    "360p, h264, group 250": (360, 640, 250, "libx264", {"g": "250", "bf": "3"}),
    "360p, h264, group 30": (360, 640, 250, "libx264", {"g": "30", "bf": "3"}),
    "720p, h264, group 250": (720, 1280, 150, "libx264", {"g": "250", "bf": "3", "preset": "veryfast"}),
    "360p, hevc, group 60": (360, 640, 150, "libx265", {"preset": "ultrafast", "x265-params": "keyint=60:log-level=0"}),
    "360p, mpeg4, group 12": (360, 640, 250, "mpeg4", {"g": "12", "b": "2000000"}),
}


def make(path: Path, height: int, width: int, frames: int, codec: str, options: dict[str, str]) -> None:
    """A smooth picture that moves, with a little noise."""
    import av

    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((1, 3, 24, 40), np.float32))
    size = (height + 2 * frames, width + 2 * frames)
    scene = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1).mul(239).byte()
    scene = scene.permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            x = scene[i : i + height, 2 * i : 2 * i + width]
            x = x + draw.integers(0, 16, (height // 8, width // 8, 1), np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(x, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def clip(length: int, draw: random.Random) -> list[int]:
    first = draw.randrange(max(1, length - (COUNT - 1) * STEP))
    return [min(length - 1, first + STEP * k) for k in range(COUNT)]


class One:
    """The view: one clip at random, as a data worker reads it."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, torch.Tensor]:
        video = sample["video"]
        x = video.frames(clip(len(video), random))  # type: ignore[arg-type]  its global functions are those of one
        return {"x": x[:, :, ::16, ::16].contiguous()}  # what a batch then costs is not the reader's


def costs(name: str, path: Path, count: int, kept: bool) -> float:
    """Seconds of the process for one clip."""
    packets = look(path)
    draw, times = random.Random(0), []
    reader = READERS[name](path, packets)
    for _ in range(count):
        indices = clip(len(packets), draw)
        began = time.process_time()
        if not kept:
            reader = READERS[name](path, packets)
        reader.frames(indices)
        if not kept:
            reader.close()
        times.append(time.process_time() - began)
    reader.close()
    return statistics.median(times)


def rates(name: str, paths: list[Path], count: int, workers: int) -> tuple[float, float]:
    """Clips a second by the clock, and the peak of memory of one process in MB."""
    samples = [{"video": FileVideo(p, look(p), reader=name)} for p in paths]
    batches = Stream(samples, One(), batch=1, workers=workers)(0)
    for _ in range(2 * len(paths)):  # the workers have begun
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    took = time.perf_counter() - began
    del batches
    close_all()
    if workers:
        return count / took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage counts what was before this program
    return count / took, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def growth(name: str, paths: list[Path], count: int) -> list[tuple[int, float, float]]:
    """(clips read, MB, MB without what the allocator keeps) as clips of random files are read, with handles that are
    made anew as a data set makes them."""
    indices = [look(p) for p in paths]
    draw, found = random.Random(0), []
    marks = {max(1, count // 50), count // 4, count // 2, count}
    for i in range(1, count + 1):
        k = draw.randrange(len(paths))
        FileVideo(paths[k], indices[k], reader=name).frames(clip(len(indices[k]), draw))
        if i in marks:
            before = rss()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            found.append((i, before, rss()))
    return found


def apart(*words: str) -> Any:
    """What this program, called with ``words``, prints as JSON on its last line; None where it fails."""
    done = subprocess.run([sys.executable, sys.argv[0], *words], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few clips of the first two files")
    parser.add_argument("--clips", type=int, default=40, help="that are read for a figure")
    parser.add_argument("--videos", type=Path, help="a folder of files to read instead")
    parser.add_argument("--memory", type=int, default=0, help="read so many clips and tell how memory grows, no times")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        what, name, number = args.child.split(":")
        if what == "growth":
            print(json.dumps(growth(name, args.paths, args.clips)))
        elif what == "rates":
            print(json.dumps(rates(name, args.paths, args.clips, int(number))))
        else:
            print(json.dumps([costs(name, args.paths[0], args.clips, kept) for kept in (False, True)]))
        return
    names = [n for n in args.readers.split(",") if not missing(n)]
    count = 8 if args.quick else args.clips
    print(measure.machine("cpu", 1), flush=True)
    with tempfile.TemporaryDirectory() as at:
        files: dict[str, Path] = {}
        if args.videos is not None:
            for path in sorted(p for p in args.videos.rglob("*") if p.suffix in VIDEOS):
                try:
                    look(path)
                    files[path.name] = path
                except BadVideo as error:
                    print(f"left out: {error}")
        else:
            for k, (title, how) in enumerate(list(MADE.items())[: 2 if args.quick else None]):
                files[title] = Path(at) / f"{k}{'.avi' if how[3] == 'mpeg4' else '.mp4'}"
                make(files[title], *how)
        paths = [str(p) for p in files.values()]
        if args.memory:
            print(f"{args.memory} clips of {len(paths)} files, {OPEN} open at most; MB of the process (in use) after")
            for name in names:
                found = apart("--child", f"growth:{name}:0", "--clips", str(args.memory), *paths)
                row = [f"{i} clips: {mb:.0f} ({used:.0f})" for i, mb, used in found or []]
                print(f"{name:12}", *row, sep="  ", flush=True)
            return
        print(f"{'ms a clip':26} {'reader':12} {'opened anew':>12} {'kept open':>10}")
        for title, path in files.items():
            for name in names:
                found = apart("--child", f"costs:{name}:0", "--clips", str(count), str(path))
                row = [f"{1e3 * s:.1f}" for s in found] if found else ["fails", "fails"]
                print(f"{title[:26] if name == names[0] else '':26} {name:12} {row[0]:>12} {row[1]:>10}", flush=True)
        print(f"\n{'all files in turn':26} {'reader':12} {'1 process':>12} {'2 workers':>10} {'peak, MB':>10}")
        for name in names:
            row = [apart("--child", f"rates:{name}:{w}", "--clips", str(4 * count), *paths) for w in (0, 2)]
            shown = [f"{r[0]:.1f}" if r else "fails" for r in row] + ["/".join(f"{r[1]:.0f}" for r in row if r)]
            print(f"{'clips/s':26} {name:12} {shown[0]:>12} {shown[1]:>10} {shown[2]:>10}", flush=True)
        print("\ndecord is opened for every clip in all columns: it must not be kept (see partwhole.video.backends).")


if __name__ == "__main__":
    main()
