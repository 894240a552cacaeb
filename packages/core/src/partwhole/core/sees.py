"""What each generic method sees, of any modality: the other half of the recipes in ``catalog``.

A modality says how one view of a sample is made (``Seeing``); the classes below make of it the batches of each of
``catalog.Sees``. ``recipe(kind, base)`` joins the halves.

Axes: L tokens, K of them, T blocks of them.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partwhole.core import checkpoint, distributed, masks
from partwhole.core.catalog import Sees
from partwhole.core.data import Batches, View, together
from partwhole.core.encoder import Embed, Encoder
from partwhole.core.masks import Ratio, hide, target_blocks
from partwhole.core.tokenizer import Tokenizer
from partwhole.core.transformer import TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class Seeing(ABC):
    """What the recipes of a modality say of their views, and what all of them begin with."""

    init: Path | None = None
    """Folder of a finished run, whose encoder, of the same network, is trained on; default: fresh weights."""

    def begun(self, encoder: Encoder) -> Encoder:
        """``encoder`` where training begins with fresh weights, else the one that ``init`` holds."""
        return encoder if self.init is None else checkpoint.start(encoder, self.init)

    def origins(self) -> Mapping[str, Path]:
        """Files of weights that training begins from: their content is part of what a run is, as their path is."""
        return {} if self.init is None else {"init": self.init / checkpoint.WEIGHTS}

    @abstractmethod
    def look(self) -> View:
        """sample -> x, one random view of it."""

    @abstractmethod
    def looks(self, crops: int) -> View:
        """sample -> {"views": [x, x]} and, where there are any, {"crops": [smaller x, ...]}."""

    @abstractmethod
    def strong(self) -> View:
        """sample -> x, changed more than by ``look``."""

    @abstractmethod
    def tokens(self, encoder: Encoder) -> int:
        """How many tokens the encoder makes of a look."""

    @abstractmethod
    def streamed(self, samples: Sequence[Any], view: View) -> Batches:
        """Batches of views of samples."""

    @abstractmethod
    def kept(self, name: str, samples: Sequence[Any]) -> Path:
        """Where what is learned of these samples, seen this way, is kept: another path for others."""

    def known(self) -> Sequence[Any]:
        """The samples whose labels are known."""
        raise NotImplementedError(f"{type(self).__name__} has no labelled samples")

    def label(self, sample: Any) -> Any:
        """The label of one of them."""
        return sample["label"]

    def hiding(self, encoder: Encoder, ratio: Ratio, chance: float = 1.0) -> Callable[[], Tensor]:
        """Draws which tokens of a look are hidden, (L,)."""
        return Hidden(self.tokens(encoder), ratio, chance)

    def view(self, encoder: Encoder) -> View:
        """What a step sees of a sample; what it hides are tokens of the encoder."""
        raise NotImplementedError(f"{type(self).__name__} has no view")

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        """The batches of the method."""
        return self.streamed(samples, self.view(encoder))

    def ready(self, samples: Any, encoder: Encoder) -> None:  # noqa: B027  most need nothing
        """Makes and keeps what is found in the samples once, before training, if ``stream`` needs any such thing."""


# ------------------------------------------------------------------ whole things, and crops of them


class SeesViews(Seeing, ABC):
    """Two views of each thing."""

    def view(self, encoder: Encoder) -> View:
        return self.looks(0)


@dataclass(frozen=True, kw_only=True)
class SeesCrops(Seeing, ABC):
    """Two views of each thing, and crops of it."""

    crops: int = 4
    """Local crops per thing: each adds its share of the time, and of what is to be told from a part."""

    def view(self, encoder: Encoder) -> View:
        return self.looks(self.crops)


@dataclass(frozen=True)
class Numbered(Sequence):
    """The samples, each with its number: (sample, number)."""

    samples: Sequence[Any]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: Any) -> Any:
        return self.samples[i], torch.tensor(int(i))

    @property
    def names(self) -> list[str]:
        return self.samples.names  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WithIndex:
    """A view, and the number of its thing."""

    view: View

    def __call__(self, numbered: Any) -> dict[str, Any]:
        sample, index = numbered
        return {**self.view(sample), "index": index}


@dataclass(frozen=True, kw_only=True)
class SeesNumbered(SeesCrops, ABC):
    """The same, and the number of the thing."""

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        return self.streamed(Numbered(samples), WithIndex(self.view(encoder)))


# ------------------------------------------------------------------ tokens, of which some are hidden


@dataclass(frozen=True)
class Hidden:
    """Draws which of so many tokens are hidden: see ``masks.hide``."""

    tokens: int
    ratio: Ratio
    chance: float = 1.0

    def __post_init__(self) -> None:
        masks.check(self.tokens, self.ratio, self.chance)  # here, and not first in a data worker

    def __call__(self) -> Tensor:
        return hide(self.tokens, self.ratio, chance=self.chance)


@dataclass(frozen=True)
class Hiding:
    """Views and crops, and which tokens of the views are hidden: {..., "hidden": [(L,), ...]}."""

    view: View
    hidden: Callable[[], Tensor]

    def __call__(self, sample: Any) -> dict[str, Any]:
        seen = self.view(sample)
        return {**seen, "hidden": [self.hidden() for _ in seen["views"]]}


@dataclass(frozen=True, kw_only=True)
class SeesHiding(SeesCrops, ABC):
    """Two views of each thing, some with hidden tokens, and crops of it."""

    ratio: tuple[float, float] = (0.1, 0.5)
    """Share of hidden tokens, drawn from this range: the higher, the less is left to tell them from."""
    chance: float = 0.5
    """Chance that a view has any hidden tokens; the others are seen whole."""

    def view(self, encoder: Encoder) -> View:
        return Hiding(super().view(encoder), self.hiding(encoder, self.ratio, self.chance))


@dataclass(frozen=True)
class Masked:
    """A view, which of its tokens are hidden and, with a tokenizer, what they are called: {"x", "hidden", "ids"}."""

    look: View
    hidden: Callable[[], Tensor]
    tokenizer: Tokenizer | None = None

    def __call__(self, sample: Any) -> dict[str, Any]:
        x = self.look(sample)
        named = {} if self.tokenizer is None else {"ids": self.tokenizer.ids(x[None])[0]}
        return {"x": x, "hidden": self.hidden(), **named}


@dataclass(frozen=True, kw_only=True)
class SeesMasked(Seeing, ABC):
    """One view of each thing, and which of its tokens are hidden."""

    ratio: float = 0.6
    """Share of hidden tokens: the higher, the less is left to tell them from."""

    def view(self, encoder: Encoder) -> View:
        return Masked(self.look(), self.hiding(encoder, self.ratio))


@dataclass(frozen=True)
class Kept:
    """A view, and the tokens that are not hidden: {"x", "keep": (K,)}."""

    look: View
    hidden: Callable[[], Tensor]

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"x": self.look(sample), "keep": (~self.hidden()).nonzero()[:, 0]}


@dataclass(frozen=True, kw_only=True)
class SeesKept(SeesMasked, ABC):
    """The same, by the tokens that are not hidden."""

    def view(self, encoder: Encoder) -> View:
        return Kept(self.look(), self.hiding(encoder, self.ratio))


@dataclass(frozen=True, kw_only=True)
class SeesNamed(SeesMasked, ABC):
    """The same, and what tokens are called: the nearest of so many clusters of tokens, found before training."""

    vocabulary: int = 128

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        tokenizer = distributed.first(lambda: self.tokenizer(samples, encoder))
        return self.streamed(samples, Masked(self.look(), self.hiding(encoder, self.ratio), tokenizer))

    def ready(self, samples: Any, encoder: Encoder) -> None:
        self.tokenizer(samples, encoder)

    def tokenizer(self, samples: Sequence[Any], encoder: Encoder) -> Tokenizer:
        """Made once for these samples and options, and kept."""
        assert isinstance(encoder, TransformerEncoder)
        path = self.kept(f"tokenizer-{self.vocabulary}", samples)
        if not path.exists():
            state, look = torch.get_rng_state(), self.look()
            torch.manual_seed(0)  # of the views of which the clusters are made
            views = [{"x": look(samples[i])[None]} for i in range(min(len(samples), 512))]
            torch.set_rng_state(state)
            Tokenizer.learn(encoder.embed, views, count=self.vocabulary).save(path)
        return Tokenizer.load(path)


@dataclass(frozen=True)
class Blocks:
    """A view, the tokens to see and blocks of neighbouring ones to predict: {"x", "keep": (L,), "targets": (T, L)}."""

    look: View
    embed: Embed

    def __call__(self, sample: Any) -> dict[str, Any]:
        x = self.look(sample)
        with torch.no_grad():
            where = self.embed.coordinates(x[None])[0]
        return {"x": x, **target_blocks(where)}


class SeesBlocks(Seeing, ABC):
    """One view of each thing, and blocks of its tokens to predict."""

    def view(self, encoder: Encoder) -> View:
        embed = copy.deepcopy(encoder.embed)  # its own, that stays where views are made
        return Blocks(self.look(), embed)  # type: ignore[arg-type]


# ------------------------------------------------------------------ labelled things, beside those without labels


@dataclass(frozen=True)
class WithLabel:
    """A view and the label: {"x", "label"}."""

    look: View
    label: Callable[[Any], Any]

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"x": self.look(sample), "label": self.label(sample)}


@dataclass(frozen=True)
class Only:
    """A view: {"x"}."""

    look: View

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"x": self.look(sample)}


@dataclass(frozen=True)
class WeakAndStrong:
    """A weakly and a strongly changed view: {"views": [x, x]}."""

    weak: View
    strong: View

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"views": [self.weak(sample), self.strong(sample)]}


class SeesLabels(Seeing, ABC):
    """The things whose labels are known, with their labels."""

    def view(self, encoder: Encoder) -> View:
        return WithLabel(self.look(), self.label)

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        return self.streamed(self.known(), self.view(encoder))


class SeesGuesses(SeesLabels, ABC):
    """The same, and a view of each thing without a label."""

    def unlabelled(self) -> View:
        return Only(self.look())

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        known, rest = self.streamed(self.known(), self.view(encoder)), self.streamed(samples, self.unlabelled())
        return together(labelled=known, unlabelled=rest)


class SeesStrong(SeesGuesses, ABC):
    """The same, but a weakly and a strongly changed view of each thing without a label."""

    def unlabelled(self) -> View:
        return WeakAndStrong(self.look(), self.strong())


SEES: Mapping[Sees, type[Seeing]] = {
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


def recipe(kind: Any, base: type, *between: type, module: str, **defaults: Any) -> Any:
    """The recipe of a generic method for a modality: its options of ``catalog``, its batches, and the modality's rest.

    base is the modality's recipe, a ``Seeing``; ``between`` are changes of it for what this kind sees,
    ``defaults`` for this kind alone.
    """
    about = {"__doc__": kind.__doc__, "__module__": module}
    mixed = type(kind.__name__, (kind, *between, SEES[kind.sees], base), about)
    # A dataclass takes each base with all that it inherited, so that one which says nothing of a field would undo what
    # the next one says of it: the defaults are those that Python itself finds.
    known = {f.name: f.type for one in reversed(mixed.__mro__) if is_dataclass(one) for f in fields(one)}
    told = {name: getattr(mixed, name) for name in known if hasattr(mixed, name)} | defaults
    own = {**about, **told, "__annotations__": {name: known[name] for name in told}}
    return dataclass(frozen=True, kw_only=True)(type(kind.__name__, mixed.__bases__, own))
