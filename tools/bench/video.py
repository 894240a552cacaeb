"""Labels carried along a video, and J and F: ours against the published arithmetic, on one core.

    python tools/bench/video.py                          # some ten minutes and 6 GB
    python tools/bench/video.py --quick                  # on half the grid, once
    python tools/bench/video.py --only crw
    python tools/bench/video.py --page cost.html         # cost against resolution and context, as charts

A figure of propagation is of one frame, when all frames that labels come from are there: CPU seconds of the process,
the growth of the peak of memory, and of the result the greatest difference to the published arithmetic and the share of
places whose strongest label is another. "published" is that arithmetic: all pairs of places, masked; its table of who
sees whom is made before, and not counted. Features are those of a random network on a generated video, so that places
beside each other are alike. bfloat16 is ours with that precision. J and F are of one object in one frame of 480 by 854
pixels. How it is measured: measure.py; the published arithmetic: video_peers.py.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import measure
import numpy as np
import torch
import torch.nn.functional as F
import video_peers as peers
from measure import Work
from torch import Tensor

from partwhole.core.charts import Series
from partwhole.core.report import Page
from partwhole.video.metrics import j_and_f
from partwhole.video.propagate import Propagation
from partwhole.video.protocol import PROTOCOLS, Protocol
from partwhole.video.ring import laid

LABELS = 4
CASES = {  # protocol, channels
    "crw, 256": ("crw", 256),
    "crw, 512": ("crw", 512),
    "dino, 384": ("dino", 384),
    "dinov3, 384": ("dinov3", 384),
    "vfs, 256": ("vfs", 256),
}
GRIDS = ((15, 27), (30, 54), (45, 81), (60, 108), (90, 162), (120, 216))
CONTEXTS = (1, 3, 7, 13, 20)


def features(count: int, channels: int, h: int, w: int) -> Tensor:
    """(count, channels, h, w): what convolutions with random weights make of noise that moves to the right."""
    g = torch.Generator().manual_seed(0)
    x = F.avg_pool2d(torch.randn(1, 16, h + 10, w + 10 + count, generator=g), 3, 1)
    layers = [torch.randn(channels, n, 3, 3, generator=g) / math.sqrt(9 * n) for n in (16, channels)]
    frames = torch.cat([x[..., t : t + w + 8] for t in range(count)]) + 0.1 * torch.randn(
        count, 16, h + 8, w + 8, generator=g
    )
    frames = F.conv2d(frames, layers[0]).relu()
    return torch.cat([F.conv2d(one[None], layers[1])[..., 2:-2, 2:-2] for one in frames])


def labels(count: int, h: int, w: int) -> Tensor:
    """(count, LABELS, h, w): shares of smooth regions."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, LABELS, 5, 7, generator=g)
    smooth = F.interpolate(coarse, (h, w + count), mode="bicubic")[0]
    return torch.stack([(6 * smooth[..., t : t + w]).softmax(0) for t in range(count)])


def filled(x: Tensor, y: Tensor, protocol: Protocol) -> Propagation:
    """With all the past frames (T, C, h, w) and their labels (T, K, h, w) there."""
    along = Propagation(x[0], y[0], replace(protocol, repeats="none"))
    for one, two in zip(x[1:], y[1:], strict=True):
        along.ring.add(laid(one, along.dtype), two.flatten(1).mT)
    return along


def sides(name: str, h: int, w: int, only: str = "") -> dict[str, Callable[[], Tensor]]:
    """Of each side, or one, a function that gives the labels (K, N) of a frame."""
    preset, channels = CASES[name]
    p = PROTOCOLS[preset]
    T = p.context + 1
    x, y = features(T + 1, channels, h, w), labels(T, h, w)
    out: dict[str, Callable[[], Tensor]] = {}
    if only in ("", "published"):
        mask = peers.seen(h, w, p.window, p.radius)
        unit = F.normalize(x, dim=1).flatten(2)
        args = (p.topk, p.temperature)
        if p.first == "free":
            keys, values = unit[:-1].permute(1, 0, 2).contiguous(), y.flatten(2).permute(1, 0, 2).contiguous()
            out["published"] = lambda: peers.crw(unit[-1], keys, values, mask, *args)
        elif preset == "dino":
            query, past, table = x[-1].flatten(1).mT, x[:-1].flatten(2), mask.float()
            out["published"] = lambda: peers.dino(query, past, y.flatten(2), table, *args)
        else:
            rows, values = unit.mT.contiguous(), y.flatten(2).mT.contiguous()
            out["published"] = lambda: peers.dinov3(rows[-1], rows[:-1], values, mask, *args)
    if only in ("", "ours"):
        exact = filled(x[:-1], y, p)
        out["ours"] = lambda: exact.found(laid(x[-1], exact.dtype)).mT
    if only in ("", "ours, bfloat16"):
        half = filled(x[:-1], y, replace(p, dtype="bfloat16"))
        out["ours, bfloat16"] = lambda: half.found(laid(x[-1], half.dtype)).mT
    return out


def compare(name: str, h: int, w: int, repeats: int) -> None:
    results: dict[str, Tensor] = {}

    def kept(side: str, work: Callable[[], Tensor]) -> Work:
        return lambda: results.update({side: work()})

    works = {side: kept(side, work) for side, work in sides(name, h, w).items()}
    took = measure.medians(works, "cpu", repeats=repeats, warm=int(repeats > 1))
    truth = results["published"]
    for side, found in results.items():
        other = (found.argmax(0) != truth.argmax(0)).float().mean()
        peak = measure.peak_of_child(["--peak", name, side, str(h), str(w)])
        row = f"{name if side == 'published' else '':14} {side:16} {took[side]:8.2f} {took[side] / took['ours']:7.1f}x"
        print(f"{row} {peak:9.0f} {(found - truth).abs().max():10.1e} {other:8.2%}", flush=True)


# ------------------------------------------------------------------ J and F


def masks(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of an object and what was found of it, 480 by 854: a blob with a wavy edge, and the same elsewhere."""
    y, x = np.mgrid[:480, :854]
    rng = np.random.default_rng(0)

    def blob(middle: np.ndarray, size: float, phase: float) -> np.ndarray:
        angle = np.arctan2(y - middle[0], x - middle[1])
        edge = size * (1 + 0.2 * np.sin(5 * angle + phase) + 0.05 * np.sin(31 * angle))
        return np.hypot(y - middle[0], x - middle[1]) < edge

    out = []
    for _ in range(count):
        middle, size, phase = rng.uniform(0.25, 0.75, 2) * (480, 854), rng.uniform(40, 160), rng.uniform(0, 6)
        out.append((blob(middle + rng.normal(0, 6, 2), size, phase + 0.3), blob(middle, size, phase)))
    return out


def accuracies(repeats: int) -> None:
    pairs = masks(20)
    works: dict[str, Work] = {
        "published": lambda: [peers.official(*pair) for pair in pairs],
        "ours": lambda: [j_and_f(*pair) for pair in pairs],
    }
    took = measure.medians(works, "cpu", repeats=repeats)
    apart = max(abs(a - b) for pair in pairs for a, b in zip(peers.official(*pair), j_and_f(*pair), strict=True))
    print(f"\n{'J and F':14} {'':16} {'ms':>8}   (published: dilated by {peers.dilates_by()})")
    for side, seconds in took.items():
        told = f" {apart:10.1e} greatest difference" if side == "ours" else ""
        print(f"{'':14} {side:16} {seconds / len(pairs) * 1e3:8.2f} {seconds / took['ours']:7.1f}x{told}", flush=True)


# ------------------------------------------------------------------ cost against resolution and context


def cost(h: int, w: int, context: int, *, whole: bool = False) -> tuple[float, float]:
    """CPU seconds of a frame with 256 channels under crw, and MB; ``whole``: as if every place saw all others."""
    p = replace(PROTOCOLS["crw"], context=context, first="windowed", window="none" if whole else "open-disc")
    x = torch.randn(context + 2, 256, h, w, generator=torch.Generator().manual_seed(0))
    along = filled(x[:-1], labels(context + 1, h, w), p)
    query = laid(x[-1], along.dtype)
    took = measure.medians({"": lambda: along.found(query)}, "cpu", repeats=1 if whole else 3, warm=not whole)[""]
    held = sum(t.nbytes for t in (along.ring.features, along.ring.labels, *along.rooms.values()))
    return took, held / 1e6


def plots(page: Path, quick: bool) -> None:
    grids, contexts = (GRIDS[:3], CONTEXTS[:3]) if quick else (GRIDS, CONTEXTS)
    places = [h * w for h, w in grids]
    tiled = [cost(*grid, 20) for grid in grids]
    several = [cost(60 // (1 + quick), 108 // (1 + quick), context)[0] for context in contexts]
    dense = [cost(*grid, 20, whole=True) if grid[0] <= 60 else (math.nan, math.nan) for grid in grids]
    print(f"\n{'places':>10} {'windowed, s':>12} {'MB':>8} {'all pairs, s':>13}")
    for count, (s, mb), (all_pairs, _) in zip(places, tiled, dense, strict=True):
        print(f"{count:>10} {s:12.3f} {mb:8.0f} {all_pairs:13.3f}")
    print(f"\n{'context':>10} {'s':>12}")
    for context, s in zip(contexts, several, strict=True):
        print(f"{context:>10} {s:12.3f}")
    named = {"windowed": [s for s, _ in tiled], "all pairs": [s for s, _ in dense]}
    lines = [Series(name, places, values) for name, values in named.items()]
    out = Page("What it costs to carry labels along a video")
    out.chart(lines, title="20 + 1 frames, radius 12", x="places of the grid", y="CPU seconds of a frame")
    out.chart([Series("", contexts, several)], title="One grid", x="past frames", y="CPU seconds of a frame")
    out.chart([Series("", places, [mb for _, mb in tiled])], title="Memory", x="places of the grid", y="MB")
    print(out.write(page))


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        name, side, h, w = sys.argv[2:]
        torch.set_num_threads(1)
        print(measure.peak_here(sides(name, int(h), int(w), side)[side], warm=False))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the sides of the grid, and one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help=f"those whose name begins so: {'; '.join(CASES)}; metrics; cost")
    parser.add_argument("--page", type=Path, help="an HTML page of charts of the cost")
    args = parser.parse_args()
    torch.set_num_threads(1)
    h, w = (30, 54) if args.quick else (60, 108)
    print(measure.machine("cpu", 1))
    print(f"{f'{h} x {w}':14} {'':16} {'CPU s':>8} {'':8} {'MB':>9} {'difference':>10} {'changed':>8}")
    for name in CASES:
        if name.startswith(args.only):
            compare(name, h, w, 1 if args.quick else args.repeats)
    if "metrics".startswith(args.only):
        accuracies(1 if args.quick else args.repeats)
    if args.page and "cost".startswith(args.only):
        plots(args.page, args.quick)


if __name__ == "__main__":
    main()
