"""What every recipe on clips shares: data, batches, evaluation."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from partwhole.core import distributed
from partwhole.core.catalog import Given
from partwhole.core.data import Stream, View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.sees import Seeing
from partwhole.core.watch import Quiet
from partwhole.video import care, network
from partwhole.video.measure import Following, measure
from partwhole.video.readers import Frames, Ids
from partwhole.video.sources import Source
from partwhole.video.views import FramePair, OneFrame
from partwhole.vision import policies
from partwhole.vision.maps import resting
from partwhole.vision.network import Network
from partwhole.vision.recipe import Own, Policy

GLANCE = 3, 16  # videos, and frames of each, in which objects are followed while training


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Seeing, ABC):
    """What every recipe on clips shares; a recipe adds its encoder, its method and its view."""

    data: tuple[Path, ...] = ()
    """Video files, folders of them, or of frames; default: generated clips."""
    annotated: Path | None = None
    """Videos with masks to follow objects in, a folder as of DAVIS or VIP; default: generated clips, where the data is
    generated too."""
    source: Source = Source()
    network: Network = Network()
    size: int = 64
    """Side of the frames that the network sees, in pixels."""
    batch: int = 16
    """Clips per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.05, evaluate_every=100)
    measure: Following = Following()

    incidental: ClassVar[frozenset[str]] = frozenset({"annotated", "measure"})  # no part of training

    def __post_init__(self) -> None:
        for name in ("size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")

    @abstractmethod
    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""

    @abstractmethod
    def method(self, encoder: Encoder, given: Given) -> Method: ...

    @abstractmethod
    def short(self, video: Any) -> str | None:
        """Why a video is too short for this recipe; None where it is not."""

    @property
    def side(self) -> int:
        """Of the pictures that the network sees, in pixels."""
        return self.size

    def unused(self) -> Iterator[tuple[str, str]]:
        """Options that are not as usual and change nothing as the others are, and why."""
        for name in self.network.unused(type(self).network):
            yield f"network.{name}", f"it is for another network than --network.name {self.network.name}"

    def origins(self) -> Mapping[str, Path]:
        given = self.network.given()
        return {**super().origins(), **({} if given is None else {"network.weights": given})}

    def kept(self, name: str, samples: Any) -> Path:
        others = {"data", "fit", "batch", *self.incidental}
        about = [{key: value for key, value in asdict(self).items() if key not in others}, samples.key]
        key = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        return self.source.cache / f"{name}-{key}.safetensors"

    def prepare(self, watch: Any = None) -> Any:
        """The clips to train on, without those that are too short; videos are looked at once."""
        clips = self.source.unlabelled(self.data, self.size, watch=watch)
        short = {i: why for i in range(len(clips)) if (why := self.short(clips[i]["video"])) is not None}
        if not short:
            return clips
        first = next(iter(short.values()))
        if len(short) == len(clips):
            wanted = "Give longer ones, or ask for fewer frames of each"
            raise ValueError(f"all {len(clips)} clips are too short; the first: {first}. {wanted}")
        left = clips.subset([i for i in range(len(clips)) if i not in short])
        left.problems = [*left.problems, *((clips.names[i], f"skipped: {why}") for i, why in short.items())]
        if watch is not None:
            watch.say(f"{len(short)} of {len(clips)} clips are too short and left out; the first: {first}")
        return left

    def evaluation(self, watch: Any = None) -> Any:
        """The videos to follow objects in, with their masks; None where there are none."""
        if self.annotated is None and self.data:
            return None
        return self.source.annotated(self.annotated, self.size, watch=watch)

    def streamed(self, samples: Sequence[Any], view: View) -> Stream:
        return Stream(samples, view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def given(self, clips: Sequence[Any]) -> Given:
        return Given(things=len(clips), batch=self.batch)

    def own(self, method: Method, samples: Sequence[Any]) -> Own | None:
        """What only this method can be asked, on clips that it was not trained on; None where that is nothing."""
        return None

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        clips, annotated = self.prepare(watch), self.evaluation(watch)
        for line in care.odd(self, clips):
            if watch is not None:
                watch.say(line)
        torch.manual_seed(self.fit.seed)
        encoder = self.begun(self.encoder())
        return Run(
            method=self.method(encoder, self.given(clips)),
            stream=self.stream(clips, encoder),
            evaluate=Glance(annotated, self.measure),
            faster="Let more processes read clips (--source.loaders), or learn from smaller frames (--size)",
        )

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Measure, show and report: what ``tools/run.py`` calls after training, and ``tools/evaluate.py`` alone."""
        from partwhole.video.finish import finish

        return finish(self, encoder.to(distributed.setup(self.fit.device)), folder, watch or Quiet())


@dataclass(frozen=True, kw_only=True)
class OnFrames(ClipRecipe, ABC):
    """Whose encoder is one of frames."""

    dense: bool = False
    """Train a ResNet with a place of its map for every 8 pixels, not 32, as the walk's paper does; ten times slower.
    It is measured so in any case."""

    policy: ClassVar[Policy] = "plain"  # of single frames; a recipe that goes by them makes it a field
    apart: ClassVar[float] = 0.0  # as of FramePair

    def encoder(self) -> Encoder:
        return network.build(self.network, self.side, dense=self.dense)

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from super().unused()
        if self.dense != type(self).dense and not network.plain(self.network.name):
            yield "dense", f"it is for a ResNet, and not for --network.name {self.network.name}"

    def look(self) -> View:
        return OneFrame(look=policies.looks(self.policy, self.size).first)

    def looks(self, crops: int) -> View:
        return FramePair(looks=policies.looks(self.policy, self.size, crops), apart=self.apart)

    def strong(self) -> View:
        return OneFrame(look=policies.strong(self.size))

    def tokens(self, encoder: Encoder) -> int:
        with torch.no_grad(), resting(encoder):
            return encoder(torch.zeros(1, 3, self.size, self.size)).shape[1] - encoder.special


class Glance:
    """While training: J of objects followed through the first frames of some videos."""

    def __init__(self, annotated: Any, options: Following):
        self.annotated, self.options, self.samples = annotated, options, None

    def __call__(self, method: Method) -> Mapping[str, float]:
        if self.annotated is None:
            return {}
        if self.samples is None:
            videos, frames = GLANCE
            self.samples = [beginning(self.annotated[i], frames) for i in range(min(videos, len(self.annotated)))]
        options = Following(
            arms=("encoder",), preset=self.options.preset, own=self.options.own, batch=self.options.batch
        )
        return {"J": measure(method.encoder, self.samples, options)["mean"]["encoder"]["J"]}


def beginning(sample: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """The first frames of a sample with masks, in memory."""
    video, some = sample["video"], range(min(frames, len(sample["video"])))
    return {
        "video": Frames(video.frames(some), fps=video.fps, name=str(video.name)),
        "masks": Ids(sample["masks"].frames(some)),
    }
