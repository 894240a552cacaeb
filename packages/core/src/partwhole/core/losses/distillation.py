"""Losses between a student and its teacher.

Axes: B batch, D features, K prototypes, S student views, T teacher views.
"""

import torch
from torch import Tensor

from partwhole.core.losses.precision import in_float32, outside_autocast, positive_temperature, scalar, unit, widen
from partwhole.core.losses.tiles import chunk, chunked, rows_of


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


@outside_autocast
def distill(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    """Cross entropy from teacher to student over all pairs of different views (Caron et al., 2021).

        q[s, b] = log softmax over k: student[s, b, k] / temperature
        loss    = mean over b, mean over pairs s != t:  - sum over k: teacher[t, b, k] * q[s, b, k]

    student (S, B, K) logits, teacher (T, B, K) probabilities, constant. View i of both is the same crop, so there must
    be a second view: ValueError if not.

    Some rows are looked at at a time, in float32 whatever the dtype: beside the logits only their gradient is as large.
    There is no second derivative.
    """
    positive_temperature(temperature)
    if student.shape[1:] != teacher.shape[1:] or student.ndim != 3:
        raise ValueError(
            f"student (S, B, K) and teacher (T, B, K) are needed; got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    (S, B, K), T, teacher = student.shape, len(teacher), teacher.detach()
    count = S * T - min(S, T)
    if count == 0:
        raise ValueError(f"{S} student and {T} teacher views make no pair of different views")
    most = chunk(K, student.device)
    inside = rows_of(B, most)
    rows = [slice(s * B + r.start, s * B + r.stop) for s in range(S) if T > 1 or s > 0 for r in inside]
    wide = widen(student[:0])
    target = wide.new_empty(min(most, B), K)

    def part(logits: Tensor, r: slice) -> Tensor:
        s, b = r.start // B, slice(r.start % B, r.start % B + len(logits))
        first, *rest = (t for t in range(T) if t != s)
        wanted = target[: len(logits)].copy_(teacher[first, b])
        for t in rest:
            wanted += teacher[t, b]
        mass = wanted.sum(1, keepdim=True) / (count * B)
        wanted /= count * B
        logits -= logits.amax(1, keepdim=True)
        value = -torch.linalg.vecdot(logits, wanted).sum()
        total = logits.exp_().sum(1, keepdim=True)
        logits.mul_(mass / total).sub_(wanted)
        return value + (mass * total.log()).sum()

    return chunked(part, student.flatten(0, 1), rows, scale=1 / scalar(temperature, wide))
