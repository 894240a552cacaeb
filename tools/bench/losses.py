"""Losses over large matrices: ours against the whole matrix written out, and against other libraries'.

    python tools/bench/losses.py                       # all comparisons, some ten minutes and 6 GB
    python tools/bench/losses.py --quick               # the same on less than the names say, in a minute or two
    python tools/bench/losses.py --only symmetric      # those whose name begins so
    python tools/bench/losses.py --only distill --device cuda

Each figure is of a forward and a backward pass in float32: the median seconds, the peak of memory over what the inputs
take, and both as multiples of ours. "whole" is the formula in torch's own operations with every pair at once, which is
left out where it would not fit. lightly, pytorch-metric-learning and open_clip are measured where they are installed;
nothing is installed here. ``value`` is the loss: sides of one comparison compute the same. How it is measured:
measure.py.
"""

import argparse
import importlib
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F
from measure import Work
from torch import Tensor

from partwhole.core.losses import distill, info_nce, linear_cross_entropy, nt_xent, sigmoid_contrast

Sides = dict[str, Callable[[], Tensor]]
TEMPERATURE = 0.07


def rows(*shape: int, device: str, seed: int = 0) -> Tensor:
    """On the unit sphere, as some other libraries want them."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x, dim=-1).to(device).requires_grad_()


def cosines(query: Tensor, key: Tensor) -> Tensor:
    return F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / TEMPERATURE


def peer(module: str, name: str, **options: object) -> Callable[..., Tensor] | None:
    """A loss of another library; None where it is not installed."""
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except ImportError:
        return None


def symmetric(N: int, device: str) -> tuple[Sides, list[Tensor]]:
    q, k = (rows(N, 256, device=device, seed=s) for s in (0, 1))
    target = torch.arange(N, device=device)

    def whole() -> Tensor:
        logits = cosines(q, k)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2

    sides: Sides = {"whole": whole} if N <= 1 << 14 else {}
    if (clip := peer("open_clip.loss", "ClipLoss")) and N <= 1 << 14:
        sides["open_clip"] = lambda: clip(F.normalize(q, dim=-1), F.normalize(k, dim=-1), 1 / TEMPERATURE)
    sides["ours"] = lambda: info_nce(q, k, temperature=TEMPERATURE, symmetric=True)
    return sides, [q, k]


def two_views(N: int, device: str) -> tuple[Sides, list[Tensor]]:
    z = rows(2, N // 2, 256, device=device)
    target = torch.arange(N, device=device).roll(N // 2)

    def whole() -> Tensor:
        logits = cosines(z.flatten(0, 1), z.flatten(0, 1))
        return F.cross_entropy(logits.fill_diagonal_(-torch.inf), target)

    sides: Sides = {"whole": whole}
    if lightly := peer("lightly.loss", "NTXentLoss", temperature=TEMPERATURE):
        sides["lightly"] = lambda: lightly(z[0], z[1])
    metric = peer("pytorch_metric_learning.losses", "NTXentLoss", temperature=TEMPERATURE)
    if metric and N <= 256:  # it compares each pair of one thing with each of different ones: N^3 numbers
        sides["metric-learning"] = lambda: metric(z.flatten(0, 1), target % (N // 2))
    sides["ours"] = lambda: nt_xent(z, temperature=TEMPERATURE)
    return sides, [z]


def several(N: int, device: str) -> tuple[Sides, list[Tensor]]:
    """Four views of a thing, each the positive of the three others."""
    z = rows(4, N // 4, 256, device=device)
    thing = torch.arange(N, device=device) % (N // 4)

    def whole() -> Tensor:
        logits = cosines(z.flatten(0, 1), z.flatten(0, 1)).fill_diagonal_(-torch.inf)
        same = (thing[:, None] == thing).fill_diagonal_(False)
        return -torch.where(same, logits.log_softmax(1), 0).sum(1).div(3).mean()

    sides: Sides = {"whole": whole}
    if metric := peer("pytorch_metric_learning.losses", "SupConLoss", temperature=TEMPERATURE):
        sides["metric-learning"] = lambda: metric(z.flatten(0, 1), thing)
    sides["ours"] = lambda: nt_xent(z, temperature=TEMPERATURE)
    return sides, [z]


def queue(length: int, device: str) -> tuple[Sides, list[Tensor]]:
    """512 queries; negatives are the queue's alone."""
    q, k, bank = rows(512, 128, device=device), rows(512, 128, device=device, seed=1), rows(length, 128, device=device)
    k, bank = k.detach(), bank.detach()
    others = torch.arange(512, device=device).expand(512, -1)

    def whole() -> Tensor:
        u = F.normalize(q, dim=-1)
        own = (u * k).sum(1, keepdim=True)
        return F.cross_entropy(torch.cat([own, u @ bank.mT], 1) / TEMPERATURE, torch.zeros_like(others[0]))

    return {
        "whole": whole,
        "ours": lambda: info_nce(q, torch.cat([k, bank]), temperature=TEMPERATURE, exclude=others),
    }, [q]


def sigmoid(N: int, device: str) -> tuple[Sides, list[Tensor]]:
    q, k = (rows(N, 256, device=device, seed=s) for s in (0, 1))
    scale, bias = (torch.tensor(x, device=device, requires_grad=True) for x in (10.0, -10.0))

    def whole() -> Tensor:
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale + bias
        return -F.logsigmoid(logits * (2 * torch.eye(N, device=device) - 1)).sum() / N

    sides: Sides = {"whole": whole}
    if siglip := peer("open_clip.loss", "SigLipLoss"):
        sides["open_clip"] = lambda: siglip(F.normalize(q, dim=-1), F.normalize(k, dim=-1), scale, bias)
    sides["ours"] = lambda: sigmoid_contrast(q, k, temperature=1 / scale, bias=bias)
    return sides, [q, k, scale, bias]


def distillation(B: int, device: str) -> tuple[Sides, list[Tensor]]:
    """DINO's: ten views of a student, two of a teacher, 65,536 prototypes."""
    g = torch.Generator().manual_seed(0)
    student = torch.randn(10, B, 65536, generator=g).to(device).requires_grad_()
    teacher = torch.randn(2, B, 65536, generator=g).to(device).softmax(-1)

    def whole() -> Tensor:
        pairs = -torch.einsum("sbk,tbk->st", F.log_softmax(student / 0.1, -1), teacher)
        return pairs.masked_fill(torch.eye(10, 2, dtype=torch.bool, device=device), 0).sum() / (18 * B)

    def official() -> Tensor:
        """As the paper's code has it, pair by pair."""
        terms = []
        for t, target in enumerate(teacher):
            terms += [
                (-target * F.log_softmax(x / 0.1, -1)).sum(-1).mean() for s, x in enumerate(student.unbind()) if s != t
            ]
        return torch.stack(terms).mean()

    return {"whole": whole, "pair by pair": official, "ours": lambda: distill(student, teacher)}, [student]


def masked(N: int, K: int, device: str) -> tuple[Sides, list[Tensor]]:
    """A linear head of K classes on N tokens of which four in ten are hidden, and count."""
    g = torch.Generator().manual_seed(0)
    feature = torch.randn(N, 384, generator=g).to(device).requires_grad_()
    weight = (torch.randn(K, 384, generator=g) * 0.05).to(device).requires_grad_()
    target, hidden = torch.randint(0, K, (N,), generator=g).to(device), (torch.rand(N, generator=g) < 0.4).to(device)
    sides: Sides = {
        "whole": lambda: F.cross_entropy(feature @ weight.mT, target.masked_fill(~hidden, -100)),
        "hidden rows": lambda: F.cross_entropy(feature[hidden] @ weight.mT, target[hidden]),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        sides["torch's own"] = lambda: F.linear_cross_entropy(feature[hidden], weight, target[hidden], options=options)
    sides["ours"] = lambda: linear_cross_entropy(feature, weight, target, valid=hidden)
    return sides, [feature, weight]


CASES: dict[str, Callable[[str, bool], tuple[Sides, list[Tensor]]]] = {
    "symmetric, 4k": lambda device, quick: symmetric(1 << (10 if quick else 12), device),
    "symmetric, 16k": lambda device, quick: symmetric(1 << (11 if quick else 14), device),
    "symmetric, 32k": lambda device, quick: symmetric(1 << (12 if quick else 15), device),
    "NT-Xent, 256": lambda device, quick: two_views(256, device),
    "NT-Xent, 4k": lambda device, quick: two_views(1 << (10 if quick else 12), device),
    "several positives, 4k": lambda device, quick: several(1 << (10 if quick else 12), device),
    "queue of 64k": lambda device, quick: queue(1 << (13 if quick else 16), device),
    "sigmoid, 4k": lambda device, quick: sigmoid(1 << (10 if quick else 12), device),
    "sigmoid, 16k": lambda device, quick: sigmoid(1 << (11 if quick else 14), device),
    "distill, 64k classes": lambda device, quick: distillation(8 if quick else 64, device),
    "masked, 8k classes": lambda device, quick: masked(2048 if quick else 16384, 8192, device),
    "masked, 64k classes": lambda device, quick: masked(512 if quick else 4096, 65536, device),
}


def step(loss: Callable[[], Tensor], inputs: list[Tensor]) -> float:
    """Forward and backward; what was there of gradients is gone first."""
    for x in inputs:
        x.grad = None
    value = loss()
    value.backward()
    return value.item()


def works(name: str, device: str, quick: bool) -> dict[str, Work]:
    torch.manual_seed(0)
    sides, inputs = CASES[name](device, quick)
    return {side: lambda loss=loss: step(loss, inputs) for side, loss in sides.items()}


def compare(name: str, device: str, args: argparse.Namespace) -> None:
    sides = works(name, device, args.quick)
    values = {side: work() for side, work in sides.items()}  # and so all are warm
    took = measure.medians(sides, device, repeats=args.repeats or (2 if args.quick else 5), warm=0)
    memory = {}
    for side, work in sides.items():
        words = ["--child", name, side, "--threads", str(args.threads), *(["--quick"] if args.quick else [])]
        memory[side] = measure.peak_on_cuda(work) if device == "cuda" else measure.peak_of_child(words)
    for side in sides:
        slower, larger = took[side] / took["ours"], memory[side] / max(memory["ours"], 1e-3)
        print(
            f"{name if side == next(iter(sides)) else '':22} {side:16} {took[side]:>9.3f} {memory[side]:>8.0f} "
            f"{slower:>6.2f}x {larger:>6.1f}x  {values[side]:.6g}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small matrices and 2 repeats")
    parser.add_argument("--repeats", type=int, default=0, help="5; 2 with --quick")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda", "all"], default="all")
    parser.add_argument("--only", default="", help=f"comparisons whose name begins so: {', '.join(CASES)}")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        name, side = args.child
        sides, inputs = CASES[name]("cpu", args.quick)
        step(sides[side], inputs)
        for x in inputs:
            x.grad = None  # or the first gradients would count as inputs
        print(measure.peak_here(lambda: step(sides[side], inputs), warm=False))
        return
    for device in measure.devices(args.device):
        print(f"\n{measure.machine(device, args.threads)}")
        print(f"{'':22} {'':16} {'seconds':>9} {'MB':>8} {'time':>7} {'memory':>7}  value")
        for name in CASES:
            if name.startswith(args.only):
                compare(name, device, args)


if __name__ == "__main__":
    main()
