"""Losses between a student and its teacher.

Axes: B batch, D features, K prototypes, S student views, T teacher views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.losses.precision import in_float32, positive_temperature, unit


@in_float32
def negative_cosine(prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Minus the mean cosine: in [-1, 1], the target a constant (Grill et al., 2020, less a factor 2 and a constant).

    prediction, target (..., D); valid (...), true where a pair counts: 0 where none does. An all-zero row has cosine 0.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}: they must be alike")
    if valid is None:
        valid = torch.ones_like(prediction[..., 0], dtype=torch.bool)
    prediction, target = (x.masked_fill(~valid[..., None], 0) for x in (prediction, target.detach()))
    return -(unit(prediction) * unit(target)).sum() / valid.sum().clamp(min=1)


@in_float32
def distill(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    """Cross entropy from teacher to student over all pairs of different views (Caron et al., 2021).

        q[s, b] = log softmax over k: student[s, b, k] / temperature
        loss    = mean over b, mean over pairs s != t:  - sum over k: teacher[t, b, k] * q[s, b, k]

    student (S, B, K) logits, teacher (T, B, K) probabilities, constant. View i of both is the same crop, so there must
    be a second view: ValueError if not.
    """
    positive_temperature(temperature)
    if student.shape[1:] != teacher.shape[1:] or student.ndim != 3:
        raise ValueError(
            f"student (S, B, K) and teacher (T, B, K) are needed; got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    same = torch.eye(len(student), len(teacher), device=student.device, dtype=torch.bool)
    pairs = same.numel() - min(same.shape)
    if pairs == 0:
        raise ValueError(f"{len(student)} student and {len(teacher)} teacher views make no pair of different views")
    pair = -torch.einsum("sbk,tbk->st", F.log_softmax(student / temperature, -1), teacher.detach())
    return pair.masked_fill(same, 0).sum() / (pairs * max(student.shape[1], 1))
