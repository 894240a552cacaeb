"""Distillation of the whole and of hidden tokens: loops from the papers, and what is held in memory."""

import pytest
import torch
from common import DTYPES, coin, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partwhole.core.losses import distill, distillation, masked_distill
from partwhole.core.testing import check_loss


def loop(student: Tensor, teacher: Tensor, hidden: Tensor, temperature: float = 0.1) -> Tensor:
    """The mean over things of the mean over the hidden tokens of each; 0 for a thing that hides none."""
    rows, things = iter(range(len(student))), []
    for thing in hidden:
        terms = []
        for _ in range(int(thing.sum())):
            i = next(rows)
            p = (student[i] / temperature).exp() / (student[i] / temperature).exp().sum()
            terms.append(-(teacher[i] * p.log()).sum())
        things.append(sum(terms[1:], terms[0]) / len(terms) if terms else student.sum() * 0)
    return sum(things[1:], things[0]) / len(things)


HIDDEN = torch.tensor([[True, False, True, True], [False] * 4, [False, False, True, False]])
SMALL = (draw(4, 5) / 10, draw(4, 5, seed=1).softmax(-1))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("part", [1, 2**24])
def test_masked_distill_passes_every_check(temperature, part, monkeypatch):
    monkeypatch.setattr(distillation, "chunk", lambda K, device: max(part // K, 1))
    check_loss(
        lambda s, t: masked_distill(s, t, HIDDEN, temperature=temperature),
        *SMALL,
        reference=lambda s, t: loop(s, t, HIDDEN, temperature),
        constant=[1],
        axis=None,
    )


@quick
@given(
    things=st.integers(1, 4), length=st.integers(1, 6), count=st.integers(1, 7), seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES), temperature=st.sampled_from([1e-3, 0.1, 10.0]),
)  # fmt: skip
def test_P5_masked_distill_is_the_formula_for_any_shape_type_and_temperature(
    things, length, count, seed, dtype, temperature
):
    hidden = coin(things, length, seed=seed)
    rows = int(hidden.sum())
    student = draw(rows, count, seed=seed).to(dtype).requires_grad_()
    teacher = draw(rows, count, seed=seed + 1).softmax(-1).to(dtype)
    loss = masked_distill(student, teacher, hidden, temperature=temperature)
    q = (student.double() / temperature).log_softmax(-1)
    ce = torch.zeros(things, length, dtype=torch.float64)
    ce[hidden] = -(teacher.double() * q).sum(-1).detach()
    expected = (ce.sum(1) / hidden.sum(1).clamp(min=1)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_thing_with_few_hidden_tokens_weighs_as_much_as_one_with_many():
    """As in the authors' code, and not the mean over tokens; things that hide nothing are counted."""
    student, teacher = SMALL
    each = -(teacher * (student / 0.1).log_softmax(-1)).sum(-1)
    value = masked_distill(student, teacher, HIDDEN).item()
    assert value == pytest.approx(((each[:3].mean() + 0 + each[3]) / 3).item(), rel=1e-12)
    assert value != pytest.approx(each.mean().item(), rel=1e-3)


def test_P14_nothing_hidden_gives_zero_and_a_gradient():
    student = torch.zeros(0, 5, requires_grad=True)
    loss = masked_distill(student, torch.zeros(0, 5), torch.zeros(3, 4, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    with pytest.raises(ValueError, match="4 tokens are hidden, and 3 rows came"):
        masked_distill(SMALL[0][:3], SMALL[1][:3], HIDDEN)
    with pytest.raises(ValueError, match=r"hidden \(B, L\) are needed; got \(4, 5\), \(4, 5\) and \(3,\)"):
        masked_distill(*SMALL, HIDDEN[:, 0])


@pytest.mark.parametrize("loss", ["distill", "masked_distill"])
def test_P7_a_temperature_may_learn(loss):
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    s, t = draw(3, 4, 5), draw(2, 4, 5, seed=1).softmax(-1)
    hidden = torch.ones(2, 2, dtype=torch.bool)
    made = {
        "distill": lambda x: distill(s, t, temperature=x),
        "masked_distill": lambda x: masked_distill(s[0], t[0], hidden, temperature=x),
    }[loss]
    assert torch.autograd.gradcheck(made, (temperature,))


class Sizes(TorchDispatchMode):
    """How many tensors of at least so many elements are made, views not counted."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.made = size, set()
        self.kept = []  # or else an address could come again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() >= self.size * x.element_size():
                self.made.add(x.untyped_storage().data_ptr())
                self.kept.append(x)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_P16_beside_the_logits_only_their_gradient_is_as_large(dtype, monkeypatch):
    """In half precision too: no copy in float32 is made."""
    monkeypatch.setattr(distillation, "chunk", lambda K, device: 4)
    s, t = draw(2, 32, 16).to(dtype), draw(2, 32, 16, seed=1).softmax(-1).to(dtype)
    hidden = torch.ones(4, 8, dtype=torch.bool)
    cases = ((lambda x: distill(x, t), s, t), (lambda x: masked_distill(x, t[0], hidden), s[0].clone(), t[0]))
    for loss, start, target in cases:
        x, size = start.clone().requires_grad_(), start.numel()
        with Sizes(size) as forward:
            value = loss(x)
        inputs = {y.untyped_storage().data_ptr() for y in (x, target)}
        assert len(forward.made - inputs) == 0
        with Sizes(size) as backward:
            torch.autograd.grad(value, x)
        assert len(backward.made - forward.made - inputs) <= 1


@pytest.mark.parametrize("part", [1, 7, 40])
def test_P16_parts_give_what_the_whole_gives(part, monkeypatch):
    s, t = draw(3, 6, 5), draw(2, 6, 5, seed=1).softmax(-1)
    values = []
    for size in (part, 2**24):
        monkeypatch.setattr(distillation, "chunk", lambda K, device, size=size: max(size // K, 1))
        student = s.clone().requires_grad_()
        loss = distill(student, t)
        loss.backward()
        values.append((loss.detach(), student.grad))
    assert torch.allclose(values[0][0], values[1][0], rtol=1e-12)
    assert torch.allclose(values[0][1], values[1][1], rtol=1e-10, atol=1e-14)
