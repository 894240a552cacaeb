"""Speed and memory of the shape operations, as ratios to the operations that most PyTorch PointNet++ code uses.

    python tools/bench/shape3d.py                      # operations, losses and a training step, on CPU and CUDA
    python tools/bench/shape3d.py --quick              # the same on less, in about a minute
    python tools/bench/shape3d.py --data meshes/       # decomposition too: per engine, cached and not, labels
    python tools/bench/shape3d.py --only step --device cuda

How it is measured: measure.py.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import plain_pointnet2 as plain
import torch
from measure import Work
from torch import Tensor

from partwhole.core.losses import group_contrast, group_info_nce
from partwhole.shape3d import ops


def shapes(count: int, points: int, device: str) -> Tensor:
    """Points of ellipsoids, the farthest at radius 1: (count, points, 3)."""
    draw = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(count, points, 3, generator=draw), dim=-1)
    size = torch.rand(count, 1, 3, generator=draw) * 0.8 + 0.2
    return (x * size / size.amax(-1, keepdim=True)).to(device)


def backward(network: torch.nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    network.zero_grad()
    loss(network(x)).backward()


def operations(name: str, device: str, quick: bool, count: int = 0) -> dict[str, Work]:
    """The sides of one comparison, by name; the first is the plain one."""
    torch.manual_seed(0)
    B, P, S = (4 if quick else 16), 2048, 512
    if name in ("pair loss", "prototype loss"):
        feature = torch.randn(4 if quick else 8, P, 128, device=device, requires_grad=True)
        component = torch.randint(0, 16, feature.shape[:2], device=device)
        ours = group_contrast if name == "pair loss" else group_info_nce
        return {
            "plain": lambda: plain.pair_loss(feature, component).backward(),
            "ours": lambda: ours(feature, component).backward(),
        }
    if name.startswith("step"):
        return step(name, device, count or step_shapes(device, quick))
    if name == "edge convolution":
        return edges(torch.randn(B, P, 64, device=device))
    xyz = shapes(B, P, device)
    centre = ops.gather(xyz, ops.farthest_points(xyz, S))
    feature = torch.randn(B, S, 128, device=device)
    deep = torch.randn(B, P, 64, device=device)
    radii, counts = [0.1, 0.2, 0.4], [32, 64, 128]
    return {
        "farthest points": {
            "plain": lambda: plain.farthest(xyz, S),
            "ours": lambda: ops.farthest_points(xyz, S),
        },
        "ball .2, 32": {
            "plain": lambda: plain.ball(0.2, 32, xyz, centre),
            "ours": lambda: ops.ball(centre, xyz, 0.2, 32),
        },
        "three balls": {
            "plain": lambda: [plain.ball(r, k, xyz, centre) for r, k in zip(radii, counts, strict=True)],
            "ours": lambda: ops.balls(centre, xyz, radii, counts),
        },
        "3-NN interpolation": {
            "plain": lambda: plain.interpolate(centre, feature, xyz),
            "ours": lambda: ops.interpolate(centre, feature, xyz),
        },
        "20 nearest, 3-d": {
            "plain": lambda: plain.neighbours(xyz, 20),
            "ours": lambda: ops.nearest(xyz, xyz, 20),
        },
        "20 nearest, 64-d": {
            "plain": lambda: plain.neighbours(deep, 20),
            "ours": lambda: ops.nearest(deep, deep, 20),
        },
    }[name]


def edges(deep: Tensor) -> dict[str, Work]:
    """The layer of torch_geometric on an explicit graph against ours: 64 -> 64, k = 20, forward and backward."""
    from partwhole.shape3d.dgcnn import EdgeConv

    try:
        Theirs = importlib.import_module("torch_geometric.nn").EdgeConv  # not a dependency: measured where it is there
    except ImportError:
        return {}
    B, P, D = deep.shape
    index = ops.nearest(deep, deep, 20)[1]
    source = (index + torch.arange(0, B * P, P, device=deep.device)[:, None, None]).flatten()
    graph = torch.stack([source, torch.arange(B * P, device=deep.device).repeat_interleave(20)])
    layer = torch.nn.Sequential(
        torch.nn.Linear(2 * D, 64, bias=False), torch.nn.BatchNorm1d(64), torch.nn.LeakyReLU(0.2)
    )
    theirs, ours = Theirs(layer).to(deep.device), EdgeConv(D, (64,), norm="batch").to(deep.device)
    deep = deep.requires_grad_()
    return {
        "plain": lambda: theirs(deep.flatten(0, 1), graph).square().mean().backward(),
        "ours": lambda: ours(deep, index, None).square().mean().backward(),
    }


def step_shapes(device: str, quick: bool) -> int:
    """24; fewer where the plain side's 16 GB are not to be had."""
    if quick:
        return 4
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return 24 if free > 20e9 else 8


def step(name: str, device: str, count: int) -> dict[str, Work]:
    """Forward and backward of PointNet++ on ``count`` shapes of 2,048 points, with a loss of components."""
    from partwhole.shape3d.pointnet2 import PointNet2

    x = shapes(count, 2048, device)
    component = torch.randint(0, 16, x.shape[:2], device=device)
    theirs, ours = plain.PlainPointNet2().to(device), PointNet2().to(device)
    new = group_contrast if name == "step, pair loss" else group_info_nce

    def half() -> None:
        with torch.autocast(device, torch.bfloat16):
            backward(ours, lambda f: group_info_nce(f, component), x)

    run = half if name == "step, bfloat16" else lambda: backward(ours, lambda f: new(f, component), x)
    return {"plain": lambda: backward(theirs, lambda f: plain.pair_loss(f, component), x), "ours": run}


NAMES = ["farthest points", "ball .2, 32", "three balls", "3-NN interpolation", "20 nearest, 3-d", "20 nearest, 64-d"]
NAMES += ["edge convolution", "pair loss", "prototype loss", "step, pair loss", "step, prototype loss"]
NOTES = {
    "farthest points": "2,048 -> 512, 16 shapes",
    "ball .2, 32": "512 centres, 2,048 points, 16 shapes",
    "three balls": ".1 .2 .4 with 32 64 128",
    "3-NN interpolation": "2,048 <- 512, 128 features",
    "20 nearest, 3-d": "2,048 points, 16 shapes",
    "20 nearest, 64-d": "the same, in feature space",
    "edge convolution": "plain: torch_geometric's EdgeConv",
    "pair loss": "8 x 2,048 points, 128 features",
    "prototype loss": "plain: the pair loss",
    "step, pair loss": "2,048 points, forward and backward",
    "step, prototype loss": "plain: the pair loss",
    "step, bfloat16": "plain: float32 and the pair loss",
}


def compare(name: str, device: str, args: argparse.Namespace) -> None:
    count = args.shapes or step_shapes(device, args.quick)
    sides = operations(name, device, args.quick, count)
    if not sides:
        print(f"{name:22} {'-':>10} {'-':>10} {'-':>7}  left out: torch_geometric is not installed")
        return
    slow = name.startswith("step") and device == "cpu"
    took = measure.medians(sides, device, repeats=2 if args.quick or slow else args.repeats, warm=1 if slow else 2)
    ms = {side: 1000 * t for side, t in took.items()}
    memory = {side: peak(name, side, device, sides, args) for side in sides} if not args.no_memory else {}
    mb = " ".join(f"{memory[side]:>8.0f}" for side in memory)
    ratio = ms["plain"] / ms["ours"]
    note = f"{count} shapes, {NOTES[name]}" if name.startswith("step") else NOTES[name]
    print(f"{name:22} {ms['plain']:>10.1f} {ms['ours']:>10.1f} {ratio:>6.1f}x {mb}  {note}", flush=True)


def peak(name: str, side: str, device: str, sides: dict[str, Work], args: argparse.Namespace) -> float:
    """Growth of the peak memory, MB; NaN where it cannot be had."""
    if device == "cuda":
        return measure.peak_on_cuda(sides[side])
    words = ["--child", name, side, "--shapes", str(args.shapes)]
    return measure.peak_of_child(words + (["--quick"] if args.quick else []))


def child(name: str, side: str, quick: bool, count: int) -> None:
    torch.set_num_threads(1)
    work = operations(name, "cpu", quick, count)[side]
    print(measure.peak_here(work, warm=not name.startswith("step")))


def decomposition(folder: Path, count: int) -> None:
    """Shapes per CPU-minute of each engine on ``count`` files below ``folder``, a cached pass, and labels."""
    import tempfile

    from threadpoolctl import threadpool_limits

    from partwhole.shape3d import files
    from partwhole.shape3d.decompose import engines
    from partwhole.shape3d.decompose.engines import Decompose
    from partwhole.shape3d.decompose.hulls import label, planes
    from partwhole.shape3d.decompose.prepare import prepare

    class Silent:
        def step(self, done: int, values: dict[str, Any]) -> None: ...
        def say(self, text: str) -> None: ...

    found = files.find([folder])
    some = found[:: max(1, len(found) // count)][:count]
    print(f"\n{len(some)} of {len(found)} files below {folder}")
    print(f"{'engine':10} {'shapes/CPU-min':>14} {'components':>10} {'failed':>7} {'cached pass':>12}")
    with tempfile.TemporaryDirectory() as cache:
        for engine in ("coacd", "vhacd", "points"):
            options = Decompose(engine=engine)
            made = prepare(some, Path(cache) / engine, options, watch=Silent())
            start = time.perf_counter()
            prepare(some, Path(cache) / engine, options, watch=Silent())
            again = time.perf_counter() - start
            s = made.statistics()
            rate = 60 * s["done"] / max(s["seconds"], 1e-9)
            mean, failed = s["components"]["mean"], len(s["failed"])
            print(f"{engine:10} {rate:>14.1f} {mean:>10.1f} {failed:>7} {1000 * again / len(some):>7.1f} ms/shape")
    took = []
    for path in some[:4]:
        read = files.read(path)
        sampled = files.sample(read, 2048, options.seed)[0]
        frame, points = engines.to_frame(read, sampled)
        vertices, faces = engines.clean(frame, options.max_faces)
        hulls = planes(engines.corners("coacd", vertices, faces, options.thresholds[-1], options))
        times = []
        with threadpool_limits(1):  # as in the workers, which share the cores
            for _ in range(5):
                start = time.process_time()
                label(points, hulls)
                times.append(time.process_time() - start)
        took.append(statistics.median(times))
    print(f"labels of 2,048 points, planes known: {1000 * statistics.median(took):.1f} ms a shape (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 shapes and 2 repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda", "all"], default="all")
    parser.add_argument("--shapes", type=int, default=0, help="of a training step: 24, or 8 where memory is short")
    parser.add_argument("--only", default="", help="comparisons whose name begins so")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder of meshes: decomposition is measured on some of them")
    parser.add_argument("--count", type=int, default=12, help="how many of them")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child, quick=args.quick, count=args.shapes)
    torch.set_num_threads(args.threads)
    for device in measure.devices(args.device):
        print(f"\n{measure.machine(device, args.threads)}")
        print(f"{'':22} {'plain ms':>10} {'ours ms':>10} {'ratio':>7} {'MB':>8} {'MB':>8}")
        for name in NAMES + (["step, bfloat16"] if device == "cuda" else []):
            if name.startswith(args.only):
                compare(name, device, args)
    if args.data:
        decomposition(args.data, 3 if args.quick else args.count)


if __name__ == "__main__":
    main()
