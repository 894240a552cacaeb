"""What every recipe on images shares: data, network, views, evaluation."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from partwhole.core import distributed
from partwhole.core.catalog import Given
from partwhole.core.data import Batches, Stream, View
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.evaluate import accuracy, embed, knn
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.methods import FixMatch, PseudoLabel, Supervised
from partwhole.core.probe import Classes, Probe
from partwhole.core.sees import Seeing
from partwhole.core.watch import Quiet
from partwhole.vision import care, policies
from partwhole.vision.draw import Picture
from partwhole.vision.images import Images
from partwhole.vision.network import Network
from partwhole.vision.on_device import Deferred, OnDevice
from partwhole.vision.sources import Source
from partwhole.vision.transfer import Transfer, check
from partwhole.vision.views import Augment

Policy = Literal["simclr", "mocov2", "byol", "dino", "infomin", "mae", "weak", "strong", "plain"]
GLANCE = 1000  # images of each half that are looked at while training


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Seeing, ABC):
    """What every recipe on images shares; a recipe adds its method and its view."""

    data: tuple[Path, ...] = ()
    """Folders, images, zip or tar archives, or data sets by name (cifar10:folder); default: generated scenes."""
    labelled: Path | None = None
    """Images to evaluate on, a folder for each class; default: the first of the data, if it has labels."""
    source: Source = Source()
    network: Network = Network()
    size: int = 64
    """Side of what the network sees, in pixels."""
    policy: Policy = "simclr"
    """How views are made: as in the paper of that name, from the gentle mae to infomin, which leaves least alike."""
    batch: int = 64
    """Unlabelled images per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.05, evaluate_every=100)
    measure: Probe = Probe()
    annotated: Path | None = None
    """Images with masks or boxes to measure on, a folder as of PennFudan, VOC or COCO; default: the masks of generated
    scenes, where data and labels are generated."""
    transfer: Transfer = Transfer()

    incidental: ClassVar[frozenset[str]] = frozenset({"measure", "annotated", "transfer"})  # no part of training

    def __post_init__(self) -> None:
        for name in ("size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")

    @abstractmethod
    def method(self, encoder: Encoder, given: Given) -> Method: ...

    @property
    def augment(self) -> Augment:
        """The first view."""
        return policies.looks(self.policy, self.size).first  # type: ignore[return-value]

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return self.network.build(self.size)

    def origins(self) -> Mapping[str, Path]:
        given = self.network.given()
        return {**super().origins(), **({} if given is None else {"network.weights": given})}

    def look(self) -> View:
        return self.augment

    def looks(self, crops: int) -> View:
        return policies.looks(self.policy, self.size, crops)

    def strong(self) -> View:
        return policies.strong(self.size)

    def shown(self, encoder: Encoder) -> View:
        """The view that the report shows."""
        return self.view(encoder)

    def plain(self) -> View:
        """What an evaluation sees."""
        return policies.plain(self.size)

    def tokens(self, encoder: Encoder) -> int:
        return encoder.embed.count(self.size)  # type: ignore[union-attr,operator]

    def kept(self, name: str, samples: Images) -> Path:  # type: ignore[override]
        about = [asdict(self.network), self.size, self.policy, samples.key]
        key = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        return self.source.cache / f"{name}-{key}.safetensors"

    def prepare(self, watch: Any = None) -> Images:
        """The unlabelled images; they are looked at once, and kept decoded where there is room."""
        return self.source.unlabelled(self.data, watch=watch)

    def evaluation(self, watch: Any = None) -> tuple[Images, Images] | None:
        """The labelled images to learn from and to be tested on; None where nothing has labels."""
        if self.labelled is None and self.data:
            if not self.prepare().classes:
                return None
            return self.source.labelled(self.data[0], watch=watch)
        return self.source.labelled(self.labelled, watch=watch)

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

    def streamed(
        self, samples: Sequence[Any], view: View, after: Callable[[dict[str, Any]], Any] | None = None
    ) -> Batches:
        """Batches of views; ``after`` is done with a batch whose views are made on the device."""
        if self.source.views == "samples":
            return self.one_by_one(samples, view)
        return OnDevice(self.one_by_one(samples, Deferred(view)), distributed.setup(self.fit.device), after)

    def one_by_one(self, samples: Sequence[Any], view: View) -> Stream:
        """Batches of what the view gives of each sample."""
        return Stream(samples, view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def given(self, images: Images, classes: Classes | None) -> Given:
        return Given(things=len(images), batch=self.batch, classes=len(classes.names) if classes else 0)

    def own(self, method: Method, samples: Sequence[Any]) -> "Own | None":
        """What only this method can be asked, on images that it was not trained on; None where that is nothing."""
        return None

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        check(self)
        images, classes = self.prepare(watch), self.classes(watch)
        for line in care.odd(self, images):
            if watch is not None:
                watch.say(line)
        torch.manual_seed(self.fit.seed)
        encoder = self.begun(self.encoder())
        care.try_out(self, encoder, images)
        method = self.method(encoder, self.given(images, classes))
        return Run(
            method=method,
            stream=self.stream(images, encoder),
            evaluate=Glance(self.plain(), classes),
            faster=care.faster(self, images),
        )

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Measure, show and report: what ``tools/run.py`` calls after training, and ``tools/evaluate.py`` alone."""
        from partwhole.vision.finish import finish

        return finish(self, encoder.to(distributed.setup(self.fit.device)), folder, watch or Quiet())


@dataclass(frozen=True)
class Own:
    """What a method was asked: numbers, and a picture where there is something to see."""

    numbers: Mapping[str, float]
    picture: Picture | None


@torch.no_grad()
def named(method: Supervised | PseudoLabel | FixMatch, x: torch.Tensor) -> torch.Tensor:
    """The class that a method in eval mode gives each x, (B,) on the CPU."""
    device = device_of(method)
    return torch.cat([method.answer(part.to(device)).argmax(-1).cpu() for part in x.split(64)])


class Glance:
    """While training: accuracy of the nearest neighbours, and of the method's own answers where it gives any, on some
    of the labelled images."""

    def __init__(self, plain: View, classes: Classes | None):
        self.plain, self.classes = plain, classes
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, method: Method) -> Mapping[str, float]:
        if self.classes is None:
            return {}
        if not self.seen:
            c = self.classes
            self.seen = [self.some(c.train, c.train_label), self.some(c.test, c.test_label)]
        (bank, query), (label, truth) = zip(*((self.features(method, x), y) for x, y in self.seen), strict=True)
        found = {"knn": accuracy(knn(bank, label.to(bank.device), query).cpu(), truth)}
        if isinstance(method, Supervised | PseudoLabel | FixMatch):
            found["accuracy"] = accuracy(named(method, self.seen[1][0]), truth)
        return found

    def some(self, things: Sequence[Any], label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randperm(len(things), generator=torch.Generator().manual_seed(0))[:GLANCE]
        return torch.stack([self.plain(things[i]) for i in chosen.tolist()]), label[chosen]

    def features(self, method: Method, x: torch.Tensor) -> torch.Tensor:
        return embed(method.encoder, ({"x": part} for part in x.split(64))).float()
