"""Losses over many classes: distillation, masked tokens, a linear head. Some rows at a time, masked ones never."""

import itertools
import math

import pytest
import torch
from common import check_case, coin, draw
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from partwhole.core.losses import distill, linear_cross_entropy, masked_cross_entropy


def loop_cross_entropy(logits, target, counted):
    """logits (..., K)."""
    rows = zip(logits.flatten(0, -2), target.flatten(), counted.flatten(), strict=True)
    terms = [sum(x.exp() for x in row).log() - row[t] for row, t, c in rows if c]
    return sum(terms) / len(terms)


TARGET, HIDDEN, VALID = (
    torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(3)),
    coin(4, 6),
    coin(4, 6, seed=1),
)
CASES = {
    "masked_cross_entropy": dict(
        loss=lambda x, t, h, v: masked_cross_entropy(x, t, h, valid=v),
        reference=lambda x, t, h, v: loop_cross_entropy(x, t, h & v),
        inputs=(draw(4, 6, 5), TARGET, HIDDEN, VALID),
        valid=3,
        count=lambda x, t, h, v: (h & v).sum(),
    ),
    "linear_cross_entropy": dict(
        loss=lambda f, t, v: linear_cross_entropy(f, W.to(torch.promote_types(f.dtype, torch.float32)), t, valid=v),
        reference=lambda f, t, v: loop_cross_entropy(f @ W.mT, t, v),
        inputs=(draw(4, 6, 3), TARGET, VALID),
        valid=2,
        count=lambda f, t, v: v.sum(),
    ),
    "linear_cross_entropy, tiled, with a bias": dict(
        loss=lambda f, w, b: linear_cross_entropy(f, w, TARGET[0], bias=b, valid=VALID[0], tile=2),
        reference=lambda f, w, b: loop_cross_entropy(f @ w.mT + b, TARGET[0], VALID[0]),
        inputs=(draw(6, 3), draw(5, 3, seed=1), draw(5, seed=2)),
        axis=None,
    ),
}
W = draw(5, 3, seed=4).bfloat16().double()  # the same number in every dtype


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    check_case(**CASES[case])


@pytest.mark.parametrize("tile", [1, 4, 7, None])
@pytest.mark.parametrize("bias", [False, True])
def test_L10_a_head_in_tiles_equals_cross_entropy_of_all_logits(tile, bias):
    """Value and all gradients, ignored rows, grad_output other than 1; by default, and with tiles that do not fit."""
    N, K = (500, 300) if tile is None else (7, 5)
    target, valid = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(0)), coin(N, chance=0.7)
    live = [draw(N, 4), draw(K, 4, seed=1), *([draw(K, seed=2)] if bias else [])]
    live = [x.requires_grad_() for x in live]
    b = live[2] if bias else None
    values = [
        linear_cross_entropy(live[0], live[1], target, bias=b, valid=valid, tile=tile),
        cross_entropy(linear(live[0], live[1], b), target.masked_fill(~valid, -100)),
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    for got, expected in zip(*(torch.autograd.grad(v * -2.5, live) for v in values), strict=True):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 2])
def test_L7_nothing_to_count_is_zero_with_zero_gradient(tile):
    f, w = draw(6, 3).requires_grad_(), draw(5, 3).requires_grad_()
    nothing = torch.zeros(6, dtype=torch.bool)
    total = linear_cross_entropy(f, w, TARGET[0], valid=nothing, tile=tile) + masked_cross_entropy(
        f, TARGET[0], nothing
    )
    total.backward()
    assert total.item() == 0
    for x in (f, w):
        assert x.grad is not None
        assert not x.grad.any()


class Rows(TorchDispatchMode):
    """The shapes of matrix products, and the largest tensor that is made, in bytes, within."""

    def __init__(self):
        super().__init__()
        self.products, self.most = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products.append([tuple(x.shape) for x in args])
        if any(r.alias_info is not None for r in func._schema.returns):
            return out  # a view, or changed in place
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.most = max(self.most, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("tile", [None, 64])
def test_masked_rows_never_reach_the_head(tile):
    f, w = draw(400, 4).requires_grad_(), draw(900, 4, seed=1).requires_grad_()
    valid = torch.arange(400) % 4 == 0
    with Rows() as seen:
        linear_cross_entropy(f, w, torch.zeros(400, dtype=torch.int64), valid=valid, tile=tile)
    assert sum(a[0] for a, b in seen.products if b == (4, 900)) == 100


def test_a_head_in_tiles_never_makes_all_logits():
    f, w = draw(4096, 8).float().requires_grad_(), draw(2000, 8, seed=1).float().requires_grad_()
    with Rows() as seen:
        linear_cross_entropy(f, w, torch.zeros(4096, dtype=torch.int64)).backward()
    assert seen.most <= 4 << 21 < 4096 * 2000 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_logits_only_their_gradient_is_as_large(dtype):
    """Nothing of float32 as large as them where they are bfloat16; and under autocast as without."""
    student, teacher = draw(4, 8, 65536).to(dtype).requires_grad_(), draw(2, 8, 65536, seed=1).softmax(-1).to(dtype)
    size = student.numel() * student.element_size()
    with torch.autocast("cpu", torch.bfloat16), Rows() as seen:
        loss = distill(student, teacher)
        forward, seen.most = seen.most, 0
        loss.backward()
    assert forward <= size / 4
    assert seen.most == size, "the gradient itself"
    logits = student.detach().flatten(0, 1).requires_grad_()
    with Rows() as seen:
        masked_cross_entropy(logits, torch.arange(32), coin(32))
        assert seen.most <= size / 4


@pytest.mark.parametrize("shape", [(2, 1, 3), (4, 3, 70000), (3, 20, 30000), (1, 3, 5)])
def test_distill_in_chunks_is_cross_entropy_over_pairs(shape):
    """Chunks of some rows, uneven ones; also of a temperature that learns."""
    S, B, K = shape
    student, t = draw(*shape).requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    teacher = draw(2, B, K, seed=1).softmax(-1)
    log = (student / t).log_softmax(-1)
    pairs = [(i, j) for i, j in itertools.product(range(S), range(2)) if i != j]
    expected = -sum((teacher[j] * log[i]).sum() for i, j in pairs) / (len(pairs) * B)
    got = distill(student, teacher, temperature=t)
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(*(torch.autograd.grad(x * 3, (student, t)) for x in (got, expected)), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_distill_counts_masses_as_they_are():
    """Targets that do not sum to 1 weigh as much as they have; a student's own view takes no part."""
    student = draw(2, 3, 4)
    teacher = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert distill(student, teacher).item() == 0
    teacher[0, :, 1] = 2.0
    expected = -2 * (student[1] / 0.1).log_softmax(-1)[:, 1].mean() / 2
    assert distill(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_uniform_prediction_costs_ln_K():
    assert masked_cross_entropy(torch.zeros(4, 6, 5), TARGET, HIDDEN).item() == pytest.approx(math.log(5))
    assert linear_cross_entropy(draw(6, 3), torch.zeros(5, 3).double(), TARGET[0]).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: masked_cross_entropy(draw(4, 6, 5), TARGET, HIDDEN[0]), "hidden"),
        (lambda: masked_cross_entropy(draw(4, 6, 5), TARGET.float(), HIDDEN), "integer target"),
        (lambda: linear_cross_entropy(draw(4, 6, 5), W, TARGET), r"weight \(K, D\)"),
        (lambda: linear_cross_entropy(draw(6, 3), W, TARGET[0], tile=0), "at least one row"),
    ],
)
def test_P14_wrong_arguments_are_told_so(work, message):
    with pytest.raises(ValueError, match=message):
        work()


def test_chunks_say_that_they_have_no_second_derivative():
    student = draw(2, 3, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(distill(student, draw(2, 3, 4).softmax(-1)), student, create_graph=True)
