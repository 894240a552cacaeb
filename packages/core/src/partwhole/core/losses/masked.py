"""Losses on hidden tokens.

Axes: N queries, M keys, D features, B batch, L tokens, K prototypes, S/T student/teacher views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error on the hidden tokens only. All (B, L, P) but mask (B, L), 1 where hidden."""
    error = (prediction - target).square().mean(-1)
    return _where_mean(error, mask)


def _where_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp(min=1)

