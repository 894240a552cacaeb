"""Where a recipe's sounds come from: files, or generated ones where there are none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from partwhole.audio.decode import BadSound
from partwhole.audio.find import Split, chosen, find
from partwhole.audio.generate import SPEAKERS, generated
from partwhole.audio.sounds import Sounds, read_sounds
from partwhole.core import distributed
from partwhole.core.data import mix
from partwhole.core.watch import Quiet, Steps

LABELLED_SEED = 1_000  # generated labelled sounds are never among the generated unlabelled ones
TEST = 0.2  # of a class, where a set brings no test part of its own


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where sounds come from and how they are kept."""

    cache: Path = Path(".cache/partwhole")
    """Folder of decoded sounds; any number of runs and processes may share it."""
    memory: int = 2**31
    """Bytes that decoded sounds may take in the cache; where they need more, they are decoded again and again."""
    longest: float = 10.0
    """Seconds of a sound; a longer file is cut into pieces, each a sound of its own."""
    held_out: tuple[str, ...] = ()
    """Speakers who are heard in tests alone, neither in training nor among the labels to learn from, where files say
    who speaks (FSDD, Speech Commands, "speaker" in index.jsonl); default: the parts that the data came in."""
    names: Literal["class", "speaker"] = "class"
    """What is to be told apart when features are measured: what is heard, or who."""
    limit: int | None = None
    """Use only so many of the unlabelled sounds, chosen at random."""
    workers: int | None = None
    """Threads that decode before training; all cores by default."""
    loaders: int = 0
    """Processes that make views while training; 0: the training process itself."""
    generate: int = 2000
    """Unlabelled sounds to generate where no path is given."""
    generate_labelled: int = 50
    """Labelled sounds to generate per class where no path is given, and half as many for testing, by other speakers
    unless it is the speakers that are told apart."""
    seed: int = 0
    """Of generated sounds, of the choice of ``limit`` sounds, and of the test part where a labelled set has none."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"cache", "memory", "workers", "loaders", "generate_labelled", "names"}
    )  # they do not change what is trained

    def __post_init__(self) -> None:
        least = {"memory": 0, "limit": 1, "workers": 1, "loaders": 0, "generate": 1, "generate_labelled": 2}
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise ValueError(f"source.{name} is {value}; expected {number} or more")
        if not self.longest > 0:
            raise ValueError(f"source.longest is {self.longest} seconds; expected more than none")

    def unlabelled(self, paths: Sequence[str | Path], rate: int, watch: Any = None) -> Sounds:
        """The sounds to train on, looked at once by the first process and found by the others: of sets in parts the
        part ``train``, and ``unlabelled`` where there is one."""
        if not paths:
            made = generated(self.generate, rate, seed=self.seed, speakers=range(2 * SPEAKERS // 3))
        else:
            watch = watch or Quiet()
            made = distributed.first(lambda: self._read(paths, "unlabelled", rate, watch))
            for line in made.told():
                watch.say(line)
        if self.limit is not None and self.limit < len(made):
            generator = torch.Generator().manual_seed(self.seed)
            made = made.subset(sorted(torch.randperm(len(made), generator=generator)[: self.limit].tolist()))
        return made

    def labelled(self, path: str | Path | None, rate: int, watch: Any = None) -> tuple[Sounds, Sounds]:
        """The labelled sounds, those to learn from and those to measure on, with the same classes.

        These are speakers that are ``held_out``, or the parts that a set brings, else a fifth of each class, chosen by
        ``seed``, is for measuring; pieces of one file stay together. Sounds without a label, or of a class that only
        the test part has, are left out and told in ``.problems``. Raises BadSound where nothing can be measured: no
        labels, or fewer than two classes in either part.
        """
        if path is None:
            seed, each = self.seed + LABELLED_SEED, 10 * self.generate_labelled
            known, strangers = range(2 * SPEAKERS // 3), range(2 * SPEAKERS // 3, SPEAKERS)
            if self.names == "speaker":  # who is to be told from others must have been heard
                strangers = known
            made = (generated(each, rate, seed=seed, speakers=known),
                    generated(each // 2, rate, seed=seed + 1, speakers=strangers))  # fmt: skip
            train, test = (self._labels(half, "generated sounds") for half in made)
            return _alike(train, test, "generated sounds")
        watch = watch or Quiet()
        train = distributed.first(lambda: self._read([path], "train", rate, watch))
        test = distributed.first(lambda: self._read([path], "test", rate, Steps(watch)))
        train = self._labels(train, path)
        if not len(test):
            train, test = self._divided(train)
        return _alike(train, self._labels(test, path), path)

    def _read(self, paths: Sequence[str | Path], split: Split, rate: int, watch: Any) -> Sounds:
        """Sounds of a part; none of ``test`` where there is no such part."""
        found, problems = [], []
        for path in paths:
            entries, more = find(path)
            found += chosen(entries, split, self.held_out)
            problems += more
        found = list({e.file: e for e in found}.values())
        if not found:
            if split == "test":
                return Sounds([], rate, [])
            where = ", ".join(map(str, paths))
            raise BadSound(where, f"no sound of the part {split!r}", "name a folder that has some")
        return read_sounds(
            found, rate, longest=self.longest, cache=self.cache, memory=self.memory, workers=self.workers,
            problems=problems, watch=watch,
        )  # fmt: skip

    def _labels(self, sounds: Sounds, path: str | Path) -> Sounds:
        """Those with a label, which is the speaker where ``names`` says so."""
        if self.names == "speaker":
            number = {name: i for i, name in enumerate(sounds.voices)}
            sounds = sounds.subset(range(len(sounds)))
            sounds.labels = [None if s is None else number[s] for s in sounds.speakers]
            sounds.classes = sounds.voices
        kept = [i for i, label in enumerate(sounds.labels) if label is not None]
        if len(kept) == len(sounds):
            return sounds
        if not kept:
            found = f"{len(sounds)} sounds without labels"
            raise BadSound(path, found, "put the sounds of each class into a folder of their own, <class>/<sound>")
        first = next(name for name, label in zip(sounds.names, sounds.labels, strict=True) if label is None)
        out = sounds.subset(kept)
        out.problems.append((first, f"skipped: it has no label, as {len(sounds) - len(kept)} sounds of {path}"))
        return out

    def _divided(self, sounds: Sounds) -> tuple[Sounds, Sounds]:
        """Some files of each class for training and some for testing."""
        tests: set[int] = set()
        problems = list(sounds.problems)
        source = [name.rpartition(" from ")[0] or name for name in sounds.names]
        for label, name in enumerate(sounds.classes):
            mine = [i for i, other in enumerate(sounds.labels) if other == label]
            whole = sorted({source[i] for i in mine})
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(mix(self.seed, label)))
            count = max(1, round(TEST * len(whole))) if len(whole) > 1 else 0
            picked = {whole[k] for k in order[:count].tolist()}
            tests |= {i for i in mine if source[i] in picked}
            if whole and not count:
                problems.append((whole[0], f"kept: the only sound of class {name}; it is not tested"))
        train = sounds.subset(i for i in range(len(sounds)) if i not in tests)
        test = sounds.subset(sorted(tests))
        train.problems, test.problems = problems, []
        return train, test


class Among(Sequence):
    """The samples, each with all of them beside it: {..., "others"}. Of these a view draws one to mix in, so that what
    it draws is a function of its own seed, however many processes there are."""

    def __init__(self, sounds: Sounds):
        self.sounds, self.names = sounds, sounds.names

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, i: Any) -> Any:
        return {**self.sounds[i], "others": self.sounds}


def _alike(train: Sounds, test: Sounds, path: str | Path) -> tuple[Sounds, Sounds]:
    """``test`` with the classes of ``train``, and without sounds of others."""
    if len(train.classes) < 2:
        found = f"labels of {len(train.classes)} class ({', '.join(train.classes)}) in the part to learn from"
        raise BadSound(path, found, "two classes or more can be told apart: give a set that has them")
    number = {name: i for i, name in enumerate(train.classes)}
    names = [None if label is None else test.classes[label] for label in test.labels]
    strange = Counter(name for name in names if name is not None and name not in number)
    out = test.subset(i for i, name in enumerate(names) if name in number)
    out.labels, out.classes = [number[name] for name in names if name in number], train.classes  # type: ignore[index]
    if not len(out):
        found = f"no sound to measure on: the test part has the classes {', '.join(map(str, strange)) or '(none)'}"
        raise BadSound(path, found, f"they must be among those of the training part ({', '.join(train.classes)})")
    for name, count in strange.items():
        reason = f"skipped: {count} test sounds of a class that the training part does not have"
        out.problems.append((f"{path}: {name}", reason))
    return train, out
