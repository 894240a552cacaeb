"""Annotated images: layouts are recognised, halves are fixed, what is broken is told and skipped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.vision.annotated import coco, layout, parts, pennfudan


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def photo(seed: int = 0, H: int = 12, W: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def pedestrians(root: Path, count: int, images: str = "images", masks: str = "masks", end: str = "") -> Path:
    for i in range(count):
        mask = np.zeros((12, 16), np.uint8)
        mask[2:5, i % 8 : i % 8 + 4] = 1
        save(root / images / f"{i}.png", photo(i))
        save(root / masks / f"{i}{end}.png", mask)
    return root


def voc_set(root: Path, lists: dict[str, str]) -> Path:
    for name in ("a", "b", "c"):
        save(root / "JPEGImages" / f"{name}.jpg", photo())
        save(root / "SegmentationClass" / f"{name}.png", np.full((12, 16), 15, np.uint8))
    for name, words in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    return root


def coco_file(path: Path, names: list[str], things: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "height": 12, "width": 16} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": things, "categories": [{"id": 5, "name": "cat"}]}))


# ------------------------------------------------------------------ layouts


def test_layouts_are_recognised_there_or_one_folder_below(tmp_path):
    pedestrians(tmp_path / "a" / "set", 2)
    assert layout(tmp_path / "a" / "set") == ("PennFudan", tmp_path / "a" / "set")
    assert layout(tmp_path / "a") == ("PennFudan", tmp_path / "a" / "set")
    pedestrians(tmp_path / "b", 2, "PNGImages", "PedMasks", "_mask")
    assert layout(tmp_path / "b")[0] == "PennFudan"
    assert len(pennfudan(tmp_path / "b")) == 2
    assert layout(voc_set(tmp_path / "c" / "VOC2012", {"train": "a"}).parent) == ("VOC", tmp_path / "c" / "VOC2012")
    coco_file(tmp_path / "d" / "annotations.json", [], [])
    assert layout(tmp_path / "d") == ("COCO", tmp_path / "d")
    voc_set(tmp_path / "c" / "VOC2007", {"train": "a"})
    with pytest.raises(ValueError, match=r"several annotated sets: give one of .*VOC2007.*VOC2012"):
        layout(tmp_path / "c")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None, lambda p: p.write_text("x")])
def test_what_is_no_set_is_told_with_what_was_looked_for(make, tmp_path):
    make(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"images/ and masks/.*JPEGImages/.*annotations\.json.*Found: (nothing|it is no)"
    ):
        parts(tmp_path / "none")


def test_halves_are_fixed_by_the_seed(tmp_path):
    pedestrians(tmp_path, 10)
    found, again, other = (parts(tmp_path, seed=s) for s in (0, 0, 1))
    assert found.masks
    assert again.masks
    assert other.masks
    assert (len(found.masks.train), len(found.masks.test)) == (7, 3)
    assert sorted(found.masks.train.names + found.masks.test.names) == [f"{i}.png" for i in range(10)]
    assert found.masks.test.names == again.masks.test.names != other.masks.test.names
    assert found.boxes is found.masks
    assert found.told == "3 of 10 images, chosen by the seed 0, are to measure on"


def test_one_image_is_to_measure_on(tmp_path):
    found = parts(pedestrians(tmp_path, 1))
    assert found.masks
    assert (len(found.masks.train), len(found.masks.test)) == (0, 1)


def test_voc_has_its_own_halves(tmp_path):
    lists = {"train": "a\n", "val": "b\n", "trainval": "a\nb\n", "test": "c\n"}
    found = parts(voc_set(tmp_path / "with", lists))
    assert found.masks
    assert found.boxes is None
    assert (found.masks.train.names, found.masks.test.names) == (["a", "b"], ["c"])
    (tmp_path / "with" / "SegmentationClass" / "c.png").unlink()  # as published: tests without answers
    found = parts(tmp_path / "with")
    assert found.masks
    assert (found.masks.train.names, found.masks.test.names) == (["a"], ["b"])
    with pytest.raises(ValueError, match="has neither"):
        parts(voc_set(tmp_path / "without", {"trainval": "a"}))


def test_coco_has_its_own_halves(tmp_path):
    box = {"category_id": 5, "bbox": [1, 1, 4, 4], "image_id": 0}
    for name in ("train2017", "val2017"):
        coco_file(tmp_path / "annotations" / f"instances_{name}.json", ["a.png"], [box])
        save(tmp_path / name / "a.png", photo())
    found = parts(tmp_path)
    assert found.boxes
    assert found.masks is None
    assert "train2017 and" in found.told
    assert found.boxes.test[0]["boxes"].tolist() == [[1, 1, 5, 5]]
    val = tmp_path / "annotations" / "instances_val2017.json"
    coco_file(val, ["a.png"], [{**box, "segmentation": [[1, 1, 5, 1, 5, 5]]}])
    assert parts(tmp_path).masks is None  # those that learn have none
    val.write_text(val.read_text().replace('"cat"', '"dog"'))
    with pytest.raises(ValueError, match="have other categories"):
        parts(tmp_path)
    val.unlink()
    with pytest.raises(ValueError, match=r"has no instances_val"):
        parts(tmp_path)


# ------------------------------------------------------------------ outlines


def test_outlines_of_coco(tmp_path):
    save(tmp_path / "images" / "a.png", photo())
    square = {"segmentation": [[2, 3, 7, 3, 7, 8, 2, 8]], "bbox": [2, 3, 5, 5], "category_id": 5, "image_id": 0}
    runs = [0, 12, 12 * 15]  # the first column
    crowd = {"segmentation": {"counts": runs, "size": [12, 16]}, "bbox": [0, 0, 1, 12], "iscrowd": 1}
    coco_file(tmp_path / "annotations.json", ["a.png"], [square, {**crowd, "category_id": 5, "image_id": 0}])
    assert "masks" not in coco(tmp_path / "annotations.json", tmp_path / "images")[0]
    found = coco(tmp_path / "annotations.json", tmp_path / "images", instances=True)[0]
    assert found["masks"][0, 3:8, 2:7].all()
    assert found["masks"][0].sum() == 25
    assert found["masks"][1, :, 0].all()
    assert found["masks"][1].sum() == 12
    assert (found["mask"] == found["masks"][0] + 255 * found["masks"][1].long()).all()


def test_outlines_that_do_not_fit_are_told(tmp_path):
    save(tmp_path / "a.png", photo())
    save(tmp_path / "b.png", photo(0, 10, 10))
    thing = {"category_id": 5, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
    short = {**thing, "segmentation": {"counts": [3, 4]}}
    packed = {**thing, "segmentation": {"counts": "abc"}}
    names = ["a.png", "a.png", "a.png", "b.png"]
    things = [{**t, "image_id": i} for i, t in enumerate((thing, short, packed, thing))]
    coco_file(tmp_path / "annotations.json", names, things)
    found = coco(tmp_path / "annotations.json", tmp_path)
    assert len(found) == 1
    for (_, reason), expected in zip(found.problems, ("7 pixels", "compressed", "said to be"), strict=True):
        assert reason.startswith("skipped:")
        assert expected in reason
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        coco(tmp_path / "annotations.json", tmp_path)


# ------------------------------------------------------------------ broken files


def test_what_is_broken_is_told_and_skipped(tmp_path):
    pedestrians(tmp_path, 6)
    save(tmp_path / "masks" / "0.png", np.ones((4, 4), np.uint8))
    (tmp_path / "masks" / "1.png").unlink()
    (tmp_path / "images" / "2.png").write_bytes(b"")
    (tmp_path / "masks" / "3.png").write_bytes((tmp_path / "masks" / "3.png").read_bytes()[:-30])
    save(tmp_path / "masks" / "4.png", photo())
    found = parts(tmp_path)
    assert found.masks
    assert [*found.masks.train.names, *found.masks.test.names] == ["5.png"]
    told = dict(found.problems)
    assert sorted(told) == [f"{i}.png" for i in range(5)]
    assert "a mask (4, 4)" in told["0.png"]
    assert "is not there" in told["1.png"]
    assert "an empty file" in told["2.png"]
    assert "mode RGB" in told["4.png"]


def test_boxes_are_cut_at_the_border_and_those_outside_told(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", photo())
    over = {"category_id": 5, "bbox": [-2, 3, 30, 4], "image_id": 0}
    away = {"category_id": 5, "bbox": [20, 3, 5, 4], "image_id": 1}
    coco_file(tmp_path / "annotations.json", ["a.png", "b.png"], [over, away])
    found = coco(tmp_path / "annotations.json", tmp_path)
    assert found.names == ["a.png"]
    assert found[0]["boxes"].tolist() == [[0, 3, 16, 7]]
    assert "a box outside the image, of 12 by 16" in found.problems[0][1]


def test_images_are_decoded_as_all_are(tmp_path):
    """16 bits are scaled, CMYK converted, transparency lies on white; nothing is turned, as no mask would be."""
    pedestrians(tmp_path, 4)
    wide = np.full((12, 16), 257 * 100, np.uint16)
    save(tmp_path / "images" / "0.png", wide)
    Image.new("CMYK", (16, 12), (0, 255, 255, 0)).save(tmp_path / "images" / "1.jpg")
    (tmp_path / "images" / "1.png").unlink()
    Image.new("RGBA", (16, 12), (9, 9, 9, 0)).save(tmp_path / "images" / "2.png")
    turned = Image.fromarray(photo())
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(tmp_path / "images" / "3.png", exif=exif)
    found = pennfudan(tmp_path)
    assert not found.problems
    assert (found[0]["image"] == 100).all()
    assert found[1]["image"][0].min() > 200 > 60 > found[1]["image"][1].max()
    assert (found[2]["image"] == 255).all()
    assert torch.equal(found[3]["image"], torch.from_numpy(photo()).permute(2, 0, 1))
