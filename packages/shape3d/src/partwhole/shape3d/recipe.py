"""What every recipe on shapes shares: data, network, evaluation."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from partwhole.core import checkpoint, distributed
from partwhole.core.catalog import Given
from partwhole.core.data import Batches, Stream, View
from partwhole.core.encoder import Encoder, describe
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.sees import Seeing
from partwhole.core.watch import Quiet
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.fewshot import FewShot, all_draws
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.network import Network
from partwhole.shape3d.sources import Source
from partwhole.shape3d.views import Augment, Crops, Look, Views


@dataclass(frozen=True, kw_only=True)
class ShapeRecipe(Seeing, ABC):
    """What every recipe on shapes shares; a recipe adds its method and its view."""

    data: tuple[Path, ...] = ()
    """Folders or files of unlabelled meshes or point clouds; default: generated shapes."""
    labelled: Path | None = None
    """Labelled shapes to evaluate on: ShapeNetPart, LPSB, or .npz with points and labels; default: generated shapes."""
    source: Source = Source()
    decompose: Decompose = Decompose(engine="none")
    network: Network = Network()
    augment: Augment = Augment(points=512)
    batch: int = 16
    """Unlabelled shapes per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=2e-3, weight_decay=1e-4, evaluate_every=100)
    few_shot: FewShot = FewShot(shots=(1, 5))

    incidental: ClassVar[frozenset[str]] = frozenset({"few_shot"})  # does not change what is trained

    @abstractmethod
    def method(self, encoder: Encoder, given: Given) -> Method: ...

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return self.network.build(6 if self.augment.normals else 3)

    def begun(self, encoder: Encoder) -> Encoder:
        """As in Seeing; what a masked method left is taken into the encoder of points around it."""
        from partwhole.shape3d.transformer import PerPoint

        if self.init is None or not isinstance(encoder, PerPoint):
            return super().begun(encoder)
        if checkpoint.description(self.init)["class"] == describe(encoder)["class"]:
            return super().begun(encoder)
        encoder.encoder = checkpoint.start(encoder.encoder, self.init)  # type: ignore[assignment]
        return encoder

    def per_point(self, encoder: Encoder) -> Encoder:
        """What is evaluated: the trained encoder, or one around it that gives a feature for every point."""
        from partwhole.shape3d.pointnet2 import Everywhere, PointNet2

        return Everywhere(encoder) if self.few_shot.levels == "all" and isinstance(encoder, PointNet2) else encoder

    def prepare(self, watch: Any = None) -> Prepared:
        """The unlabelled shapes, decomposed; only what is not in the cache is done."""
        return self.source.unlabelled(self.data, self.decompose, labelled=self.labelled, watch=watch)

    def evaluation(self) -> Labelled:
        """The labelled shapes."""
        return self.source.labelled(self.labelled)

    def check(self, watch: Any) -> Labelled:
        """The labelled shapes, what is wrong with them said before long work; ValueError if they measure nothing."""
        labelled = self.evaluation()
        for problem in labelled.told():
            watch.say(problem)
        all_draws(labelled, self.few_shot)
        return labelled

    def look(self) -> View:
        return Look(self.augment)

    def looks(self, crops: int) -> View:
        small = max(1, self.augment.points // 4)
        return Crops(whole=self.augment, crops=crops, points=small) if crops else Views(self.augment)

    def strong(self) -> View:
        """With noise, lost points and a stronger stretch."""
        return Look(replace(self.augment, scale=(0.6, 1.5), jitter=0.02, dropout=0.6))

    def tokens(self, encoder: Encoder) -> int:
        return encoder.embed.count(self.augment.points)  # type: ignore[union-attr,operator]

    def kept(self, name: str, samples: Prepared) -> Path:  # type: ignore[override]
        about = [asdict(self.network), asdict(self.augment), [one["key"] for one in samples.records]]
        key = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        return self.source.cache / f"{name}-{key}.safetensors"

    def streamed(self, samples: Sequence[Any], view: View) -> Stream:
        return Stream(samples, view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        classes = len(self.check(watch or Quiet()).categories)
        shapes = self.prepare(watch)
        torch.manual_seed(self.fit.seed)
        encoder = self.begun(self.encoder())
        method = self.method(encoder, Given(things=len(shapes), batch=self.batch, classes=classes))
        return Run(method=method, stream=self.stream(shapes, encoder), evaluate=self.probe)

    def joint(self, encoder: Encoder) -> tuple[Method, Batches]:
        """The self-supervised half of joint training."""
        shapes = self.prepare(Quiet())
        method = self.method(encoder, Given(things=len(shapes), batch=self.batch))
        return method, self.stream(shapes, encoder)

    def probe(self, method: Method) -> Mapping[str, float]:
        """While training: part IoU of a linear layer at the middle k of those that can be measured, one draw."""
        from partwhole.shape3d.fewshot import draw, few_shot

        labelled = self.evaluation()
        shots = sorted(draw(labelled, self.few_shot, 0).support or self.few_shot.shots)
        k = shots[len(shots) // 2]
        options = replace(self.few_shot, shots=(k,), draws=1, arms=("linear",))
        result = few_shot(self.per_point(method.encoder), labelled, self.augment, options)
        return {f"linear_iou_at_{k}": result["arms"]["linear"][str(k)]["category_iou"][0]}

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Measure, show and report: what ``tools/run.py`` calls after training, and ``tools/evaluate.py`` alone."""
        from partwhole.shape3d.finish import finish

        return finish(self, self.per_point(encoder).to(distributed.setup(self.fit.device)), folder, watch or Quiet())
