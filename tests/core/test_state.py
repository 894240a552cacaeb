"""What moves without the optimizer: teachers, averages, and what must not move at all."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partwhole.core.encoder import Head, Mean, Vectors, mlp
from partwhole.core.norm import BatchNorm
from partwhole.core.teacher import Average, Teacher
from partwhole.core.threads import ranks
from partwhole.core.transformer import TransformerEncoder

quick = settings(max_examples=25, deadline=None, derandomize=True)


def student(norm: str | None = None) -> tuple[TransformerEncoder, Head]:
    torch.manual_seed(0)
    return TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2), Head(Mean(), mlp(8, 6, 4, norm=norm))  # type: ignore[arg-type]


def shift(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(by)


def test_a_new_teacher_is_its_student_without_gradient():
    encoder, head = student()
    x, valid = torch.randn(5, 7, 3), torch.rand(5, 7) < 0.6
    teacher = Teacher(encoder, head)
    assert torch.equal(teacher(x), head(encoder(x)))
    assert torch.equal(teacher(x, valid), head(encoder(x, valid=valid), valid))
    assert not teacher(x.requires_grad_()).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    shift(encoder, 1.0)
    assert not torch.equal(teacher(x), head(encoder(x))), "a copy, not the student itself"


@quick
@given(
    momentum=st.floats(0, 1),
    steps=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_update_is_the_closed_form(momentum, steps, dtype):
    encoder, head = student()
    teacher = Teacher(encoder, head).double()
    start = [p.clone() for p in teacher.parameters()]
    shift(encoder, 1.0)
    shift(head, 1.0)
    head.to(dtype)  # a student of two dtypes, most of its tensors to be widened
    if dtype != torch.float32:
        encoder.to(dtype)
    goal = [p.double() for p in nn.ModuleList([encoder, head]).parameters()]
    for _ in range(steps):
        teacher.update(encoder, head, momentum=momentum)
    for p, before, end in zip(teacher.parameters(), start, goal, strict=True):
        assert torch.allclose(p, end + (before - end) * momentum**steps, atol=1e-6)


def test_update_refuses_another_student_or_momentum():
    encoder, head = student()
    teacher = Teacher(encoder, head)
    with pytest.raises(ValueError, match="shorter"):
        teacher.update(encoder, momentum=0.9)
    with pytest.raises(ValueError, match="momentum must be in"):
        teacher.update(encoder, head, momentum=1.1)


@pytest.mark.parametrize("order", ["cast, then follow", "made of a bfloat16 student"])
def test_S6_the_average_is_kept_in_float32_whatever_the_students_dtype(order):
    """1,000 steps of momentum 0.999 go 1 - 0.999^1000 = 0.632 of the way; in bfloat16 they would stop early."""
    net = nn.Linear(4, 4)
    with torch.no_grad():
        net.weight.fill_(1)
    if order == "cast, then follow":
        both = nn.ModuleList([net, Teacher(net)]).bfloat16()
        teacher = both[1]
    else:
        teacher = Teacher(net.bfloat16())
    assert isinstance(teacher, Teacher)
    with torch.no_grad():
        net.weight.fill_(2)
    for _ in range(1000):
        teacher.update(net, momentum=0.999)
    assert net.weight.dtype == torch.bfloat16
    (weight, _) = teacher.parameters()
    assert weight.dtype == torch.float32
    assert weight.mean().item() - 1 == pytest.approx(0.6323, abs=1e-3)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)])
def test_S6_casting_a_method_loses_nothing_of_its_teacher(cast):
    encoder, head = student("batch")
    teacher = Teacher(encoder, head)
    before = copy.deepcopy(teacher.state_dict())
    holder = cast(nn.ModuleList([teacher, Average(4, momentum=0.9)]))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {v.dtype for v in holder.state_dict().values()} == {torch.float32}
    assert {v.dtype for v in holder.double().state_dict().values()} == {torch.float64}
    x = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    assert teacher.float()(x).dtype == torch.float32, "inputs are widened to the weights"


@pytest.mark.parametrize("norm", [BatchNorm(4), nn.BatchNorm1d(4)])
def test_S7_what_becomes_of_buffers_is_one_argument(norm):
    x = torch.randn(9, 4) * 2 + 3
    ran = {}
    for buffers in ("copy", "average", "keep"):
        student = copy.deepcopy(norm)
        teacher = Teacher(student, buffers=buffers)  # type: ignore[arg-type]
        out = student(x)
        assert torch.allclose(teacher(x), out, atol=1e-6), "in training a teacher normalises by the batch"
        ran[buffers] = copy.deepcopy(dict(teacher.chain[0].named_buffers()))["running_mean"]
        shift(student, 1.0)
        teacher.update(student, momentum=0.75)
        mine, theirs = dict(teacher.chain[0].named_buffers()), dict(student.named_buffers())
        if buffers == "copy":
            expected = theirs["running_mean"]
        elif buffers == "average":
            expected = 0.25 * theirs["running_mean"]  # it was 0, and the pass above has not moved it
        else:
            expected = x.mean(0) * 0.1
        assert torch.allclose(mine["running_mean"], expected, atol=1e-6), buffers
        if "num_batches_tracked" in mine:
            assert mine["num_batches_tracked"].item() == 1
        teacher.eval()
        assert not torch.allclose(teacher(x), out, atol=1e-3), "in eval mode it uses its running statistics"
    assert not ran["copy"].any()
    assert not ran["average"].any()
    assert ran["keep"].any()
    with pytest.raises(ValueError, match="buffers is"):
        Teacher(norm, buffers="drop")  # type: ignore[arg-type]


def test_tied_weights_stay_tied():
    tied = nn.Linear(3, 3)
    teacher = Teacher(tied, tied)
    assert len(list(teacher.parameters())) == 2
    shift(tied, 1.0)
    teacher.update(tied, tied, momentum=0.0)
    assert torch.equal(teacher.chain[0].weight, tied.weight)  # type: ignore[arg-type]
    assert teacher.chain[0] is teacher.chain[1]


# ------------------------------------------------------------------ averages


@quick
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), momentum=st.floats(0, 0.99), world=st.integers(1, 3))
def test_S1_micro_batches_and_ranks_are_one_batch(sizes, momentum, world):
    """One update by the mean of all rows, however they are spread over passes and processes."""
    passes = [[torch.randn(n, 3, dtype=torch.float64) for n in sizes[r:] + sizes[:r]] for r in range(world)]
    averages = [Average(3, momentum=momentum).double() for _ in range(world)]
    for average in averages:
        average.value.fill_(1.0)

    def add(r: int) -> None:
        for rows in passes[r]:
            averages[r].add(rows)

    if world == 1:
        add(0)
    else:
        with ranks(world) as run:
            run(add)
    every = torch.cat([rows for p in passes for rows in p])
    expected = torch.ones(3, dtype=torch.float64)
    if len(every):
        expected = momentum * expected + (1 - momentum) * every.mean(0)
    for average in averages:
        average.update()
        assert torch.allclose(average.value, expected, atol=1e-12)
        average.update()  # nothing came since
        assert torch.allclose(average.value, expected, atol=1e-12)


def test_S3_an_average_between_passes_is_in_its_state():
    a, b = Average(2, momentum=0.5), Average(2, momentum=0.5)
    a.add(torch.ones(3, 2))
    b.load_state_dict(a.state_dict())
    for x in (a, b):
        x.add(torch.zeros(1, 2))
        x.update()
    assert torch.equal(a.value, b.value)
    assert a.value.tolist() == [0.375, 0.375]


# ------------------------------------------------------------------ imports


@pytest.mark.slow
def test_S8_importing_moves_no_generator_and_no_flag():
    program = """
import random, sys, torch, numpy
def state():
    return [
        torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
        torch.get_num_threads(), torch.get_default_dtype(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.is_grad_enabled(),
        torch.backends.cuda.matmul.allow_tf32, torch.autograd.is_multithreading_enabled(),
    ]
before = state()
import pkgutil, importlib, logging, partwhole.core
handlers = list(logging.getLogger().handlers)
for module in pkgutil.walk_packages(partwhole.core.__path__, "partwhole.core."):
    importlib.import_module(module.name)
assert state() == before
assert list(logging.getLogger().handlers) == handlers
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_teacher_follows_ints_and_keeps_shapes():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor
            self.register_buffer("seen", torch.tensor(7))

        def forward(self, x: Tensor) -> Tensor:
            return x

    net = Counter()
    copied, averaged, kept = (Teacher(net, buffers=b) for b in ("copy", "average", "keep"))  # type: ignore[arg-type]
    net.seen.fill_(9)
    for teacher in (copied, averaged, kept):
        teacher.update(net, momentum=0.5)
    assert [next(t.buffers()).item() for t in (copied, averaged, kept)] == [9, 9, 7]
