"""What every recipe on sounds shares: data, network, views, evaluation."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwhole.audio import policies
from partwhole.audio.mel import Mel, moments
from partwhole.audio.network import Network
from partwhole.audio.sounds import Sounds
from partwhole.audio.sources import Among, Source
from partwhole.audio.views import Augment
from partwhole.core import distributed
from partwhole.core.catalog import Given
from partwhole.core.data import Batches, Stream, View, collate, some
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.evaluate import accuracy, embed, knn
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.methods import FixMatch, PseudoLabel, Supervised
from partwhole.core.probe import Classes, Probe
from partwhole.core.sees import Seeing
from partwhole.core.watch import Quiet

Policy = Literal["byola", "simclr", "specaugment", "plain"]
GLANCE = 1000  # sounds of each half that are looked at while training
LOOKED = 64  # sounds whose length is looked at


@dataclass(frozen=True, kw_only=True)
class SoundRecipe(Seeing, ABC):
    """What every recipe on sounds shares; a recipe adds its method and its view."""

    data: tuple[Path, ...] = ()
    """Folders of sounds, with or without a folder for each class, or sound files; default: generated sounds."""
    labelled: Path | None = None
    """Sounds to evaluate on, a folder for each class; default: the first of the data, if it has labels."""
    source: Source = Source()
    mel: Mel = Mel()
    network: Network = Network()
    seconds: float = 0.96
    """Of sound that the network sees at once; of longer sounds a part."""
    policy: Policy = "simclr"
    """How views are made: as in the paper of that name, and plain, a random piece and nothing else."""
    batch: int = 64
    """Unlabelled sounds per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.05, evaluate_every=100)
    measure: Probe = Probe(shots=(1, 5, 20))

    incidental: ClassVar[frozenset[str]] = frozenset({"measure"})  # no part of training

    def __post_init__(self) -> None:
        for name in ("seconds", "batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")

    @abstractmethod
    def method(self, encoder: Encoder, given: Given) -> Method: ...

    def unused(self) -> Iterator[tuple[str, str]]:
        """Options that are not as usual and change nothing as the others are, and why."""
        for name in self.network.unused:
            yield f"network.{name}", f"it is for another network than --network.name {self.network.name}"

    @property
    def frames(self) -> int:
        """Of a spectrogram that the network sees, at the most."""
        return self.mel.frames(self.seconds)

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return self.network.build(self.mel.bands, *moments(self.mel, self.prepare()))

    def look(self) -> View:
        return policies.policy(self.policy, self.mel, self.frames)

    def looks(self, crops: int) -> View:
        return policies.looks(self.policy, self.mel, self.frames, crops)

    def strong(self) -> View:
        return policies.specaugment(self.mel, self.frames)

    def weak(self) -> View:
        """What training from scratch and fine-tuning see, to compare."""
        return policies.specaugment(self.mel, self.frames)

    def drawn(self, x: Tensor, hidden: Tensor | None, encoder: Encoder) -> Tensor:
        """What a network sees of a sound as a spectrogram (T, F), what is ``hidden`` (L,) of it not a number."""
        if hidden is None:
            return x
        embed: Any = encoder.embed
        tokens = embed.target(x[None].to(device_of(encoder))).cpu()
        gone = embed.picture(tokens.masked_fill(hidden[None, :, None], torch.nan))[0, : len(x)].isnan()
        return x.masked_fill(gone, torch.nan)

    def shown(self, encoder: Encoder) -> View:
        """The view that the report shows."""
        return self.view(encoder)

    def plain(self) -> Augment:
        """What an evaluation sees."""
        return policies.middle(self.mel, self.frames)

    def tokens(self, encoder: Encoder) -> int:
        return encoder.embed.count(self.frames)  # type: ignore[union-attr,operator]

    def kept(self, name: str, samples: Any) -> Path:
        key = getattr(samples, "sounds", samples).key
        about = [asdict(self.network), asdict(self.mel), self.seconds, self.policy, key]
        digest = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        return self.source.cache / f"{name}-{digest}.safetensors"

    def prepare(self, watch: Any = None) -> Sounds:
        """The unlabelled sounds; they are decoded once, and kept where there is room."""
        return self.source.unlabelled(self.data, self.mel.rate, watch=watch)

    def evaluation(self, watch: Any = None) -> tuple[Sounds, Sounds] | None:
        """The labelled sounds to learn from and to be tested on; None where nothing has labels."""
        if self.labelled is None and self.data:
            prepared = self.prepare()
            if not (prepared.voices if self.source.names == "speaker" else prepared.classes):
                return None
            return self.source.labelled(self.data[0], self.mel.rate, watch=watch)
        return self.source.labelled(self.labelled, self.mel.rate, watch=watch)

    def classes(self, watch: Any = None) -> Classes | None:
        """The same, with their labels."""
        if (halves := self.evaluation(watch)) is None:
            return None
        told = set(self.prepare().problems)  # before
        for path, reason in dict.fromkeys(one for half in halves for one in half.problems if one not in told):
            if watch is not None:
                watch.say(f"{path}: {reason}")
        (train, train_label), (test, test_label) = ((half, torch.tensor(half.labels)) for half in halves)
        return Classes(train, train_label, test, test_label, train.classes)

    def learned(self, classes: Classes) -> list[int] | None:
        """Which of ``classes.train`` it is told the labels of; None: it learns without."""
        return None

    def streamed(self, samples: Sequence[Any], view: View) -> Batches:
        return Stream(samples, view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def given(self, sounds: Sounds, classes: Classes | None) -> Given:
        return Given(things=len(sounds), batch=self.batch, classes=len(classes.names) if classes else 0)

    def own(self, method: Method, samples: Sequence[Any]) -> "Own | None":
        """What only this method can be asked, on sounds that it was not trained on; None where that is nothing."""
        return None

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        sounds, classes = self.prepare(watch), self.classes(watch)
        for line in odd(self, sounds):
            if watch is not None:
                watch.say(line)
        torch.manual_seed(self.fit.seed)
        encoder = self.begun(self.encoder())
        method = self.method(encoder, self.given(sounds, classes))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        loaders = f"Raise --source.loaders, of which there are {self.source.loaders}, to as many as {cores}"
        return Run(
            method=method,
            stream=self.stream(Among(sounds), encoder),
            evaluate=Glance(self.plain(), classes),
            faster=loaders if self.source.loaders < cores else "The sounds are read as fast as they can be",
        )

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Measure, show and report: what ``tools/run.py`` calls after training, and ``tools/evaluate.py`` alone."""
        from partwhole.audio.finish import finish

        return finish(self, encoder.to(distributed.setup(self.fit.device)), folder, watch or Quiet())


def odd(recipe: SoundRecipe, sounds: Sounds) -> Iterator[str]:
    """What is odd about a run, seen before its first step: sentences for a person."""
    if len(sounds) < recipe.batch:
        yield (
            f"careful: a step of {recipe.batch} sounds sees each of the {len(sounds)} several times, and takes its "
            "copies for others: lower --batch"
        )
    if recipe.batch == 1:
        yield (
            "careful: a step of one sound has no other to compare it with, and nothing to normalise over: most methods "
            "need a --batch of 2 or more"
        )
    seconds = sorted(len(sample["sound"]) / recipe.mel.rate for sample in some(sounds, LOOKED))
    typical = seconds[len(seconds) // 2]
    if typical > 2 * recipe.seconds:
        yield (
            f"careful: half of the sounds are longer than {typical:.1f} s, and the network sees {recipe.seconds:g} s "
            "of them at once, when they are measured the middle: raise --seconds, or cut them by --source.longest"
        )
    usual = torch.stack([recipe.mel(sample["sound"]).median(0).values for sample in some(sounds, LOOKED)]).amax(0)
    heard = (usual > recipe.mel.silence + 2).nonzero()[:, 0]  # bands in which there is anything
    if len(heard) and (above := recipe.mel.bands - 1 - int(heard[-1])) > recipe.mel.bands // 10:
        yield (
            f"careful: the highest {above} of {recipe.mel.bands} bands are silent in {min(LOOKED, len(sounds))} sounds "
            "that were looked at, as where they were recorded at a lower rate: lower --mel.rate, or --mel.high"
        )
    for name, why in recipe.unused():
        yield f"careful: --{name} changes nothing: {why}"


@dataclass(frozen=True)
class Own:
    """What a method was asked: numbers, and pictures where there is something to see, (PNG, caption)."""

    numbers: Mapping[str, float]
    pictures: Sequence[tuple[bytes, str]] = ()


@torch.no_grad()
def named(method: Supervised | PseudoLabel | FixMatch, batch: Mapping[str, Tensor]) -> Tensor:
    """The class that a method in eval mode gives each x, (B,) on the CPU."""
    device, out = device_of(method), []
    for part in parts(batch):
        given = {k: v.to(device) for k, v in part.items()}
        out.append(method.answer(**given).argmax(-1).cpu())
    return torch.cat(out)


def parts(batch: Mapping[str, Tensor], size: int = 64) -> Iterator[dict[str, Tensor]]:
    """The batch, so many things at a time."""
    for i in range(0, len(batch["x"]), size):
        yield {k: v[i : i + size] for k, v in batch.items()}


def seen(view: View, samples: Sequence[Any]) -> dict[str, Tensor]:
    """{"x"} of all samples and, where their lengths differ, {"valid"}."""
    return collate([{"x": view(samples[i])} for i in range(len(samples))])


class Glance:
    """While training: accuracy of the nearest neighbours, and of the method's own answers where it gives any, on some
    of the labelled sounds."""

    def __init__(self, plain: View, classes: Classes | None):
        self.plain, self.classes = plain, classes
        self.halves: list[tuple[dict[str, Tensor], Tensor]] = []

    def __call__(self, method: Method) -> Mapping[str, float]:
        if self.classes is None:
            return {}
        if not self.halves:
            c = self.classes
            self.halves = [self.some(c.train, c.train_label), self.some(c.test, c.test_label)]
        (bank, query), (label, truth) = zip(
            *((embed(method.encoder, parts(half)).float(), y) for half, y in self.halves), strict=True
        )
        found = {"knn": accuracy(knn(bank, label.to(bank.device), query).cpu(), truth)}
        if isinstance(method, Supervised | PseudoLabel | FixMatch):
            found["accuracy"] = accuracy(named(method, self.halves[1][0]), truth)
        return found

    def some(self, things: Sequence[Any], label: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        chosen = torch.randperm(len(things), generator=torch.Generator().manual_seed(0))[:GLANCE]
        return seen(self.plain, [things[i] for i in chosen.tolist()]), label[chosen]
