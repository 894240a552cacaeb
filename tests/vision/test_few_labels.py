"""Methods that learn from labels, of which there are few."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.encoder import fresh
from partwhole.core.fit import fit
from partwhole.core.methods import FixMatch, PseudoLabel, Supervised
from partwhole.core.probe import Probe, fingerprint
from partwhole.core.watch import Quiet
from partwhole.vision import rivals
from partwhole.vision.backbone import Backbone
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS


@pytest.fixture(scope="module")
def folder(coloured, tmp_path_factory) -> Path:
    """Blue, green and red squares, a folder for each: 20, 20 and 3 to learn from."""
    counts = {"train/blue": 20, "train/green": 20, "train/red": 3, "test/blue": 4, "test/green": 4, "test/red": 4}
    return coloured(tmp_path_factory.mktemp("images"), counts, (16, 16))


def tiny(task, folder, cache, **rest):
    recipe = TASKS[task]()
    return replace(
        recipe,
        data=(folder,),
        source=Source(cache=cache, workers=1),
        network=replace(recipe.network, width=0.125),
        size=16,
        batch=8,
        fit=replace(recipe.fit, steps=2, log_every=1, device="cpu", seed=rest.pop("seed", 0)),
        measure=Probe(arms=("frozen",), shots=(1,), draws=1),
        **rest,
    )


@pytest.mark.parametrize(("k", "counts"), [(None, [20, 20, 3]), (5, [5, 5, 3]), (0.1, [2, 2, 1]), (1, [1, 1, 1])])
def test_so_many_labels_of_each_class_are_learned_from(k, counts, folder, tmp_path):
    recipe = tiny("fixmatch", folder, tmp_path, labels_per_class=k)
    known = recipe.known()
    assert torch.tensor([sample["label"] for sample in known]).bincount().tolist() == counts
    assert known.names == recipe.known().names
    if k in (5, 0.1):
        assert known.names != replace(recipe, fit=replace(recipe.fit, seed=1)).known().names
    batch = next(iter(recipe.stream(recipe.prepare(), recipe.encoder())(0)))
    assert len(batch["labelled"]["label"]) == 8
    assert len(batch["unlabelled"]["views"][0]) == 8


def test_no_other_label_reaches_the_method(folder, tmp_path):
    """Of one label a class, every batch has that image alone; and a probe with the same seed draws the same one."""
    recipe = tiny("supervised", folder, tmp_path, labels_per_class=1, policy="plain")
    classes = recipe.classes()
    mine = recipe.learned(classes)
    assert mine == classes.drawn(1, 0)
    own = [recipe.plain()(classes.train[i]) for i in mine]
    batches = iter(recipe.stream(recipe.prepare(), recipe.encoder())(0))
    for _ in range(5):
        batch = next(batches)
        assert all(torch.equal(x, own[label]) for x, label in zip(batch["x"], batch["label"].tolist(), strict=True))


@pytest.mark.parametrize("k", [0, 2.5, -1])
def test_a_number_of_labels_that_is_none_is_refused(k, folder, tmp_path):
    with pytest.raises(
        ValueError, match="labels_per_class: labels of each class are a whole number, or a share below 1"
    ):
        tiny("supervised", folder, tmp_path, labels_per_class=k).build(watch=Quiet())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["supervised", "pseudo-label", "fixmatch"])
@pytest.mark.parametrize("begins", [True, False])
def test_what_it_answers_is_compared_with_plain_training_on_the_same_labels(task, begins, folder, tmp_path, heard):
    start = tmp_path / "start"
    if begins:
        save_encoder(tiny("simclr", folder, tmp_path).encoder(), start)
    recipe = tiny(task, folder, tmp_path, labels_per_class=5, init=start if begins else None)
    out = tmp_path / "run"
    method = fit(recipe.build(out, watch=heard), recipe.fit, out, watch=heard).eval()
    assert f"learning from 13 labels, see {out / 'labelled.txt'}" in heard.said
    assert (out / "labelled.txt").read_text().splitlines() == recipe.known().names
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= rows[-1]["accuracy"] <= 1  # on test images, at the end

    save_encoder(method.encoder, out)
    done = recipe.finish(load_encoder(out), out)
    evaluation = json.loads((out / "evaluation.json").read_text())
    rivals = {"scratch", "frozen linear", "finetune"} if begins else {"random linear", "scratch"}
    if task == "supervised":  # plain training is no rival of itself
        rivals -= {"finetune"} if begins else {"scratch"}
    assert set(evaluation["same_labels"]["arms"]) == rivals
    assert evaluation["same_labels"]["labels"] == {"5": 13}
    x = torch.stack([recipe.plain()(s) for s in recipe.classes().test])
    with torch.no_grad():
        named = method.answer(x).argmax(-1)
    right = (named == recipe.classes().test_label).double().mean().item()
    assert evaluation["own"] == {"accuracy": right}
    page = done["report"].read_text()
    assert "13 labels, 5 of each class" in page
    name = type(recipe).__name__
    assert f"{name}, what it answers" in page
    assert f"{right:.3f}  {name}, what it answers" in done["text"]
    assert (f"from the encoder of {start}" in page) == begins


def rivals_of(recipe, watch=None, begun=None):
    classes = recipe.classes()
    return rivals.same_labels(
        recipe, classes, recipe.learned(classes), device=torch.device("cpu"), watch=watch or Quiet(),
        keep=lambda results: None, begun=begun,
    )  # fmt: skip


@pytest.mark.parametrize("begins", [True, False])
def test_rivals_learn_from_the_same_labels_as_long_and_begin_alike(begins, folder, tmp_path, monkeypatch):
    recipe = tiny("fixmatch", folder, tmp_path, labels_per_class=5, seed=3)
    if begins:
        save_encoder(fresh(recipe.encoder(), seed=9), tmp_path / "start")
        recipe = replace(recipe, init=tmp_path / "start")
    asked = {}

    def fake(encoder, classes, **rest):
        asked.update(rest, of=fingerprint(encoder))
        return {}

    monkeypatch.setattr(rivals, "probe", fake)
    rivals_of(recipe)
    torch.manual_seed(3)
    assert asked["of"] == fingerprint(recipe.begun(recipe.encoder()))
    assert asked["supports"] == {"5": [recipe.learned(recipe.classes())]}
    how = asked["options"]
    assert (how.steps, how.lr, how.batch, how.seed) == (recipe.fit.steps, recipe.fit.lr, recipe.batch, 3)
    rivals_of(replace(recipe, measure=Probe(shots=(2,), readouts=("sgd",))))
    assert asked["options"] == how  # other measurements do not train them anew


def test_what_a_run_began_with_may_be_gone_when_it_is_evaluated_again(folder, tmp_path, heard):
    recipe = tiny("supervised", folder, tmp_path, labels_per_class=1, init=tmp_path / "gone")
    assert rivals_of(recipe, heard) is None
    assert "plain training on the same labels is left out: no encoder in" in heard.said[0]
    assert rivals_of(recipe, heard, {"arms": {}}) == {"arms": {}}
    assert "is as it was: no encoder in" in heard.said[1]


def test_answers_are_those_of_averaged_weights_where_there_are_any():
    torch.manual_seed(0)
    encoder, x = Backbone("resnet10t", size=16, width=1.0).eval(), torch.randn(3, 3, 16, 16)
    for kind in (Supervised, PseudoLabel, FixMatch):
        method = kind(encoder, classes=4).eval()
        direct = method.head(encoder(x), None)
        torch.testing.assert_close(method.answer(x), direct)
        with torch.no_grad():
            method.head.net.bias.add_(torch.tensor([0.0, 9.0, 0.0, 0.0]))  # the student moves, an average stays
        moved = torch.allclose(method.answer(x)[:, 1], direct[:, 1] + 9, atol=1e-4)
        assert moved == (kind is Supervised)
    for kind in (PseudoLabel, FixMatch):
        method = kind(encoder, classes=4, momentum=None).eval()
        torch.testing.assert_close(method.answer(x), method.head(encoder(x), None))
