"""The whole loop of SimCLR on images, from the file to the optimizer: ours against lightly's parts in a plain loop.

    python tools/bench/vision_loop.py --data folder                       # a ResNet-18 with the stem for small images
    python tools/bench/vision_loop.py --data folder --network vit --device cuda

Both sides train one network on the same images: the same batch, crops, colours and size, without blur (as for images of
less than 96 pixels), AdamW, float32. "ours, samples" and "ours, device" are a recipe through ``core.fit`` as the
command line runs it, with ``--source.views`` of that name; images were decoded once before, which took what is printed.
"lightly" is torchvision's ``ImageFolder``, lightly's ``SimCLRTransform``, projection head and ``NTXentLoss``, and a
``DataLoader``, as in its examples; it decodes a JPEG whenever it is asked for. It is measured where it is installed.

Sides run in turn, ``--rounds`` times; a figure is the median of the time from batch to batch, without the first two of
a round. On a CPU that is the process's own time, on one thread and without data workers: what one core does.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import torch
from torch import nn

from partwhole.core.fit import Fit, Run, fit
from partwhole.core.watch import Quiet
from partwhole.vision.network import Network
from partwhole.vision.policies import simclr
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS

NETWORKS = {
    "resnet18": Network(name="resnet18", width=1.0, stem="small"),
    "vit": Network(name="vit", dim=384, depth=12, patch=8),
}
SKIPPED = 2  # steps of a round
Clock = Callable[[], float]


def clock(device: str) -> Clock:
    if device == "cpu":
        return time.process_time

    def waited() -> float:
        torch.cuda.synchronize()  # noqa: TID251  a clock
        return time.perf_counter()

    return waited


class Timed:
    """A stream that looks at the clock whenever a batch is there."""

    def __init__(self, stream: Any, now: Clock):
        self.stream, self.now, self.moments = stream, now, list[float]()

    def __call__(self, start: int = 0, /) -> Iterator[Any]:
        for batch in self.stream(start):
            self.moments.append(self.now())
            yield batch


def ours(views: str, args: argparse.Namespace, cache: Path) -> list[float]:
    source = Source(cache=cache, loaders=args.loaders, views=views, workers=1)  # type: ignore[arg-type]
    network = NETWORKS[args.network]
    recipe = TASKS["simclr"](data=(args.data,), source=source, network=network, size=args.size, batch=args.batch)
    recipe = replace(recipe, fit=Fit(steps=args.steps, lr=1e-4, device=args.device))
    run = recipe.build(watch=Quiet())
    stream = Timed(run.stream, clock(args.device))
    fit(Run(method=run.method, stream=stream), recipe.fit, watch=Quiet())
    return stream.moments


def theirs(args: argparse.Namespace) -> list[float]:
    transforms, heads, losses = (
        importlib.import_module(f"lightly.{part}")
        for part in ("transforms.simclr_transform", "models.modules.heads", "loss")
    )
    datasets = importlib.import_module("torchvision.datasets")
    a = simclr(args.size)
    assert a.scale is not None
    transform = transforms.SimCLRTransform(
        input_size=args.size, cj_prob=a.jitter, cj_strength=1.0, cj_bright=a.brightness, cj_contrast=a.contrast,
        cj_sat=a.saturation, cj_hue=a.hue, min_scale=a.scale[0], random_gray_scale=a.grey, gaussian_blur=a.blur,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(args.data), transform), batch_size=args.batch, shuffle=True, drop_last=True,
        num_workers=args.loaders, pin_memory=args.device == "cuda",
    )  # fmt: skip
    net, dim = plain(args)
    model = nn.Sequential(net, heads.SimCLRProjectionHead(dim, 4 * dim, dim)).to(args.device).train()
    criterion = losses.NTXentLoss(temperature=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    moments, now = list[float](), clock(args.device)
    while True:
        for (first, second), _ in loader:
            moments.append(now())
            if len(moments) == args.steps:
                return moments
            loss = criterion(*(model(x.to(args.device, non_blocking=True)) for x in (first, second)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def plain(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """timm's network of the same kind, that gives a vector for each image."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if args.network == "vit":
        n = NETWORKS["vit"]
        heads = n.dim // 64
        net = VisionTransformer(args.size, n.patch, embed_dim=n.dim, depth=n.depth, num_heads=heads, num_classes=0)
        return net, n.dim
    net = timm.create_model("resnet18", num_classes=0)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()  # type: ignore[assignment]
    return net, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images, a folder for each class")
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", type=int, default=0, help="data workers; on a CPU their time is not counted")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        now = clock(args.device)
        before = now()
        images = Source(cache=Path(folder), workers=1).unlabelled([args.data])
        print(f"{measure.machine(args.device, 1)}\n{len(images)} images decoded in {now() - before:.1f} s, once")
        sides: dict[str, Callable[[], list[float]]] = {
            "lightly": lambda: theirs(args),
            "ours, samples": lambda: ours("samples", args, Path(folder)),
            "ours, device": lambda: ours("device", args, Path(folder)),
        }
        took: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, work in list(sides.items()):
                try:
                    at = work()
                except ImportError:
                    print(f"{side}: not installed")
                    del sides[side]
                    continue
                took[side] += [b - a for a, b in zip(at[SKIPPED:], at[SKIPPED + 1 :], strict=False)]
        best = statistics.median(took["ours, samples"])
        print(f"{args.network}, {args.batch} images of {args.size} pixels, {args.loaders} loaders")
        print(f"{'':16}{'step, s':>10}{'images/s':>10}{'time':>8}")
        for side in sides:
            step = statistics.median(took[side])
            print(f"{side:16}{step:>10.3f}{args.batch / step:>10.1f}{step / best:>7.2f}x")


if __name__ == "__main__":
    main()
