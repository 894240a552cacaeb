"""Recipes for 3D shapes: ACD (Gadelha et al., 2020), and core's methods on point clouds."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from partwhole.core import catalog
from partwhole.core.data import View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit
from partwhole.core.method import Method
from partwhole.shape3d.acd import ComponentContrast
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.fewshot import FewShot
from partwhole.shape3d.network import Network
from partwhole.shape3d.recipe import ShapeRecipe
from partwhole.shape3d.sees import on_shapes
from partwhole.shape3d.views import Augment

# Axes: L levels of components, N points of a view.


@dataclass(frozen=True)
class ComponentViews:
    """Views with their components, and a seed: {"views": [x, ...], "component": [(levels, N), ...], "seed"}."""

    augment: Augment
    count: int

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Any]:
        views = [self.augment(sample) for _ in range(self.count)]
        return {**{to: [v[key] for v in views] for to, key in (("views", "x"), ("component", "component"))},
                "seed": torch.randint(2**31, ())}  # fmt: skip


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
    decompose: Decompose = Decompose()

    def __post_init__(self) -> None:
        if self.decompose.engine == "none":
            raise ValueError("ACD learns from components, and decompose.engine is 'none': choose auto, coacd, ...")
        if self.clusters and self.views < 2:
            raise ValueError(f"clusters compare the views of a shape, and views is {self.views}: give --views 2")

    def method(self, encoder: Encoder, given: catalog.Given) -> Method:
        return ComponentContrast(
            encoder,
            loss=self.loss,
            temperature=self.temperature,
            margin=self.margin,
            clusters=self.clusters,
            weight=self.cluster_weight,
        )

    def view(self, encoder: Encoder) -> View:
        return ComponentViews(self.augment, self.views)


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
TASKS = {"acd": ACD, **{name: on_shapes(kind) for name, kind in catalog.METHODS.items()}}
