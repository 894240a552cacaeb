"""Measures of features against loops and numpy, and the monitor of a training."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core.encoder import Vectors
from partwhole.core.evaluate import spread
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.monitor import ROWS, Monitor, alignment, rankme, uniformity, used
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Lines, Quiet

quick = settings(max_examples=40, deadline=None, derandomize=True)
sizes = {"n": st.integers(1, 12), "d": st.integers(1, 12), "seed": st.integers(0, 999)}


def drawn(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------ measures


@quick
@given(**sizes, centred=st.booleans())
def test_E2_rankme_is_numpys_and_within_its_bounds(n, d, seed, centred):
    x = drawn(n, d, seed)
    a = x.numpy() - x.numpy().mean(0) * centred
    s = np.linalg.svd(a, compute_uv=False)
    p = [v / s.sum() for v in s if v > 1e-10]
    expected = math.exp(-sum(v * math.log(v) for v in p)) if s.max() > 1e-10 else 1.0
    got = rankme(x, centred=centred).item()
    assert got == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= got <= min(n, d) + 1e-9


@quick
@given(
    **sizes,
    centred=st.booleans(),
    scale=st.sampled_from([1e-30, 1e-3, 1e4, 1e30]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_E2_rankme_does_not_see_scale_rotation_or_order(n, d, seed, centred, scale, dtype):
    x = drawn(n, d, seed, dtype)
    value = rankme(x, centred=centred).item()
    x = x.double()
    turn = torch.linalg.qr(drawn(d, d, seed + 1))[0]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert rankme((x @ turn)[order] * scale, centred=centred).item() == pytest.approx(value, rel=1e-5)
    if centred:
        assert rankme(x + 3.0, centred=True).item() == pytest.approx(value, rel=1e-5)


def test_E2_rankme_of_zeros_of_one_direction_and_of_all():
    for x in (torch.zeros(5, 3), torch.ones(5, 3), torch.ones(1, 3), torch.ones(5, 1)):
        assert rankme(x).item() == pytest.approx(1.0, abs=1e-9)
        assert rankme(x, centred=True).item() == pytest.approx(1.0, abs=1e-9)
    assert rankme(torch.eye(7)).item() == pytest.approx(7.0)
    assert rankme(torch.eye(7) + 100).item() < 1.2 < rankme(torch.eye(7) + 100, centred=True).item()
    assert rankme(torch.tensor([[1.0, torch.nan]])).isnan()
    with pytest.raises(ValueError, match=r"rows \(N, D\), at least one"):
        rankme(torch.zeros(0, 3))


@quick
@given(n=st.integers(2, 9), d=st.integers(1, 6), seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_uniformity_and_alignment_are_the_papers_by_loops(n, d, seed, scale):
    a, b = drawn(n, d, seed) * scale, drawn(n, d, seed + 1) * scale
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in a.tolist()]
    other = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in b.tolist()]

    def square(x, y):
        return sum((v - w) ** 2 for v, w in zip(x, y, strict=True))

    pairs = [math.exp(-2 * square(unit[i], unit[j])) for i in range(n) for j in range(i)]
    assert uniformity(a).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-4)
    near = sum(square(x, y) for x, y in zip(unit, other, strict=True)) / n
    assert alignment(a, b).item() == pytest.approx(near, abs=1e-4)


def test_uniformity_and_alignment_of_what_is_all_one():
    for x in (torch.zeros(4, 3), torch.ones(4, 3)):
        assert uniformity(x).item() == pytest.approx(0, abs=1e-6)
        assert alignment(x, x).item() == 0
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite).item() == pytest.approx(-8.0)
    assert alignment(opposite, -opposite).item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="2 rows or more"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match="of pairs"):
        alignment(torch.ones(1, 3), torch.ones(2, 3))


def test_used_counts_prototypes_of_those_that_could_be():
    assert used(torch.tensor([3, 3, 5, 7]), 100).item() == 3 / 4
    assert used(torch.tensor([0, 1] * 50), 8).item() == 2 / 8
    assert used(torch.tensor([], dtype=torch.int64), 8).item() == 0


# ------------------------------------------------------------------ while training

KEYS = {f"features/{k}" for k in ("std", "rankme", "rankme_centred", "uniformity")}


def journal(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["simclr", "byol", "dino", "mae", "acd", "groups", "joint", "layers"])
def test_every_method_is_watched_without_its_doing_and_learns_the_same(cases, name, tmp_path, monkeypatch):
    options = {"steps": 4, "log_every": 2, "accumulate": 2, "optimizer": "sgd", "lr": 0.1}
    watched = cases.train(name, options, tmp_path)
    paired = {"features/alignment"} if name in ("simclr", "byol", "dino", "acd") else set()
    choosing = {"prototypes/used"} if name in ("dino", "acd") else set()
    for line in journal(tmp_path):
        got = {k for k in line if k.startswith(("features/", "prototypes/"))}
        assert got == KEYS | paired | choosing
        assert all(math.isfinite(line[k]) for k in got)
    monkeypatch.setattr(Monitor, "watching", lambda self, batch, now: contextlib.nullcontext())
    plain = cases.train(name, options)
    assert all(torch.equal(watched[k], plain[k]) for k in plain), "watching must not change what is learned"


def test_what_is_watched_is_the_features_of_the_views(cases):
    method, stream = cases.make("simclr")
    batch = next(iter(stream(0)))
    monitor = Monitor(method)
    with monitor.watching(batch):
        method(batch)
    got = monitor.values()
    views = zip(batch["views"], batch["valid"], strict=True)
    a, b = (method.head.pool(method.encoder(x, valid=v), v) for x, v in views)
    assert got["features/std"] == pytest.approx(spread(a).item(), rel=1e-5)
    assert got["features/alignment"] == pytest.approx(alignment(a, b).item(), rel=1e-5)
    assert got["features/rankme"] == pytest.approx(rankme(a).item(), rel=1e-5)
    assert monitor.values() == {}, "what was told is let go"
    with monitor.watching(batch, False):
        method(batch)
    assert monitor.values() == {}
    monitor.close()
    assert not method.encoder._forward_hooks


@pytest.mark.parametrize("cls", [False, True])
def test_padding_is_not_measured_whatever_stands_before_it(cls):
    """A mask is of positions; with a CLS token there is one token more."""
    torch.manual_seed(0)
    net = TransformerEncoder(Vectors(3, 8, length=9), dim=8, depth=1, heads=2, cls=cls)
    method, x = SimCLR(net, hidden=8, dim=4), torch.randn(2, 5, 9, 3)
    valid = torch.arange(9) < torch.tensor([3, 4, 5, 6, 2])[:, None]
    monitor, got = Monitor(method), []
    for length in (6, 9):
        batch = {"views": list(x[:, :, :length]), "valid": [valid[:, :length]] * 2}
        with monitor.watching(batch):
            method(batch)
        got.append(monitor.values())
    assert got[0] == pytest.approx(got[1], rel=1e-4)


def test_prototypes_of_two_heads_are_not_taken_for_each_other(cases):
    """DINOv2's, for the whole and for tokens: the third of one is not the third of the other."""
    method, stream = cases.make("dinov2")
    batch, chosen = next(iter(stream(0))), []
    for head in method.distillation.heads:
        head.register_forward_hook(lambda module, x, y: chosen.append((module, y.flatten(0, -2).argmax(-1))))
    monitor = Monitor(method)
    with monitor.watching(batch):
        method(batch)
    pairs = {(id(module), k) for module, of in chosen for k in of.tolist()}
    could = min(sum(len(of) for _, of in chosen), 2 * 16)
    assert monitor.values()["prototypes/used"] == pytest.approx(len(pairs) / could)


def test_no_more_than_so_many_rows_are_measured_and_nothing_of_one_thing(cases):
    method, _ = cases.make("rows")
    monitor = Monitor(method)
    for count in (1, ROWS + 50):
        x = torch.randn(count, 6, 3, dtype=torch.float64)
        with monitor.watching({"x": x}):
            tokens = method.encoder(x)
        assert monitor.pooled[0].shape == (count, tokens.shape[-1])
        got = monitor.values()
        if count == 1:
            assert got == {}
        else:
            assert got["features/std"] == pytest.approx(spread(tokens[:ROWS].mean(1)).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])
def test_one_process_and_several_measure_alike(ranks, cases, name):
    one = cases.monitored(name)
    for got in ranks(3, "monitored", name):
        assert got == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_method_is_watched_and_traced_once(cases):
    for name in ("simclr", "byol", "dino"):
        method, stream = cases.make(name)
        batches = iter(stream(0))
        monitor = Monitor(method, always=True)
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        for now in (False, True, False):
            batch = next(batches)
            with monitor.watching(batch, now):
                method(batch)
            plain = monitor.values()
            with monitor.watching(batch, now):
                compiled(batch)
            assert monitor.values() == plain != {}


def test_lines_and_bars_leave_out_what_is_for_the_journal(capsys):
    Lines().step(4, {"total": 4, "loss": 0.5, "features/rankme": 3.0, "prototypes/used": 0.1, "a/loss": 1.0})
    assert capsys.readouterr().out == "4/4  loss 0.5  a/loss 1\n"


def test_hooks_are_gone_after_training_also_when_it_fails(cases):
    method, stream = cases.make("dino")
    fit(Run(method=method, stream=stream), Fit(steps=1), watch=Quiet())
    assert not any(m._forward_hooks for m in method.modules())

    def ends(start=0):
        return iter(())

    with pytest.raises(RuntimeError, match="the stream ended"):
        fit(Run(method=method, stream=ends), Fit(steps=1), watch=Quiet())
    assert not any(m._forward_hooks for m in method.modules())
