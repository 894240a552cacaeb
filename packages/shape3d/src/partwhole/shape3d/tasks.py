"""Recipes for 3D shapes: ACD (Gadelha et al., 2020), and core's methods on point clouds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.data import Stream, hide
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.methods.byol import BYOL as CoreBYOL
from partwhole.core.methods.dino import DINO as CoreDINO
from partwhole.core.methods.mae import MAE as CoreMAE
from partwhole.core.methods.simclr import SimCLR as CoreSimCLR
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.shape3d.acd import ComponentContrast
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.fewshot import FewShot, all_draws
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.network import Network
from partwhole.shape3d.sources import Source
from partwhole.shape3d.views import Augment, Crops, Views

# Axes: B shapes, L points, D features.

View = Callable[[dict[str, Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class ComponentViews:
    """Views with their components, and a seed: {"views": [x, ...], "component": [(levels, N), ...], "seed"}."""

    augment: Augment
    count: int

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Any]:
        views = [self.augment(sample) for _ in range(self.count)]
        return {**{to: [v[key] for v in views] for to, key in (("views", "x"), ("component", "component"))},
                "seed": torch.randint(2**31, ())}  # fmt: skip


@dataclass(frozen=True)
class Masked:
    """A view and which of its patches are hidden: {"x": (N, channels), "hidden": (patches,) bool}."""

    augment: Augment
    patches: int
    ratio: float

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Any]:
        return {"x": self.augment(sample)["x"], "hidden": hide(self.patches, self.ratio)}


@dataclass(frozen=True, kw_only=True)
class ShapeRecipe(ABC):
    """What every recipe on shapes shares; a recipe adds its method and its view."""

    data: tuple[Path, ...] = ()
    """Folders or files of unlabelled meshes or point clouds; default: generated shapes."""
    labelled: Path | None = None
    """Labelled shapes to evaluate on: ShapeNetPart, LPSB, or .npz with points and labels; default: generated shapes."""
    source: Source = Source()
    decompose: Decompose = Decompose()
    network: Network = Network()
    augment: Augment = Augment(points=512)
    batch: int = 16
    """Unlabelled shapes per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=2e-3, weight_decay=1e-4, evaluate_every=100)
    few_shot: FewShot = FewShot(shots=(1, 5))

    incidental: ClassVar[frozenset[str]] = frozenset({"few_shot"})  # does not change what is trained

    @abstractmethod
    def method(self, encoder: Encoder) -> Method: ...

    @abstractmethod
    def view(self) -> View: ...

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return self.network.build(6 if self.augment.normals else 3)

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

    def stream(self, samples: Sequence[dict[str, Tensor]]) -> Stream:
        return Stream(samples, self.view(), batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        self.check(watch or Quiet())
        torch.manual_seed(self.fit.seed)
        return Run(method=self.method(self.encoder()), stream=self.stream(self.prepare(watch)), evaluate=self.probe)

    def joint(self, encoder: Encoder) -> tuple[Method, Stream]:
        """The self-supervised half of joint training."""
        return self.method(encoder), self.stream(self.prepare(Quiet()))

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


@dataclass(frozen=True, kw_only=True)
class ACD(ShapeRecipe):
    """Points of one convex component should look alike: no label needed, made for part segmentation."""

    loss: Literal["prototype", "pair"] = "prototype"
    """prototype: each point finds its component's mean feature; pair: the paper's loss on all pairs of points."""
    views: int = 2
    """Views of each shape, in which its components must look alike; the paper has 1."""
    temperature: float = 0.1
    """Of the prototype loss."""
    margin: float = 0.5
    """Of the pair loss: cosine below which two points of different components are far enough apart."""
    clusters: int = 0
    """Clusters into which components of all shapes are sorted beside the contrast; 0: none. Needs two views."""
    cluster_weight: float = 1.0
    """Weight of the clusters' loss."""

    def __post_init__(self) -> None:
        if self.clusters and self.views < 2:
            raise ValueError(f"clusters compare the views of a shape, and views is {self.views}: give --views 2")

    def method(self, encoder: Encoder) -> Method:
        return ComponentContrast(
            encoder,
            loss=self.loss,
            temperature=self.temperature,
            margin=self.margin,
            clusters=self.clusters,
            weight=self.cluster_weight,
        )

    def view(self) -> View:
        return ComponentViews(self.augment, self.views)


@dataclass(frozen=True, kw_only=True)
class SimCLR(ShapeRecipe):
    """Two views of one shape attract, other shapes repel (Chen et al., 2020)."""

    temperature: float = 0.1
    """Of the contrast."""

    def method(self, encoder: Encoder) -> Method:
        return CoreSimCLR(encoder, hidden=4 * encoder.dim, dim=encoder.dim, temperature=self.temperature)

    def view(self) -> View:
        return Views(self.augment)


@dataclass(frozen=True, kw_only=True)
class BYOL(ShapeRecipe):
    """Predict a slow teacher's embedding of the other view (Grill et al., 2020)."""

    momentum: float = 0.99
    """Of the teacher at the start; 1 at the end."""

    def method(self, encoder: Encoder) -> Method:
        return CoreBYOL(encoder, hidden=4 * encoder.dim, dim=encoder.dim, momentum=self.momentum)

    def view(self) -> View:
        return Views(self.augment)


@dataclass(frozen=True, kw_only=True)
class DINO(ShapeRecipe):
    """Match a slow teacher's assignment of the whole shape from local crops of it (Caron et al., 2021)."""

    prototypes: int = 512
    """Size of the assignment."""
    crops: int = 4
    """Local crops per shape."""
    momentum: float = 0.99
    """Of the teacher at the start; 1 at the end."""

    def method(self, encoder: Encoder) -> Method:
        return CoreDINO(
            encoder,
            prototypes=self.prototypes,
            hidden=4 * encoder.dim,
            bottleneck=encoder.dim,
            momentum=self.momentum,
            frozen=0.0,
        )

    def view(self) -> View:
        return Crops(whole=self.augment, crops=self.crops, points=max(1, self.augment.points // 4))


@dataclass(frozen=True, kw_only=True)
class MAE(ShapeRecipe):
    """Hide most patches of a shape and rebuild their points (He et al., 2022; Pang et al., 2022)."""

    network: Network = Network(name="transformer")
    ratio: float = 0.6
    """Share of hidden patches."""

    def method(self, encoder: Encoder) -> Method:
        assert isinstance(encoder, TransformerEncoder)
        return CoreMAE(encoder, dim=max(32, encoder.dim // 2), depth=2, heads=4)

    def encoder(self) -> Encoder:
        return self.network.transformer(6 if self.augment.normals else 3)

    def per_point(self, encoder: Encoder) -> Encoder:
        from partwhole.shape3d.transformer import PerPoint

        assert isinstance(encoder, TransformerEncoder)
        torch.manual_seed(self.fit.seed)  # of what is added: an evaluation can be repeated
        return PerPoint(encoder).to(next(encoder.parameters()).device)

    def view(self) -> View:
        return Masked(self.augment, self.network.patches, self.ratio)

    def check(self, watch: Any) -> Labelled:
        if "joint" in self.few_shot.arms:
            raise ValueError(
                "mae sees part of a shape only and has no joint training: leave joint out of few_shot.arms"
            )
        return super().check(watch)


_PAPER = Network(width=1.0, samples=(512, 128), neighbours=1.0)
RECIPES = {
    "acd": {
        # The settings of the authors' code, but for one optimizer step on the summed loss where the code takes two, no
        # category in the input, all points of a test shape predicted, and AdamW with a cosine for every arm.
        "paper": ACD(
            loss="pair",
            views=1,
            network=_PAPER,
            augment=Augment(points=2048),
            batch=24,
            fit=Fit(
                steps=1000, lr=1e-3, weight_decay=1e-4, optimizer="adam", schedule="halving", halvings=7, warmup=0.0
            ),
            few_shot=FewShot(
                arms=("random", "scratch", "linear", "finetune", "joint"),
                rotate="axis",
                unturned=0.0,
                steps=1000,
                batch=24,
                lr=1e-3,
            ),
        ),
        # What the README's table on real shapes was measured with: 20 minutes of one CPU core.
        "best": ACD(
            clusters=64,
            decompose=Decompose(engine="points", points=2048),
            network=Network(width=0.5),
            augment=Augment(points=512, rotate="so3", normals=True),
            batch=8,
            fit=Fit(steps=4000, lr=2e-3, weight_decay=1e-4, evaluate_every=2000),
            few_shot=FewShot(rotate="so3", steps=600),
        ),
    }
}
TASKS = {"acd": ACD, "simclr": SimCLR, "byol": BYOL, "dino": DINO, "mae": MAE}
