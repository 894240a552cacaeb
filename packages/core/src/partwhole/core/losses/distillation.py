"""Losses between a student and its teacher.

Axes: N queries, M keys, D features, B batch, L tokens, K prototypes, S/T student/teacher views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine; the target is treated as a constant (Grill et al., 2020)."""
    return -F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


def distill(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Cross entropy from teacher to student over all pairs of different views.

    student (S, B, K) logits, teacher (T, B, K) probabilities; view i of both is the same crop.
    """
    pair = -torch.einsum("sbk,tbk->st", F.log_softmax(student / temperature, -1), teacher)
    same = torch.eye(*pair.shape, device=pair.device, dtype=torch.bool)
    return pair[~same].mean() / student.shape[1]
