"""Layers on rows of which some are padding.

Axis letters: ... any leading axes (shapes, points, neighbours), D features.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.norm import BatchNorm


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


def rectify(x: Tensor, slope: float) -> Tensor:
    """(Leaky) ReLU in place."""
    return F.leaky_relu_(x, slope) if slope else x.relu_()


class MLP(nn.Module):
    """Linear, normalise, (leaky) ReLU, for each pair of ``dims``, on every row: (..., dims[0]) -> (..., dims[-1])."""

    def __init__(self, *dims: int, norm: str, slope: float = 0.0):
        super().__init__()
        self.slope = slope
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(make_norm(norm, b) for b in dims[1:])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # relu in place on a view would cost autograd a copy
        for linear, norm in zip(self.linears, self.norms, strict=True):
            rows = rectify(norm(linear(rows), mask), self.slope)
        return rows.view(*x.shape[:-1], -1)

    def weights(self) -> list[Tensor]:
        return [p for linear in self.linears for p in linear.parameters()]
