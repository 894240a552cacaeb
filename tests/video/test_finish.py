"""After training: objects are followed, the page is written, and an evaluation that was interrupted goes on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.core import checkpoint
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.video.following_report import table
from partwhole.video.generator import clips
from partwhole.video.measure import Following
from partwhole.video.protocol import Protocol
from partwhole.video.side import centres, pictures
from partwhole.video.sources import Source
from partwhole.video.tasks import TASKS

MEASURE = Following(draws=2, preset="own", own=Protocol(size=0, radius=4))


def tiny(task, cache, **rest):
    recipe = TASKS[task]()
    network = replace(recipe.network, width=0.125, dim=48, depth=1)
    options = {
        "network": network, "size": 32, "batch": 2, "fit": replace(recipe.fit, steps=2, device="cpu"),
        "source": Source(cache=cache, generate=3, generate_annotated=2, frames=18), "measure": MEASURE,
    }  # fmt: skip
    return replace(recipe, **{**options, **rest})


def trained(recipe, folder):
    method = fit(recipe.build(watch=Quiet()), recipe.fit, folder, watch=Quiet())
    checkpoint.save_encoder(method.encoder, folder)
    return method.encoder


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """Two generated clips in the layout of DAVIS, and one whose first mask is missing."""
    root = tmp_path_factory.mktemp("davis")
    for sample, name in zip(clips(3, frames=6, size=48, seed=5), ("cat", "dog", "none"), strict=True):
        for kind, frames in (("JPEGImages", sample["video"]), ("Annotations", sample["masks"])):
            (root / kind / name).mkdir(parents=True)
            for t, frame in enumerate(frames.frames(range(6))):
                if (kind, name, t) == ("Annotations", "none", 0):
                    continue
                pixels = frame.permute(1, 2, 0).numpy() if frame.ndim == 3 else frame.numpy().astype(np.uint8)
                Image.fromarray(pixels).save(root / kind / name / f"{t:05d}.png")
    return root


@pytest.mark.parametrize("task", ["crw", "simsiam", "mae", "dpc", "memdpc", "ijepa"])
def test_a_run_ends_with_a_page(task, tmp_path):
    recipe = tiny(task, tmp_path / "cache")
    encoder = trained(recipe, tmp_path)
    done = recipe.finish(encoder, tmp_path, Quiet())
    assert done["text"].splitlines()[0].startswith("objects of 2 videos followed")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(found["following"]["mean"]) == {"copy", "pixels", "random", "encoder"}
    assert ("accuracy" in found.get("own", {})) == (task in ("dpc", "memdpc"))
    page = done["report"].read_text()
    assert "data:image/gif;base64," in page
    assert page.count("data:image/png;base64,") >= 3 + (task in ("mae", "dpc", "memdpc"))
    assert len(list((tmp_path / "followed").glob("*.mp4"))) == 2


def test_real_videos_are_followed_and_what_is_wrong_is_told(davis, tmp_path, heard):
    recipe = tiny("simclr", tmp_path / "cache", data=(davis,))
    assert recipe.evaluation() is None
    assert len(recipe.prepare()) == 3  # frames of all, masks are no clips
    encoder = trained(recipe, tmp_path)
    assert "give --annotated" in recipe.finish(encoder, tmp_path)["text"]
    recipe = replace(recipe, annotated=davis)
    text = recipe.finish(encoder, tmp_path, heard)["text"]
    assert "objects of 2 videos followed" in text
    assert any("no mask of its first frame" in line for line in heard.said)
    assert "no mask of its first frame" in (tmp_path / "report.html").read_text()


def test_what_half_the_memory_changes_is_told(tmp_path, heard):
    half = replace(MEASURE, arms=("copy", "encoder"), own=replace(MEASURE.own, dtype="bfloat16"))
    recipe = tiny("simclr", tmp_path / "cache", measure=half)
    recipe.finish(trained(recipe, tmp_path), tmp_path, heard)
    assert sum("bfloat16 changes" in line for line in heard.said) == 2  # videos


@pytest.fixture(scope="module")
def short(davis, tmp_path_factory):
    """The same, and a sequence of two frames, of which none would count."""
    root = tmp_path_factory.mktemp("short")
    shutil.copytree(davis, root, dirs_exist_ok=True)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "bee").mkdir()
        for t in range(2):
            shutil.copy(davis / kind / "cat" / f"{t:05d}.png", root / kind / "bee")
    return root


def test_what_cannot_be_measured_is_left_out_everywhere(short, tmp_path, heard):
    recipe = tiny("simclr", tmp_path / "cache", data=(short,), annotated=short)
    assert recipe.evaluation(heard).names == ["cat", "dog"]
    assert any(line.startswith("bee: skipped: 2 frames and 2 masks") for line in heard.said)
    assert recipe.build().evaluate(recipe.method(recipe.encoder(), recipe.given(recipe.prepare())))["J"] > 0
    assert "bee" not in recipe.finish(trained(recipe, tmp_path), tmp_path)["text"]


def test_a_method_is_asked_of_videos_that_are_long_enough_for_it(davis, tmp_path):
    """Those with masks have six frames, and a clip of the recipe more."""
    recipe = tiny("dpc", tmp_path / "cache")
    encoder = trained(recipe, tmp_path)
    assert "on clips that it was not trained on: " in recipe.finish(encoder, tmp_path)["text"]
    assert "on clips that it was trained on: " in replace(recipe, annotated=davis).finish(encoder, tmp_path)["text"]


def test_an_evaluation_goes_on(davis, tmp_path, monkeypatch):
    from partwhole.video import measure as module

    recipe = tiny("simclr", tmp_path / "cache", data=(davis,), annotated=davis)
    encoder = trained(recipe, tmp_path)
    score, calls = module._score, []

    def stopping(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*given)

    monkeypatch.setattr(module, "_score", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipe.finish(encoder, tmp_path, Quiet())
    first = recipe.finish(encoder, tmp_path, Quiet())["text"]
    assert len(calls) == 4 + 7  # of ten jobs three were done
    (tmp_path / "evaluation.json").unlink()
    assert recipe.finish(encoder, tmp_path, Quiet())["text"] == first


def test_a_table_has_a_row_for_each_arm():
    means = {"copy": 0.25, "encoder": 0.5}
    keys = ("J&F", "J", "F", "J recall", "J decay")
    results = {
        "mean": {row: dict.fromkeys(keys, value) for row, value in means.items()},
        "rows": {row: [{}] for row in means}, "sequences": ["cat"], "problems": [["dog", "it has no mask"]],
    }  # fmt: skip
    lines = table(results, "CRW").splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == [".250", ".500"]
    assert lines[2].startswith("CRW ")
    assert lines[3] == "dog: it has no mask"


def test_places_lie_in_the_first_two_objects():
    ids = torch.zeros(8, 10, dtype=torch.int64)
    ids[1:4, 2:5], ids[5:8, 6:9], ids[0, 0] = 1, 2, 255
    assert centres(ids) == [(2 / 8, 3 / 10), (6 / 8, 7 / 10)]
    ring = torch.ones(9, 9, dtype=torch.int64)
    ring[1:8, 1:8] = 0
    y, x = centres(ring)[0]
    assert ring[round(y * 9), round(x * 9)] == 1


def test_what_is_hidden_is_grey(tmp_path):
    recipe = tiny("mae", tmp_path)
    encoder = recipe.encoder()
    torch.manual_seed(0)
    batch = recipe.view(encoder)(recipe.prepare()[0])
    shown = torch.stack(pictures(batch, encoder))  # (T, 3, S, S), of 4 x 4 places a frame
    grey = (shown.unflatten(2, (4, 8)).unflatten(4, (4, 8)) == 0).all(-1).all(3).all(1)  # (T, 4, 4)
    hidden = torch.ones(64, dtype=torch.bool)
    hidden[batch["keep"]] = False
    assert torch.equal(grey, hidden.view(4, 4, 4).repeat_interleave(2, 0))
