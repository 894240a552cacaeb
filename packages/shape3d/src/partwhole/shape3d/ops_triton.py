"""Farthest point sampling in one kernel on CUDA: triton comes with torch, nothing is built at install."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _farthest(xyz, first, free, out, P, count, BLOCK: tl.constexpr):
    shape = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < P
    base = xyz + shape * 3 * P
    x = tl.load(base + i, mask=inside, other=0.0)
    y = tl.load(base + P + i, mask=inside, other=0.0)
    z = tl.load(base + 2 * P + i, mask=inside, other=0.0)
    far = tl.load(free + shape * P + i, mask=inside, other=-1.0)
    last = tl.load(first + shape).to(tl.int32)
    tl.store(out + shape * count, last.to(tl.int64))
    for j in range(1, count):
        dx = x - tl.load(base + last)
        dy = y - tl.load(base + P + last)
        dz = z - tl.load(base + 2 * P + last)
        far = tl.minimum(far, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(far, axis=0).to(tl.int32)
        tl.store(out + shape * count + j, last.to(tl.int64))


def farthest(xyz: Tensor, first: Tensor, free: Tensor, count: int) -> Tensor:
    """``farthest_points`` after its checks: one program per shape keeps all points in registers."""
    B, P, _ = xyz.shape
    out = torch.empty(B, count, dtype=torch.int64, device=xyz.device)
    block = triton.next_power_of_2(P)
    columns = xyz.mT.contiguous()
    options: dict = {"BLOCK": block, "num_warps": 8 if block <= 4096 else 16}
    _farthest[(B,)](columns, first, free.contiguous(), out, P, count, **options)
    return out
