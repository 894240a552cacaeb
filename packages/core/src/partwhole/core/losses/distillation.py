"""Losses between a student and its teacher.

Axes: B batch, L tokens, M hidden tokens of all things, D features, K prototypes, S student views, T teacher views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from partwhole.core.losses.tiles import chunk, chunked, rows_of
from partwhole.core.precision import in_float32, outside_autocast, positive_temperature, scalar, unit, widen


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
    """
    positive_temperature(temperature)
    if student.shape[1:] != teacher.shape[1:] or student.ndim != 3:
        raise ValueError(
            f"student (S, B, K) and teacher (T, B, K) are needed; got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    pairs = [[t for t in range(len(teacher)) if t != s] for s in range(len(student))]
    count = len(student) * len(teacher) - min(len(student), len(teacher))
    if count == 0:
        raise ValueError(f"{len(student)} student and {len(teacher)} teacher views make no pair of different views")
    weight = widen(student[:0]).new_full((student.shape[1],), 1 / (count * max(student.shape[1], 1)))
    return _cross_entropy(student, teacher, pairs, weight, temperature)


@outside_autocast
def masked_distill(student: Tensor, teacher: Tensor, hidden: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    """Cross entropy from teacher to student of the tokens that were hidden from the student (Zhou et al., 2022).

        ce[b, l] = - sum over k: teacher[b, l, k] * log softmax(student[b, l] / temperature)[k]
        loss     = mean over b:  mean over the hidden tokens l of b:  ce[b, l]

    A thing with few hidden tokens weighs as much as one with many; one that hides none counts as 0 in the mean, as it
    does in the authors' code.

    student (M, K) logits and teacher (M, K) probabilities, constant, of the hidden tokens alone, so that no other has
    to pass the head: in the order of ``hidden.nonzero()``, thing by thing. hidden (B, L) bool says which they are.
    ValueError where their numbers differ; it is raised on the CPU alone, since a GPU would have to be waited for.
    """
    positive_temperature(temperature)
    if student.shape != teacher.shape or student.ndim != 2 or hidden.ndim != 2:
        raise ValueError(
            "student (M, K), teacher (M, K) and hidden (B, L) are needed; got "
            f"{tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(hidden.shape)}"
        )
    count = hidden.sum(1)
    if student.device.type == "cpu" and not torch.compiler.is_compiling() and count.sum() != len(student):
        raise ValueError(f"{int(count.sum())} tokens are hidden, and {len(student)} rows came: one for each is needed")
    place = torch.arange(len(student), device=student.device)
    thing = torch.searchsorted(count.cumsum(0), place, right=True)  # that each row is of
    weight = 1 / (len(hidden) * count[thing]).to(widen(student[:0]).dtype)
    return _cross_entropy(student[None], teacher[None], [[0]], weight, temperature)


def _cross_entropy(
    student: Tensor, teacher: Tensor, pairs: Sequence[Sequence[int]], weight: Tensor, temperature: float | Tensor
) -> Tensor:
    """Sum over s, t in pairs[s], b of weight[b] * cross entropy of student (S, B, K) logits to teacher (T, B, K).

    Some rows are looked at at a time, in float32 whatever the dtype: beside student and teacher, of this size only the
    gradient is ever made; it has no gradient of its own.
    """
    (_, B, K), teacher = student.shape, teacher.detach()
    if torch.compiler.is_compiling():  # it makes little of what is between, and may not know B
        log = (widen(student) / temperature).log_softmax(-1)
        of = [(log[s], [teacher[t] for t in some]) for s, some in enumerate(pairs) if some]
        return -torch.stack([(weight * (q * torch.stack(p).sum(0)).sum(-1)).sum() for q, p in of]).sum()
    wide, most = widen(student[:0]), chunk(K, student.device)
    rows = [slice(s * B + r.start, s * B + r.stop) for r in rows_of(B, most) for s, some in enumerate(pairs) if some]
    target, made = wide.new_empty(min(most, B), K), None  # most views of a student share the target of a thing

    def part(logits: Tensor, r: slice) -> Tensor:
        nonlocal made
        s, b = r.start // B, slice(r.start % B, r.start % B + len(logits))
        wanted = target[: len(logits)]
        if made != (pairs[s], b):
            wanted.copy_(teacher[pairs[s][0], b])
            for t in pairs[s][1:]:
                wanted += teacher[t, b]
            wanted *= weight[b, None]
            made = pairs[s], b
        mass = wanted.sum(1, keepdim=True)
        logits -= logits.amax(1, keepdim=True)
        value = -torch.linalg.vecdot(logits, wanted).sum()
        total = logits.exp_().sum(1, keepdim=True)
        logits.mul_(mass / total).sub_(wanted)
        return value + (mass * total.log()).sum()

    return chunked(part, student.flatten(0, 1), rows, scale=1 / scalar(temperature, wide))
