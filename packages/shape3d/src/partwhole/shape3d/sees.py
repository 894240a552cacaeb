"""What each generic method sees of shapes: the other half of the recipes in ``core.catalog``.

Axes: N points of a view, L patches.
"""

import copy
import hashlib
import json
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from partwhole.core import distributed
from partwhole.core.catalog import Sees
from partwhole.core.data import Batches, together
from partwhole.core.encoder import Embed, Encoder
from partwhole.core.masks import hide, target_blocks
from partwhole.core.tokenizer import Tokenizer
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.fewshot import draw
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.network import Network
from partwhole.shape3d.recipe import ShapeRecipe, View
from partwhole.shape3d.views import Augment, Crops, Sample, Views

# ------------------------------------------------------------------ whole shapes, and crops of them


@dataclass(frozen=True, kw_only=True)
class SeesViews(ShapeRecipe, ABC):
    """Two views of each shape."""

    def view(self, encoder: Encoder) -> View:
        return Views(self.augment)


@dataclass(frozen=True, kw_only=True)
class SeesCrops(ShapeRecipe, ABC):
    """Two views of each shape, and crops of it: neighbourhoods of a point, and components."""

    crops: int = 4
    """Local crops per shape: each adds its share of the time, and of what is to be told from a part."""
    decompose: Decompose = Decompose(engine="points")

    def view(self, encoder: Encoder) -> View:
        return Crops(whole=self.augment, crops=self.crops, points=max(1, self.augment.points // 4))


@dataclass(frozen=True)
class Numbered(Sequence):
    """The samples, each with its number: {"index": ()}."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: Any) -> Any:
        return {**self.samples[i], "index": torch.tensor(int(i))}

    @property
    def names(self) -> list[str]:
        return self.samples.names  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WithIndex:
    """A view, and the number of its shape."""

    view: View

    def __call__(self, sample: Sample) -> Sample:
        return {**self.view(sample), "index": sample["index"]}


@dataclass(frozen=True, kw_only=True)
class SeesNumbered(SeesCrops, ABC):
    """The same, and the number of the shape."""

    def stream(self, shapes: Prepared, encoder: Encoder) -> Batches:
        return self.streamed(Numbered(shapes), WithIndex(self.view(encoder)))


# ------------------------------------------------------------------ patches, of which some are hidden


@dataclass(frozen=True, kw_only=True)
class SeesPatches(ShapeRecipe, ABC):
    """For a transformer over patches, of which the method hides some."""

    network: Network = Network(name="transformer")

    def encoder(self) -> Encoder:
        return self.network.transformer(6 if self.augment.normals else 3)

    def patches(self, encoder: Encoder) -> int:
        """How many a view has."""
        return encoder.embed.count(self.augment.points)  # type: ignore[union-attr,operator]

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


@dataclass(frozen=True)
class Hiding:
    """Views and crops, and which patches of the views are hidden, in some of them: {..., "hidden": [(L,), ...]}."""

    view: View
    patches: int
    ratio: tuple[float, float]
    chance: float

    def __call__(self, sample: Sample) -> Sample:
        seen = self.view(sample)
        return {**seen, "hidden": [hide(self.patches, self.ratio, chance=self.chance) for _ in seen["views"]]}


@dataclass(frozen=True, kw_only=True)
class SeesHiding(SeesPatches, SeesCrops, ABC):
    """Two views of each shape, some with patches hidden, and crops of it."""

    ratio: tuple[float, float] = (0.1, 0.5)
    """Share of hidden patches, drawn from this range: the higher, the less is left to tell them from."""
    chance: float = 0.5
    """Chance that a view has any hidden patches; the others are seen whole."""

    def view(self, encoder: Encoder) -> View:
        return Hiding(super().view(encoder), self.patches(encoder), self.ratio, self.chance)


@dataclass(frozen=True)
class Masked:
    """A view, which of its patches are hidden and, with a tokenizer, what they are called: {"x", "hidden", "ids"}."""

    augment: Augment
    patches: int
    ratio: float
    tokenizer: Tokenizer | None = None

    def __call__(self, sample: Sample) -> Sample:
        x = self.augment(sample)["x"]
        named = {} if self.tokenizer is None else {"ids": self.tokenizer.ids(x[None])[0]}
        return {"x": x, "hidden": hide(self.patches, self.ratio), **named}


@dataclass(frozen=True, kw_only=True)
class SeesMasked(SeesPatches, ABC):
    """One view of each shape, and which of its patches are hidden."""

    ratio: float = 0.6
    """Share of hidden patches: the higher, the less is left to tell them from."""

    def view(self, encoder: Encoder) -> View:
        return Masked(self.augment, self.patches(encoder), self.ratio)


@dataclass(frozen=True)
class Kept:
    """The same, with the patches that are left in the place of those that are hidden: {"x", "keep": (K,)}."""

    masked: Masked

    def __call__(self, sample: Sample) -> Sample:
        seen = self.masked(sample)
        return {"x": seen["x"], "keep": (~seen["hidden"]).nonzero()[:, 0]}


@dataclass(frozen=True, kw_only=True)
class SeesKept(SeesMasked, ABC):
    """The same."""

    def view(self, encoder: Encoder) -> View:
        return Kept(super().view(encoder))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SeesNamed(SeesMasked, ABC):
    """The same, and what patches are called: the nearest of so many clusters of patches, found before training."""

    vocabulary: int = 128

    def stream(self, shapes: Prepared, encoder: Encoder) -> Batches:
        tokenizer = distributed.first(lambda: self.tokenizer(shapes, encoder))
        return self.streamed(shapes, replace(self.view(encoder), tokenizer=tokenizer))  # type: ignore[type-var]

    def tokenizer(self, shapes: Prepared, encoder: Encoder) -> Tokenizer:
        """Made once for these shapes and options, and kept in the cache."""
        assert isinstance(encoder, TransformerEncoder)
        network, augment = asdict(self.network), asdict(self.augment)
        about = [self.vocabulary, network, augment, [one["key"] for one in shapes.records]]
        key = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
        path = self.source.cache / f"tokenizer-{key}.safetensors"
        if not path.exists():
            state = torch.get_rng_state()
            torch.manual_seed(0)  # of the views of which the clusters are made
            views = [{"x": self.augment(shapes[i])["x"][None]} for i in range(min(len(shapes), 512))]
            torch.set_rng_state(state)
            Tokenizer.learn(encoder.embed, views, count=self.vocabulary).save(path)
        return Tokenizer.load(path)


@dataclass(frozen=True)
class Blocks:
    """A view, the patches to see and blocks of neighbouring ones to predict: {"x", "keep": (L,), "targets": (T, L)}."""

    augment: Augment
    embed: Embed

    def __call__(self, sample: Sample) -> Sample:
        x = self.augment(sample)["x"]
        with torch.no_grad():
            where = self.embed.coordinates(x[None])[0]
        return {"x": x, **target_blocks(where)}


@dataclass(frozen=True, kw_only=True)
class SeesBlocks(SeesPatches, ABC):
    """One view of each shape, and blocks of its patches to predict."""

    def view(self, encoder: Encoder) -> View:
        embed = copy.deepcopy(encoder.embed)  # its own, that stays where views are made
        return Blocks(self.augment, embed)  # type: ignore[arg-type]


# ------------------------------------------------------------------ labelled shapes, beside those without labels


@dataclass(frozen=True)
class Whole:
    """A view: {"x"} and, where asked for, {"label": the category}."""

    augment: Augment
    label: bool

    def __call__(self, sample: Sample) -> Sample:
        return {"x": self.augment(sample)["x"], **({"label": sample["category"]} if self.label else {})}


@dataclass(frozen=True, kw_only=True)
class SeesLabels(ShapeRecipe, ABC):
    """The labelled shapes of the first draw, the most that it has of each category, with their categories.

    Measured on that draw alone: among the test shapes of others are some whose category was learned.
    """

    def view(self, encoder: Encoder) -> View:
        return Whole(self.augment, label=True)

    def known(self) -> list[Sample]:
        labelled = self.evaluation()
        support = draw(labelled, self.few_shot, 0).support
        return [labelled[i] for i in support[max(support)]]

    def stream(self, shapes: Prepared, encoder: Encoder) -> Batches:
        return self.streamed(self.known(), self.view(encoder))

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        first = replace(self, few_shot=replace(self.few_shot, draws=1))
        return super(SeesLabels, first).finish(encoder, folder, watch)

    def joint(self, encoder: Encoder) -> Any:
        raise ValueError(f"{type(self).__name__} needs labels already: leave joint out of few_shot.arms")


@dataclass(frozen=True, kw_only=True)
class SeesGuesses(SeesLabels, ABC):
    """The same, and a view of each shape without a label."""

    def unlabelled(self) -> View:
        return Whole(self.augment, label=False)

    def stream(self, shapes: Prepared, encoder: Encoder) -> Batches:
        known, rest = self.streamed(self.known(), self.view(encoder)), self.streamed(shapes, self.unlabelled())
        return together(labelled=known, unlabelled=rest)


@dataclass(frozen=True)
class WeakAndStrong:
    """A view without and one with noise, lost points and a stronger stretch: {"views": [x, x]}."""

    weak: Augment

    def __call__(self, sample: Sample) -> Sample:
        strong = replace(self.weak, scale=(0.6, 1.5), jitter=0.02, dropout=0.6)
        return {"views": [self.weak(sample)["x"], strong(sample)["x"]]}


@dataclass(frozen=True, kw_only=True)
class SeesStrong(SeesGuesses, ABC):
    """The same, but a weakly and a strongly changed view of each shape without a label."""

    def unlabelled(self) -> View:
        return WeakAndStrong(self.augment)


SEES: dict[Sees, type[ShapeRecipe]] = {
    "views": SeesViews,
    "crops": SeesCrops,
    "numbered": SeesNumbered,
    "hiding": SeesHiding,
    "masked": SeesMasked,
    "kept": SeesKept,
    "named": SeesNamed,
    "blocks": SeesBlocks,
    "labels": SeesLabels,
    "guesses": SeesGuesses,
    "strong": SeesStrong,
}


def on_shapes(kind: Any) -> type[ShapeRecipe]:
    """A generic method as a recipe for shapes: its options, and ours."""
    name = {"__doc__": kind.__doc__, "__module__": __name__}
    return dataclass(frozen=True, kw_only=True)(type(kind.__name__, (kind, SEES[kind.sees]), name))
