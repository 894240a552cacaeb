"""How long a teacher takes to follow its student: our update against loops over parameters and other libraries'.

    python tools/bench/teacher.py                      # a ViT-B, on CPU and CUDA
    python tools/bench/teacher.py --size small --threads 2

The others are measured where they are installed. How it is measured: measure.py. Each side has a student and a teacher
of its own; with a bfloat16 student only those that keep a float32 average are compared, the others stand still (S6).
"""

import argparse
import copy
import importlib
from collections.abc import Callable, Iterator

import measure
import torch
from measure import Work
from torch import Tensor, nn

from partwhole.core.encoder import Vectors
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import SIZES, TransformerEncoder

Update = Callable[[nn.Module, nn.Module], object]  # of the teacher, by the student
MOMENTUM = 0.996


def pairs(mine: nn.Module, theirs: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(mine.parameters(), theirs.parameters(), strict=True)


@torch.no_grad()
def rebound(mine: nn.Module, theirs: nn.Module) -> None:
    """As most published code has it: a new tensor for each parameter."""
    for m, s in pairs(mine, theirs):
        m.data = m.data * MOMENTUM + s.data * (1 - MOMENTUM)


@torch.no_grad()
def in_place(mine: nn.Module, theirs: nn.Module) -> None:
    for m, s in pairs(mine, theirs):
        m.mul_(MOMENTUM).add_(s.detach() * (1 - MOMENTUM))


@torch.no_grad()
def lerp(mine: nn.Module, theirs: nn.Module) -> None:
    for m, s in pairs(mine, theirs):
        m.lerp_(s.to(m.dtype), 1 - MOMENTUM)


def lightly() -> Update:
    update = importlib.import_module("lightly.models.utils").update_momentum
    return lambda mine, theirs: update(theirs, mine, MOMENTUM)


def solo() -> Update:
    updater = importlib.import_module("solo.utils.momentum").MomentumUpdater(MOMENTUM, MOMENTUM)
    return lambda mine, theirs: updater.update(theirs, mine)


def sides(size: str, device: str, student: torch.dtype) -> dict[str, Work]:
    """Every side by name; ours is the last."""
    net = TransformerEncoder(Vectors(768, SIZES[size]["dim"], length=197), **SIZES[size]).to(device)
    theirs = copy.deepcopy(net).to(student)
    loops: dict[str, Update] = {"loop, new tensors": rebound, "loop, in place": in_place, "loop, lerp_": lerp}
    if student == torch.float32:
        for name, load in (("lightly", lightly), ("solo-learn", solo)):
            try:
                loops[name] = load()
            except ImportError:
                print(f"{name:20} left out: not installed")
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        torchs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM))
    out: dict[str, Work] = {}
    for name, loop in loops.items():
        mine = copy.deepcopy(net).requires_grad_(False)
        out[name] = lambda mine=mine, loop=loop: loop(mine, theirs)
    if student == torch.float32:
        out["torch AveragedModel"] = lambda: torchs.update_parameters(theirs)
    teacher = Teacher(net)
    out["ours"] = lambda: teacher.update(theirs, momentum=MOMENTUM)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda", "all"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for device in measure.devices(args.device):
        print(f"\n{measure.machine(device, args.threads)}")
        for student in (torch.float32, torch.bfloat16):
            took = measure.medians(sides(args.size, device, student), device, repeats=args.repeats)
            print(f"\nViT-{args.size}, student {str(student).removeprefix('torch.')}: ms, and times ours")
            for name, t in took.items():
                print(f"{name:20} {1000 * t:>9.2f} {t / took['ours']:>6.1f}x")


if __name__ == "__main__":
    main()
