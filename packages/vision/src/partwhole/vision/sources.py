"""Where a recipe's images come from: paths and names of data sets, or generated scenes where there are none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from partwhole.core import distributed
from partwhole.core.data import mix
from partwhole.core.watch import Quiet, Steps
from partwhole.vision.decode import BadImage
from partwhole.vision.find import Split
from partwhole.vision.images import LARGEST, Images, NoPart, read_images

LABELLED_SEED = 1_000  # generated labelled scenes are never among the generated unlabelled ones
TEST = 0.2  # of a class, where a set brings no test part of its own


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where images come from and how they are kept."""

    cache: Path = Path(".cache/partwhole")
    """Folder of decoded images; any number of runs and processes may share it."""
    shorter: int | None = None
    """Reduce larger images, before anything else, so that the shorter side has so many pixels; default: as they are."""
    memory: int = 2**30
    """Bytes that decoded images may take in the cache; where they need more, they are decoded again and again."""
    largest: int = LARGEST
    """Most pixels of an image; larger ones are skipped without decoding them."""
    limit: int | None = None
    """Use only so many of the unlabelled images, chosen at random."""
    workers: int | None = None
    """Processes that look at all images before training; all cores by default."""
    loaders: int = 0
    """Processes that make views while training; 0: the training process itself."""
    views: Literal["samples", "device"] = "samples"
    """Where views are made: one by one by the loaders, or drawn there and a batch at once on the device that trains.
    The latter is half of the work; it suits a GPU, and a CPU without loaders. The batches are the same."""
    generate: int = 2000
    """Unlabelled scenes to generate where no path is given."""
    generate_labelled: int = 50
    """Labelled scenes to generate per class where no path is given, a fifth of them for testing."""
    seed: int = 0
    """Of generated scenes, of the choice of ``limit`` images, and of the test part where a labelled set has none."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"cache", "memory", "workers", "loaders", "views", "generate_labelled"}
    )  # they do not change what is trained

    def __post_init__(self) -> None:
        least = {"shorter": 1, "memory": 0, "largest": 1, "limit": 1, "workers": 0, "loaders": 0, "generate": 1}
        for name, number in {**least, "generate_labelled": 1}.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise ValueError(f"source.{name} is {value}; expected {number} or more")

    def unlabelled(self, paths: Sequence[str | Path], watch: Any = None) -> Images:
        """The images to train on, looked at once by the first process and found by the others: of sets in parts the
        part ``train``, and ``unlabelled`` where there is one."""
        if not paths:
            from partwhole.vision.scenes import scenes

            made = scenes(self.generate, seed=self.seed)
            return made if self.limit is None else made.subset(range(min(self.limit, len(made))))
        watch = watch or Quiet()
        images = distributed.first(lambda: self._read(paths, "unlabelled", watch, self.limit))
        for line in images.told():
            watch.say(line)
        return images

    def labelled(self, path: str | Path | None, watch: Any = None) -> tuple[Images, Images]:
        """The labelled images, those to learn from and those to measure on, with the same classes.

        These are the parts ``train`` and ``test`` or ``val`` of a set that has them, else a fifth of each class,
        chosen by ``seed``, is for measuring. Images without a label, or of a class that only the test part has, are
        left out and told in ``.problems``. Raises BadImage where nothing can be measured: no labels, or fewer than two
        classes in either part.
        """
        if path is None:
            from partwhole.vision.scenes import CLASSES, scenes

            tests = max(1, round(TEST * self.generate_labelled)) * len(CLASSES)
            made = scenes(max(2, self.generate_labelled) * len(CLASSES), seed=self.seed + LABELLED_SEED)
            return made.subset(range(tests, len(made))), made.subset(range(tests))
        watch = watch or Quiet()
        train = distributed.first(lambda: self._read([path], "train", watch))
        test = distributed.first(lambda: self._tests(path, Steps(watch)))
        if test is None:
            train, test = self._divided(_with_labels(train, path))
        return _alike(_with_labels(train, path), _with_labels(test, path), path)

    def _read(self, paths: Sequence[str | Path], split: Split, watch: Any, limit: int | None = None) -> Images:
        return read_images(
            paths, split=split, cache=self.cache, shorter=self.shorter, memory=self.memory, largest=self.largest,
            limit=limit, seed=self.seed, workers=self.workers, watch=watch,
        )  # fmt: skip

    def _tests(self, path: str | Path, watch: Any) -> Images | None:
        try:
            return self._read([path], "test", watch)
        except NoPart:  # answered here: an error would end the other processes
            return None

    def _divided(self, images: Images) -> tuple[Images, Images]:
        """Some of each class for training and some for testing."""
        tests: list[int] = []
        problems = list(images.problems)
        for label, name in enumerate(images.classes):
            mine = [i for i, other in enumerate(images.labels) if other == label]
            order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(mix(self.seed, label)))
            count = max(1, round(TEST * len(mine))) if len(mine) > 1 else 0
            tests += [mine[k] for k in order[:count].tolist()]
            if not count:
                problems.append((images.names[mine[0]], f"kept: the only image of class {name}; it is not tested"))
        chosen = set(tests)
        train = images.subset(i for i in range(len(images)) if i not in chosen)
        test = images.subset(sorted(chosen))
        train.problems, test.problems = problems, []
        return train, test


def _with_labels(images: Images, path: str | Path) -> Images:
    kept = [i for i, label in enumerate(images.labels) if label is not None]
    if len(kept) == len(images):
        return images
    if not kept:
        found = f"{len(images)} images without labels"
        raise BadImage(path, found, "put the images of each class into a folder of their own, <class>/<image>")
    first = next(name for name, label in zip(images.names, images.labels, strict=True) if label is None)
    out = images.subset(kept)
    out.problems.append((first, f"skipped: it has no label, as {len(images) - len(kept)} images of {path}"))
    return out


def _alike(train: Images, test: Images, path: str | Path) -> tuple[Images, Images]:
    """``test`` with the classes of ``train``, and without images of others."""
    if len(train.classes) < 2:
        found = f"labels of {len(train.classes)} class ({', '.join(train.classes)}) in the part to learn from"
        raise BadImage(path, found, "two classes or more can be told apart: give a set that has them")
    number = {name: i for i, name in enumerate(train.classes)}
    names = [None if label is None else test.classes[label] for label in test.labels]
    strange = Counter(name for name in names if name is not None and name not in number)
    out = test.subset(i for i, name in enumerate(names) if name in number)
    out.labels, out.classes = [number[name] for name in names if name is not None and name in number], train.classes
    if not len(out):
        found = f"no image to measure on: the test part has the classes {', '.join(map(str, strange)) or '(none)'}"
        raise BadImage(path, found, f"they must be among those of the training part ({', '.join(train.classes)})")
    for name, count in strange.items():
        reason = f"skipped: {count} test images of a class that the training part does not have"
        out.problems.append((f"{path}: {name}", reason))
    for name in sorted(set(train.classes) - {names[i] for i in range(len(names))}):
        out.problems.append((f"{path}: {name}", "kept: a class without test images; it is learned and not measured"))
    return train, out
