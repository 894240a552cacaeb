"""Losses that keep features from lying where they should not: too close to each other, or unlike those of before.

Axes: N rows, M rows of all processes, D features; B things, L tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from partwhole.core.precision import in_float32, unit


@in_float32
def koleo(feature: Tensor, key: Tensor | None = None, *, first: int = 0, eps: float = 1e-4) -> Tensor:
    """Push every row away from its nearest neighbour on the sphere, so that all spread (Sablayrolles et al., 2019).

        u[n]  = feature[n] / |feature[n]|
        d[n]  = min over m != n: |u[n] - u[m]|
        loss  = - mean over n: log(d[n] + eps)                   (Kozachenko and Leonenko, 1987, less its constants)

    feature (N, D). Rows in float16 coincide easily: two equal rows are ``eps`` apart and part along the axis on which
    they are smallest, the later one upwards. The authors add 1e-8 (Oquab et al., 2023), whose gradient at equal rows is
    0 where they are each other's neighbours, and otherwise too large for float16.
    key (M, D), first: where neighbours are sought among more rows, of which rows first, first + 1, ... are ``feature``
        itself: ``koleo(z, distributed.gather(z), first=distributed.start(len(z)))``. A row never finds itself.
    ValueError where there is only one row in all.
    """
    key = feature if key is None else key
    if feature.ndim != 2 or key.ndim != 2 or feature.shape[1] != key.shape[1]:
        raise ValueError(f"feature (N, D) and key (M, D) are needed; got {tuple(feature.shape)} and {tuple(key.shape)}")
    if not 0 <= first <= len(key) - len(feature):
        raise ValueError(
            f"{len(feature)} rows from row {first} on are not among {len(key)} keys: see distributed.start"
        )
    if len(key) < 2:
        raise ValueError("a single row has no neighbour: koleo needs two or more, over all processes")
    if eps <= 0:
        raise ValueError(f"eps must be above 0; got {eps}")
    feature, key = unit(feature), unit(key)
    own = torch.arange(len(feature), device=feature.device) + first
    with torch.no_grad():
        nearest = (feature @ key.mT).scatter_(1, own[:, None], -torch.inf).argmax(1)
        axis = torch.zeros_like(feature).scatter_(1, feature.abs().argmin(1, keepdim=True), eps)
        apart = torch.where((own > nearest)[:, None], axis, -axis)
    gap = feature - key[nearest]
    gap = torch.where((gap == 0).all(1, keepdim=True), gap + apart, gap)
    return -(torch.linalg.vector_norm(gap, dim=1) + eps).log().sum() / max(len(feature), 1)


@in_float32
def gram_anchoring(
    student: Tensor,
    teacher: Tensor,
    *,
    valid: Tensor | None = None,
    negatives: Literal["keep", "drop", "teacher"] = "keep",
    across: bool = False,
) -> Tensor:
    """Keep which tokens look alike as an earlier teacher has it; features may turn together (Simeoni et al., 2025).

        s[b, i, j] = cos(student[b, i], student[b, j]),   t[b, i, j] = cos(teacher[b, i], teacher[b, j])
        loss       = mean over b, i, j:  (s[b, i, j] - t[b, i, j])^2

    student, teacher (B, L, D), where D may differ, the teacher a constant; valid (B, L), true where a token is real: 0
    where none is. Things with more real tokens have more pairs and weigh more.
    negatives: "keep"; "drop", cosines below 0 count as 0; "teacher", the teacher's do, and the student's where both are
        (the official options: none, ``remove_neg``, ``remove_only_teacher_neg``).
    across: compare the tokens of all things with each other, as one thing of B * L tokens. Several processes then
        gather the tokens of all.
    """
    if student.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student and teacher (B, L, D) are needed; got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if negatives not in ("keep", "drop", "teacher"):
        raise ValueError(f'negatives is "keep", "drop" or "teacher"; got {negatives!r}')
    real = torch.ones_like(student[..., 0], dtype=torch.bool) if valid is None else valid
    student, teacher = (x.masked_fill(~real[..., None], 0) for x in (student, teacher.detach()))
    if across:
        student, teacher, real = (x.flatten(0, 1)[None] for x in (student, teacher, real))
    s, t = (u @ u.mT for u in (unit(student), unit(teacher)))  # (B, L, L), 0 where a token is not real
    if negatives == "drop":
        s = s.clamp(min=0)
    elif negatives == "teacher":
        s = s.masked_fill((s < 0) & (t < 0), 0)
    if negatives != "keep":
        t = t.clamp(min=0)
    return (s - t).square().sum() / real.sum(1).square().sum().clamp(min=1)
