"""Where a recipe's images come from: parts, classes, and what cannot be measured is said."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.core import distributed
from partwhole.vision.decode import BadImage
from partwhole.vision.sources import Source


def put(folder, **counts):
    """``train_cat=3`` puts three images into train/cat."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        at = folder.joinpath(*name.split("_"))
        at.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).save(at / f"{i}.png")


@pytest.fixture
def source(tmp_path):
    return Source(cache=tmp_path / "cache", workers=1)


def test_parts_of_their_own(tmp_path, source):
    put(tmp_path / "in", train_cat=3, train_dog=2, test_cat=1, test_dog=2, unlabelled_x=4)
    train, test = source.labelled(tmp_path / "in")
    assert train.classes == test.classes == ["cat", "dog"]
    assert (train.labels, test.labels) == ([0, 0, 0, 1, 1], [0, 1, 1])
    assert all("/train/" in name for name in train.names)
    assert all("/test/" in name for name in test.names)
    assert len(source.unlabelled([tmp_path / "in"])) == 9
    assert not any("/test/" in name for name in source.unlabelled([tmp_path / "in"]).names)


def test_without_a_test_part_a_fifth_of_each_class_is_one(tmp_path, source):
    put(tmp_path / "in", cat=10, dog=6, fish=2, owl=1)
    train, test = source.labelled(tmp_path / "in")
    assert Counter(test.labels) == {0: 2, 1: 1, 2: 1}
    assert Counter(train.labels) == {0: 8, 1: 5, 2: 1, 3: 1}
    assert not set(train.names) & set(test.names)
    assert [test[i]["label"] for i in range(len(test))] == test.labels
    again = source.labelled(tmp_path / "in")[1].names
    others = [Source(cache=source.cache, workers=1, seed=s).labelled(tmp_path / "in")[1].names for s in (1, 2, 3)]
    assert again == test.names
    assert any(names != again for names in others)
    assert any("the only image of class owl" in reason for _, reason in train.problems)


def test_classes_that_only_one_part_has(tmp_path, source):
    put(tmp_path / "in", train_cat=2, train_dog=2, train_owl=2, val_dog=2, val_owl=1, val_zebra=1)
    train, test = source.labelled(tmp_path / "in")
    assert train.classes == test.classes == ["cat", "dog", "owl"]
    assert test.labels == [1, 1, 2]
    assert [test[i]["label"] for i in range(3)] == [1, 1, 2]
    reasons = {Path(path).name: reason for path, reason in [(p.replace(": ", "/"), r) for p, r in test.problems]}
    assert reasons["zebra"].startswith("skipped: 1 test images")
    assert reasons["cat"].startswith("kept: a class without test images")


def test_what_cannot_be_measured_says_so(tmp_path, source):
    put(tmp_path, flat=3, one_cat_x=2, one_cat_y=1, other_train_a=1, other_train_b=1, other_val_c=1, single_train_a=2,
        single_val_a=1, lone_a=1, lone_b=1)  # fmt: skip
    for name, reason in {
        "flat": "3 images without labels",
        "other": "no image to measure on: the test part has the classes c",
        "single": "without labels",
        "lone": r"no image to measure on",
        "nowhere": "no such file or folder",
    }.items():
        with pytest.raises(BadImage, match=reason):
            source.labelled(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImage, match="nothing in it"):
        source.unlabelled([tmp_path / "empty"])
    only = source.unlabelled([tmp_path / "lone" / "a"])
    assert len(only) == 1


def test_one_class_whose_others_are_broken(tmp_path, source):
    put(tmp_path / "in", cat=2, dog=2)
    for path in (tmp_path / "in" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadImage, match=r"labels of 1 class \(cat\)"):
        source.labelled(tmp_path / "in")


def test_images_without_a_label_are_not_measured(tmp_path, source):
    put(tmp_path / "in", cat=5, dog=5)
    Image.new("RGB", (3, 3)).save(tmp_path / "in" / "1.png")
    train, test = source.labelled(tmp_path / "in")
    assert len(train) + len(test) == 10
    assert None not in train.labels + test.labels
    assert len(source.unlabelled([tmp_path / "in"])) == 11


def test_generated_scenes_are_shared_by_no_two_parts(source):
    source = Source(cache=source.cache, generate=60, generate_labelled=5)
    parts = [source.unlabelled([]), *source.labelled(None)]
    assert [len(part) for part in parts] == [60, 40, 10]
    seen = [{s["image"].numpy().tobytes() for s in part} for part in parts]
    assert len(set.union(*seen)) == 110
    assert len({name for part in parts for name in part.names}) == 110
    assert all(set(Counter(part.labels).values()) == {count} for part, count in zip(parts[1:], (4, 1), strict=True))
    assert torch.equal(source.unlabelled([])[5]["image"], parts[0][5]["image"])
    assert len(Source(limit=7).unlabelled([])) == 7


def test_what_is_wrong_is_said(tmp_path, source, heard):
    put(tmp_path / "in", a=3)
    (tmp_path / "in" / "a" / "0.png").write_bytes(b"")
    source.unlabelled([tmp_path / "in"], heard)
    assert heard.said == [f"{tmp_path}/in/a/0.png: skipped: an empty file; download or export it again"]


def test_a_limit_is_of_the_unlabelled_alone(tmp_path):
    put(tmp_path / "in", a=6, b=6)
    source = Source(cache=tmp_path / "cache", workers=1, limit=4)
    assert len(source.unlabelled([tmp_path / "in"])) == 4
    assert sum(map(len, source.labelled(tmp_path / "in"))) == 12


def test_a_set_without_a_test_part_is_no_failure_of_the_first_process(tmp_path, source, monkeypatch):
    """The other processes would end with it."""
    put(tmp_path / "in", cat=5, dog=5)
    failed = []

    def first(work):
        try:
            return work()
        except Exception:
            failed.append(1)
            raise

    monkeypatch.setattr(distributed, "first", first)
    train, test = source.labelled(tmp_path / "in")
    assert (len(train), len(test), failed) == (8, 2, [])
