"""Normalisation of rows of which some are padding, over all processes.

Axis letters: ... any leading axes (shapes, points, neighbours), D features.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) of x (..., D) over all rows that ``mask`` (...) calls real.

    Padding changes neither the statistics nor the result. While training the statistics are those of the rows of all
    processes, each counting as often as it has rows, so no conversion to SyncBatchNorm is needed. Momentum 0.1, the
    running variance is the unbiased one, as in torch.
    """

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.dim, self.momentum, self.eps = dim, momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        alone = mask is None and distributed.world() == 1 and x.numel() > self.dim
        if alone or not self.training:
            rows = x.reshape(-1, self.dim)
            mean, var = self.running_mean, self.running_var
            y = F.batch_norm(rows, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
            return y if x.dim() == 2 else y.view_as(x)
        mean, var = self.statistics(x, mask)
        scale = self.weight * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias - mean * scale, x.to(mean.dtype), scale).to(x.dtype)

    def statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (D,) of the real rows of all processes; moves the running ones."""
        rows = x.reshape(-1, self.dim).to(torch.promote_types(x.dtype, torch.float32))
        if mask is None:
            count, kept = rows.new_full((1,), len(rows)), rows
        else:
            mask = mask.reshape(-1, 1)
            count, kept = mask.sum(0).to(rows), rows.masked_fill(~mask, 0)
        mean = kept.sum(0) / count.clamp(min=1)
        off = rows - mean
        spread = (off if mask is None else off.masked_fill(~mask, 0)).square().sum(0)
        return self.merge(count, mean, spread)

    def merge(self, count: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """This process's rows (count (1,), mean, sum of squared deviations (D,)) with those of the others."""
        counts, means, spreads = distributed.gather(torch.cat([count, mean, spread])[None]).split(
            [1, self.dim, self.dim], 1
        )
        total = counts.sum().clamp(min=1)
        mean = (counts * means).sum(0) / total
        var = (spreads + counts * (means - mean).square()).sum(0) / total
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * total / (total - 1).clamp(min=1), self.momentum)
        return mean, var


class LayerNorm(nn.Module):
    """Each row x (..., D) by itself (Ba et al., 2016); ``mask`` is of no concern."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(x)


def make_norm(kind: str, dim: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(dim)
    if kind == "layer":
        return LayerNorm(dim)
    raise ValueError(f'norm={kind!r}: expected "batch" or "layer"')


class MLP(nn.Module):
    """Linear, normalise, ReLU, for each pair of ``dims``, on every row: x (..., dims[0]) -> (..., dims[-1])."""

    def __init__(self, *dims: int, norm: str):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(make_norm(norm, b) for b in dims[1:])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # relu in place on a view would cost autograd a copy
        for linear, norm in zip(self.linears, self.norms, strict=True):
            rows = norm(linear(rows), mask).relu_()
        return rows.view(*x.shape[:-1], -1)
