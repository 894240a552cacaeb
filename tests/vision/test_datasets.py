"""Images from data sets: any map-style one, and torchvision's by name, whose pickles are read only as published."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision import datasets

from partwhole.vision import named
from partwhole.vision.decode import BadImage
from partwhole.vision.images import from_dataset, read_images
from partwhole.vision.scenes import digits

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
WANTED = torch.from_numpy(PIXELS).permute(2, 0, 1)


class Listed(list):
    """A data set."""


@pytest.mark.parametrize(
    "item",
    [
        Image.fromarray(PIXELS), PIXELS, WANTED, WANTED.float() / 255, (WANTED, 3), (PIXELS, torch.tensor(3)),
        {"image": Image.fromarray(PIXELS), "label": 3}, {"img": WANTED, "label": np.int64(3), "more": "x"},
    ],
)  # fmt: skip
def test_items_of_every_kind(item):
    images = from_dataset(Listed([item]))
    assert torch.equal(images[0]["image"], WANTED)
    labelled = isinstance(item, tuple | dict)
    assert images.labels == [3 if labelled else None]
    assert ("label" in images[0]) == labelled
    assert images.classes == (["0", "1", "2", "3"] if labelled else [])


def test_grey_and_masks():
    mask = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    images = from_dataset(Listed([(np.full((2, 2), 9, np.uint8), mask), {"image": torch.full((1, 2, 2), 9, dtype=torch.uint8), "mask": np.asarray(mask)}]))  # fmt: skip  # noqa: E501
    for sample in images:
        assert (sample["image"] == 9).all()
        assert sample["image"].shape == (3, 2, 2)
        assert sample["mask"].tolist() == [[0, 1], [2, 255]]
        assert sample["mask"].dtype == torch.int64


def test_items_that_fail_are_told_and_dropped():
    images = from_dataset(Listed([(PIXELS, 0), "a name", ((WANTED.float() - 100), 0), {"x": 1}, (PIXELS, 1)]))
    assert images.labels == [0, 1]
    assert images.names == ["Listed/0", "Listed/4"]
    assert ["expected an image" in images.problems[0][1], "0 to 1" in images.problems[1][1]] == [True, True]
    with pytest.raises(BadImage, match="none of 1 items"):
        from_dataset(Listed(["a name"]))
    with pytest.raises(TypeError, match="map-style"):
        from_dataset(iter([]))


def test_listed_labels_are_taken_without_reading(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / name)
    folder = datasets.ImageFolder(tmp_path)
    whole = from_dataset(folder)
    assert (whole.labels, whole.classes) == ([0, 1, 1], ["cat", "dog"])
    some = from_dataset(Subset(ConcatDataset([folder, folder]), [5, 0]))
    assert some.labels == [1, 0]
    assert some[0]["label"] == 1
    assert torch.equal(some[1]["image"], WANTED)


def cifar(folder, monkeypatch, published=True):
    """A CIFAR-10 of a few images, in the published form; its checksums are expected where ``published``."""
    import pickle  # noqa: TID251

    base = folder / datasets.CIFAR10.base_folder
    base.mkdir()
    sums = {}

    def save(name, value):
        data = pickle.dumps(value)
        (base / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()

    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        save(name, {"data": np.full((2, 3072), k, np.uint8), "labels": [k, 9]})
    save("batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    if published:
        monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, sums[n]] for n in list(sums)[:5]])
        monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
        monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def test_cifar_as_published(tmp_path, monkeypatch):
    cifar(tmp_path, monkeypatch)
    train, test = (read_images(f"cifar10:{tmp_path}", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 2)
    assert train.labels[:4] == [0, 9, 1, 9]
    assert train.classes == [f"c{i}" for i in range(10)]
    assert (train[2]["image"] == 1).all()
    assert len(read_images(f"cifar10:{tmp_path}", split=None)) == 12


def test_a_cifar_that_is_not_as_published_is_not_unpickled(tmp_path, monkeypatch):
    import pickle  # noqa: TID251

    cifar(tmp_path, monkeypatch, published=False)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(BadImage, match="not as published"):
        read_images(f"cifar10:{tmp_path}")


def test_stl10(tmp_path, monkeypatch):
    base = tmp_path / datasets.STL10.base_folder
    base.mkdir()
    for name, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        np.full((count, 3, 96, 96), count, np.uint8).tofile(base / f"{name}_X.bin")
        if name != "unlabeled":
            np.arange(1, count + 1, dtype=np.uint8).tofile(base / f"{name}_y.bin")
    (base / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    assert read_images(f"stl10:{tmp_path}").labels == [0, 1, 2]
    many = read_images(f"stl10:{tmp_path}", split="unlabelled")
    assert many.labels == [0, 1, 2, None, None, None, None]
    assert (many[6]["image"] == 4).all()
    assert read_images(f"stl10:{tmp_path}", split="test").classes[1] == "c1"


def test_voc_has_masks(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    Image.fromarray(PIXELS).save(base / "JPEGImages" / "1.jpg")
    mask = Image.fromarray(np.eye(6, 7, dtype=np.uint8) * 15, "L").convert("P")
    Image.fromarray(np.asarray(mask)).save(base / "SegmentationClass" / "1.png")
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("1\n")
    sample = read_images(f"voc2012:{tmp_path}")[0]
    assert sample["image"].shape == (3, 6, 7)
    assert sample["mask"].shape == (6, 7)
    with pytest.raises(BadImage, match="voc2012"):
        read_images(f"voc2012:{tmp_path}", split="test")


def test_imagenet_goes_the_way_of_files(tmp_path):
    words = {"n01": ("crane", "bird"), "n02": ("crane",), "n03": ("tench",)}
    torch.save((words, []), tmp_path / "meta.bin")
    for wnid in words:
        (tmp_path / "train" / wnid).mkdir(parents=True)
        Image.fromarray(PIXELS).save(tmp_path / "train" / wnid / "1.JPEG")
    (tmp_path / "train" / "n03" / "2.JPEG").write_bytes(b"")
    images = read_images(f"imagenet:{tmp_path}", cache=tmp_path / "cache")
    assert images.classes == ["crane n01", "crane n02", "tench"]
    assert images.labels == [0, 1, 2]
    assert len(images.problems) == 1
    with pytest.raises(BadImage, match="there is no val/"):
        read_images(f"imagenet:{tmp_path}", split="test")


def test_names_and_what_is_missing(tmp_path):
    for name in named.NAMES[:-1]:
        with pytest.raises(BadImage, match=r"no such folder|there is no"):
            read_images(f"{name}:{tmp_path / 'nowhere'}")
        with pytest.raises(BadImage, match=r"there is no|download=True\) fetches"):
            read_images(f"{name}:{tmp_path}")
    with pytest.raises(BadImage, match="choose of cifar10"):
        read_images("cifar11:/x")
    with pytest.raises(BadImage, match="without a folder"):
        read_images("cifar10:")


def test_digits():
    train, test = digits()
    assert (len(train), len(test)) == (1347, 450)
    assert len(read_images("digits:", split=None)) == 1797
    assert train[0]["image"].shape == (3, 32, 32)
    assert not set(train.names) & set(test.names)
    from sklearn.neighbors import KNeighborsClassifier

    x, y = (torch.stack([s["image"][0].flatten() for s in half]).numpy() for half in (train, test))
    assert KNeighborsClassifier(3).fit(x, train.labels).score(y, test.labels) > 0.93
