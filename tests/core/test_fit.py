"""The loop: what a step is, what it logs."""

import json

import pytest
import torch

from partwhole.core import pace
from partwhole.core.data import Stream
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.schedules import learning_rate
from partwhole.core.watch import Lines, Quiet, Remaining, duration


def trained(cases, name, batch=8, **options):
    method, stream = cases.make(name)
    stream.batch = batch
    fit(Run(method=method, stream=stream), Fit(**options), watch=Quiet())
    return method.state_dict()


def distance(a, b):
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


# ------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 0.000304586, 100: 0.0}),
        ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 99: 1.0, 100: 1.0}),
        ("halving", {0: 0.1, 10: 1.0, 39: 1.0, 40: 0.5, 69: 0.5, 70: 0.25, 99: 0.25, 100: 0.25}),
    ],
)
def test_S2_schedules_at_first_last_and_after(schedule, values):
    got = {step: learning_rate(step, 100, schedule=schedule, warmup=0.1, halvings=2) for step in values}
    assert got == pytest.approx(values, abs=1e-8)


def test_S2_floor_and_no_warmup():
    assert learning_rate(0, 10, warmup=0.0) == 1
    assert learning_rate(10, 10, warmup=0.0, floor=0.1) == pytest.approx(0.1)
    assert learning_rate(9, 10, warmup=1.0) == 1
    assert learning_rate(99, 100, schedule="halving", warmup=0, halvings=9, floor=0.01) == 0.01
    with pytest.raises(ValueError, match="choose cosine"):
        learning_rate(5, 10, schedule="step")


def test_S2_the_loop_uses_the_schedule_by_optimizer_step(cases, tmp_path):
    method, stream = cases.make("rows")
    options = Fit(steps=6, lr=0.5, warmup=0.5, accumulate=2, log_every=1)
    fit(Run(method=method, stream=stream), options, tmp_path, watch=Quiet())
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.5 * learning_rate(t, 6, warmup=0.5) for t in range(6)], rel=1e-6)


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("name", ["rows", "byol", "dino"])
def test_S1_micro_batches_equal_one_batch(cases, name):
    options = {"steps": 3, "optimizer": "sgd", "lr": 0.1}
    whole = trained(cases, name, batch=8, **options)
    assert distance(whole, trained(cases, name, batch=2, accumulate=4, **options)) < 1e-12
    assert distance(whole, trained(cases, name, batch=2, **options)) > 1e-6


def test_S1_micro_batches_weigh_by_their_items(cases):
    options = {"steps": 3, "optimizer": "sgd", "lr": 0.1}
    whole = trained(cases, "counted", batch=8, **options)
    assert distance(whole, trained(cases, "counted", batch=2, accumulate=4, **options)) < 1e-12


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_lowers_the_loss(cases, optimizer, tmp_path):
    method, stream = cases.make("rows")
    fit(
        Run(method=method, stream=stream),
        Fit(steps=30, lr=0.02, optimizer=optimizer, log_every=1),
        tmp_path,
        watch=Quiet(),
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_vectors_do_not_decay(cases):
    method, stream = cases.make("rows")
    torch.nn.init.ones_(method.head.net.bias)
    fit(Run(method=method, stream=stream), Fit(steps=1, lr=1e-9, warmup=0, weight_decay=1e8), watch=Quiet())
    assert method.head.net.bias.min() > 0.99
    assert method.head.net.weight.abs().max() < 1e-6 + 0.9 * 0.4


def test_clipping_bounds_the_step(cases):
    def moved(clip):
        before = cases.make("rows")[0].state_dict()
        after = trained(cases, "rows", steps=1, lr=1.0, warmup=0, optimizer="sgd", weight_decay=0, clip=clip)
        return torch.cat([(after[k] - before[k]).flatten() for k in after]).norm().item()

    assert moved(None) > 0.1
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)


def test_bf16_computes_low_and_keeps_weights(cases):
    method, _ = cases.make("rows")
    method.float()
    seen = []
    method.head.net.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    floats = Stream(
        [{k: v.float() if v.is_floating_point() else v for k, v in s.items()} for s in cases.clouds(False)],
        cases.same,
        batch=4,
    )
    fit(Run(method=method, stream=floats), Fit(steps=2, bf16=True), watch=Quiet())
    assert seen[0] == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in method.parameters())


@pytest.mark.slow
def test_compiled_training_equals_plain(cases, monkeypatch):
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile(self, backend="eager"))  # no C++ compiler
    options = {"steps": 3, "optimizer": "sgd", "lr": 0.1}
    assert distance(trained(cases, "rows", **options), trained(cases, "rows", compile=True, **options)) < 1e-10


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"accumulate": 0}, {"warmup": 1.5}, {"log_every": 0}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Fit(**wrong)


# ------------------------------------------------------------------ telling


def test_progress_evaluations_and_the_journal(cases, tmp_path, heard):
    method, stream = cases.make("rows")
    modes = []

    def evaluate(m):
        modes.append((m.training, torch.is_grad_enabled()))
        return {"score": float("nan")}

    fit(
        Run(method=method, stream=stream, evaluate=evaluate),
        Fit(steps=7, log_every=2, evaluate_every=3),
        tmp_path,
        watch=heard,
    )
    assert [s for s, _ in heard.steps] == [2, 4, 6, 7]
    logged = {"total", "loss", "lr", "gradient_norm", "steps_per_second", "memory_mb", "waiting"}
    assert heard.steps[0][1].keys() >= logged
    assert [s for s, _ in heard.metrics] == [3, 6, 7]
    assert modes == [(False, False)] * 3
    assert method.training
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6, 7, 7]
    assert lines[1] == {"step": 3, "score": None}  # NaN is no JSON


def test_an_evaluation_does_not_change_the_training_and_its_noise_follows_from_the_step(cases, heard):
    def run(evaluate_every):
        method, stream = cases.make("byol")

        def evaluate(m):
            return {"noise": torch.rand(()).item()}

        options = Fit(steps=4, evaluate_every=evaluate_every)
        torch.manual_seed(evaluate_every)
        fit(Run(method=method, stream=stream, evaluate=evaluate), options, watch=heard)
        return method.state_dict(), dict(heard.metrics)

    often, often_noise = run(1)
    heard.metrics.clear()
    once, once_noise = run(100)
    assert distance(often, once) == 0
    assert often_noise[4] == once_noise[4] != often_noise[3]


def test_S2_after_step_is_told_the_progress_by_optimizer_step(cases):
    method, stream = cases.make("rows")
    seen = []
    method.after_step = seen.append
    fit(Run(method=method, stream=stream), Fit(steps=4, accumulate=2), watch=Quiet())
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_plain_lines_show_rate_and_remaining_time(capsys):
    lines = Lines(every=0)
    for done in (10, 20, 40):
        lines.step(done, {"total": 40, "loss": 0.123456})
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "10/40  loss 0.1235"
    assert second.startswith("20/40  loss 0.1235  0 s left")
    assert last == "40/40  loss 0.1235"


def test_remaining_time_is_linear_in_the_steps(monkeypatch):
    now = iter([100.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    left = Remaining()
    assert left(5, 100) == ""
    assert left(15, 100) == "1 min 25 s"  # a second a step
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def clocked(monkeypatch, moments):
    """A clock of which each look gives the next of ``moments``."""
    monkeypatch.setattr(pace.time, "monotonic", iter(moments).__next__)
    return pace.Pace()


def test_the_share_of_waiting_is_of_steps_alone(monkeypatch):
    one = [0, 0, 8, 10]  # of ten seconds, eight waited; then three of ten, and as many between two steps
    moments = one + [x + 20 * (i + 1) for i in range(30) for x in (0, 1, 4, 10)]
    seen = clocked(monkeypatch, moments)
    shares = []
    for _ in range(31):
        with seen.step(), seen.waiting():
            pass
        shares.append(seen.latest())
    assert shares == pytest.approx([0.8] + [0.3] * 30)
    assert seen.told("Do this") == "careful: waited for data in 30.0 % of the time of a step. Do this"


@pytest.mark.parametrize(("steps", "text"), [(5, ""), (6, "waited for data in 20.0 % of the time of a step")])
def test_little_waiting_needs_no_advice_and_a_short_run_tells_nothing(monkeypatch, steps, text):
    seen = clocked(monkeypatch, [x + i for i in range(steps) for x in (0, 0.1, 0.3, 1)])
    for _ in range(steps):
        with seen.step(), seen.waiting():
            pass
    assert seen.told("Do this") == text


def test_a_loop_that_waits_says_what_to_do(cases, tmp_path, monkeypatch, heard):
    monkeypatch.setattr(pace, "SHORT", 0.0)
    monkeypatch.setattr(pace, "MUCH", -1.0)
    method, stream = cases.make("rows")
    run = Run(method=method, stream=stream, faster="Buy a disk")
    fit(run, Fit(steps=20, evaluate_every=50), tmp_path, watch=heard)
    assert sum("careful: waited for data in " in text and "Buy a disk" in text for text in heard.said) == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["waiting"] <= 1 for row in rows)
