"""Optimizers and what moves with the optimizer step: LARS, rates by layer, decay, momentum and temperature."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partwhole.core import optim
from partwhole.core.data import Stream, together
from partwhole.core.encoder import Encoder, Vectors
from partwhole.core.fit import Fit, Run, fit, highest_lr, rates
from partwhole.core.lars import LARS
from partwhole.core.method import Method
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.dino import DINO
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet

quick = settings(max_examples=25, deadline=None, derandomize=True)


def distance(a, b):
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


# ------------------------------------------------------------------ LARS


def by_loops(w, m, grad, *, lr, momentum, weight_decay, trust):
    """The update from the paper, number by number; (w, m) after it."""
    d = grad.clone()
    if w.ndim > 1:
        flat_w, flat_d = w.flatten().tolist(), grad.flatten().tolist()
        flat_d = [g + weight_decay * x for g, x in zip(flat_d, flat_w, strict=True)]
        size, slope = math.sqrt(sum(x * x for x in flat_w)), math.sqrt(sum(x * x for x in flat_d))
        q = trust * size / slope if size > 0 and slope > 0 else 1.0
        d = torch.tensor([q * x for x in flat_d], dtype=w.dtype).view_as(w)
    m = momentum * m + d
    return w - lr * m, m


@quick
@given(
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    trust=st.sampled_from([1e-3, 0.02]),
)
def test_lars_is_the_papers_update(seed, scale, momentum, weight_decay, trust):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (2, 1, 3), (5,), ()]
    start = [torch.randn(s, generator=draw, dtype=torch.float64) * scale for s in shapes]
    ours = [nn.Parameter(x.clone()) for x in start]
    theirs = [(x, torch.zeros_like(x)) for x in start]
    optimizer = LARS(ours, 0.3, momentum=momentum, weight_decay=weight_decay, trust=trust)
    options = {"lr": 0.3, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
    for _ in range(3):
        grads = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
        for p, g in zip(ours, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        theirs = [by_loops(*pair, g, **options) for pair, g in zip(theirs, grads, strict=True)]
        for p, g in zip(ours, grads, strict=True):
            assert torch.equal(p.grad, g), "gradients are the caller's"
    for p, (w, _) in zip(ours, theirs, strict=True):
        assert torch.allclose(p, w, rtol=1e-12, atol=1e-12 * scale)


def test_lars_moves_a_matrix_by_a_fraction_of_its_size_whatever_the_gradients():
    for size in (1e-4, 1e4):
        w, b = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
        w.grad, b.grad = torch.full((3, 3), size), torch.full((3,), size)
        LARS([w, b], 1.0, trust=0.1).step()
        assert torch.allclose(w, torch.full((3, 3), 0.9))
        assert torch.allclose(b, 1 - torch.full((3,), size)), "a vector is not adapted"


def test_lars_on_zeros_is_plain_and_never_nan():
    zero, still, absent = (nn.Parameter(torch.full((2, 2), x)) for x in (0.0, 1.0, 1.0))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero, still, absent], 0.5).step()
    assert torch.equal(zero, torch.full((2, 2), -0.5))
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.equal(absent, torch.ones(2, 2))
    with pytest.raises(ValueError, match="momentum must not be negative"):
        LARS([zero], 0.5, momentum=-1.0)


LARGE = {"steps": 4, "optimizer": "lars", "lr": 5.0, "weight_decay": 0.1, "log_every": 1}


def test_lars_resumes_exactly_and_is_one_whatever_the_processes(ranks, cases, tmp_path):
    one, start = cases.train("byol", LARGE), cases.train("byol", {**LARGE, "lr": 1e-30})
    assert distance(one, start) > 1e-3
    for options in (LARGE, {**LARGE, "shard": True}):
        for state in ranks(2, "train", "byol", options):
            assert distance(one, state) < 1e-12
    method, stream = cases.make("byol")

    def cut(start=0):
        yield from (b for _, b in zip(range(start, 2), stream(start), strict=False))

    options = Fit(**{**LARGE, "save_every": 1})
    with pytest.raises(RuntimeError, match="the stream ended"):
        fit(Run(method=method, stream=cut), options, tmp_path, watch=Quiet())
    again, stream = cases.make("byol")
    fit(Run(method=again, stream=stream), options, tmp_path, watch=Quiet())
    assert distance(again.state_dict(), one) == 0


# ------------------------------------------------------------------ rates by layer


class Tokens(TransformerEncoder):
    """With a token of the encoder's own."""

    def __init__(self, depth):
        super().__init__(Vectors(3, 8), dim=8, depth=depth, heads=2)
        self.cls = nn.Parameter(torch.zeros(8))


class Plain(Method):
    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = nn.Linear(8, 2)

    def forward(self, batch):
        return {"loss": self.head(self.encoder(batch["x"])).square().mean()}


def test_layer_decay_lowers_the_rate_towards_the_input():
    """Of a depth of 3: embedding and tokens 0.5^4, blocks 0.5^3, 0.5^2, 0.5, all behind them 1 (Bao et al., 2022)."""
    method = Plain(Tokens(3))
    rate = optim.rates(method, 0.5)
    got = {n: rate[id(p)] for n, p in method.named_parameters()}
    assert got["encoder.embed.project.weight"] == got["encoder.cls"] == 0.5**4
    assert [got[f"encoder.trunk.blocks.{i}.mlp.0.bias"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert got["encoder.trunk.norm.weight"] == got["head.weight"] == 1.0
    assert set(optim.rates(method).values()) == {1.0}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_each_group_gets_its_rate_and_vectors_no_decay(name):
    method = Plain(Tokens(2))
    optimizer = optim.make(method, name, lr=0.1, weight_decay=0.3, layer_decay=0.5)
    rate = optim.rates(method, 0.5)
    optim.tune(optimizer, lr=0.2, weight_decay=0.4)
    seen = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == 0.2 * rate[id(p)]
            assert group["weight_decay"] == (0.4 if p.ndim > 1 else 0.0)
            seen += 1
    assert seen == len(list(method.parameters()))


def test_the_loop_steps_by_the_layers_rates(cases):
    def moved(**options):
        method, stream = cases.make("rows")
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        fit(
            Run(method=method, stream=stream),
            Fit(steps=1, lr=0.1, warmup=0, weight_decay=0, optimizer="sgd", **options),
            watch=Quiet(),
        )
        return {n: p.detach() - before[n] for n, p in method.named_parameters()}

    plain, falling = moved(), moved(layer_decay=0.5)
    for name, fraction in (("encoder.embed.project.weight", 0.25), ("encoder.trunk.blocks.0.norm1.weight", 0.5)):
        assert torch.allclose(falling[name], plain[name] * fraction, atol=1e-12)
    assert torch.equal(falling["head.net.weight"], plain["head.net.weight"])


def test_an_encoder_without_layers_says_so():
    class Bare(Encoder):
        dim = 8

    with pytest.raises(NotImplementedError, match=r"Bare has no stages\(\)"):
        optim.rates(Plain(Bare()), 0.5)
    with pytest.raises(ValueError, match="layer_decay is a fraction"):
        Fit(layer_decay=1.5)


# ------------------------------------------------------------------ schedules


def test_S2_weight_decay_at_first_last_and_after():
    options = Fit(steps=100, weight_decay=0.04, weight_decay_end=0.4)
    got = {step: rates(options, step, 1.0)[1] for step in (0, 50, 99, 100)}
    assert got == pytest.approx({0: 0.04, 50: 0.22, 99: 0.39991118, 100: 0.4}, abs=1e-8)
    assert {rates(Fit(steps=7, weight_decay=0.3), step, 1.0)[1] for step in range(8)} == {0.3}


def test_S2_the_loop_sets_the_decay_by_optimizer_step(cases, monkeypatch):
    seen, tune = [], optim.tune

    def watched(optimizer, *, lr, weight_decay):
        seen.append(weight_decay)
        tune(optimizer, lr=lr, weight_decay=weight_decay)

    monkeypatch.setattr(optim, "tune", watched)
    method, stream = cases.make("rows")
    options = Fit(steps=4, accumulate=2, weight_decay=0.0, weight_decay_end=1.0)
    fit(Run(method=method, stream=stream), options, watch=Quiet())
    assert seen[-4:] == pytest.approx([(1 - math.cos(math.pi * t / 4)) / 2 for t in range(4)])


def test_S2_momentum_and_temperature_at_first_last_and_after():
    """Update t (0-based) of T is told the progress (t + 1) / T: the last one leaves the teacher where it is."""
    encoder = TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2)
    byol = BYOL(encoder, hidden=8, dim=4, momentum=0.9, norm="layer")
    dino = DINO(encoder, prototypes=4, hidden=8, bottleneck=4, momentum=0.9, teacher_temperature=(0.04, 0.07))
    momenta = []
    for method in (byol, dino):
        method.teacher.update = lambda *_, momentum: momenta.append(momentum)  # type: ignore[method-assign]
    steps = 10
    first, last, after = (1 / steps, (steps - 1) / steps, 1.0)
    for method in (byol, dino):
        for progress in (first, last, after):
            method.after_step(progress)
    one = [0.95 - 0.05 * math.cos(math.pi * p) for p in (first, last, after)]
    assert momenta == pytest.approx([*one, *one])
    assert momenta[2] == 1.0
    fresh = DINO(encoder, prototypes=4, hidden=8, bottleneck=4, teacher_temperature=(0.04, 0.07))
    told = [fresh.targets.temperature.item()]  # of step 0
    for progress in (0.15, 0.3, last, after):
        fresh.after_step(progress)
        told.append(fresh.targets.temperature.item())
    assert told == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


def test_the_rate_grows_with_the_batch_that_a_step_has(cases, tmp_path):
    method, stream = cases.make("rows")
    options = Fit(steps=2, lr=0.1, lr_per=cases.BATCH, accumulate=3, warmup=0, schedule="constant", log_every=1)
    fit(Run(method=method, stream=stream), options, tmp_path, watch=Quiet())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0.3, 0.3])
    assert highest_lr(Fit(lr=0.1), None) == 0.1
    two = together(a=Stream([1], cases.same, batch=1), b=Stream([1], cases.same, batch=1))
    with pytest.raises(ValueError, match="Together has none"):
        highest_lr(options, two)
    with pytest.raises(ValueError, match="lr_per is the size of a batch"):
        Fit(lr_per=0)
