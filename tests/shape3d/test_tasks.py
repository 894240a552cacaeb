"""Every recipe trains three steps, is evaluated and leaves a page; the recipes by name differ where they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from partwhole.core.checkpoint import OtherEncoder, load_encoder, save_encoder
from partwhole.core.files import NotSaved
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.fewshot import FewShot
from partwhole.shape3d.network import Network
from partwhole.shape3d.recipe import ShapeRecipe
from partwhole.shape3d.sources import Source
from partwhole.shape3d.tasks import RECIPES, TASKS

POINTS = 64


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def tiny(recipe: ShapeRecipe, cache: Path) -> ShapeRecipe:
    """The same recipe, small enough for a test."""
    words = {"vocabulary": 16} if hasattr(recipe, "vocabulary") else {}
    return replace(
        recipe,
        **words,
        source=Source(cache=cache, generate=12, generate_labelled=3, workers=1),
        decompose=Decompose(engine="points", points=256),
        network=replace(recipe.network, width=0.1, samples=(16, 8), neighbours=0.05, dim=32, depth=1, patches=8),
        augment=replace(recipe.augment, points=POINTS),
        batch=4,
        fit=replace(recipe.fit, steps=3, log_every=1, device="cpu"),
        few_shot=FewShot(shots=(1,), draws=1, arms=("random", "linear"), test=1, steps=2, batch=4),
    )


@pytest.mark.parametrize("name", ["pointnet2", "dgcnn", "transformer"])
def test_layers_come_in_the_order_in_which_they_run(name):
    """What a layer-wise learning rate goes by; nothing but a transformer's last norm stands beside them."""
    encoder = Network(name=name, width=0.1, samples=(8, 4), dim=32, depth=2, patches=8).build(3)
    layers, ran = encoder.stages(), []
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    encoder(torch.rand(2, 40, 3))
    assert list(dict.fromkeys(ran)) == layers
    named = {id(p) for layer in layers for p in layer.parameters()}
    left = [n for n, p in encoder.named_parameters() if id(p) not in named]
    assert all("trunk.norm" in n for n in left), left


def test_a_task_has_what_it_sees_and_the_network_that_it_needs():
    """A dataclass would take fields from the wrong one of two bases."""
    cropped = {t for t, task in TASKS.items() if task().decompose.engine == "points"}
    assert cropped == {"swav", "deepcluster", "obow", "lejepa", "dino", "ibot", "dinov2", "dinov3"}
    hidden = {t for t, task in TASKS.items() if task().network.name == "transformer"}
    assert hidden == {"ibot", "dinov2", "dinov3", "mae", "beit", "ijepa", "data2vec"}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_three_steps(task, cache):
    recipe = tiny(TASKS[task](), cache)
    run = recipe.build(watch=Quiet())
    before = [p.clone() for p in run.method.encoder.parameters()]
    method = fit(run, recipe.fit, watch=Quiet())
    after = list(method.encoder.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["pointnet2", "dgcnn", "transformer"])
def test_every_network_goes_the_whole_way(network, cache, tmp_path):
    recipe = tiny(TASKS["acd"](), cache)
    recipe = replace(recipe, network=replace(recipe.network, name=network))
    method = fit(recipe.build(watch=Quiet()), recipe.fit, tmp_path, watch=Quiet())
    save_encoder(method.encoder, tmp_path)
    result = recipe.finish(load_encoder(tmp_path), tmp_path)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(evaluation) == {"decomposition", "labelled", "few_shot", "classification"}
    assert "random network, frozen, linear layer trained" in result["text"]
    assert Path(result["report"]).exists()
    assert list((tmp_path / "ply").glob("*.ply"))


@pytest.mark.parametrize(
    ("first", "then", "network"),
    [("simclr", "acd", "pointnet2"), ("mae", "supervised", "transformer"), ("simclr", "fixmatch", "transformer")],
)
def test_training_begins_with_the_encoder_of_another_run(first, then, network, cache, tmp_path):
    left, other = (
        replace(recipe, network=replace(recipe.network, name=network))
        for recipe in (tiny(TASKS[task](), cache) for task in (first, then))
    )
    torch.manual_seed(1)
    save_encoder(left.encoder(), tmp_path)
    begun = replace(other, init=tmp_path).build(watch=Quiet()).method.encoder
    inside = begun.encoder if first == "mae" else begun
    there = load_encoder(tmp_path).state_dict()
    assert inside.state_dict().keys() == there.keys()
    assert all(torch.equal(v, there[k]) for k, v in inside.state_dict().items())
    small = replace(other, network=replace(other.network, name="dgcnn"), init=tmp_path)
    with pytest.raises(OtherEncoder, match=r"holds another encoder.* there, .*DGCNN now"):
        small.build(watch=Quiet())


def test_a_k_beyond_the_labelled_shapes_does_not_stop_the_training(cache):
    recipe = tiny(TASKS["acd"](), cache)
    recipe = replace(recipe, few_shot=replace(recipe.few_shot, shots=(1, 5, 10)))  # of 3 labelled shapes a category
    assert set(recipe.probe(recipe.build(watch=Quiet()).method)) == {"linear_iou_at_1"}


def test_what_cannot_be_measured_is_told_before_the_training(cache):
    acd, mae = tiny(TASKS["acd"](), cache), tiny(TASKS["mae"](), cache)
    with pytest.raises(ValueError, match=r"cannot be measured on generated shapes .*9 wanted"):
        replace(acd, few_shot=replace(acd.few_shot, shots=(9,))).build(watch=Quiet())
    with pytest.raises(ValueError, match="leave joint out"):
        replace(mae, few_shot=replace(mae.few_shot, arms=("joint",))).build(watch=Quiet())
    with pytest.raises(ValueError, match="hides patches, which dgcnn has none of"):
        replace(mae, network=replace(mae.network, name="dgcnn")).build(watch=Quiet())


def test_an_evaluation_runs_where_the_training_ran(cache, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("partwhole.core.distributed.setup", lambda device: torch.device("meta"))
    monkeypatch.setattr(
        "partwhole.shape3d.finish.finish",
        lambda recipe, encoder, folder, watch: seen.append(next(encoder.parameters()).device.type),
    )
    recipe = tiny(TASKS["acd"](), cache)
    recipe.finish(recipe.encoder(), tmp_path)
    assert seen == ["meta"]


def test_an_evaluation_of_the_masked_autoencoder_can_be_repeated(cache):
    recipe = tiny(TASKS["mae"](), cache)
    encoder, x = recipe.encoder(), torch.rand(1, POINTS, 3)
    torch.testing.assert_close(recipe.per_point(encoder).eval()(x), recipe.per_point(encoder).eval()(x))


@pytest.mark.slow
def test_the_masked_autoencoder_is_evaluated_point_by_point(cache, tmp_path):
    recipe = tiny(TASKS["mae"](), cache)
    method = fit(recipe.build(watch=Quiet()), recipe.fit, tmp_path, watch=Quiet())
    save_encoder(method.encoder, tmp_path)
    assert Path(recipe.finish(load_encoder(tmp_path), tmp_path)["report"]).exists()


@pytest.mark.slow
def test_joint_training_is_an_arm(cache, tmp_path):
    recipe = tiny(TASKS["acd"](), cache)
    recipe = replace(recipe, few_shot=replace(recipe.few_shot, arms=("joint",), joint_steps=2))
    encoder = recipe.build(watch=Quiet()).method.encoder
    recipe.finish(encoder, tmp_path)
    assert "joint" in json.loads((tmp_path / "evaluation.json").read_text())["few_shot"]["arms"]


def boxes(folder: Path, count: int) -> Path:
    """A labelled set of two categories with ``count`` shapes each, cut in halves."""
    for category in ("low", "high"):
        (folder / category).mkdir(parents=True)
        for i in range(count):
            points = np.random.default_rng(i).random((80, 3), np.float32)
            np.savez(folder / category / f"{i}.npz", points=points, labels=(points[:, 2] > 0.5).astype(int))
    return folder


def test_what_is_wrong_with_the_labelled_shapes_is_told_before_anything_slow(cache, tmp_path, heard):
    recipe = replace(tiny(TASKS["acd"](), cache), labelled=boxes(tmp_path / "set", 4))
    np.savez(tmp_path / "set" / "low" / "0.npz", points=np.zeros((80, 3)), labels=np.zeros(70, int))
    recipe.build(watch=heard)
    assert any("low/0.npz: skipped: 70 labels for 80 points" in text for text in heard.said)
    heard.said.clear()
    few = replace(recipe.few_shot, shots=(9,))
    with pytest.raises(ValueError, match=r"cannot be measured .*low: 2 shape\(s\) to label, 9 wanted"):
        replace(recipe, few_shot=few, source=replace(recipe.source, cache=tmp_path / "new")).build(watch=heard)
    assert not any("decompose" in text for text in heard.said)


@pytest.mark.slow
def test_an_evaluation_says_which_labelled_shapes_were_skipped(cache, tmp_path, heard):
    recipe = replace(tiny(TASKS["acd"](), cache), labelled=boxes(tmp_path / "set", 4))
    (tmp_path / "set" / "low" / "1.npz").write_bytes(b"not an archive")
    recipe.finish(recipe.encoder(), tmp_path / "run", heard)
    assert any("low/1.npz: skipped: not a readable .npz" in text for text in heard.said)
    problems = json.loads((tmp_path / "run" / "evaluation.json").read_text())["labelled"]["problems"]
    assert len(problems) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("apart", "told"), [("set", 0), ("another", 1)])
def test_an_evaluation_on_another_set_than_was_left_out_says_so(cache, tmp_path, apart, told, monkeypatch, heard):
    monkeypatch.chdir(tmp_path)
    labelled = boxes(tmp_path / "set", 4).relative_to(tmp_path)
    (tmp_path / "clouds").mkdir()
    np.save(tmp_path / "clouds" / "one.npy", np.random.default_rng(0).random((300, 3)))
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"labelled": str(tmp_path / apart)}}))
    recipe = replace(tiny(TASKS["acd"](), cache), labelled=labelled, data=(tmp_path / "clouds",))
    recipe.finish(recipe.encoder(), tmp_path, heard)
    assert sum("careful" in text for text in heard.said) == told


@pytest.mark.slow
def test_an_evaluation_that_cannot_be_written_names_the_file(cache, tmp_path):
    recipe = tiny(TASKS["acd"](), cache)
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(NotSaved, match=r"evaluation\.json.*A file is where a folder should be"):
        recipe.finish(recipe.encoder(), tmp_path / "run")


@pytest.mark.slow
def test_a_method_that_saw_labels_is_measured_where_it_saw_no_test_shape(cache, tmp_path):
    recipe = tiny(TASKS["fixmatch"](), cache)
    recipe = replace(recipe, few_shot=replace(recipe.few_shot, draws=3))
    recipe.finish(recipe.encoder(), tmp_path)
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["few_shot"]["supports"]) == 1


@pytest.mark.slow
def test_a_method_without_components_is_reported_without_them(cache, tmp_path):
    recipe = replace(tiny(TASKS["simclr"](), cache), decompose=Decompose(engine="none", points=256))
    page = Path(recipe.finish(recipe.encoder(), tmp_path)["report"]).read_text()
    assert "The shapes without labels" in page
    assert "components per shape" not in page
    with pytest.raises(ValueError, match="ACD learns from components"):
        replace(TASKS["acd"](), decompose=Decompose(engine="none"))


def test_recipes_by_name_are_of_their_task_and_differ():
    for task, named in RECIPES.items():
        assert all(type(recipe) is TASKS[task] for recipe in named.values())
    paper, best = RECIPES["acd"]["paper"], RECIPES["acd"]["best"]
    assert paper.loss == "pair"
    assert best.loss == "prototype"
    assert paper.network == Network(width=1.0, samples=(512, 128), neighbours=1.0)
    assert "joint" in paper.few_shot.arms
    assert paper.few_shot.joint_weight == 10.0
