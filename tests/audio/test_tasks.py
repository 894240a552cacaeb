"""Every recipe on sounds trains three steps, is evaluated and leaves a page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from partwhole.audio.mel import Mel
from partwhole.audio.recipe import SoundRecipe
from partwhole.audio.sources import Among, Source
from partwhole.audio.tasks import TASKS
from partwhole.audio.waves import WaveRecipe
from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.data import Stream
from partwhole.core.evaluate import PENALTIES, accuracy, knn, ridge
from partwhole.core.fit import fit
from partwhole.core.probe import Probe, probe
from partwhole.core.watch import Quiet

RATE = 4_000
BY_LABELS = ("supervised", "pseudo-label", "fixmatch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """High and low tones of different lengths, a folder for each."""
    where, generator = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name, pitch in (("high", 1_200), ("low", 300)):
            (where / part / name).mkdir(parents=True)
            for i in range(count):
                t = np.arange(round(generator.uniform(0.12, 0.4) * RATE)) / RATE
                x = 0.3 * np.sin(2 * np.pi * pitch * t) + 0.01 * generator.normal(size=len(t))
                soundfile.write(where / part / name / f"{i}.wav", x, RATE)
    return where


def tiny(recipe: SoundRecipe, cache: Path, **rest) -> SoundRecipe:
    """The same recipe, small enough for a test."""
    words = {"vocabulary": 16} if hasattr(recipe, "vocabulary") else {"units": 8} if hasattr(recipe, "units") else {}
    small = {"dim": 32, "depth": 1}
    if isinstance(recipe, WaveRecipe):
        small |= {"channels": 8, "hop": 160}
    else:
        small |= {"width": 4, "tall": 8, "wide": 4}
    options = {
        "source": Source(cache=cache, generate=12, generate_labelled=3, workers=1),
        "mel": Mel(rate=RATE, bands=16, low=50),
        "network": replace(recipe.network, **small),
        "seconds": 0.32,
        "batch": 4,
        "fit": replace(recipe.fit, steps=3, log_every=1, device="cpu"),
        "measure": Probe(arms=("input", "random", "frozen"), shots=(1,), draws=1),
    }
    return replace(recipe, **{**words, **options, **rest})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_three_steps_and_is_shown(task, cache, folder, tmp_path):
    recipe = tiny(TASKS[task](), cache, data=(folder,))
    run = recipe.build(watch=Quiet())
    before = [p.clone() for p in run.method.encoder.parameters()]
    method = fit(run, recipe.fit, tmp_path, watch=Quiet())
    after = list(method.encoder.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    save_encoder(method.encoder, tmp_path)
    done = recipe.finish(load_encoder(tmp_path), tmp_path)
    page = done["report"].read_text()
    assert page.count("data:image/png") == (2 if task == "mae" else 1)
    assert page.count("data:audio/wav") == 6
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    rows = {"input linear", "random knn", "random linear", "frozen knn", "frozen linear"}
    assert set(evaluation["probe"]["arms"]) == rows
    assert np.sum(evaluation["confusion"]) == 8
    assert f"{type(recipe).__name__}, linear layer" in done["text"]
    assert ("accuracy" in evaluation.get("own", {})) == (task in BY_LABELS)
    assert ("What it answers" in page) == (task in (*BY_LABELS, "mae"))


def test_tones_are_learned_and_trained_from_scratch(cache, folder, tmp_path):
    measure = Probe(arms=("scratch", "frozen", "finetune"), shots=(), draws=1, steps=30, neighbours=5)
    recipe = tiny(TASKS["byol"](), cache, data=(folder,), measure=measure)
    method = fit(recipe.build(watch=Quiet()), recipe.fit, tmp_path, watch=Quiet())
    done = recipe.finish(method.encoder, tmp_path)
    arms = json.loads((tmp_path / "evaluation.json").read_text())["probe"]["arms"]
    assert arms["scratch"]["all"] == arms["finetune"]["all"] == [1.0]
    assert "none is taken for another" in done["report"].read_text()


def test_what_is_measured_are_features_of_each_sound_alone(cache, folder):
    recipe = tiny(TASKS["simclr"](), cache, data=(folder,), measure=Probe(arms=("frozen",), shots=(), draws=1))
    encoder, classes = recipe.encoder().eval(), recipe.classes()
    plain = recipe.plain()
    assert len({len(plain(sample)) for sample in classes.train}) > 3  # of different lengths, so padded in a batch
    with torch.no_grad():
        train, test = (
            torch.cat([encoder(plain(half[i])[None])[:, 0] for i in range(len(half))])
            for half in (classes.train, classes.test)
        )
    found = probe(encoder, classes, plain=plain, look=plain, options=recipe.measure)["arms"]
    by_hand = accuracy(knn(train, classes.train_label, test), classes.test_label)
    assert found["frozen knn"]["all"] == [by_hand]
    by_hand = accuracy(ridge(train, classes.train_label, test, penalty=PENALTIES), classes.test_label)
    assert found["frozen linear"]["all"] == [by_hand]


def test_sounds_without_labels_are_trained_on_and_not_measured(cache, tmp_path, heard):
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.random.default_rng(i).normal(size=500 + 100 * i), RATE)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    recipe = tiny(TASKS["simclr"](), cache, data=(tmp_path,))
    replace(recipe, batch=7).build(watch=heard)
    assert any("each of the 6 several times" in line for line in heard.said)
    out = tmp_path / "run"
    run = recipe.build(watch=heard)
    save_encoder(fit(run, recipe.fit, out, watch=Quiet()).encoder, out)
    assert any("broken.wav" in line and "skipped" in line for line in heard.said)
    done = recipe.finish(load_encoder(out), out, heard)
    assert "no labelled sounds" in done["text"]
    assert "broken.wav" in done["report"].read_text()
    with pytest.raises(ValueError, match=r"FixMatch learns from labels.*give --labelled"):
        tiny(TASKS["fixmatch"](), cache, data=(tmp_path,)).build(watch=Quiet())


def test_generated_sounds_are_the_default(cache, tmp_path):
    recipe = tiny(TASKS["dino"](), cache)
    method = fit(recipe.build(watch=Quiet()), recipe.fit, tmp_path, watch=Quiet())
    assert "DINO, linear layer" in recipe.finish(method.encoder, tmp_path)["text"]


def test_what_a_step_hides_needs_our_transformer(cache, heard):
    recipe = tiny(TASKS["mae"](), cache)
    with pytest.raises(ValueError, match=r"have 2 patches: too few.*Raise --seconds"):
        replace(recipe, seconds=0.03).build(watch=Quiet())
    with pytest.raises(ValueError, match="only our own transformer can leave out"):
        replace(recipe, network=replace(recipe.network, name="cnn")).build(watch=Quiet())
    replace(recipe, network=replace(recipe.network, width=9), seconds=0.3).build(watch=heard)
    assert any("--network.width changes nothing" in line for line in heard.said)
    assert any("longer than" in line and "raise --seconds" in line for line in heard.said)


@pytest.mark.parametrize(("rate", "told"), [(RATE, False), (2 * RATE, True)])
def test_sounds_that_were_recorded_at_a_lower_rate_are_told(cache, folder, heard, rate, told):
    tiny(TASKS["simclr"](), cache, data=(folder,), mel=Mel(rate=rate, bands=16, low=50)).build(watch=heard)
    assert any("bands are silent" in line and "--mel.rate" in line for line in heard.said) == told


def test_a_task_has_the_views_of_its_paper_and_the_network_that_it_needs():
    policies = {name: task().policy for name, task in TASKS.items()}
    assert {policies[t] for t in ("byol", "dino", "swav", "ibot")} == {"byola"}
    assert {policies[t] for t in ("mae", "beit", "ijepa", "data2vec")} == {"plain"}
    assert [policies[t] for t in ("simclr", "supervised", "fixmatch")] == ["simclr", "specaugment", "plain"]
    assert {t for t, task in TASKS.items() if task().network.name == "vit"} == {
        "ibot", "dinov2", "dinov3", "mae", "beit", "ijepa", "data2vec"
    }  # fmt: skip
    assert TASKS["mae"]().ratio == 0.8


@pytest.mark.parametrize("task", ["byol", "mae"])
def test_batches_are_the_same_from_any_number_of_workers(task, cache, folder):
    recipe = tiny(TASKS[task](), cache, data=(folder,))
    view, sounds = recipe.view(recipe.encoder()), Among(recipe.prepare())
    first = next(iter(Stream(sounds, view, batch=4, seed=1)(3)))
    later = next(iter(Stream(sounds, view, batch=4, seed=1, workers=2)(3)))
    for key, value in first.items():
        pairs = zip(value, later[key], strict=True) if isinstance(value, list) else [(value, later[key])]
        assert all(torch.equal(a, b) for a, b in pairs)
