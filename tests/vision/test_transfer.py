"""A run measured on annotated images: tables, pictures, what cannot be measured, and going on after an interruption."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.encoder import Wrapped
from partwhole.core.fit import NonFinite
from partwhole.core.probe import Probe
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.vision.annotated import parts
from partwhole.vision.backbone import Backbone
from partwhole.vision.detection import Detection
from partwhole.vision.draw import boxed, colour_of, painted
from partwhole.vision.embed import Patches
from partwhole.vision.maps import jaccard_of, step
from partwhole.vision.network import Network
from partwhole.vision.segmentation import Segmentation, segmentation
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS
from partwhole.vision.transfer import Attention, Transfer, annotated, transfer
from partwhole.vision.transfer_report import tables, text

SMALL = Transfer(
    jaccard=Attention(size=32, draws=2),
    segmentation=Segmentation(size=32, steps=2, batch=2, views=1, draws=2, arms=("commonest", "random", "frozen")),
    detection=Detection(size=32, steps=1, batch=2, hidden=8, arms=("frozen",)),
)


def vit(seed: int = 0, patch: int = 8) -> TransformerEncoder:
    torch.manual_seed(seed)
    return TransformerEncoder(Patches(16, size=32, patch=patch), dim=16, depth=1, heads=2, cls=True).eval()


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Red boxes on plain grounds, as PennFudan keeps them; one image is broken."""
    root, random = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(5):
        pixels, mask = np.zeros((32, 40, 3), np.uint8), np.zeros((32, 40), np.uint8)
        pixels[:] = random.integers(0, 120, 3)
        mask[8:24, 4 + 4 * i : 16 + 4 * i] = 1
        pixels[mask > 0] = (220, 20, 20)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "images" / "9.png").write_bytes(b"nothing")
    return root


def measured(people: Path, folder: Path, encoder=None, options: Transfer = SMALL, begun=None, keep=None, watch=None):
    kept = keep if keep is not None else lambda results: None
    return transfer(
        encoder or vit(), parts(people), options, folder, name="people", watch=watch or Quiet(), keep=kept,
        begun=begun or {},
    )  # fmt: skip


# ------------------------------------------------------------------ measured


def test_everything_is_measured_kept_and_pictured(people, tmp_path):
    kept: list[str] = []
    found = measured(people, tmp_path, keep=lambda results: kept.append(json.dumps(results)))
    assert json.loads(kept[-1]) == json.loads(json.dumps(found))
    assert found["set"]["segmentation"]["train"] == 3
    assert len(found["set"]["segmentation"]["test"]) == 2
    assert [name for name, _ in found["set"]["problems"]] == ["9.png"]
    assert found["jaccard"]["images"] == 5  # nothing is learned from them
    assert {arm: len(v) for arm, v in found["segmentation"]["arms"].items()} == {
        "commonest": 1, "random": 2, "frozen": 2
    }  # fmt: skip
    assert found["detection"]["arms"]["frozen"].keys() == {"VOC07 AP50", "COCO AP"}
    assert found["notes"] == []
    drawn = np.asarray(Image.open(tmp_path / "transfer" / "detection-truth.png").convert("RGB")).astype(int)
    assert ((drawn[..., 0] == 255) & (drawn[..., 1] < 60)).sum() > 700  # lines as long as boxes are
    assert {p.name for p in (tmp_path / "transfer").iterdir()} == {
        "jaccard.png", "segmentation-truth.png", "segmentation-commonest.png", "segmentation-random.png",
        "segmentation-frozen.png", "detection-truth.png", "detection-frozen.png",
    }  # fmt: skip
    table = tables(found, "DINO")
    assert [row[0] for row in table["jaccard"][1]] == ["DINO", "random network", "box in the middle, of the best size"]
    assert [row[0] for row in table["segmentation"][1]][1:] == ["random network, frozen", "DINO, frozen"]
    assert table["segmentation"][1][2][1].count == 2
    assert "1 of its images were skipped" in text(found, "DINO")
    assert len(kept) >= 1 + 5 + 1


def test_an_interrupted_measurement_goes_on_to_the_same_end(people, tmp_path, heard):
    kept: list[str] = []

    def stop(results: dict) -> None:
        kept.append(json.dumps(results))
        if len(results.get("segmentation", {}).get("arms", {}).get("random", [])) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(people, tmp_path, keep=stop)
    again = measured(people, tmp_path, begun=json.loads(kept[-1]), watch=heard)
    assert not any("attention of" in line or "commonest" in line for line in heard.said)
    assert "segmentation, random: draw 2 of 2" in heard.said
    whole = measured(people, tmp_path / "whole")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(whole))
    heard.said.clear()
    assert (
        measured(people, tmp_path, begun=json.loads(json.dumps(whole)), watch=heard)["detection"] == whole["detection"]
    )
    assert heard.said == []
    measured(people, tmp_path, vit(1), begun=json.loads(json.dumps(whole)), watch=heard)
    assert "attention of 2 networks on 5 images" in heard.said  # of other weights nothing stays


def test_what_is_not_asked_again_stays(people, tmp_path):
    only = {kind: replace(SMALL, what=(kind,)) for kind in ("jaccard", "segmentation")}
    first = measured(people, tmp_path, options=only["jaccard"])
    second = measured(people, tmp_path, options=only["segmentation"], begun=json.loads(json.dumps(first)))
    assert json.loads(json.dumps(second["jaccard"])) == json.loads(json.dumps(first["jaccard"]))
    assert "segmentation" in second
    assert "detection" not in second


def test_of_other_images_or_options_nothing_stays(people, tmp_path):
    options = replace(SMALL, what=("jaccard",))
    planted = json.loads(json.dumps(measured(people, tmp_path, options=options)))
    planted["jaccard"]["rows"]["encoder"]["mean of heads"] = planted["segmentation"] = "planted"
    same = measured(people, tmp_path, options=options, begun=planted)
    assert same["jaccard"]["rows"]["encoder"]["mean of heads"] == same["segmentation"] == "planted"
    heavier = replace(options, jaccard=replace(options.jaccard, mass=0.5))
    other = measured(people, tmp_path, options=heavier, begun=planted)
    assert other["jaccard"]["rows"]["encoder"]["mean of heads"] != "planted" == other["segmentation"]
    others = {**planted, "set": {**planted["set"], "name": "others"}}
    assert "segmentation" not in measured(people, tmp_path, options=options, begun=others)


def test_networks_beside_have_rows_and_those_without_attention_are_told(people, tmp_path):
    save_encoder(vit(1), tmp_path / "supervised")
    save_encoder(Backbone("resnet10t", size=32), tmp_path / "cnn")
    beside = (tmp_path / "supervised", tmp_path / "cnn")
    found = measured(people, tmp_path, options=replace(SMALL, what=("jaccard",), beside=beside))
    rows = found["jaccard"]["rows"]
    assert list(rows) == ["encoder", "supervised", "random", "centre box"]
    alone = jaccard_of(vit(1), [parts(people).masks.test[0]], size=32)["encoder"]  # type: ignore[union-attr]
    both = jaccard_of(vit(), [parts(people).masks.test[0]], beside={"a": vit(1)}, size=32)  # type: ignore[union-attr]
    assert both["a"] == alone != both["encoder"]
    assert [row[0] for row in tables(found, "DINO")["jaccard"][1]][:2] == ["DINO", "supervised"]
    assert "has no class token" in found["jaccard"]["notes"][0]
    assert "supervised, a random network" in found["jaccard"]["shown"]


def test_a_network_without_attention_or_map_is_told_and_the_rest_measured(people, tmp_path):
    options = replace(SMALL, what=("jaccard", "segmentation"))
    found = measured(people, tmp_path, Backbone("resnet10t", size=32), options)
    assert "jaccard was not measured: resnet10t has no class token" in found["notes"][0]
    assert "jaccard" not in found
    assert len(found["segmentation"]["arms"]["frozen"]) == 2
    found = measured(people, tmp_path, Wrapped(torch.nn.Linear(32, 4), 4), replace(options, what=("jaccard",)))
    assert len(found["notes"]) == 1


def test_a_training_that_breaks_is_told_and_the_rest_measured(people, tmp_path, monkeypatch):
    def breaks(*given, **options):
        raise NonFinite("step 3: the loss is nan")

    monkeypatch.setattr("partwhole.vision.transfer.segmentation", breaks)
    found = measured(people, tmp_path)
    assert found["notes"] == ["segmentation was not measured: step 3: the loss is nan"]
    assert {"jaccard", "detection"} <= found.keys()


def test_patches_that_do_not_divide_the_size(people, tmp_path):
    assert step(vit(patch=7), 20) == 7  # two patches, and a rest
    found = measured(people, tmp_path, vit(patch=5))
    assert found["notes"] == []
    assert step(Backbone("vit_tiny_patch16_224", size=32), 40) == 16


def test_one_image_is_looked_at_and_nothing_learned(people, tmp_path):
    alone = tmp_path / "alone"
    for part in ("images", "masks"):
        (alone / part).mkdir(parents=True)
        (alone / part / "1.png").write_bytes((people / part / "1.png").read_bytes())
    found = measured(alone, tmp_path)
    assert found["jaccard"]["images"] == 1
    assert [note.split(":")[0] for note in found["notes"]] == [
        "segmentation was not measured",
        "detection was not measured",
    ]
    assert "0 images to learn from and 1 to measure on" in text(found, "DINO")


def test_segmentation_goes_on_only_with_its_own_options(people):
    train, test = parts(people).masks  # type: ignore[misc]
    options = replace(SMALL.segmentation, arms=("random",), draws=1)
    first = segmentation(vit(), train, test, classes=train.classes, options=options)
    planted = {**json.loads(json.dumps(first)), "arms": {"random": [0.125]}}
    kept = segmentation(vit(), train, test, classes=train.classes, options=options, begun=planted)
    assert kept["arms"] == {"random": [0.125]}
    more = replace(options, steps=3)
    anew = segmentation(vit(), train, test, classes=train.classes, options=more, begun=planted)
    assert anew["arms"] != {"random": [0.125]}


# ------------------------------------------------------------------ in a run


def recipe(cache: Path, **fields):
    return TASKS["simclr"](
        source=Source(cache=cache, generate=12, generate_labelled=3, workers=1),
        network=Network(name="vit", dim=64, depth=1),
        size=32,
        measure=Probe(arms=("frozen",), shots=(1,), draws=1),
        transfer=SMALL,
        **fields,
    )


def test_a_run_reports_it_and_keeps_it_when_it_is_not_asked_again(people, tmp_path):
    mine = recipe(tmp_path / "cache", annotated=people)
    save_encoder(mine.encoder(), tmp_path)
    done = mine.finish(load_encoder(tmp_path), tmp_path)
    assert "Jaccard of attention" in done["text"]
    page = done["report"].read_text()
    for words in ("On annotated images", "2 of 5 images, chosen by the seed 0", "SimCLR, frozen", "COCO AP", "9.png"):
        assert words in page
    whole = json.loads((tmp_path / "evaluation.json").read_text())
    mine.finish(load_encoder(tmp_path), tmp_path)  # with nothing left to measure
    assert json.loads((tmp_path / "evaluation.json").read_text()) == whole
    before = whole["transfer"]
    assert mine.incidental >= {"annotated", "transfer"}
    unlabelled = recipe(tmp_path / "cache", data=(people / "images",))
    done = unlabelled.finish(load_encoder(tmp_path), tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["transfer"] == before
    assert "COCO AP" in done["report"].read_text()
    unlabelled.finish(vit(3), tmp_path)
    assert "transfer" not in json.loads((tmp_path / "evaluation.json").read_text())  # it was of other weights


def test_what_cannot_be_measured_on_is_told_before_anything_is_measured(tmp_path, heard):
    mine = recipe(tmp_path / "cache", annotated=tmp_path)
    with pytest.raises(ValueError, match="no set of annotated images"):
        mine.finish(mine.encoder(), tmp_path, heard)
    assert not (tmp_path / "evaluation.json").exists()


def test_the_masks_of_generated_scenes_serve_where_all_is_generated(tmp_path):
    mine = recipe(tmp_path / "cache")
    save_encoder(mine.encoder(), tmp_path)
    mine.finish(load_encoder(tmp_path), tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())["transfer"]
    assert found["set"]["name"] == "generated scenes"
    assert found["segmentation"]["classes"] == ["background", "object"]
    assert found["jaccard"]["options"]["size"] == 32
    assert "detection" not in found
    assert found["notes"] == []
    boxes = replace(mine, transfer=replace(mine.transfer, what=("detection",)))
    assert annotated(boxes, boxes.classes(), Quiet()) is None  # which takes long


def test_a_wrong_place_is_told_before_training(people, tmp_path):
    with pytest.raises(ValueError, match="no set of annotated images"):
        recipe(tmp_path / "cache", annotated=tmp_path).build(watch=Quiet())
    lost = replace(SMALL, beside=(tmp_path / "lost",))
    with pytest.raises(FileNotFoundError, match="no encoder in"):
        replace(recipe(tmp_path / "cache", annotated=people), transfer=lost).build(watch=Quiet())
    with pytest.raises(ValueError, match="share of the images"):
        Transfer(test=1.0)
    with pytest.raises(ValueError, match="draws must be at least 1, and is 0"):
        Attention(draws=0)
    with pytest.raises(ValueError, match="share of the attention"):
        Attention(mass=0.0)


# ------------------------------------------------------------------ pictures


def test_classes_have_colours_and_boxes_lie_where_they_are():
    grey = torch.full((3, 20, 30), 0.5)
    classes = torch.zeros(20, 30, dtype=torch.int64)
    classes[:5], classes[5:10], classes[10:15] = 1, 2, 255
    seen = painted(grey, classes)
    torch.testing.assert_close(seen[:, 0, 0], 0.225 + 0.55 * colour_of(1))
    torch.testing.assert_close(seen[:, 5, 0], 0.225 + 0.55 * colour_of(2))
    assert seen[:, 10, 0].std() == 0
    torch.testing.assert_close(seen[:, 19, 0], torch.full((3,), 0.7))
    found = boxed(grey, torch.tensor([[2.0, 3.0, 12.0, 40.0]]), torch.tensor([1]))
    changed = (found != grey).any(0)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[3:20, 2:12] = True
    expected[4:19, 3:11] = False
    assert torch.equal(changed, expected)
