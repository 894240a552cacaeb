"""Follow objects through a video by the features of a frozen encoder: a run's, or any of timm's.

python tools/follow.py --encoder runs/crw --mask first.png video.mp4 out   masks, a film, a GIF
python tools/follow.py --network vit_small_patch16_224 --weights w.safetensors --preset dino --mask first.png frames out
python tools/follow.py --encoder runs/crw --measure DAVIS out              J and F beside copying and a random network

The mask is an image of ids, grey or with a palette, as large as the video's frames: 0 is background, each other number
an object. A video is a file, or a folder of images.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: on a busy machine spinning threads crawl

import progress
import recipes
import torch

from partwhole.core import checkpoint, distributed, files
from partwhole.core.encoder import Encoder
from partwhole.core.run_page import read_json
from partwhole.core.watch import Watch
from partwhole.video import following_report, show
from partwhole.video.adapt import Adaptation, adapt
from partwhole.video.folder import ids
from partwhole.video.follow import follow
from partwhole.video.layouts import read_annotated
from partwhole.video.measure import Following, measure
from partwhole.video.protocol import PROTOCOLS
from partwhole.video.readers import Ids, read_video


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="follow.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, metavar="PATH", help="folder of a finished run")
    parser.add_argument("--network", metavar="NAME", help="instead of it, a network of timm by its name")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="its weights, a file of safetensors")
    parser.add_argument("--preset", choices=sorted(PROTOCOLS), default="crw", help="the published protocol to go by")
    parser.add_argument("--adapt", type=int, default=0, metavar="N", help="steps of the walk on the video beforehand")
    parser.add_argument("--mask", type=Path, metavar="PATH", help="the objects of the first frame")
    parser.add_argument("--measure", type=Path, metavar="PATH", help="videos with masks, as of DAVIS, to measure on")
    parser.add_argument("--traceback", action="store_true", help="show where an error was noticed")
    parser.add_argument("places", type=Path, nargs="+", metavar="VIDEO OUT", help="the video, and the folder to write")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if (options.mask is None) == (options.measure is None):
        raise recipes.Usage("give --mask, to follow its objects through a video, or --measure, to measure on many")
    if len(options.places) != (wanted := 1 if options.mask is None else 2):
        names = "OUT, a folder" if wanted == 1 else "VIDEO and OUT, a folder"
        raise recipes.Usage(f"expected {names}; got {' '.join(map(str, options.places))}")
    watch = progress.make()
    try:
        encoder = load(options, watch).to(distributed.setup("auto")).eval()
        work = many if options.mask is None else one
        work(options, encoder, watch)
    finally:
        progress.close(watch)
    return 0


def load(options: Any, watch: Watch) -> Encoder:
    if (options.encoder is None) == (options.network is None):
        raise recipes.Usage("give --encoder, the folder of a run, or --network, a name of timm's")
    if options.encoder is not None:
        if options.weights is not None:
            raise recipes.Usage("--weights are those of --network: a run has its own")
        return checkpoint.load_encoder(options.encoder)
    from partwhole.video.network import build
    from partwhole.vision.network import Network

    network = Network(name=options.network, weights=options.weights, width=1.0)
    if network.given() is None:
        watch.say(f"careful: {network.name} has random weights: give --weights, a file of its own")
    return build(network, 224, dense=True)


def one(options: Any, encoder: Encoder, watch: Watch) -> None:
    """Follow the objects of a mask."""
    place, out = options.places
    video = read_video(place)
    watch.say(f"{video.name}: {len(video)} frames of {video.size[1]} x {video.size[0]} pixels")
    first = torch.from_numpy(ids(str(options.mask)))
    if options.adapt:
        encoder = adapt(encoder, video, Adaptation(steps=options.adapt))
    found = follow(encoder, video, Ids(first[None]), PROTOCOLS[options.preset], watch=watch)
    for t, mask in enumerate(found):
        files.write(out / "masks" / f"{t:05d}.png", lambda file, mask=mask: file.write(show.indexed(mask)))
    height, fps = min(480, video.size[0]), max(1.0, video.fps)
    show.write_mp4(out / "followed.mp4", show.film(video, found, height=height), fps=fps)
    every = -(-len(video) // 60)
    moving = show.gif(show.film(video, found, height=min(240, height), every=every), fps=fps / every)
    files.write(out / "followed.gif", lambda file: file.write(moving))
    print(f"{out}: masks/, followed.mp4, followed.gif")


def many(options: Any, encoder: Encoder, watch: Watch) -> None:
    """J and F on videos whose masks are known; what was interrupted goes on."""
    out = options.places[0]
    samples = read_annotated(options.measure)
    for line in samples.told():
        watch.say(line)
    how = Following(preset=options.preset, adapt=options.adapt, draws=1)
    keep = out / "following.json"
    results = measure(
        encoder, samples, how, watch, keep=lambda found: files.write_json(keep, found), begun=read_json(keep)
    )
    files.write_json(keep, results)
    print(following_report.table(results, str(options.encoder or options.network)))


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
