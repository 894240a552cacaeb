"""One training step of a vision transformer: ours against lightly's and solo-learn's, each as its authors write it.

    python tools/bench/step.py                          # a ViT-S, batches of 8: some ten minutes
    python tools/bench/step.py --batch 4 --only DINO
    python tools/bench/step.py --only MAE --profile     # and what each side's time goes to, by operation
    python tools/bench/step.py --size base --batch 64 --device cuda --bfloat16 --compile

A step is forward, backward, optimizer and, where there is one, the teacher. All sides see the same pictures and views,
with the same patches, depth, width, heads, hidden layers, prototypes and share of hidden tokens (``M`` is the number of
parameters that are trained, in millions; ``GFLOP`` what torch counts of matrix products in a step), and all use AdamW,
as their documentation does; ours is torch's fused one. Figures are medians: seconds of a step and of its parts, and its
peak of memory over what stands between two steps (weights, the optimizer's state, pictures). How they are measured:
measure.py. Several threads are for an idle machine: those that wait for a core count as if they worked.

What the others' steps are: step_peers.py. They are measured where they are installed; nothing is installed here.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable

import measure
import step_peers as peers
import torch
import torch.nn.functional as F
from step_peers import HIDDEN, PATCH, PROTOTYPES, Side
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from partwhole.core import optim
from partwhole.core.encoder import Embed
from partwhole.core.masks import hide, indices
from partwhole.core.method import Batch, Method
from partwhole.core.methods import BYOL, DINO, MAE, SimCLR
from partwhole.core.transformer import SIZES, TransformerEncoder

# ------------------------------------------------------------------ ours


class Patches(Embed):
    """Pictures (B, C, H, W) -> patches, row by row; positions are learned for one size, and stretched for others."""

    def __init__(self, dim: int, *, pixels: int, channels: int = 3):
        super().__init__()
        self.dim, self.pixels, self.channels = dim, pixels, channels
        self.target_dim = channels * PATCH * PATCH
        self.project = nn.Linear(self.target_dim, dim)
        self.table = nn.Parameter(torch.randn(1, dim, pixels // PATCH, pixels // PATCH) * 0.02)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.project(self.target(x)) + self.position(x)

    def target(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        B, C, H, W = x.shape
        rows = x.view(B, C, H // PATCH, PATCH, W // PATCH, PATCH).permute(0, 2, 4, 3, 5, 1)
        return rows.reshape(B, -1, self.target_dim)

    def position(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        shape = (x.shape[2] // PATCH, x.shape[3] // PATCH)
        table = self.table
        if table.shape[2:] != shape:
            table = F.interpolate(table, shape, mode="bicubic", antialias=True)
        return table.flatten(2).mT.expand(len(x), -1, -1)


def ours(make: Callable[[TransformerEncoder], Method], batch: Batch, args: argparse.Namespace) -> Side:
    size = SIZES[args.size]
    embed = Patches(size["dim"], pixels=args.pixels)
    encoder = TransformerEncoder(embed, dim=size["dim"], depth=size["depth"], heads=size["heads"], cls=True)
    method = make(encoder).to(args.device).train()
    method.after_step(0.5)  # the prototypes are free
    optimizer = optim.make(method, lr=peers.LR, weight_decay=peers.DECAY)
    return Side(lambda: method(batch)["loss"], optimizer, lambda: method.after_step(0.5))


# ------------------------------------------------------------------ the comparisons

Makers = dict[str, Callable[[], Side]]


def pictures(args: argparse.Namespace, count: int, pixels: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(args.batch, 3, pixels, pixels, generator=g).to(args.device) for _ in range(count)]


def simclr(args: argparse.Namespace) -> Makers:
    views = pictures(args, 2, args.pixels)
    heads = {"proj_output_dim": 128, "proj_hidden_dim": 2048}
    return {
        "lightly": lambda: peers.lightly_simclr(views, args),
        "solo-learn": lambda: peers.solo("SimCLR", views, args, temperature=0.1, **heads),
        "ours": lambda: ours(SimCLR, {"views": views}, args),
    }


def byol(args: argparse.Namespace) -> Makers:
    views = pictures(args, 2, args.pixels)
    heads = {"proj_output_dim": 256, "proj_hidden_dim": 4096, "pred_hidden_dim": 4096}
    return {
        "lightly": lambda: peers.lightly_byol(views, args),
        "solo-learn": lambda: peers.solo("BYOL", views, args, **heads),
        "ours": lambda: ours(BYOL, {"views": views}, args),
    }


def dino_of_two(args: argparse.Namespace) -> Makers:
    views = pictures(args, 2, args.pixels)
    return {
        "lightly": lambda: peers.lightly_dino(views, args),
        "solo-learn": lambda: peers.solo("DINO", views, args, **peers.SOLO_DINO),
        "ours": lambda: ours(lambda e: DINO(e, prototypes=PROTOTYPES), {"views": views}, args),
    }


def dino(args: argparse.Namespace) -> Makers:
    views, crops = pictures(args, 2, args.pixels), pictures(args, 6, round(args.pixels * 3 / 7 / PATCH) * PATCH, seed=1)
    batch = {"views": views, "crops": crops}
    return {
        "lightly": lambda: peers.lightly_dino([*views, *crops], args),
        "ours": lambda: ours(lambda e: DINO(e, prototypes=PROTOTYPES), batch, args),
    }


def mae(args: argparse.Namespace) -> Makers:
    (x,) = pictures(args, 1, args.pixels)
    g = torch.Generator().manual_seed(0)
    hidden = torch.stack([hide((args.pixels // PATCH) ** 2, HIDDEN, g) for _ in range(args.batch)])
    masks, keep = {"x": x, "hidden": hidden.to(x.device)}, {"x": x, "keep": indices(~hidden).to(x.device)}
    return {
        "lightly": lambda: peers.lightly_mae(x, args),
        "ours, masks": lambda: ours(MAE, masks, args),
        "ours": lambda: ours(MAE, keep, args),
    }


CASES: dict[str, Callable[[argparse.Namespace], Makers]] = {
    "SimCLR": simclr,
    "BYOL": byol,
    "DINO, 2 views": dino_of_two,
    "DINO, 2 and 6 crops": dino,
    "MAE": mae,
}


def built(make: Callable[[], Side], args: argparse.Namespace) -> Side:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the others' dependencies would have them do otherwise
        side = make()

    def loss() -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            return side.loss()

    return Side(loss, side.optimizer, side.follow)


def compiled(side: Side) -> Side:
    return Side(torch.compile(side.loss), side.optimizer, side.follow)


def compare(name: str, args: argparse.Namespace) -> None:
    sides: dict[str, Side] = {}
    work: dict[str, float] = {}
    for side, make in CASES[name](args).items():
        try:
            made = built(make, args)
            work[side] = gflop(made)  # and so it is warm
            if args.compile:
                made = compiled(made)
                made.step()
            sides[side] = made
        except ImportError as error:
            print(f"{name:20} {side:12} left out: not installed ({error})")
        except TorchDynamoException as error:
            print(f"{name:20} {side:12} left out: not compiled ({type(error).__name__})")
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, made in sides.items():
            times[side].append({phase: measure.seconds(part, args.device) for phase, part in made.phases().items()})
    whole = {side: statistics.median(sum(took.values()) for took in rounds) for side, rounds in times.items()}
    memory = {side: peak(name, side, made, args) for side, made in sides.items()}
    for side, made in sides.items():
        trained = sum(p.numel() for group in made.optimizer.param_groups for p in group["params"] if p.requires_grad)
        parts = [statistics.median(took[phase] for took in times[side]) for phase in times[side][0]]
        print(
            f"{name if side == next(iter(sides)) else '':20} {side:12} {whole[side]:>7.3f} "
            f"{whole[side] / whole['ours']:>6.2f}x {' '.join(f'{part:>9.3f}' for part in parts)} {memory[side]:>7.0f} "
            f"{memory[side] / memory['ours']:>6.2f}x {trained / 1e6:>7.1f} {work[side]:>7.0f} "
            f"{work[side] / whole[side]:>8.0f}",
            flush=True,
        )
    for side, made in sides.items() if args.profile else ():
        print(f"\n{name}, {side}")
        profile(made, args.device)


def gflop(side: Side) -> float:
    """Of the matrix products in a step."""
    with FlopCounterMode(display=False) as counter:
        side.step()
    return counter.get_total_flops() / 1e9


def profile(side: Side, device: str) -> None:
    used = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=used) as seen:
        side.step()
    print(seen.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=20, max_name_column_width=40))


def peak(name: str, side: str, made: Side, args: argparse.Namespace) -> float:
    if args.device == "cuda":
        return measure.peak_on_cuda(made.step)
    words = [f"--{key}={getattr(args, key)}" for key in ("size", "pixels", "batch", "threads", "device")]
    switches = [f"--{key}" for key in ("bfloat16", "compile") if getattr(args, key)]
    return measure.peak_of_child(["--child", name, side, *words, *switches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=8, help="things")
    parser.add_argument("--pixels", type=int, default=224, help="of a side of a picture; a multiple of 16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="autocast; else float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the forward and backward passes")
    parser.add_argument("--only", default="", help=f"comparisons whose name begins so: {', '.join(CASES)}")
    parser.add_argument("--profile", action="store_true", help="the dearest operations of each side too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # solo-learn's steps log to a trainer
    if args.child:
        name, side = args.child
        made = built(CASES[name](args)[side], args)
        print(measure.peak_here((compiled(made) if args.compile else made).step))
        return
    print(f"{measure.machine(args.device, args.threads)}")
    print(f"ViT-{args.size}, {args.batch} things of {args.pixels} pixels, seconds and MB, and times ours")
    print(
        f"{'':20} {'':12} {'step':>7} {'time':>7} {'forward':>9} {'backward':>9} {'optimizer':>9} {'teacher':>9} "
        f"{'MB':>7} {'memory':>7} {'M':>7} {'GFLOP':>7} {'GFLOP/s':>8}"
    )
    for name in CASES:
        if name.startswith(args.only):
            compare(name, args)


if __name__ == "__main__":
    main()
