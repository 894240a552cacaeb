"""Losses between a student and its teacher.

Axes: B batch, L tokens, M hidden tokens of all things, D features, K prototypes, S student views, T teacher views.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    pairs = ~torch.eye(len(student), len(teacher), device=student.device, dtype=torch.bool)
    count = len(student) * len(teacher) - min(len(student), len(teacher))
    if count == 0:
        raise ValueError(f"{len(student)} student and {len(teacher)} teacher views make no pair of different views")
    weight = student.new_full((student.shape[1],), 1 / (count * max(student.shape[1], 1)))
    return _cross_entropy(student, teacher, pairs, weight, temperature)


@in_float32
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
    weight = 1 / (len(hidden) * count[thing]).to(student.dtype)
    pair = torch.ones(1, 1, device=student.device, dtype=torch.bool)
    return _cross_entropy(student[None], teacher[None], pair, weight, temperature)


PART = 2**18
"""So many logits are worked on at a time, which a CPU's cache can hold; a GPU, to be kept busy, takes 64 times more."""


def _cross_entropy(
    student: Tensor, teacher: Tensor, pairs: Tensor, weight: Tensor, temperature: float | Tensor
) -> Tensor:
    """Sum over s, t, b of pairs[s, t] * weight[b] * cross entropy of student (S, B, K) logits to teacher (T, B, K).

    Beside student and teacher, of this size only the gradient is ever made; it has no gradient of its own.
    """
    if not isinstance(temperature, Tensor):
        temperature = torch.full((), temperature, dtype=student.dtype, device=student.device)
    return _CrossEntropy.apply(student, teacher.detach(), pairs.to(student.dtype), weight, temperature)  # type: ignore[return-value]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, pairs: Tensor, weight: Tensor, temperature: Tensor
    ) -> Tensor:
        total, sums = student.new_zeros(()), student.new_zeros(student.shape[:2])
        for s, some in _parts(student):
            logits, target = student[s, some] / temperature, torch.tensordot(pairs[s], teacher[:, some], 1)
            sums[s, some] = logits.logsumexp(-1)
            rows = (target * (sums[s, some, None] - logits)).sum(-1)
            total = total + (weight[some] * rows).sum()
        ctx.save_for_backward(student, teacher, pairs, weight, temperature, sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        student, teacher, pairs, weight, temperature, sums = ctx.saved_tensors
        out, cooled = torch.empty_like(student), torch.zeros_like(temperature)
        for s, some in _parts(student):
            target = torch.tensordot(pairs[s], teacher[:, some], 1)
            grad = (student[s, some] / temperature - sums[s, some, None]).exp() * target.sum(-1, keepdim=True) - target
            out[s, some] = grad * (grads[0] * weight[some] / temperature)[:, None]
            if ctx.needs_input_grad[4]:
                cooled = cooled - (out[s, some] * student[s, some]).sum()
        return out, None, None, None, cooled / temperature if ctx.needs_input_grad[4] else None


def _parts(student: Tensor) -> Iterator[tuple[int, slice]]:
    rows = max((PART if student.device.type == "cpu" else 64 * PART) // max(student.shape[2], 1), 1)
    for s in range(student.shape[0]):
        if torch.compiler.is_compiling():  # the compiler makes none of what is between
            yield s, slice(None)
            continue
        for start in range(0, student.shape[1], rows):
            yield s, slice(start, start + rows)
