"""E3: a run that collapses is told so in plain words, and one that does not is left in peace."""

import math

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core import journal
from partwhole.core.doctor import WINDOW, Collapsed, Doctor, Finding, diagnose
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet

quick = settings(max_examples=50, deadline=None, derandomize=True)


def kinds(rows):
    return {f.kind for f in diagnose(rows)}


def rows(count=40, **values):
    """Lines of a run that does well, but for ``values``: numbers, or functions of the line's number."""
    sound = {
        "loss": lambda i: 4.0 * 0.97**i,
        "std": 0.9,
        "gradient_norm": 1.0,
        "lr": lambda i: min(1.0, (i + 1) / 5),
        "features/std": 0.7,
        "features/rankme": 20.0,
        "features/rankme_centred": 20.0,
        **values,
    }
    return [{"step": 10 * i, **{k: v(i) if callable(v) else v for k, v in sound.items()}} for i in range(count)]


# ------------------------------------------------------------------ whole trainings


@pytest.mark.parametrize("name", toys.HEALTHY)
def test_E3_nothing_is_said_of_a_run_that_learns(name, tmp_path, heard):
    fit(*toys.train(*toys.HEALTHY[name], doctor="stop"), tmp_path, watch=heard)
    assert [text for text in heard.said if "waited for data" not in text] == []  # which is of the machine
    lines = journal.read(tmp_path / "metrics.jsonl")
    assert len(lines) == 40
    assert [f for i in range(40) for f in diagnose(lines[:i])] == []


@pytest.mark.parametrize("name", toys.COLLAPSED)
def test_E3_a_run_that_collapses_is_told_so(name, tmp_path, heard):
    make, view, options, words = toys.COLLAPSED[name]
    fit(*toys.train(make, view, **options), tmp_path, watch=heard)
    assert any(words in text for text in heard.said), heard.said
    assert len(heard.said) == len(set(heard.said)) <= 4, "each finding once"
    assert any(f.collapsed for f in diagnose(journal.read(tmp_path / "metrics.jsonl")))


def test_E3_a_dead_run_has_no_gradient_and_only_the_monitor_tells(tmp_path):
    """NT-Xent of equal rows: the encoder gets a gradient of exactly 0, the loss stays at ln(candidates)."""
    make, view, *_ = toys.COLLAPSED["simclr, dead"]
    run, options = toys.train(make, view, steps=60)
    fit(run, options, tmp_path, watch=Quiet())
    lines = journal.read(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss"] == pytest.approx(math.log(63), abs=1e-5)
    assert lines[-1]["gradient_norm"] < 1e-4
    assert lines[-1]["features/std"] == 0
    assert lines[-1]["features/rankme"] == 1
    assert "dead features" in kinds(lines)
    without = [{k: v for k, v in line.items() if not k.startswith("features/") and k != "std"} for line in lines]
    assert "dead features" not in kinds(without)


def test_E3_a_run_may_be_stopped_saved_and_gone_on_with(tmp_path, heard):
    make, view, *_ = toys.COLLAPSED["simclr, dead"]
    with pytest.raises(Collapsed, match=r"step 30: training has collapsed: std of .* --fit.doctor tell goes on") as e:
        fit(*toys.train(make, view, steps=45, doctor="stop"), tmp_path, watch=Quiet())
    assert str(tmp_path) in str(e.value)
    assert (tmp_path / "last.pt").exists()
    assert journal.read(tmp_path / "metrics.jsonl")[-1]["step"] == 30
    with pytest.raises(Collapsed, match="step 35"):  # it remembers the lines before
        fit(*toys.train(make, view, steps=45, doctor="stop"), tmp_path, watch=heard)
    fit(*toys.train(make, view, steps=45, doctor="tell"), tmp_path, watch=Quiet())
    assert journal.read(tmp_path / "metrics.jsonl")[-1]["step"] == 45


def test_all_ranks_end_together_when_the_doctor_stops(ranks, tmp_path):
    messages = ranks(2, "collapse", str(tmp_path), timeout=60)
    assert all(m.startswith("Collapsed: step 30") for m in messages), messages


# ------------------------------------------------------------------ single lines


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"gradient_norm": 0.0}, "no gradient", "the gradient has been 0 (0)"),
        ({"features/std": 0.0}, "dead features", "features is 0"),
        ({"features/std": 0.0004, "std": 0.003}, "low std", "of the embeddings z to 0.003 and of the encoder's"),
        ({"a/std": 0.001}, "low std", "of the embeddings z to 0.001"),
        ({"features/rankme_centred": 1.05}, "one direction", "RankMe less their mean: 1.05"),
        ({"loss": math.log(4096)}, "loss of chance", "8.318 = ln 4096: that of an output which is the same"),
        ({"entropy": 0.001, "entropy_of_mean": 0.002}, "teacher on one prototype", "entropy is 0.001"),
        ({"x/entropy": 6.2383, "x/entropy_of_mean": 6.2383}, "teacher says the same", "6.238 = ln 512"),
        ({"entropy": 6.2301, "entropy_of_mean": 6.2302}, "teacher says the same", "stayed at 6.23, and so has"),
        ({"loss": math.log(8191)}, "loss of chance", "9.011 = ln 8191"),
        ({"prototypes/used": 0.01}, "dead prototypes", "choose 1 %"),
        ({"loss": lambda i: 1.37 + 0.002 * math.sin(i)}, "flat loss", "stayed between 1.3"),
        ({"loss": lambda i: 9 - 0.1 * i, "kl": 0.35}, "flat loss", "kl has stayed between 0.35 and 0.35"),
        ({"gradient_norm": lambda i: 1.0 if i < 30 else 1e4}, "exploding gradient", "grown to 1e+04, where 1 was"),
        ({"loss": None}, "not finite", "loss is NaN"),
        ({"entropy": math.inf, "loss": None}, "not finite", "entropy, loss are NaN"),
    ],
)  # fmt: skip
def test_each_finding_by_its_lines(values, kind, words):
    found = [f for f in diagnose(rows(**values)) if f.kind == kind]
    assert len(found) == 1, diagnose(rows(**values))
    assert words in found[0].text
    assert diagnose(rows(**values)[: WINDOW - 1]) == []
    assert not found[0].text.endswith(".")


@quick
@given(
    seed=st.integers(0, 10**6),
    loss=st.floats(-1, 12),
    falls=st.floats(0.02, 1),
    noise=st.floats(0, 0.3),
    spread=st.floats(0.005, 1.2),
    rank=st.floats(1.5, 300),
    grown=st.floats(0.02, 30),
)
def test_nothing_is_said_of_noisy_losses_that_fall(seed, loss, falls, noise, spread, rank, grown):
    import random

    draw = random.Random(seed)
    lines = rows(
        60,
        loss=lambda i: loss - falls * i / 60 * max(abs(loss), 1) + noise * draw.gauss(0, 0.1),
        gradient_norm=lambda i: grown ** (i / 60) * draw.lognormvariate(0, 0.5),
        entropy=lambda i: 4 - 0.02 * i,
        entropy_of_mean=lambda i: 4.2 - 0.015 * i,
        **{"features/std": spread, "features/rankme_centred": rank, "prototypes/used": 0.05},
    )
    assert [diagnose(lines[:i]) for i in range(60)] == [[]] * 60


def test_a_low_start_is_none_of_its_business():
    """Before the rate is at its highest a net may give nearly the same for every input, and a loss stand at ln K."""
    young = {"features/std": 0.0005, "std": 0.01, "loss": math.log(65536), "entropy": 11.09, "entropy_of_mean": 11.09}
    assert diagnose(rows(**young, lr=lambda i: i * 1e-5)) == []
    assert kinds(rows(**young)) == {"low std", "loss of chance", "teacher says the same"}


def test_one_bad_line_is_no_finding_and_each_is_told_once():
    bad = rows(20, **{"features/std": lambda i: 0.0001 if i % 3 == 0 else 0.5})
    doctor = Doctor()
    assert [f for line in bad for f in doctor.look(line)] == []
    doctor = Doctor()
    told = [(line["step"], f.kind) for line in rows(30, std=0.001) for f in doctor.look(line)]
    assert told == [(90, "low std")]  # the rate rises in the first five lines
    assert Doctor(rows(30, std=0.001)).look(rows(1, std=0.001)[0]) != []


def test_evaluations_between_the_lines_are_passed_over():
    lines = rows(std=0.001)
    mixed = [x for line in lines for x in (line, {"step": line["step"], "iou": 0.5, "std": 9.0})]
    assert diagnose(mixed) == diagnose(lines) != []
    assert diagnose([]) == []
    assert isinstance(diagnose(lines)[0], Finding)
