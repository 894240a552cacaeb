"""tools/follow.py: a mask is followed through a video, and what is wrong with the words or the mask is said."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.core import checkpoint
from partwhole.video.folder import ids
from partwhole.video.generator import clips
from partwhole.video.network import FrameResNet


@pytest.fixture
def place(tmp_path, tools):
    """A clip of six frames as a folder of images, its masks, and an encoder."""
    torch.manual_seed(0)
    checkpoint.save_encoder(FrameResNet(width=0.125, size=48), tmp_path / "run")
    for name in ("one", "two"):
        sample = clips(2, frames=6, size=48)[("one", "two").index(name)]
        for kind, frames in (("JPEGImages", sample["video"]), ("Annotations", sample["masks"])):
            (tmp_path / "davis" / kind / name).mkdir(parents=True)
            for t, frame in enumerate(frames.frames(range(6))):
                pixels = frame.permute(1, 2, 0).numpy() if frame.ndim == 3 else frame.numpy().astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "davis" / kind / name / f"{t}.png")
    return tmp_path


def test_a_mask_is_followed(place, tools, capsys):
    frames, mask = place / "davis/JPEGImages/one", place / "davis/Annotations/one/0.png"
    assert tools("follow", "--encoder", "run", "--mask", str(mask), str(frames), "out") == 0
    assert "followed.gif" in capsys.readouterr().out
    masks = [ids(str(place / "out/masks" / f"{t:05d}.png")) for t in range(6)]
    assert (masks[0] == ids(str(mask))).all()
    assert set(np.unique(masks[-1])) <= set(np.unique(masks[0]))
    with Image.open(place / "out/masks/00000.png") as image:
        assert image.mode == "P"
    with Image.open(place / "out/followed.gif") as film:
        assert film.n_frames == 6
    adapted = ("follow", "--encoder", "run", "--adapt", "2", "--mask", str(mask), str(frames), "adapted")
    assert tools(*adapted) == 0
    assert any((ids(str(place / "adapted/masks" / f"{t:05d}.png")) != masks[t]).any() for t in range(6))


def test_many_are_measured(place, tools, capsys):
    assert tools("follow", "--encoder", "run", "--measure", "davis", "out") == 0
    assert "objects of 2 videos followed" in capsys.readouterr().out
    found = json.loads((place / "out/following.json").read_text())
    assert set(found["mean"]) == {"copy", "pixels", "random", "encoder"}


def test_random_weights_are_told(place, tools, capsys):
    frames, mask = place / "davis/JPEGImages/one", place / "davis/Annotations/one/0.png"
    words = ("--network", "resnet10t", "--preset", "crw", "--mask", str(mask), str(frames), "out")
    assert tools("follow", *words) == 0
    assert "careful: resnet10t has random weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoder", "run", "out"], "give --mask, .* or --measure"),
        (["--mask", "m.png", "video", "out"], "give --encoder"),
        (["--encoder", "run", "--mask", "m.png", "out"], "expected VIDEO and OUT"),
        (["--encoder", "run", "--measure", "davis", "a", "b"], "expected OUT"),
        (["--encoder", "run", "--mask", "m.png", "davis/JPEGImages/one", "out"], "m.png: a mask that cannot be read"),
        (["--encoder", "run", "--weights", "w", "--measure", "davis", "out"], "a run has its own"),
        (["--encoder", "run", "--measure", "run", "out"], "no layout of videos with truth"),
        (["--encoder", "nothing", "--measure", "davis", "out"], "nothing"),
    ],
)
def test_what_is_wrong_is_said(place, tools, capsys, words, said):
    assert tools("follow", *words) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
