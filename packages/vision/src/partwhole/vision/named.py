"""Data sets that torchvision reads, by name, from where the user has them; and scikit-learn's digits.

Nothing is fetched. The Python batches of CIFAR are pickles: torchvision compares each with the published checksum
before it opens it, and only so are they read. Any other copy of CIFAR is to be given as a folder of images.
"""

import re
from pathlib import Path
from typing import Any

from partwhole.vision.decode import BadImage
from partwhole.vision.find import Entry, Labelled, Split

NAMES = ("cifar10", "cifar100", "stl10", "imagenet", "voc2007", "voc2012", "digits")


def split_name(text: str) -> tuple[str, str] | None:
    """("cifar10", "/its/root") of ``cifar10:/its/root``; None for a path. Raises BadImage for a name not in NAMES."""
    match = re.fullmatch(r"([a-zA-Z]\w+):(.*)", text)
    if match is None or Path(text).exists():
        return None
    name = match[1].lower()
    if name not in NAMES:
        raise BadImage(text, "no data set of that name", f"choose of {', '.join(NAMES)}, or give a folder")
    if not match[2] and name != "digits":
        raise BadImage(text, "a data set without a folder", f"write {name}:/folder/where/it/is")
    return name, match[2]


def read(name: str, root: str, split: Split | None) -> Any:
    """Images, or for files to be decoded like all others (ImageNet) their list and the names of classes."""
    from partwhole.vision.images import from_dataset, join

    if name == "digits":
        from partwhole.vision.scenes import digits

        train, test = digits()
        return join([train, test]) if split is None else test if split == "test" else train
    if name == "imagenet":
        return _imagenet(root, split)
    from torchvision import datasets

    if name == "stl10":
        kinds = {"train": ["train"], "test": ["test"], "unlabelled": ["train+unlabeled"], None: ["train", "test"]}
        made = [_made(name, datasets.STL10, root, split=kind) for kind in kinds[split]]
    elif name.startswith("cifar"):
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        made = [_made(name, kind, root, train=train) for train in _both(split, True, False)]
    else:
        year = name.removeprefix("voc")
        sets = _both(split, "trainval", "test") if year == "2007" else _both(split, "train", "val")
        made = [_made(name, datasets.VOCSegmentation, root, year=year, image_set=part) for part in sets]
    key = f"{name}:{Path(root).resolve()}"
    return join([from_dataset(one, name=f"{key}/{i}") for i, one in enumerate(made)])


def _both(split: Split | None, train: Any, test: Any) -> list[Any]:
    return [train, test] if split is None else [test] if split == "test" else [train]


def _made(name: str, kind: Any, root: str, **options: Any) -> Any:
    if not Path(root).is_dir():
        raise BadImage(f"{name}:{root}", "no such folder", "name the folder where torchvision keeps it")
    try:
        return kind(root, download=False, **options)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        below = getattr(kind, "base_folder", None) or f"VOCdevkit/VOC{options.get('year', '')}"
        raise BadImage(
            f"{name}:{root}",
            f"{below}/ is not there, not complete, or not as published ({_first(error)})",
            f"torchvision.datasets.{kind.__name__}({root!r}, download=True) fetches it; or give a folder of images",
        ) from error


def _first(error: Exception) -> str:
    return str(error).split(". You can use", 1)[0][:200]


def _imagenet(root: str, split: Split | None) -> tuple[list[Labelled], list[str]]:
    """The files of ImageNet with its words for classes; torchvision reads these from its ``meta.bin``."""
    from torchvision import datasets

    found: list[Labelled] = []
    classes: list[str] = []
    for part in _both(split, "train", "val"):
        folder = Path(root) / part
        if not folder.is_dir() or not (Path(root) / "meta.bin").is_file():
            what = f"{part}/" if not folder.is_dir() else "meta.bin"
            raise BadImage(
                f"imagenet:{root}",
                f"there is no {what}",
                f"torchvision.datasets.ImageNet({root!r}) unpacks the archives of ImageNet there; folders of classes "
                "are read without it: give the folder that holds train/ and val/",
            )
        dataset = datasets.ImageNet(root, split=part)
        first = [words[0] for words in dataset.classes]  # two of them are called crane
        classes = [f"{w} {dataset.wnids[i]}" if first.count(w) > 1 else w for i, w in enumerate(first)]
        for path, label in dataset.samples:
            status = Path(path).stat()
            entry = Entry(path, path, "", -1, status.st_size, status.st_mtime_ns, ())
            found.append(Labelled(entry, classes[label]))
    return found, classes
