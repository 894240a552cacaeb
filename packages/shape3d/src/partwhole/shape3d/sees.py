"""Generic methods as recipes for shapes: what ``core.sees`` asks of a modality, and what differs for some of them."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from partwhole.core import sees
from partwhole.core.catalog import Sees
from partwhole.core.encoder import Encoder
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.fewshot import draw
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.network import Network
from partwhole.shape3d.recipe import ShapeRecipe
from partwhole.shape3d.views import Sample


@dataclass(frozen=True, kw_only=True)
class Cropped(ShapeRecipe, ABC):
    """Of which crops are seen: neighbourhoods of a point, and components."""

    decompose: Decompose = Decompose(engine="points")


@dataclass(frozen=True, kw_only=True)
class Patched(ShapeRecipe, ABC):
    """For a transformer over patches, of which the method hides some."""

    network: Network = Network(name="transformer")

    def encoder(self) -> Encoder:
        return self.network.transformer(6 if self.augment.normals else 3)

    def per_point(self, encoder: Encoder) -> Encoder:
        from partwhole.shape3d.transformer import PerPoint

        assert isinstance(encoder, TransformerEncoder)
        torch.manual_seed(self.fit.seed)  # of what is added: an evaluation can be repeated
        return PerPoint(encoder).to(next(encoder.parameters()).device)

    def check(self, watch: Any) -> Labelled:
        name = type(self).__name__
        if self.network.name != "transformer":
            raise ValueError(f"{name} hides patches, which {self.network.name} has none of: leave --network.name out")
        if "joint" in self.few_shot.arms:
            raise ValueError(
                f"{name} sees part of a shape only and has no joint training: leave joint out of few_shot.arms"
            )
        return super().check(watch)


@dataclass(frozen=True, kw_only=True)
class Taught(ShapeRecipe, ABC):
    """By the labelled shapes of the first draw, the most that it has of each category, with their categories.

    Measured on that draw alone: among the test shapes of others are some whose category was learned.
    """

    def known(self) -> list[Sample]:
        labelled = self.evaluation()
        support = draw(labelled, self.few_shot, 0).support
        return [labelled[i] for i in support[max(support)]]

    def label(self, sample: Sample) -> Any:
        return sample["category"]

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        first = replace(self, few_shot=replace(self.few_shot, draws=1))
        return super(Taught, first).finish(encoder, folder, watch)

    def joint(self, encoder: Encoder) -> Any:
        raise ValueError(f"{type(self).__name__} needs labels already: leave joint out of few_shot.arms")


BETWEEN: dict[Sees, tuple[type[ShapeRecipe], ...]] = {
    "crops": (Cropped,),
    "numbered": (Cropped,),
    "hiding": (Patched, Cropped),
    "masked": (Patched,),
    "kept": (Patched,),
    "named": (Patched,),
    "blocks": (Patched,),
    "labels": (Taught,),
    "guesses": (Taught,),
    "strong": (Taught,),
}


def on_shapes(kind: Any) -> Any:
    """A generic method as a recipe for shapes."""
    return sees.recipe(kind, ShapeRecipe, *BETWEEN.get(kind.sees, ()), module=__name__)
