"""The study of operators: it ends, goes on, repeats itself, and its map holds what was measured."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.encoder import Encoder, fresh
from partwhole.core.fit import Fit, NonFinite, fit
from partwhole.core.probe import Probe
from partwhole.core.report import decimal
from partwhole.core.watch import Quiet
from partwhole.vision import study
from partwhole.vision.exchange import export_timm
from partwhole.vision.network import Network
from partwhole.vision.sources import Source
from partwhole.vision.study import Augmentations

TOOLS = Path(__file__).parents[2] / "tools"


class Stopped(Quiet):
    """Interrupted where what is said begins with ``words``."""

    def __init__(self, words: str):
        self.words = words

    def say(self, text: str) -> None:
        if text.startswith(self.words):
            raise KeyboardInterrupt


def trained(heard) -> list[tuple[int, float]]:
    """Steps and how many there are, without those of images that are read, of which there are 12 or 16."""
    return [(done, values["total"]) for done, values in heard.steps if values["total"] not in (12, 16)]


@pytest.fixture(scope="module")
def data(coloured, tmp_path_factory) -> Path:
    """Noisy red and blue images of several sizes, all smaller than what the network sees or a little larger."""
    counts = {"train/blue": 8, "train/red": 8, "test/blue": 6, "test/red": 6}
    return coloured(tmp_path_factory.mktemp("images"), counts, lambda i: (10 + i, 14), noise=200, colour=20)


@pytest.fixture
def recipe(data, tmp_path) -> Augmentations:
    return Augmentations(
        data=(data,),
        source=Source(cache=tmp_path / "cache", workers=1),
        network=Network(width=0.125),
        size=16,
        batch=4,
        operators=("crop", "blur", "noise"),
        fit=Fit(steps=2, log_every=1, device="cpu"),
        measure=Probe(arms=("random", "frozen"), shots=(), draws=1),
    )


@pytest.fixture
def encoder(recipe) -> Encoder:
    """What the training of the run would leave; a study does not ask how good it is."""
    return recipe.build(watch=Quiet()).method.encoder.eval()


def cells(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["study"]["cells"]


NAMES = ["crop", "blur", "noise", "crop+blur", "crop+noise", "blur+noise", "noise+blur"]


def test_a_study_from_training_to_map(recipe, tmp_path, heard):
    recipe = replace(recipe, seeds=2, operators=("blur", "noise"))
    run = recipe.build(watch=heard)
    assert "9 more of as many follow, by blur, noise and their pairs" in heard.said[-1]
    save_encoder(fit(run, recipe.fit, tmp_path, watch=Quiet()).encoder, tmp_path)
    done = recipe.finish(load_encoder(tmp_path), tmp_path, heard)
    found = cells(tmp_path)
    assert list(found) == ["simclr", "blur", "noise", "blur+noise", "noise+blur"]
    assert all(len(found[name][readout]) == 2 for name in found for readout in ("linear", "knn"))

    page = done["report"].read_text()
    for readout, header in (("linear", "linear layer"), ("knn", "nearest neighbours")):
        at = [row[0] for row in done["table"]].index(header)
        assert done["table"][at] == [header, "blur", "noise", "mean"]
        for row, first in zip(done["table"][at + 1 : at + 3], recipe.operators, strict=True):
            draws = [found[study.cell_name(first, second)][readout] for second in recipe.operators]
            both = torch.tensor([*draws, torch.tensor(draws).mean(0).tolist()], dtype=torch.float64)
            text = [f"{m:.3f} ± {s:.3f}" for m, s in zip(both.mean(1).tolist(), both.std(1).tolist(), strict=True)]
            assert row == [first, *text]
            for column, m in zip([*recipe.operators, "mean"], both.mean(1).tolist(), strict=True):
                assert f"{first}, {column}: {decimal(m, 3)}" in page
    assert all(words in page for words in ("random network", "all of simclr", "blur, then noise"))
    assert "noise, then blur" in page

    steps, totals = zip(*trained(heard), strict=True)
    assert set(totals) == {9 * 2}
    assert list(steps) == list(range(1, 19))  # of all trainings, as one
    assert any(line.startswith("9 of 9  simclr: linear layer 0.") for line in heard.said)


def test_what_was_stopped_goes_on_with_the_same_numbers(recipe, encoder, tmp_path, heard):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = recipe.finish(encoder, whole, Quiet())["table"]
    for stop in ("2 of 7", "6 of 7"):
        with pytest.raises(KeyboardInterrupt):
            recipe.finish(encoder, parts, Stopped(stop))
    assert recipe.finish(encoder, parts, heard)["table"] == expected
    assert "6 of 7 trainings are kept in evaluation.json" in heard.said
    assert [step for step, _ in trained(heard)] == [13, 14]
    assert cells(whole) == cells(parts)


def test_more_operators_and_draws_are_added_to_what_is_there(recipe, encoder, tmp_path):
    small = replace(recipe, operators=("blur",))
    assert small.finish(encoder, tmp_path, Quiet())["table"][0] == ["linear layer", "blur", "mean"]
    first = cells(tmp_path)
    assert list(first) == ["simclr", "blur"]
    more = replace(recipe, operators=("noise", "blur"), seeds=2)
    more.finish(encoder, tmp_path, Quiet())
    second = cells(tmp_path)
    assert list(second) == ["simclr", "blur", "noise", "noise+blur", "blur+noise"]
    assert second["blur"]["linear"][:1] == first["blur"]["linear"]
    table = small.finish(encoder, tmp_path, Quiet())["table"]
    assert table[1] == ["blur", *[f"{first['blur']['linear'][0]:.3f}"] * 2]
    assert cells(tmp_path) == second


def test_cells_of_another_recipe_are_not_taken(recipe, encoder, tmp_path, heard):
    recipe.finish(encoder, tmp_path, Quiet())
    other = replace(recipe, temperature=0.5)
    other.finish(encoder, tmp_path, heard)
    assert any("trained or measured otherwise" in line for line in heard.said)
    assert trained(heard)[0] == (1, 14)


def test_every_cell_begins_alike_and_sees_its_operators(recipe, encoder, tmp_path, monkeypatch):
    seen = {}

    def fake(run, options, folder=None, *, watch=None):
        view = run.stream.view
        names = getattr(view.second, "names", ("all",))
        start = torch.cat([p.flatten() for p in run.method.parameters()])
        assert seen.setdefault((names, options.seed), start) is start
        assert (options.steps, run.stream.batch, run.stream.seed) == (2, 4, options.seed)
        return run.method

    monkeypatch.setattr(study, "fit", fake)
    replace(recipe, seeds=2, fit=replace(recipe.fit, seed=5)).finish(encoder, tmp_path, Quiet())
    assert set(seen) == {(tuple(name.split("+")), 5 + d) for name in NAMES for d in (0, 1)} | {(("all",), 6)}
    for d in (5, 6):
        starts = [start for (_, seed), start in seen.items() if seed == d]
        assert all(torch.equal(start, starts[0]) for start in starts)
    assert not torch.equal(seen[("crop",), 5], seen[("crop",), 6])


def test_a_training_that_breaks_is_one_missing_cell(recipe, encoder, tmp_path, monkeypatch, heard):
    def breaks(run, *rest, **options):
        if run.stream.view.second.names == ("crop", "noise"):
            raise NonFinite("step 1: the loss is nan")
        return fit(run, *rest, **options)

    monkeypatch.setattr(study, "fit", breaks)
    done = recipe.finish(encoder, tmp_path, heard)
    assert "crop+noise: given up: step 1: the loss is nan" in heard.said
    assert cells(tmp_path)["crop+noise"] == {"linear": [None], "knn": [None]}
    row = done["table"][1]
    assert row[0] == "crop"
    assert row[3] == "-"
    kept = [cells(tmp_path)[name]["linear"][0] for name in ("crop", "crop+blur")]
    assert row[4] == f"{sum(kept) / 2:.3f}"
    assert "crop, noise: \N{EN DASH}" in done["report"].read_text()


def test_cells_begin_with_given_weights_and_are_of_them_alone(recipe, encoder, tmp_path, monkeypatch):
    starts: list[dict] = []
    recipe = replace(recipe, operators=("crop", "blur"))

    def fake(run, *rest, **options):
        starts.append({name: x.clone() for name, x in run.method.encoder.state_dict().items()})
        return run.method

    monkeypatch.setattr(study, "fit", fake)
    export_timm(encoder, tmp_path / "weights.safetensors")
    save_encoder(encoder, tmp_path / "start")
    given = replace(recipe, network=replace(recipe.network, weights=tmp_path / "weights.safetensors"))
    others = [given, replace(recipe, init=tmp_path / "start", fit=replace(recipe.fit, seed=5))]
    for mine in (recipe, *others):
        starts.clear()
        mine.finish(encoder, tmp_path, Quiet())
        assert len(starts) == 3  # those of the one before do not count
        expected = mine.begun(mine.encoder()).state_dict() if mine is not recipe else starts[0]
        assert all(torch.equal(start[name], expected[name]) for start in starts for name in expected)
    starts.clear()
    others[1].finish(encoder, tmp_path, Quiet())
    save_encoder(fresh(encoder, seed=3), tmp_path / "start")
    assert starts == []
    others[1].finish(encoder, tmp_path, Quiet())
    assert len(starts) == 3
    kept = (tmp_path / "evaluation.json").read_text()
    (tmp_path / "start" / "encoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"safetensors \(--init\) is there no more: each cell begins with it"):
        others[1].finish(encoder, tmp_path, Quiet())
    assert (tmp_path / "evaluation.json").read_text() == kept


@pytest.mark.parametrize("readouts", [("knn",), ("sgd",)])
def test_cells_are_read_alike_however_the_whole_policy_is(readouts, recipe, encoder, tmp_path):
    small = replace(recipe, operators=("blur",), measure=replace(recipe.measure, readouts=readouts))
    page = small.finish(encoder, tmp_path, Quiet())["report"].read_text()
    assert cells(tmp_path)["blur"].keys() == {"linear", "knn"}
    assert ("random network, nearest neighbours" in page) == (readouts == ("knn",))


def test_what_a_study_does_not_measure_is_told(recipe, tmp_path, heard):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    replace(recipe, annotated=tmp_path).build(watch=heard)
    assert "careful: --annotated changes nothing: Augmentations measures by labels alone" in heard.said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"operators": ("crop", "color")}, r"'color'; did you mean colour\? There are crop, cutout"),
        ({"operators": ("zzz",)}, "no operator is called 'zzz'; there are crop"),
        ({"operators": ("crop", "blur", "crop")}, "each named once, and are crop, blur, crop"),
        ({"operators": ()}, "one or more, each named once, and are none"),
        ({"seeds": 0}, "seeds must be at least 1, and is 0"),
    ],
)
def test_what_cannot_be_studied_is_refused_at_once(fields, words):
    with pytest.raises(ValueError, match=words):
        Augmentations(**fields)


def test_data_that_cannot_be_measured_on_are_refused_before_training(recipe, tmp_path):
    flat, one, parts = tmp_path / "flat", tmp_path / "one", tmp_path / "parts"
    for folder in (flat, one / "red", parts / "train" / "red", parts / "test" / "red"):
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(folder / f"{i}.png")
    for unlabelled in (flat, one, parts):
        with pytest.raises(
            ValueError, match=r"have none, or all of them the same: give --labelled|two classes or more"
        ):
            replace(recipe, data=(unlabelled,)).build(watch=Quiet())
    labelled = replace(recipe, data=(flat,), labelled=recipe.data[0])
    assert labelled.build(watch=Quiet()).method


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_as_if_it_had_not_been(data, tmp_path):
    words = ["--modality", "vision", "--task", "augmentations", "--data", str(data), "--operators", "blur", "noise"]
    words += ["--size", "16", "--batch", "4", "--network.width", "0.125", "--fit.steps", "3", "--fit.device", "cpu"]
    words += ["--source.workers", "1"]

    def command(folder: str) -> list[str]:
        return [sys.executable, str(TOOLS / "run.py"), *words, "--folder", folder]

    def ended(folder: str) -> str:
        done = subprocess.run(command(folder), cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ended("whole")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        with subprocess.Popen(command("parts"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if " of 4  " in line:
                    os.kill(process.pid, number)
                    break
            process.stdout.read()
            assert process.wait(100) == code
    said = ended("parts")
    assert "finished, nothing to train" in said
    assert "of 4 trainings are kept" in said
    assert cells(tmp_path / "parts") == cells(tmp_path / "whole")
    refused = subprocess.run(
        [*command("parts"), "--temperature", "0.7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert refused.returncode == 2
    assert "temperature: 0.1 there, 0.7 now" in refused.stderr
