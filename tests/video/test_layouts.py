"""Videos with the truth about their objects, in the layouts in which they are published, and what may be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.video.layouts import JOINTS, davis, jhmdb, vip
from partwhole.video.packets import BadVideo

H, W = 8, 10


def image(path, size=(W, H)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 199)).save(path)


def mask(path, values, mode="P"):
    """Row y of the mask has the y-th value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.zeros((H, W), np.uint8 if mode != "I;16" else np.uint16)
    x[: len(values)] = np.array(values, x.dtype)[:, None]
    made = Image.fromarray(x)
    if mode == "P":
        made.putpalette([v for i in range(256) for v in (i * 37 % 256, i * 91 % 256, i)])
    (made.convert("RGB") if mode == "RGB" else made).save(path)


def sequence(root, name, masks, count=3, level="480p", mode="P"):
    """``masks``: the rows of the mask of each frame that has one."""
    for i in range(count):
        image(root / "JPEGImages" / level / name / f"{i:05}.jpg")
    for i, values in masks.items():
        mask(root / "Annotations" / level / name / f"{i:05}.png", values, mode)
    return root


@pytest.fixture
def root(tmp_path):
    for name in ("cat", "dog"):
        sequence(tmp_path, name, {0: [1, 2, 255], 1: [1, 2], 2: [1]})
    for year, lines in {
        "2017": "dog\n\ncat\n",
        "2016": "/JPEGImages/480p/cat/00000.jpg /Annotations/480p/cat/00000.png\n" * 3,
    }.items():
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
        (tmp_path / "ImageSets" / year / "val.txt").write_text(lines)
    return tmp_path


def test_davis_2017(root):
    clips = davis(root, "val")
    assert clips.names == ["dog", "cat"]
    assert clips.problems == []
    sample = clips[0]
    assert sample["video"].frames([2, 0]).shape == (2, 3, H, W)
    ids = sample["masks"].frames([0, 2])
    assert ids.dtype == torch.int64
    assert ids[:, :, 0].tolist() == [[1, 2, 255, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert (len(sample["masks"]), sample["masks"].size, sample["masks"].name) == (3, (H, W), "dog")
    assert torch.equal(sample["masks"].times(), sample["video"].times())
    assert davis(root, "val").key == clips.key
    mask(root / "Annotations" / "480p" / "dog" / "00001.png", [1, 2, 3])
    assert davis(root, "val").key != clips.key


def test_davis_2016_has_one_object(root):
    clips = davis(root, "val", year=2016)
    assert clips.names == ["cat"]
    assert clips[0]["masks"].frames([0])[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_masks_of_0_and_255_are_one_object(tmp_path, mode):
    sequence(tmp_path, "cat", {0: [255, 255], 1: [255]}, count=2, level=".", mode=mode)
    clips = davis(tmp_path)
    assert clips.names == ["cat"]
    assert clips[0]["masks"].frames([0])[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_list_of_sequences_beside_the_folders(tmp_path):
    for name in ("a", "b"):
        sequence(tmp_path, name, {0: [1]}, count=1)
    assert davis(tmp_path).names == ["a", "b"]
    (tmp_path / "sequences.txt").write_text("b\n")
    assert davis(tmp_path).names == ["b"]


def test_what_cannot_be_used_is_told_and_skipped(root):
    sequence(root, "first", {1: [1]})
    sequence(root, "some", {0: [1]})
    sequence(root, "many", {0: list(range(1, 9)), 2: [300]}, mode="I;16")
    sequence(root, "colours", {0: [1]})
    Image.new("RGB", (W, H), (200, 0, 0)).save(root / "Annotations" / "480p" / "colours" / "00000.png")
    sequence(root, "size", {0: [1]})
    Image.new("L", (4, 4), 1).save(root / "Annotations" / "480p" / "size" / "00001.png")
    sequence(root, "none", {0: [0]})
    sequence(root, "broken", {0: [1]})
    (root / "Annotations" / "480p" / "broken" / "00002.png").write_bytes(b"no image")
    image(root / "JPEGImages" / "480p" / "bare" / "0.jpg")
    clips = davis(root)
    assert clips.names == ["cat", "dog", "some"]
    told = {reason.split(": ")[1]: reason for _, reason in clips.problems if reason.startswith("skipped")}
    assert "no mask of its first frame 00000.jpg, among 1; objects are followed from it" in told["first"]
    assert "1 ids, up to 300; ids from 1 to 254 are counted" in told["many"]
    assert "a mask in colours (mode RGB); save masks as images with a palette" in told["colours"]
    assert "a mask of 4 x 4 pixels; the frames have 10 x 8" in told["size"]
    assert "no object in the mask of the first frame" in told["none"]
    assert "a mask that cannot be read" in told["broken"]
    assert "it is not there" in told["bare"]
    assert len(told) == 7
    (kept,) = [reason for _, reason in clips.problems if reason.startswith("kept")]
    assert "masks of 1 of 3 frames; the others are not counted" in kept
    masks = clips[2]["masks"]
    assert masks.known == [True, False, False]
    assert masks.frames([1]).unique().tolist() == [255]


def test_no_davis(root):
    with pytest.raises(BadVideo, match=r"no split 'train' \(there are 2016/val, 2017/val\)"):
        davis(root, "train")
    with pytest.raises(BadVideo, match="no split '2018/val'"):
        davis(root, "val", year=2018)
    with pytest.raises(BadVideo, match="JPEGImages: it is not there; name the folder"):
        davis(root / "JPEGImages")
    (root / "ImageSets" / "2017" / "gone.txt").write_text("bird")
    with pytest.raises(BadVideo, match=r"none of 1 sequences can be used; the first: .*bird: no such folder"):
        davis(root, "gone")


def test_vip(tmp_path):
    for name, count in (("videos10", 3), ("videos9", 2)):
        for i in range(count):
            image(tmp_path / "Images" / name / f"{i + 1:012}.jpg")
            mask(tmp_path / "Annotations" / "Category_ids" / name / f"{i + 1:012}.png", [i + 1, 19], "L")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val_videos.txt").write_text("videos10\n")
    clips = vip(tmp_path)
    assert clips.names == ["videos10"]
    assert clips[0]["masks"].frames([2])[0, :3, 0].tolist() == [3, 19, 0]
    assert vip(tmp_path, None).names == ["videos9", "videos10"]


@pytest.fixture
def people(tmp_path):
    from scipy.io import savemat

    for k, (name, count) in enumerate({"clap/one": 4, "clap/two": 3, "wave/three": 3}.items()):
        for i in range(count):
            image(tmp_path / "Rename_Images" / name / f"{i + 1:05}.png")
        at = tmp_path / "joint_positions" / name
        at.mkdir(parents=True)
        joints = np.tile(np.arange(1.0, 16)[:, None], (2, 1, 3))
        joints[1] = 1 + k
        savemat(at / "joint_positions.mat", {"pos_img": joints})
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "clap_test_split1.txt").write_text("one.avi 2\ntwo.avi 1\n")
    (tmp_path / "splits" / "wave_test_split1.txt").write_text("three.avi 2\n")
    return tmp_path


def test_jhmdb(people):
    clips = jhmdb(people)
    assert clips.names == ["clap/one", "wave/three"]
    assert jhmdb(people, test=False).names == ["clap/two"]
    assert jhmdb(people, None).names == ["clap/one", "clap/two", "wave/three"]
    sample = clips[1]
    assert sample["points"].shape == (3, len(JOINTS), 2)
    assert sample["points"][2, :3].tolist() == [[0, 2], [1, 2], [2, 2]]  # the first pixel is 0
    assert sample["visible"][0].tolist() == [True] * W + [False] * 5
    assert len(clips[0]["video"]) == 3
    assert "kept: joints of 3 of 4 frames" in clips.problems[0][1]


def test_jhmdb_with_something_wrong(people):
    (people / "joint_positions" / "clap" / "one" / "joint_positions.mat").write_bytes(b"nothing")
    (people / "Rename_Images" / "clap" / "two" / "00002.png").unlink()
    (people / "splits" / "clap_test_split1.txt").write_text("one.avi 2\ntwo.avi 2\n")
    clips = jhmdb(people)
    assert clips.names == ["wave/three"]
    told = [reason for _, reason in clips.problems]
    assert "skipped: clap/one: no joints that can be read" in told[0]
    assert "skipped: clap/two: 2 frames, and joints of 3; put them back" in told[1]
    with pytest.raises(BadVideo, match=r"no \*_test_split7.txt"):
        jhmdb(people, 7)
