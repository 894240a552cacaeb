"""Every recipe on images trains three steps, is evaluated and leaves a page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.fit import fit
from partwhole.core.probe import Probe
from partwhole.core.watch import Quiet
from partwhole.vision.recipe import ImageRecipe
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS, Pretext


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(coloured, tmp_path_factory) -> Path:
    """Red and blue squares, a folder for each, eight of them to learn from."""
    counts = {"train/blue": 8, "train/red": 8, "test/blue": 4, "test/red": 4}
    return coloured(tmp_path_factory.mktemp("images"), counts, (24, 24))


def tiny(recipe: ImageRecipe, cache: Path, **rest) -> ImageRecipe:
    """The same recipe, small enough for a test."""
    words = {"vocabulary": 16} if hasattr(recipe, "vocabulary") else {}
    words |= {"operators": ("crop", "blur")} if hasattr(recipe, "operators") else {}
    network = replace(recipe.network, width=0.125, dim=32, depth=1, patch=4)
    return replace(
        recipe,
        **words,
        source=Source(cache=cache, generate=12, generate_labelled=3, workers=1),
        network=network,
        size=16 if not isinstance(recipe, Pretext) else 48,
        batch=4,
        fit=replace(recipe.fit, steps=3, log_every=1, device="cpu"),
        measure=Probe(arms=("random", "frozen"), shots=(1,), draws=1),
        **rest,
    )


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
    assert page.count("data:image/png") >= 1
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(evaluation["probe"]["arms"]) == {"random knn", "random linear", "frozen knn", "frozen linear"}
    name = "all of simclr" if task == "augmentations" else type(recipe).__name__
    assert f"{name}, linear layer" in done["text"]
    assert ("What it answers" in page) == (task in ("colorization", "context", "jigsaw", "rotation", "mae"))
    by_labels = task in ("supervised", "pseudo-label", "fixmatch")
    assert ("accuracy" in evaluation.get("own", {})) == (by_labels or task in ("context", "jigsaw", "rotation"))
    assert ("same_labels" in evaluation) == ("With the same labels" in page) == by_labels


def test_images_without_labels_are_trained_on_and_not_measured(cache, tmp_path, heard):
    for i in range(6):
        Image.new("RGB", (20 + i, 16), (40 * i, 9, 9)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    recipe = tiny(TASKS["simclr"](), cache, data=(tmp_path,))
    out = tmp_path / "run"
    replace(recipe, batch=7).build(watch=heard)
    assert any("each of the 6 several times" in line for line in heard.said)
    run = recipe.build(watch=heard)
    save_encoder(fit(run, recipe.fit, out, watch=Quiet()).encoder, out)
    assert any("broken.jpg" in line and "skipped" in line for line in heard.said)
    done = recipe.finish(load_encoder(out), out, heard)
    assert "no labelled images" in done["text"]
    assert "broken.jpg" in done["report"].read_text()
    with pytest.raises(ValueError, match=r"FixMatch learns from labels.*give --labelled"):
        tiny(TASKS["fixmatch"](), cache, data=(tmp_path,)).build(watch=Quiet())


def test_what_a_step_hides_needs_our_transformer(cache):
    recipe = TASKS["mae"]()
    with pytest.raises(ValueError, match=r"have 1 patches of 4: too few.*Raise --size"):
        replace(tiny(recipe, cache), size=4).build(watch=Quiet())
    with pytest.raises(ValueError, match="only our own transformer can leave out"):
        tiny(replace(recipe, network=replace(recipe.network, name="resnet18")), cache).build(watch=Quiet())


def test_generated_scenes_are_the_default(cache, tmp_path):
    recipe = tiny(TASKS["simclr"](), cache)
    run = recipe.build(watch=Quiet())
    method = fit(run, recipe.fit, tmp_path, watch=Quiet())
    done = recipe.finish(method.encoder, tmp_path)
    assert "SimCLR, linear layer" in done["text"]


def test_a_task_has_the_views_of_its_paper_and_the_network_that_it_needs():
    """A dataclass would take fields from the wrong one of two bases."""
    policies = {name: task().policy for name, task in TASKS.items()}
    assert {policies[t] for t in ("dino", "ibot", "dinov2", "swav")} == {"dino"}
    assert {policies[t] for t in ("mae", "beit", "ijepa", "data2vec")} == {"mae"}
    assert [policies[t] for t in ("simclr", "moco", "byol", "fixmatch")] == ["simclr", "mocov2", "byol", "weak"]
    assert {t for t, task in TASKS.items() if task().network.name == "vit"} == {
        "ibot", "dinov2", "dinov3", "mae", "beit", "ijepa", "data2vec", "colorization"
    }  # fmt: skip
    assert TASKS["mae"]().ratio == 0.75


def test_what_is_wrong_with_labelled_images_is_told_and_shown(cache, folder, tmp_path, heard):
    labelled = tmp_path / "labelled"
    for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (labelled / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16 + i), colour).save(labelled / name / f"{i}.png")
    (labelled / "red" / "empty.png").write_bytes(b"")
    recipe = tiny(TASKS["simclr"](), cache, data=(folder,), labelled=labelled)
    run = recipe.build(watch=heard)
    assert sum("empty.png" in line for line in heard.said) == 1
    done = recipe.finish(run.method.encoder, tmp_path)
    assert "empty.png" in done["report"].read_text()
