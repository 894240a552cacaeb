"""What iBOT and the methods after it share: a teacher sees whole views, a student sees them with tokens hidden, and
prototypes say what of the whole and of the hidden tokens is to be told.

Axes: V views, S views and crops, B things, L tokens, M hidden tokens, D features, K prototypes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Prototypes, pool_for
from partwhole.core.losses import distill, koleo, masked_distill
from partwhole.core.method import Batch
from partwhole.core.methods.targets import Centring, Targets, entropies
from partwhole.core.methods.views import project, stretches
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import TransformerEncoder

STUDENT_TEMPERATURE = 0.1


class Seen(NamedTuple):
    """What an encoder makes of views; views of fewer tokens than others are padded."""

    whole: Tensor  # (V, B, D), a vector of each view
    tokens: Tensor  # (V, B, L, D), without special ones
    real: Tensor  # (V, B, L), which tokens are no padding
    hidden: Tensor  # (V, B, L), which of them were hidden


def see(
    net: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
    encoder: Encoder,
    views: Sequence[Tensor],
    valid: Sequence | None = None,
    hidden: Sequence[Tensor] | None = None,
) -> Seen:
    """``net(view, valid, hidden)`` of every view: the tokens of ``encoder``, special ones first."""
    pool, parts, start = pool_for(encoder), [], 0
    for x, v, n in stretches(views, valid):
        h = None if hidden is None else torch.cat(list(hidden[start : start + n])).bool()
        tokens, every, start = net(x, v, h), encoder.real(x, v), start + n
        whole, tokens = pool(tokens, every), tokens[:, encoder.special :]
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if every is None else every[:, encoder.special :]
        h = torch.zeros_like(real) if h is None else h & real
        parts.append([t.unflatten(0, (n, -1)) for t in (whole, tokens, real, h)])
    most = max(p[1].shape[2] for p in parts)
    for p in parts:
        if short := most - p[1].shape[2]:
            p[1:] = F.pad(p[1], (0, 0, 0, short)), F.pad(p[2], (0, short)), F.pad(p[3], (0, short))
    return Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Distilled(NamedTuple):
    """The loss over all processes, what the student saw, and what to log."""

    loss: Tensor
    student: Seen
    logs: dict[str, Tensor]


class SelfDistillation(nn.Module):
    """DINO on a vector of the whole and iBOT on hidden tokens, by one teacher.

    ``forward(encoder, batch)``: the batch has ``views`` and optional ``crops``, ``valid`` and ``crops_valid`` as DINO
    reads them, and ``hidden``, a list parallel to views of (B, L) bool: which tokens the student does not see. What to
    hide is drawn with the data (``core.data.hide``); padding is never hidden.

    ``shared``: one head, with one set of prototypes, for the whole and for tokens.
    ``room``: the greatest share of a batch's tokens that is ever hidden. With it, shapes follow from those of the batch,
    as ``torch.compile(fullgraph=True)`` needs. Without it hidden tokens are counted, and no others pass a head.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int,
        hidden: int,
        bottleneck: int,
        shared: bool,
        centring: Centring,
        teacher_temperature: tuple[float, float],
        frozen: float,
        room: float | None,
    ):
        super().__init__()
        if not isinstance(encoder, TransformerEncoder):
            raise TypeError(
                "tokens are hidden from the encoder, so it must be a TransformerEncoder; got a "
                f"{type(encoder).__name__}. DINO takes any encoder"
            )
        if room is not None and not 0 < room <= 1:
            raise ValueError(f"room is the greatest share of tokens that is hidden, in (0, 1], or None; got {room}")
        self.frozen, self.room = frozen, room
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim))
        heads = [Prototypes(encoder.dim, hidden, bottleneck, prototypes) for _ in range(1 if shared else 2)]
        for head in heads:
            head.free.fill_(frozen <= 0)
        self.heads = nn.ModuleList(heads)  # the first for the whole, the last for tokens
        self.teacher = Teacher(encoder)
        self.teacher_heads = nn.ModuleList(Teacher(head) for head in heads)
        self.whole_targets, self.token_targets = (
            Targets(prototypes, temperature=teacher_temperature, centring=centring) for _ in range(2)
        )

    def forward(self, encoder: TransformerEncoder, batch: Batch) -> Distilled:
        views, valid, hidden = batch["views"], batch.get("valid"), batch.get("hidden")
        if hidden is None or len(hidden) != len(views):
            raise ValueError(
                f"{len(views)} views came with {'no' if hidden is None else len(hidden)} masks of hidden tokens: the "
                "batch needs a list 'hidden' of one (B, L) for each view (core.data.hide)"
            )
        student = see(
            lambda x, v, h: encoder(x, valid=v, hidden=h, token=self.mask_token), encoder, views, valid, hidden
        )
        teacher = see(lambda x, v, h: self.teacher(x, v), encoder, views, valid)
        V, B, _ = student.whole.shape

        logits = self.heads[0](student.whole)
        if batch.get("crops"):
            crops = project(encoder, self._whole(encoder), batch["crops"], batch.get("crops_valid"))
            logits = torch.cat([logits, crops])  # (S, B, K)
        target = self.whole_targets(self.teacher_heads[0](teacher.whole).flatten(0, 1)).unflatten(0, (V, B))
        whole = distill(logits, target, temperature=STUDENT_TEMPERATURE)

        index = self._select(student.hidden)  # (M,)
        seen, known = (tokens.flatten(0, 2)[index] for tokens in (student.tokens, teacher.tokens))
        counted = student.hidden.flatten()[index]
        wanted = self.token_targets(self.teacher_heads[-1](known), None if self.room is None else counted)
        tokens = masked_distill(
            self.heads[-1](seen), wanted, student.hidden.flatten(0, 1), temperature=STUDENT_TEMPERATURE
        )
        share = distributed.share(B)
        logs = {"whole": whole.detach() * share, "hidden": tokens.detach() * share, **entropies(target)}
        return Distilled((whole + tokens) * share, student, logs)

    def after_step(self, encoder: Encoder, progress: float, momentum: float) -> None:
        self.teacher.update(encoder, momentum=momentum)
        for teacher, head in zip(self.teacher_heads, self.heads, strict=True):
            assert isinstance(teacher, Teacher)
            assert isinstance(head, Prototypes)
            teacher.update(head, momentum=momentum)
            head.free.fill_(progress >= self.frozen)
        self.whole_targets.after_step(progress)
        self.token_targets.after_step(progress)

    def _whole(self, encoder: Encoder) -> Callable[..., Any]:
        pool = pool_for(encoder)
        return lambda tokens, real: self.heads[0](pool(tokens, real))

    def _select(self, hidden: Tensor) -> Tensor:
        """Where hidden (V, B, L) is true, in its order; with ``room``, other places follow up to a fixed number."""
        flat = hidden.flatten()
        if self.room is None:
            return flat.nonzero().flatten()
        return flat.to(torch.uint8).argsort(descending=True, stable=True)[: math.ceil(self.room * flat.numel())]


def spread_apart(whole: Tensor) -> Tensor:
    """``koleo`` of whole (V, B, D), added up over views, among the things of all processes."""
    B = whole.shape[1]
    first = distributed.start(B)
    each = [koleo(view, distributed.gather(view), first=first) for view in whole]
    return sum(each[1:], each[0]) * distributed.share(B)
