"""The checks find planted bugs, each with the sentence that names it, and pass what is right."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import draw
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Mean, Vectors
from partwhole.core.losses import info_nce
from partwhole.core.method import Method
from partwhole.core.precision import in_float32
from partwhole.core.teacher import Average, Teacher
from partwhole.core.testing import check_loss, check_method
from partwhole.core.threads import ranks
from partwhole.core.transformer import TransformerEncoder

VALID = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])

# ------------------------------------------------------------------ losses


@in_float32
def good(x: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over real positions of a squared error and of minus the log-probability of the first feature."""
    gap = (x - target.detach()).masked_fill(~valid[..., None], 0)
    named = -F.log_softmax(gap, -1)[..., 0]
    return (gap.square().sum(-1) + named.masked_fill(~valid, 0)).sum() / valid.sum().clamp(min=1)


def loops(x: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    terms = []
    for b, i in itertools.product(*map(range, valid.shape)):
        if valid[b, i]:
            gap = x[b, i] - target[b, i]
            terms.append((gap**2).sum() + gap.exp().sum().log() - gap[0])
    return sum(terms) / len(terms)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / 2


def in_place(x, target, valid):
    value = good(x, target, valid)
    with torch.no_grad():
        target += 1
    return value


def narrow(x, target, valid):
    """``good`` without the decorator."""
    return good.__wrapped__(x, target, valid)  # type: ignore[attr-defined]


calls = itertools.count()
BAD_LOSSES = {
    "a loss is a scalar": lambda x, t, v: good(x, t, v).expand(2),
    "is inf": lambda x, t, v: good(x, t, v) / 0,
    "two calls differ": lambda x, t, v: good(x, t, v) + next(calls),
    "draws from the global generator": lambda x, t, v: (torch.rand(()), good(x, t, v))[1],
    "changes its input": in_place,
    "reference gives another value": lambda x, t, v: 2 * good(x, t, v),
    "input 1 must be constant": lambda x, t, v: good(x, t, v) + t[v].sum() - t[v].sum().detach(),
    "not that of the value": lambda x, t, v: good(_Halved.apply(x), t, v),
    "order of the batch": lambda x, t, v: good(x, t, v) + x[1, 0, 0],
    "not the mean over its items": lambda x, t, v: good(x, t, v) * v.sum() / v.numel(),
    "padding that holds 1000000.0 changes the value": lambda x, t, v: good(x, t, v) + x[~v].sum(),
    "padding that holds nan changes the value": lambda x, t, v: good(x, t, v) + (x * 0 * v[..., None]).sum(),
    "changes the gradient of input 0": lambda x, t, v: good(x.nan_to_num() * x / x, t, v),
    "wrong in torch.bfloat16": narrow,
    "inputs of size 1000": lambda x, t, v: good(x, t, v) + x[v].exp().sum().log() * 0,
    "inputs of zeros": lambda x, t, v: good(x, t, v) + 0 * (x[v] / x[v].norm()).sum(),
}


def test_a_right_loss_passes():
    check(good)


def check(loss, **options):
    options = {
        "reference": loops,
        "constant": (1,),
        "valid": 2,
        "count": lambda x, t, v: v.sum(),
        **options,
    }
    check_loss(loss, draw(3, 3, 4), draw(3, 3, 4, seed=1), VALID, **options)


@pytest.mark.parametrize("message", BAD_LOSSES)
def test_a_planted_bug_in_a_loss_is_named(message):
    others = ("not the mean", "order of", "padding that holds 1000000.0")  # these have another value
    options = {"reference": None} if message.startswith(others) else {}
    if message.startswith("padding"):
        options["count"] = None
    with pytest.raises(AssertionError, match=message.replace(".", r"\.")):
        check(BAD_LOSSES[message], **options)


def test_a_loss_under_autocast_is_found():
    """The matrix product of a loss that leaves autocast on is in bfloat16."""
    x, y = draw(6, 32), draw(6, 32, seed=1)

    def nce(q: Tensor, k: Tensor) -> Tensor:
        wide = [F.normalize(a.to(torch.promote_types(a.dtype, torch.float32)), dim=-1) for a in (q, k)]
        return F.cross_entropy(wide[0] @ wide[1].mT / 0.1, torch.arange(len(q)))

    with pytest.raises(AssertionError, match="under autocast"):
        check_loss(nce, x, y)
    check_loss(in_float32(nce), x, y)


def test_self_similarity_as_a_negative_is_found_by_the_reference():
    z = draw(6, 4)
    me = torch.arange(6)

    def reference(z: Tensor) -> Tensor:
        u = z / z.norm(dim=-1, keepdim=True)
        rows = [sum((u[i] @ u[j] / 0.1).exp() for j in range(6) if j != i).log() for i in range(6)]  # type: ignore[union-attr]
        return sum(row - u[i] @ u[(i + 3) % 6] / 0.1 for i, row in enumerate(rows)) / 6  # type: ignore[return-value]

    right = lambda z: info_nce(z, z, me.roll(3), exclude=me)  # noqa: E731
    check_loss(right, z, reference=reference, axis=None)
    with pytest.raises(AssertionError, match="the reference gives another value"):
        check_loss(lambda z: info_nce(z, z, me.roll(3)), z, reference=reference, axis=None)


def test_checks_that_would_check_nothing_are_refused():
    with pytest.raises(AssertionError, match="float64"):
        check_loss(good, draw(3, 3, 4).float(), draw(3, 3, 4), VALID)
    with pytest.raises(AssertionError, match="true everywhere"):
        check_loss(good, draw(3, 3, 4), draw(3, 3, 4, seed=1), torch.ones_like(VALID), constant=(1,), valid=2)


# ------------------------------------------------------------------ methods


class Example(Method):
    """A method with everything: gathered keys, a teacher, a centre, masks. ``bug`` breaks one thing."""

    def __init__(self, bug: str = ""):
        super().__init__(TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2))
        self.bug, self.pool, self.scale = bug, Mean(), 1.0
        self.head = nn.Linear(8, 6)
        self.teacher = Teacher(self.encoder)
        self.center = Average(8, momentum=0.9)
        if bug == "unused":
            self.spare = nn.Linear(2, 2)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        bug, x, valid = self.bug, batch["x"], batch["valid"]
        pooled = self.pool(self.encoder(x, valid=valid), None if bug == "leak" else valid)
        z = self.head(pooled)
        if bug == "changed batch":
            valid.logical_not_().logical_not_()
            x += 1
        key, first = distributed.gather(z), distributed.start(len(z))
        if bug == "no gradient from other ranks":
            key = torch.cat([key[:first].detach(), z, key[first + len(z) :].detach()])
        if bug == "not gathered":
            key = z
        me = torch.arange(len(z)) + (0 if bug in ("wrong start", "not gathered") else first)
        loss = info_nce(z, key, me, temperature=0.5) * self.scale
        target = self.pool(self.teacher(x, valid), valid)
        if self.training or bug == "eval":
            self.center.add(target)
        if bug == "eager centre":
            self.center.update()
        if bug == "rank centre" and self.training:
            self.center.sums[:-1] += target.sum(0)
        loss = loss + 0.1 * (pooled - target - self.center.value).square().mean()
        if bug == "random":
            loss = loss * (1 + next(calls))
        if bug == "reversed":
            loss = 2 * loss.detach() - loss
        if bug == "dtype":
            loss = loss + (torch.zeros(8) @ pooled.mT).sum()
        if bug != "no share":
            loss = loss * distributed.share(len(z))
        if bug == "nan":
            loss = loss * torch.nan
        return {"loss": loss.expand(2) if bug == "vector" else loss}

    def after_step(self, progress: float) -> None:
        if self.bug == "gradients":
            sum(p.square().sum() for p in self.parameters() if p.requires_grad).backward()  # type: ignore[union-attr]
        if self.bug == "hidden state":
            self.scale = 1 + progress
        self.teacher.update(self.encoder, momentum=0.9)
        self.center.update()


BATCH = {"x": draw(5, 6, 3).float(), "valid": torch.rand(5, 6, generator=torch.Generator().manual_seed(3)) < 0.7}
BUGS = {
    "unused": "spare.weight gets no gradient",
    "leak": "more padding changes the loss",
    "changed batch": "changes its batch in place",
    "no gradient from other ranks": "2 processes .* have another gradient",
    "not gathered": "2 processes .* have another loss",
    "wrong start": "2 processes .* have another loss",
    "no share": "2 processes .* have another loss",
    "rank centre": r"2 processes .* leave another center\.\w+ on rank",
    "eval": r"eval-mode forward moves \['center.sums'\]",
    "eager centre": "two micro-batches move center",
    "random": "two eval-mode forwards differ",
    "reversed": "a step along the gradient does not lower the loss",
    "dtype": "dtype",
    "nan": "the loss is nan",
    "vector": "forward must return scalars",
    "gradients": "after_step makes gradients",
    "hidden state": "another loss: keep all state in buffers",
}


def test_a_right_method_passes():
    check_method(Example, BATCH, ranks=(2, 3, 4))


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_in_a_method_is_named(bug):
    batch = {k: v.clone() for k, v in BATCH.items()}
    with pytest.raises((AssertionError, RuntimeError), match=BUGS[bug]):
        check_method(lambda: Example(bug), batch)


def test_masks_that_hide_nothing_and_batches_too_small_are_refused():
    with pytest.raises(AssertionError, match="valid is true everywhere"):
        check_method(Example, {"x": BATCH["x"], "valid": torch.ones(5, 6, dtype=torch.bool)})
    with pytest.raises(AssertionError, match="cannot be split unevenly"):
        check_method(Example, {k: v[:3] for k, v in BATCH.items()}, ranks=(3,))


# ------------------------------------------------------------------ ranks as threads


def test_ranks_gather_uneven_rows_in_order_and_give_gradients_back():
    rows = [draw(n, 2, seed=n).requires_grad_() for n in (3, 1, 0)]
    with ranks(3) as run:
        out = run(lambda r: (distributed.gather(rows[r]), distributed.start(len(rows[r])), distributed.rank()))
        means = run(lambda r: distributed.mean(torch.tensor(float(r))).item())
        shares = run(lambda r: distributed.share(len(rows[r])).item())
        totals = run(lambda r: distributed.total(rows[r].sum()))
    assert [o[1:] for o in out] == [(0, 0), (3, 1), (4, 2)]
    assert all(torch.equal(o[0], torch.cat(rows)) for o in out)
    assert means == [1.0] * 3
    assert shares == pytest.approx([3 / (4 / 3), 1 / (4 / 3), 0])
    assert all(torch.equal(t, totals[0]) for t in totals)
    torch.stack([o[0].sum() for o in out]).sum().backward()
    assert rows[0].grad is not None
    assert (rows[0].grad == 3).all()
    assert distributed.world() == 1, "afterwards everything is as before"


def test_ranks_that_disagree_fail_and_do_not_hang():
    with ranks(2) as run, pytest.raises(ZeroDivisionError):
        run(lambda r: 1 / 0 if r else distributed.mean(torch.ones(())))
