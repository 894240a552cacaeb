"""One training step of the contrastive random walk: our products against the formulation of the authors' code.

    python tools/bench/walk.py                             # the walk alone, then whole steps; a few minutes
    python tools/bench/walk.py --frames 4 --nodes 49 --device cuda

The authors' code begins every palindrome anew in the first frame, multiplies its whole chain from the left and from the
right, of which it uses one, and takes the cross entropy of the whole product. Ours lets the way out and the way home
grow by a factor each, and makes of the last product the diagonal alone. Both see the same nodes, with the same edges
dropped, from two steps out on and from the first frame alone; values and gradients are compared. Times are of forward
and backward: of the walk alone, given nodes of 128 features, then of a step of a ResNet-18 with fine maps over patches,
with its optimizer. ``both`` is what our default asks more: walks of one step, and those from the last frame.
"""

import argparse

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core import optim
from partwhole.video.network import FrameResNet
from partwhole.video.walk import RandomWalk, walk_loss

TEMPERATURE = 0.07


def theirs(nodes: Tensor, dropped: Tensor) -> Tensor:
    """The loss as published, on nodes (B, T, N, D); but the edges that are dropped are given."""
    q = F.normalize(nodes, dim=-1)
    score = q[:, :-1] @ q[:, 1:].mT
    T, N = nodes.shape[1:3]
    out, home = (
        [s[:, t].masked_fill(d[:, t], -1e20).div(TEMPERATURE).softmax(-1) for t in range(T - 1)]
        for s, d in zip((score, score.mT), dropped.unbind(1), strict=True)
    )
    losses = []
    for k in range(2, T):
        chain = out[:k] + home[:k][::-1]
        right = left = chain[0]
        for step in chain[1:]:
            right, left = right @ step, step @ left
        target = torch.arange(N, device=nodes.device).repeat(len(nodes))
        losses.append(F.cross_entropy((right + 1e-20).log().flatten(0, 1), target))
    return torch.stack(losses).mean()


def ours(nodes: Tensor, dropped: Tensor) -> Tensor:
    return walk_loss(nodes, dropped, temperature=TEMPERATURE, shortest=2, both=False)


def default(nodes: Tensor, dropped: Tensor) -> Tensor:
    return walk_loss(nodes, dropped, temperature=TEMPERATURE)


LOSSES = {"theirs": theirs, "ours": ours, "both": default}


def alone(batch: int, frames: int, nodes: int, device: str, repeats: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, frames, nodes, 128) + 2 * torch.randn(batch, 1, nodes, 128)).to(device).requires_grad_()
    dropped = torch.rand(batch, 2, frames - 1, nodes, nodes, device=device) < 0.1

    def step(loss):
        x.grad = None
        value = loss(x, dropped)
        value.backward()
        return value

    values, gradients = zip(*((step(loss).item(), x.grad.clone()) for loss in (theirs, ours)), strict=True)  # type: ignore[union-attr]
    wrong = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    took = measure.medians(
        {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}, device, repeats=repeats
    )
    print(
        f"{batch:5} {frames:6} {nodes:5}   {1e3 * took['theirs']:9.1f} {1e3 * took['ours']:9.1f} "
        f"{took['theirs'] / took['ours']:6.1f}x {1e3 * took['both']:9.1f}   {values[0]:.6f} {values[1]:.6f}   "
        f"{wrong:.0e}"
    )


def whole(batch: int, frames: int, grid: int, pixels: int, width: float, device: str, repeats: int) -> None:
    torch.manual_seed(0)
    method = RandomWalk(FrameResNet(width=width, size=pixels)).to(device)
    optimizer = optim.make(method, lr=1e-4, weight_decay=0.0)
    x = torch.randn(batch, frames, grid**2, 3, pixels, pixels, device=device)
    dropped = torch.rand(batch, 2, frames - 1, grid**2, grid**2, device=device) < 0.1

    def step(loss):
        optimizer.zero_grad()
        loss(method.nodes(x), dropped).backward()
        optimizer.step()

    took = measure.medians(
        {name: lambda loss=loss: step(loss) for name, loss in LOSSES.items()}, device, repeats=repeats
    )
    print(
        f"{batch:5} {frames:6} {grid**2:5}   {took['theirs']:9.2f} {took['ours']:9.2f} "
        f"{took['theirs'] / took['ours']:6.2f}x {took['both']:9.2f}   patches of {pixels} pixels, width {width:g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--nodes", type=int, nargs="+", default=[49, 256])
    parser.add_argument("--pixels", type=int, default=32, help="side of a patch in whole steps")
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet in whole steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(measure.machine(options.device, options.threads))
    print("the walk alone, ms")
    print("batch frames nodes      theirs      ours   ratio      both   values              gradients differ by")
    for nodes in options.nodes:
        for frames in options.frames:
            alone(options.batch, frames, nodes, options.device, options.repeats)
    print("a whole step, s")
    for frames in options.frames[:2]:
        whole(options.batch, frames, 7, options.pixels, options.width, options.device, max(1, options.repeats // 2))


if __name__ == "__main__":
    main()
