"""KoLeo and Gram anchoring: loops from the papers, the official values, and what other libraries get wrong."""

import itertools
import math

import pytest
import torch
from common import DTYPES, check_case, cos, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.losses import gram_anchoring, koleo
from partwhole.core.threads import ranks


def loop_koleo(x: Tensor, eps: float = 1e-4) -> Tensor:
    u = [row / row.square().sum().sqrt() for row in x]
    terms = []
    for n in range(len(u)):
        others = [(u[n] - u[m]).square().sum().sqrt() for m in range(len(u)) if m != n]
        terms.append(-(min(others) + eps).log())
    return sum(terms[1:], terms[0]) / len(terms)


def loop_gram(student: Tensor, teacher: Tensor, valid: Tensor, negatives: str = "keep", across: bool = False) -> Tensor:
    B, L, _ = student.shape
    terms = []
    for (b, i), (c, j) in itertools.product(itertools.product(range(B), range(L)), repeat=2):
        if (across or b == c) and valid[b, i] and valid[c, j]:
            s, t = cos(student[b, i], student[c, j]), cos(teacher[b, i], teacher[c, j])
            if negatives == "drop" or (negatives == "teacher" and t < 0):
                s = s.clamp(min=0)
            if negatives != "keep":
                t = t.clamp(min=0)
            terms.append((s - t) ** 2)
    return sum(terms[1:], terms[0]) / len(terms)


VALID = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) < 0.7
GRAM = (draw(4, 5, 3), draw(4, 5, 6, seed=1), VALID)


def gram_case(**options):
    return dict(
        loss=lambda s, t, v: gram_anchoring(s, t, valid=v, **options),
        reference=lambda s, t, v: loop_gram(s, t, v, **options),
        inputs=GRAM,
        constant=(1,),
        valid=2,
        count=None if options.get("across") else lambda s, t, v: v.sum(1).square().sum(),
    )


CASES = {
    "koleo": dict(loss=koleo, reference=loop_koleo, inputs=(draw(7, 4),)),
    "koleo, the authors' eps": dict(
        loss=lambda x: koleo(x, eps=1e-8), reference=lambda x: loop_koleo(x, 1e-8), inputs=(draw(5, 3, seed=2),)
    ),
    "koleo, rows among more": dict(
        loss=lambda x: koleo(x[2:5], x, first=2) * 3 + koleo(x[:2], x) * 2 + koleo(x[5:], x, first=5) * 2,
        reference=lambda x: loop_koleo(x) * 7,
        inputs=(draw(7, 4),),
    ),
    "gram": gram_case(),
    "gram, no negatives": gram_case(negatives="drop"),
    "gram, none of the teacher's negatives": gram_case(negatives="teacher"),
    "gram, across things": gram_case(across=True),
    "gram, across things, no negatives": gram_case(across=True, negatives="drop"),
}


@pytest.mark.parametrize("case", CASES)
def test_P6_loss_equals_loops_and_its_gradient_is_right(case):
    check_case(**CASES[case])


# ------------------------------------------------------------------ koleo


@quick
@given(
    N=st.integers(2, 9),
    D=st.integers(2, 6),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1.0, 10.0, 1e2]),  # the gradient goes as 1 over it
    seed=st.integers(0, 99),
)
def test_P10_koleo_is_finite_and_exact_in_all_types_with_and_without_duplicates(N, D, dtype, size, seed):
    x = (draw(N, D, seed=seed) * size).to(dtype)
    assert koleo(x).item() == pytest.approx(loop_koleo(x.double()).item(), rel=1e-3, abs=1e-3)
    live = torch.cat([x, x[:1], x[:1]]).requires_grad_()
    loss = koleo(live)
    loss.backward()
    assert loss.isfinite()
    assert live.grad is not None
    assert live.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_P10_koleo_pushes_duplicates_apart(dtype, count):
    x = torch.cat([draw(1, 4).expand(count, 4), draw(3, 4, seed=1)]).to(dtype).requires_grad_()
    koleo(x).backward()
    assert x.grad is not None
    assert (x.grad[:count].norm(dim=1) > 1).all()
    moved = (x - 1e-3 * x.grad).detach()
    assert koleo(moved[:count]) < koleo(x.detach()[:count]) - 0.5


def test_P10_a_row_never_finds_itself():
    x = draw(5, 3)
    for eps in (1e-4, 1e-8):
        assert koleo(x, eps=eps).item() < 1, "the distance to oneself is 0, minus its logarithm large"
    assert koleo(x[3:4], x, first=3).item() != pytest.approx(koleo(x[3:4], x, first=2).item())
    with pytest.raises(ValueError, match="a single row has no neighbour"):
        koleo(x[:1])
    assert koleo(x[:0], x).item() == 0, "a process without rows"


def test_P11_every_option_of_koleo_changes_the_value():
    x = draw(4, 3)
    values = [koleo(x), koleo(x, eps=0.1), koleo(x, torch.cat([x, x + 0.01])), koleo(x, torch.cat([-x, x]), first=4)]
    assert len({round(v.item(), 9) for v in values}) == len(values)
    for options, wrong in (
        (dict(eps=0.0), "eps must be above 0"),
        (dict(key=x[:, :2]), "feature"),
        (dict(key=x, first=1), "not among 4 keys"),
        (dict(first=-1), "not among"),
    ):
        with pytest.raises(ValueError, match=wrong):
            koleo(x, **options)


def official_koleo(x: Tensor) -> Tensor:
    """As DINOv2 computes it: normalised rows, the nearest by inner product, 1e-8 added to every coordinate."""
    u = torch.nn.functional.normalize(x, eps=1e-8, p=2, dim=-1)
    nearest = (u @ u.T).fill_diagonal_(-1).argmax(1)
    return -(torch.nn.functional.pairwise_distance(u, u[nearest], eps=1e-8) + 1e-8).log().mean()


def test_koleo_is_the_official_code_with_its_eps():
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [3.0, 0.0, -1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    assert koleo(x, eps=1e-8).item() == pytest.approx(official_koleo(x).item(), rel=1e-7)
    assert koleo(x, eps=1e-8).item() == pytest.approx(0.271434, abs=1e-5)
    two = x[:1].repeat(2, 1).requires_grad_()
    official_koleo(two).backward()
    assert two.grad is not None
    assert two.grad.abs().max() < 1e-3 < koleo(two).item(), "there, equal rows stay equal"


@pytest.mark.parametrize("sizes", [(3, 4), (1, 1, 5), (0, 6, 1)])
def test_P1_koleo_over_ranks_is_that_of_all_rows(sizes):
    x = draw(7, 3)
    whole = x.clone().requires_grad_()
    koleo(whole).backward()
    pieces = [p.clone().requires_grad_() for p in x.split(sizes)]

    def loss(r: int) -> Tensor:
        z = pieces[r]
        return koleo(z, distributed.gather(z), first=distributed.start(len(z))) * distributed.share(len(z))

    with ranks(len(sizes)) as run:
        values = torch.stack(run(loss))
    values.mean().backward()
    assert values.mean().item() == pytest.approx(koleo(x).item(), rel=1e-12)
    got = torch.cat([p.grad for p in pieces if p.grad is not None])
    assert whole.grad is not None
    assert torch.allclose(got, whole.grad, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ gram anchoring


def test_P11_every_option_of_gram_anchoring_changes_the_value():
    student, teacher, valid = GRAM
    options = [{}, {"valid": valid}, *({"negatives": n} for n in ("drop", "teacher")), {"across": True}]
    options += [{"across": True, "negatives": n} for n in ("drop", "teacher")]
    assert len({round(gram_anchoring(student, teacher, **o).item(), 9) for o in options}) == len(options)


def test_gram_anchoring_lets_features_turn_and_stretch_together():
    x = draw(2, 6, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1))[0]
    for options in ({}, {"negatives": "drop"}, {"across": True}):
        assert gram_anchoring(x @ turn * 3, x, **options).item() == pytest.approx(0, abs=1e-20)
        assert gram_anchoring(x.roll(1, 1), x, **options).item() > 0.1
    flipped = torch.stack([x[0], -x[1]])
    assert gram_anchoring(flipped, x).item() == pytest.approx(0, abs=1e-20), "a thing alone does not tell"
    assert gram_anchoring(flipped, x, across=True).item() > 0.1, "things compared do"


def test_gram_anchoring_is_the_official_value():
    """Two tokens at 60 degrees for the student and 120 for the teacher: cosines 0.5 and -0.5 off the diagonal."""
    student = torch.tensor([[[1.0, 0.0], [0.5, math.sqrt(0.75)]]], dtype=torch.float64)
    teacher = torch.tensor([[[1.0, 0.0], [-0.5, math.sqrt(0.75)]]], dtype=torch.float64)
    assert gram_anchoring(student, teacher).item() == pytest.approx(0.5)
    for negatives in ("drop", "teacher"):
        assert gram_anchoring(student, teacher, negatives=negatives).item() == pytest.approx(0.125)
        assert gram_anchoring(teacher, teacher, negatives=negatives).item() == pytest.approx(0, abs=1e-12)
    assert gram_anchoring(teacher, student, negatives="drop").item() == pytest.approx(0.125)
    assert gram_anchoring(teacher, student, negatives="teacher").item() == pytest.approx(0.5)


def test_P14_gram_anchoring_of_nothing_is_zero():
    x = draw(2, 3, 4).requires_grad_()
    loss = gram_anchoring(x, draw(2, 3, 4, seed=1), valid=torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()
    with pytest.raises(ValueError, match=r"\(B, L, D\)"):
        gram_anchoring(draw(2, 3, 4), draw(2, 4, 4))
    with pytest.raises(ValueError, match='"keep", "drop" or "teacher"'):
        gram_anchoring(x, x, negatives="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("negatives", ["keep", "drop"])
def test_P1_gram_anchoring_across_things_of_all_ranks(negatives):
    """Every process has the whole loss, and the mean of their gradients is its gradient."""
    student, teacher, valid = GRAM
    whole = student.clone().requires_grad_()
    expected = gram_anchoring(whole, teacher, valid=valid, across=True, negatives=negatives)
    expected.backward()
    parts = [slice(0, 1), slice(1, 4)]
    lives = [student[p].clone().requires_grad_() for p in parts]

    def loss(r: int) -> Tensor:
        s, t, v = (distributed.gather(x) for x in (lives[r], teacher[parts[r]], valid[parts[r]]))
        return gram_anchoring(s, t, valid=v, across=True, negatives=negatives)

    with ranks(2) as run:
        values = torch.stack(run(loss))
    values.mean().backward()
    assert torch.allclose(values, expected.detach(), rtol=1e-12)
    got = torch.cat([live.grad for live in lives if live.grad is not None])
    assert whole.grad is not None
    assert torch.allclose(got, whole.grad, atol=1e-14)
