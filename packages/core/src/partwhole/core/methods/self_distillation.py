"""What iBOT and the methods after it share: a teacher sees whole views, a student sees them with tokens hidden, and
prototypes say what is to be told of the whole and of each hidden token.

Axes: V views, S views and crops, B things, L tokens of the longest view, M hidden ones, D features, K prototypes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Norm, Prototypes, pool_for
from partwhole.core.losses import distill, koleo, masked_distill
from partwhole.core.method import Batch
from partwhole.core.methods.targets import Centring, Targets, entropies
from partwhole.core.methods.views import found, project, stretches
from partwhole.core.teacher import Teacher
from partwhole.core.transformer import TransformerEncoder

STUDENT_TEMPERATURE = 0.1


class Distilled(NamedTuple):
    """The loss over all processes, what the student made of the views, and what to log."""

    loss: Tensor
    whole: Tensor  # (V, B, D), a vector of each view
    tokens: Tensor  # (V, B, L, D), without special ones
    real: Tensor  # (V, B, L), which of them are no padding
    logs: dict[str, Tensor]


class SelfDistillation(nn.Module):
    """DINO on a vector of the whole and iBOT on hidden tokens, by one teacher.

    ``forward(encoder, batch)``: the batch has ``views`` and optional ``crops``, ``valid`` and ``crops_valid`` as DINO
    reads them, and ``hidden``, a list parallel to views of (B, L) bool: which tokens the student does not see. What to
    hide is drawn with the data (``core.masks``); padding is never hidden. No token that is not passes a head.

    ``shared``: one head, with one set of prototypes, for the whole and for tokens. Prototypes keep length 1. ``norm``
    is that of the heads: see DINO.
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
        norm: Norm,
    ):
        super().__init__()
        if not isinstance(encoder, TransformerEncoder):
            raise TypeError(
                "tokens are hidden from the encoder, so it must be a TransformerEncoder; got a "
                f"{type(encoder).__name__}. DINO takes any encoder"
            )
        self.frozen = frozen
        self.mask_token = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        one = partial(Prototypes, encoder.dim, hidden, bottleneck, prototypes, norm=norm)
        heads = [one() for _ in range(1 if shared else 2)]
        for head in heads:
            head.free.fill_(frozen <= 0)
        self.heads = nn.ModuleList(heads)  # the first for the whole, the last for tokens
        self.teacher = Teacher(encoder)
        self.teacher_heads = nn.ModuleList(Teacher(head) for head in heads)
        self.whole_targets, self.token_targets = (
            Targets(prototypes, temperature=teacher_temperature, centring=centring) for _ in range(2)
        )

    def forward(self, encoder: TransformerEncoder, batch: Batch) -> Distilled:
        views, valid = batch["views"], batch.get("valid")
        real, hidden = masks(encoder, batch)
        # (M,): found first, before a GPU has much to be waited for
        index = found(hidden)

        def student(x: Tensor, v: Tensor | None, at: slice) -> Tensor:
            return encoder(x, valid=v, hidden=torch.cat(list(batch["hidden"][at])).bool(), token=self.mask_token)

        known_whole, known = see(lambda x, v, at: self.teacher(x, v), encoder, views, valid)
        whole, tokens = see(student, encoder, views, valid)
        V, B, _ = whole.shape

        crops, pool = batch.get("crops"), pool_for(encoder)
        small = [project(encoder, pool, crops, batch.get("crops_valid"))] if crops else []
        logits = self.heads[0](torch.cat([whole, *small]))  # (S, B, K)
        target = self.whole_targets(self.teacher_heads[0](known_whole).flatten(0, 1)).unflatten(0, (V, B))
        of_whole = distill(logits, target, temperature=STUDENT_TEMPERATURE)

        guess, wanted = self.heads[-1](tokens.flatten(0, 2)[index]), self.teacher_heads[-1](known.flatten(0, 2)[index])
        of_hidden = masked_distill(
            guess, self.token_targets(wanted), hidden.flatten(0, 1), temperature=STUDENT_TEMPERATURE
        )
        share = distributed.share(B)
        logs = {"whole": of_whole.detach() * share, "hidden": of_hidden.detach() * share, **entropies(target)}
        return Distilled((of_whole + of_hidden) * share, whole, tokens, real, logs)

    def after_step(self, encoder: Encoder, progress: float, momentum: float) -> None:
        self.teacher.update(encoder, momentum=momentum)
        for teacher, head in zip(self.teacher_heads, self.heads, strict=True):
            assert isinstance(teacher, Teacher)
            assert isinstance(head, Prototypes)
            teacher.update(head, momentum=momentum)
            head.free.fill_(progress >= self.frozen)
        self.whole_targets.after_step(progress)
        self.token_targets.after_step(progress)


def masks(encoder: TransformerEncoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which tokens of the batch's views are real, and which of these are hidden: (V, B, L) each."""
    views, hidden = batch["views"], batch.get("hidden")
    if hidden is None or len(hidden) != len(views):
        raise ValueError(
            f"{len(views)} views came with {'no' if hidden is None else len(hidden)} masks of hidden tokens: the batch "
            "needs a list 'hidden' of one (B, L) for each view (core.masks.hide)"
        )
    reals = []
    for x, v, h in zip(views, batch.get("valid") or [None] * len(views), hidden, strict=True):
        real = encoder.embed.tokens_valid(x, v)
        reals.append(torch.ones_like(h, dtype=torch.bool) if real is None else real)
        if h.shape != reals[-1].shape:
            raise ValueError(f"hidden is {tuple(h.shape)}, but the tokens are {tuple(reals[-1].shape)}")
    real, every = (padded([m[None] for m in some]) for some in (reals, hidden))
    return real, real & every.bool()


def see(
    net: Callable[[Tensor, Tensor | None, slice], Tensor],
    encoder: Encoder,
    views: Sequence[Tensor],
    valid: Sequence | None,
) -> tuple[Tensor, Tensor]:
    """A vector (V, B, D) of each view, and its tokens (V, B, L, D); those of ``net(view, valid, which views these
    are)`` may have special ones before them."""
    pool, wholes, tokens = pool_for(encoder), [], []
    for x, v, at in stretches(views, valid):
        y, count = net(x, v, at), at.stop - at.start
        wholes.append(pool(y, encoder.real(x, v)).unflatten(0, (count, -1)))
        tokens.append(y[:, encoder.special :].unflatten(0, (count, -1)))
    return torch.cat(wholes), padded(tokens)


def padded(parts: Sequence[Tensor]) -> Tensor:
    """(v, B, L, ...) of several v and L, one after the other, with zeros up to the greatest L."""
    most = max(p.shape[2] for p in parts)
    wide = [p if p.shape[2] == most else F.pad(p, (0, 0) * (p.ndim - 3) + (0, most - p.shape[2])) for p in parts]
    return torch.cat(wide)


def spread_apart(whole: Tensor) -> Tensor:
    """``koleo`` of whole (V, B, D) among the things of all processes, added up over views; 0 for a single thing."""
    B = whole.shape[1]
    first, keys = distributed.start(B), [distributed.gather(view) for view in whole]
    if len(keys[0]) < 2:
        return whole.sum() * 0
    each = [koleo(view, key, first=first) for view, key in zip(whole, keys, strict=True)]
    return sum(each[1:], each[0]) * distributed.share(B)
