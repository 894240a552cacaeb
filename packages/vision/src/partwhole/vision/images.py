"""Images as a sequence of samples, from folders, archives, torchvision's data sets or any other data set.

Letters: H height, W width.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from partwhole.core.watch import Quiet
from partwhole.vision import named
from partwhole.vision.decode import BadImage, rgb
from partwhole.vision.find import Entry, Split, arrange, find
from partwhole.vision.pack import Decoding, check, sample

LARGEST = 100_000_000  # pixels: 300 MB decoded


class NoPart(BadImage):
    """There are images, and none of the part that was asked for."""


class Images(Sequence):
    """A sequence of samples {"image": (3, H, W) uint8}, with "label": int where it is known, and "mask" (H, W) int64
    and other keys where the images came with them. Sizes may differ.

    ``names`` says where each came from, ``labels`` its class as a number or None, ``classes`` the names of the classes
    ([] without), ``problems`` (path, reason) of what is wrong, where a reason begins with "skipped" or "kept"; ``key``
    changes with the images, for what is made of them and kept.
    """

    def __init__(
        self,
        pixels: Any,
        names: Sequence[str],
        *,
        labels: Sequence[int | None] | None = None,
        classes: Sequence[str] = (),
        problems: Sequence[tuple[str, str]] = (),
        key: str = "",
    ):
        self.pixels, self.names, self.classes, self.problems = pixels, list(names), list(classes), list(problems)
        self.labels: Sequence[int | None] = [None] * len(self.names) if labels is None else list(labels)
        self.key = key

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        label = self.labels[i]
        return self.pixels[i] if label is None else {**self.pixels[i], "label": label}

    def subset(self, indices: Iterable[int]) -> "Images":
        """The images of ``indices`` alone, in that order; classes and problems stay what they are."""
        chosen = [range(len(self))[i] for i in indices]
        key = hashlib.sha256(f"{self.key} {chosen}".encode()).hexdigest()[:24]
        names, labels = [self.names[i] for i in chosen], [self.labels[i] for i in chosen]
        pixels = _Chosen(self.pixels, chosen)
        return Images(pixels, names, labels=labels, classes=self.classes, problems=self.problems, key=key)

    def told(self, most: int = 10) -> list[str]:
        """Lines for a person: what was skipped and why, at most so many; what was kept all the same comes last."""
        order = sorted(self.problems, key=lambda problem: not problem[1].startswith("skipped"))
        lines = [f"{path}: {reason}" for path, reason in order[:most]]
        return lines + ([f"and {len(order) - most} more"] if len(order) > most else [])


def read_images(
    paths: str | Path | Iterable[str | Path],
    *,
    split: Split | None = "train",
    cache: str | Path | None = None,
    shorter: int | None = None,
    memory: int = 2**30,
    largest: int | None = LARGEST,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    watch: Any = None,
) -> Images:
    """All images of folders, zip and tar archives, single files, and data sets by name, such as ``cifar10:/its/root``
    (``named.NAMES``; they must be there already). Images have labels where they lie in two or more folders: the first
    folder below the root is the class.

    split    which part, where ``train*`` and ``val*`` or ``test*`` lie beside each other: "train"; "test" (``test*``
             before ``val*``); "unlabelled": train and ``unlabelled*``; None: all. Anything else is all "train".
    cache    folder where is kept what is found, so that the second time takes well under a second, and pixels where
             they fit into ``memory`` bytes, so that images are decoded only once.
    shorter  the shorter side is reduced to so many pixels, where it is longer.
    largest  most pixels of an image; larger ones are skipped before they are decoded.
    limit    only so many of the images, chosen at random by ``seed`` before any is looked at.
    workers  processes that decode; all cores by default.  ``watch`` is told how far the work is.

    Broken images are skipped and told in ``.problems``. Raises BadImage where no image is left.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    folder = None if cache is None else Path(cache) / "images"
    found: list[tuple[Entry, str | None]] = []
    others: list[Images] = []
    problems: list[tuple[str, str]] = []
    order: list[str] = []
    for path in given:
        if (parts := named.split_name(str(path))) is not None:
            got = named.read(*parts, split)
            if isinstance(got, Images):
                others.append(got)
                continue
            labelled, classes = got
        else:
            entries, more = find(path, folder)
            labelled, beside = arrange(entries, split)
            problems += [*more, *beside]
            classes = sorted({label for _, label in labelled if label is not None})
        found += labelled
        order += [c for c in classes if c not in order]
    found = list({(e.file, e.member, e.offset): (e, label) for e, label in found}.values())
    total = len(found) + sum(map(len, others))
    if not total:
        where = ", ".join(map(str, given)) or "no path given"
        raise NoPart(where, f"no image of the part {split!r}", "name a folder or archive that has some")
    if limit is not None and limit < total:
        chosen = sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:limit].tolist())
        places, at = chosen, len(found)
        found = [found[i] for i in places if i < len(found)]
        for k, one in enumerate(others):
            others[k] = one.subset([i - at for i in places if at <= i < at + len(one)])
            at += len(one)
    if found:
        checked = check(
            [e for e, _ in found], Decoding(shorter, largest),
            cache=folder, memory=memory, workers=workers, watch=watch or Quiet(),
        )  # fmt: skip
        good = [found[i] for i in checked.good]
        classes = [c for c in order if c in {label for _, label in good}]
        labels = [None if label is None else classes.index(label) for _, label in good]
        problems += checked.problems
        names = [e.name for e, _ in good]
        others.insert(0, Images(checked.pixels, names, labels=labels, classes=classes, key=checked.key))
    images = join([one for one in others if len(one)], problems)
    if not len(images):
        first = f"; the first: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise BadImage(", ".join(map(str, given)), f"none of {total} images can be read{first}", "give others")
    return images


def from_dataset(dataset: Any, *, name: str | None = None) -> Images:
    """Any map-style data set as images, decoded by it whenever one is asked for.

    Its items are an image; (image, label); (image, mask); or {"image" or "img", "label", "mask"}. An image is PIL's,
    (H, W) or (H, W, 3) uint8 of numpy, or a tensor (1 or 3, H, W) of uint8 or of floats from 0 to 1. Labels are taken
    from ``dataset.targets`` or ``dataset.labels``; without, every item is looked at once, in this process, and those
    that fail are told in ``.problems``. Labels below 0 mean none.
    """
    name = name or type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name} has no length or no items: expected a map-style data set, with len() and [i]")
    names, problems = [f"{name}/{i}" for i in range(len(dataset))], []
    labels, items = _targets(dataset), _Items(dataset)
    if labels is None:
        labels, good = [], []
        for i in range(len(dataset)):
            try:
                labels.append(items[i].get("label"))
                good.append(i)
            except Exception as error:  # a data set may raise anything for a broken file
                problems.append((names[i], f"skipped: {type(error).__name__}: {str(error)[:200]}"))
        if problems and not good:
            raise BadImage(name, f"none of {len(dataset)} items can be read; the first: {problems[0][1]}", "see there")
        names, items = [names[i] for i in good], _Chosen(items, good)
    labels = [None if label is None or label < 0 else label for label in labels]
    known = _classes(dataset)
    count = max((label + 1 for label in labels if label is not None), default=0)
    classes = known if len(known) >= count > 0 else [str(c) for c in range(count)]
    made = Images(items, names, labels=labels, classes=classes, problems=problems)
    made.key = _told_apart(made)
    return made


def join(parts: Sequence[Images], problems: Sequence[tuple[str, str]] = ()) -> Images:
    """Images one after the other; classes of one name are one class."""
    if len(parts) == 1 and not problems:
        return parts[0]
    classes = list(dict.fromkeys(c for one in parts for c in one.classes))
    place = {c: i for i, c in enumerate(classes)}
    labels = [None if label is None else place[one.classes[label]] for one in parts for label in one.labels]
    pixels = parts[0].pixels if len(parts) == 1 else ConcatDataset([one.pixels for one in parts]) if parts else []
    return Images(
        pixels,
        [name for one in parts for name in one.names],
        labels=labels,
        classes=classes,
        problems=[*problems, *(p for one in parts for p in one.problems)],
        key=" ".join(one.key for one in parts),
    )


# ------------------------------------------------------------------ inside


class _Chosen(Sequence):
    def __init__(self, pixels: Any, places: list[int]):
        if isinstance(pixels, _Chosen):
            pixels, places = pixels.pixels, [pixels.places[i] for i in places]
        self.pixels, self.places = pixels, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.pixels[self.places[index]]


class _Items(Sequence):
    """The items of a data set as samples; a label that an item brings is part of it."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        item = self.dataset[index]
        if isinstance(item, dict):
            key = next((k for k in ("image", "img") if k in item), None)
            if key is None:
                raise ValueError(f"item {index} has {sorted(item)}: one of them must be called image")
            made, more = _image(item[key], index), {k: item[k] for k in ("label", "mask") if item.get(k) is not None}
        elif isinstance(item, tuple | list):
            made, target = _image(item[0], index), item[1] if len(item) > 1 else None
            more = {} if target is None else {"label" if np.ndim(target) == 0 and _number(target) else "mask": target}
        else:
            made, more = _image(item, index), {}
        if "label" in more:
            made["label"] = int(more["label"])
        if "mask" in more and np.ndim(more["mask"]) == 2:
            made["mask"] = torch.from_numpy(np.asarray(more["mask"]).astype(np.int64))
        return made


def _told_apart(images: Images) -> str:
    """What changes with the names and with the pixels of a few of the images: all of them may be too many to read."""
    state = hashlib.sha256("\n".join(images.names).encode())
    for i in range(0, len(images), max(1, len(images) // 8)):
        with contextlib.suppress(Exception):  # what is wrong with it is told when it is asked for
            state.update(images.pixels[i]["image"].numpy().tobytes())
    return state.hexdigest()[:24]


def _number(value: Any) -> bool:
    return isinstance(value, int | np.integer) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0)


def _image(value: Any, index: int) -> dict[str, Any]:
    """{"image"} of what a data set calls an image."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 2:
            value = value[None]
        if value.ndim == 3 and value.shape[0] in (1, 3) and (value.is_floating_point() or value.dtype == torch.uint8):
            if value.is_floating_point():
                low, high = value.aminmax()
                if not 0 <= low <= high <= 1:
                    raise ValueError(f"item {index} has values from {low:.3g} to {high:.3g}; expected 0 to 1: give the "
                                     "data set without the transform that normalises")  # fmt: skip
                value = (value * 255).round().to(torch.uint8)
            return {"image": value.expand(3, -1, -1).clone()}
        raise ValueError(f"item {index} is a tensor {tuple(value.shape)} of {value.dtype}; expected (1 or 3, H, W) of "
                         "uint8 or of floats from 0 to 1")  # fmt: skip
    if isinstance(value, np.ndarray):
        from PIL import Image

        value = Image.fromarray(value)
    if not hasattr(value, "convert"):
        raise ValueError(f"item {index} is a {type(value).__name__}; expected an image of PIL, a tensor or an array")
    return sample(np.array(rgb(value, f"item {index}")))


def _targets(dataset: Any) -> list[int] | None:
    """The labels of a data set that lists them, through subsets and joins of torch's."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        whole = _targets(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if hasattr(dataset, "datasets"):
        parts = [_targets(one) for one in dataset.datasets]
        return None if any(p is None for p in parts) else [x for p in parts if p is not None for x in p]
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset) and all(_number(v) for v in values):
            return [int(v) for v in values]
    return None


def _classes(dataset: Any) -> list[str]:
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return [c if isinstance(c, str) else str(c[0]) for c in getattr(dataset, "classes", None) or []]
