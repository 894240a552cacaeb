"""Training on images that begins from the encoder of another run, as a user calls it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from partwhole.core.checkpoint import load_encoder
from partwhole.vision.tasks import TASKS

SMALL = ["--source.cache", "cache", "--source.workers", "1", "--network.width", "0.125", "--batch", "4",
         "--fit.steps", "2", "--fit.device", "cpu", "--measure.arms", "frozen", "--measure.shots", "1",
         "--measure.draws", "1", "--measure.steps", "2"]  # fmt: skip


@pytest.fixture
def run(tools, coloured):
    """``run.py`` on red and blue squares, in an empty folder."""
    coloured(Path("images"), {"train/blue": 6, "train/red": 6, "test/blue": 3, "test/red": 3}, (20, 20))

    def call(task, folder, *words, size=16):
        fixed = ["--modality", "vision", "--task", task, "--folder", folder, "--data", "images", "--size", str(size)]
        return tools("run", *fixed, *SMALL, *words)

    return call


@pytest.mark.slow
def test_fixmatch_begins_with_the_encoder_of_simclr_and_knows_if_it_changed(run, tools, capsys):
    assert run("simclr", "first") == 0
    assert run("fixmatch", "second", "--init", "first", "--fit.lr", "0", "--fit.weight-decay", "0") == 0
    first, second = (dict(load_encoder(f).named_parameters()) for f in ("first", "second"))
    assert all(torch.equal(v, second[k]) for k, v in first.items())  # at a rate of 0 nothing moves
    recipe = json.loads(Path("second/run.json").read_text())
    assert recipe["recipe"]["init"] == str(Path("first").absolute())
    assert "from the encoder of" in Path("second/report.html").read_text()
    assert run("fixmatch", "third", "--init", "first") == 0
    moved = dict(load_encoder("third").named_parameters())
    assert any(not torch.equal(v, moved[k]) for k, v in first.items())
    capsys.readouterr()

    weights = Path("first/encoder.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run("fixmatch", "third", "--init", "first") == 2
    assert "third holds a run of another recipe: contents.init: '" in (error := capsys.readouterr().err)
    assert error.count("'") == 4  # there and now
    assert tools("evaluate", "--folder", "third") == 2  # which would train plainly from where it began, to compare
    assert "contents.init: '" in capsys.readouterr().err
    weights.write_bytes(content)
    assert run("fixmatch", "third", "--init", "first") == 0


@pytest.mark.slow
def test_another_size_of_images_can_follow_where_the_network_takes_it(run):
    assert run("mae", "first", "--network.dim", "32", "--network.depth", "1", "--network.patch", "4") == 0
    words = ["--network.name", "vit", "--network.dim", "32", "--network.depth", "1", "--network.patch", "4"]
    assert run("supervised", "with a class token", "--init", "first", *words, size=24) == 2
    assert run("supervised", "second", "--init", "first", "--network.no-cls", *words, size=24) == 0
    assert load_encoder("second").embed.size == 16  # positions are laid over the same extent


def test_torchrun_leaves_every_option_to_the_tool():
    """One that is the beginning of several of its own would be refused as ambiguous."""
    from torch.distributed.run import parse_args

    for name in sorted({field.name for kind in TASKS.values() for field in dataclasses.fields(kind)}):
        assert parse_args(["tools/run.py", f"--{name}", "x"]).training_script_args == [f"--{name}", "x"]


def test_what_training_cannot_start_from_is_told_before_it_begins(run, capsys):
    assert run("simclr", "first") == 0
    Path("empty").mkdir()
    (Path("unfinished")).mkdir()
    (Path("unfinished") / "last.pt").write_bytes(b"")
    for folder, words in (
        ("nowhere", "--init: there is no folder "),
        ("empty", "empty has no encoder.safetensors. Give what a finished run left, or leave --init out"),
        ("unfinished", "unfinished has no encoder.safetensors"),
        ("second", "--init is the folder of this very run, second"),
    ):
        capsys.readouterr()
        assert run("byol", "second", "--init", folder) == 2
        assert words in capsys.readouterr().err
        assert not Path("second").exists()
    assert run("byol", "second", "--init", "first", "--network.width", "0.25") == 2
    assert "first holds another encoder than this recipe trains: width: 0.125 there, 0.25 now" in (
        capsys.readouterr().err
    )
    assert run("mae", "third", "--init", "first", "--network.patch", "4") == 2
    assert "backbone:Backbone there, partwhole.core.transformer:TransformerEncoder now." in capsys.readouterr().err
