"""What every recipe on clips shares: data, network, batches."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from partwhole.core.catalog import Given
from partwhole.core.data import Stream, View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.sees import Seeing
from partwhole.video import network
from partwhole.video.sources import Source
from partwhole.video.views import FramePair, OneFrame, long_enough
from partwhole.vision import policies
from partwhole.vision.network import Network
from partwhole.vision.recipe import Policy


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Seeing, ABC):
    """What every recipe on clips shares; a recipe adds its method and its view."""

    data: tuple[Path, ...] = ()
    """Video files and folders of them, or of frames; default: generated clips."""
    source: Source = Source()
    network: Network = Network()
    dense: bool = False
    """Train a ResNet with a place of its map for every 8 pixels, not 32, as the walk's paper does; ten times slower.
    It is measured so in any case."""
    size: int = 64
    """Side of the frames that the network sees, in pixels."""
    batch: int = 16
    """Clips per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.05, evaluate_every=100)

    policy: ClassVar[Policy] = "plain"  # of single frames; a recipe that goes by them makes it a field
    apart: ClassVar[float] = 0.0  # as of FramePair

    def __post_init__(self) -> None:
        for name in ("size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")

    @abstractmethod
    def method(self, encoder: Encoder, given: Given) -> Method: ...

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return network.build(self.network, self.size, dense=self.dense)

    def origins(self) -> dict[str, Path]:
        given = self.network.given()
        return {**super().origins(), **({} if given is None else {"network.weights": given})}

    def look(self) -> View:
        return OneFrame(look=policies.looks(self.policy, self.size).first)

    def looks(self, crops: int) -> View:
        return FramePair(looks=policies.looks(self.policy, self.size, crops), apart=self.apart)

    def strong(self) -> View:
        return OneFrame(look=policies.strong(self.size))

    def tokens(self, encoder: Encoder) -> int:
        with torch.no_grad():
            x = torch.zeros(1, 3, self.size, self.size)
            training = encoder.training
            count = encoder.eval()(x).shape[1] - encoder.special
            encoder.train(training)
        return count

    def kept(self, name: str, samples: Any) -> Path:
        about = [asdict(self.network), self.dense, self.size, self.policy, samples.key]
        key = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        return self.source.cache / f"{name}-{key}.safetensors"

    @property
    def needs(self) -> tuple[int, float]:
        """How many frames a step draws from a clip, and how many per second."""
        return 1, 1.0

    def prepare(self, watch: Any = None) -> Sequence[Any]:
        """The clips to train on; those too short for a step are skipped, and told."""
        return long_enough(self.source.unlabelled(self.data, size=self.size, watch=watch), *self.needs, watch=watch)

    def streamed(self, samples: Sequence[Any], view: View) -> Stream:
        return Stream(samples, view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        clips = self.prepare(watch)
        torch.manual_seed(self.fit.seed)
        encoder = self.begun(self.encoder())
        method = self.method(encoder, Given(things=len(clips), batch=self.batch))
        return Run(
            method=method,
            stream=self.stream(clips, encoder),
            faster="Let more processes read clips (--source.loaders), or learn from smaller frames (--size)",
        )
