"""Generic methods as recipes for sounds: what ``core.sees`` asks of a modality, and what differs for some of them."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from partwhole.audio.network import Network
from partwhole.audio.recipe import Own, Policy, SoundRecipe, named, seen
from partwhole.audio.sounds import Sounds
from partwhole.audio.sources import Among
from partwhole.core import catalog, sees
from partwhole.core.catalog import Sees
from partwhole.core.data import View, collate, some
from partwhole.core.encoder import Encoder
from partwhole.core.evaluate import accuracy
from partwhole.core.method import Method
from partwhole.core.methods import MAE, FixMatch, PseudoLabel, Supervised
from partwhole.core.probe import Classes, check_count
from partwhole.core.sees import Kept

LEAST = 9  # patches of which some can be hidden
SHOWN = 6  # sounds whose reconstruction is shown


@dataclass(frozen=True, kw_only=True)
class Cropped(SoundRecipe, ABC):
    """Of which crops are seen, as DINO has them."""

    policy: Policy = "byola"


@dataclass(frozen=True, kw_only=True)
class Patched(SoundRecipe, ABC):
    """For our transformer over patches, of which the method hides some; so all views are of one length, and a shorter
    sound is repeated in them."""

    network: Network = Network(name="vit")

    def encoder(self) -> Encoder:
        name = type(self).__name__
        if self.network.name != "vit":
            raise ValueError(
                f"{name} hides patches, which only our own transformer can leave out: leave --network.name at vit, not "
                f"{self.network.name}"
            )
        encoder = super().encoder()
        if (patches := self.tokens(encoder)) < LEAST:
            raise ValueError(
                f"{self.seconds:g} seconds have {patches} patches: too few to hide some of them, {LEAST} are needed. "
                "Raise --seconds, or lower --network.tall or --network.wide"
            )
        return encoder

    def look(self) -> View:
        return replace(super().look(), fill=True)  # type: ignore[type-var]

    def looks(self, crops: int) -> View:
        both: Any = super().looks(crops)
        return replace(both, first=replace(both.first, fill=True), second=replace(both.second, fill=True))


@dataclass(frozen=True, kw_only=True)
class Gentle(SoundRecipe, ABC):
    """With a random piece alone: what is hidden makes the task."""

    policy: Policy = "plain"


@dataclass(frozen=True, kw_only=True)
class Hidden(Patched, Gentle, ABC):
    """Most is hidden, here and there: four fifths in Audio-MAE (Huang et al., 2022)."""

    ratio: float = 0.8

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        from partwhole.audio.pictures import reconstructions

        assert isinstance(method, MAE)
        view = Kept(replace(self.plain(), fill=True), self.hiding(method.encoder, self.ratio))
        state = torch.get_rng_state()
        torch.manual_seed(self.fit.seed)
        batch = collate([view(sample) for sample in some(samples, SHOWN)])
        torch.set_rng_state(state)
        return Own({}, [reconstructions(method, batch["x"], batch["keep"])])


@dataclass(frozen=True, kw_only=True)
class Taught(SoundRecipe, ABC):
    """By labels: the augmentation is SpecAugment's."""

    policy: Policy = "specaugment"
    labels_per_class: int | float | None = None
    """Labels of each class that it learns from, drawn by fit.seed; below 1 a share of them (.01, .1), at least one
    each; default: all.
    """

    def classes(self, watch: Any = None) -> Classes:
        if (found := super().classes(watch)) is None:
            raise ValueError(
                f"{type(self).__name__} learns from labels, and the sounds have none: give --labelled, a folder with a "
                "folder of sounds for each class"
            )
        return found

    def learned(self, classes: Classes) -> list[int]:
        if self.labels_per_class is None:
            return list(range(len(classes.train)))
        check_count(self.labels_per_class, "labels_per_class")
        return classes.drawn(self.labels_per_class, self.fit.seed)

    def known(self) -> Sequence[Any]:
        classes = self.classes()
        assert isinstance(classes.train, Sounds)
        return Among(classes.train.subset(self.learned(classes)))

    def shown(self, encoder: Encoder) -> View:
        return sees.WeakAndStrong(self.look(), self.strong())

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        assert isinstance(method, Supervised | PseudoLabel | FixMatch)
        label = torch.tensor([sample["label"] for sample in samples])
        return Own({"accuracy": accuracy(named(method, seen(self.plain(), samples)), label)})


@dataclass(frozen=True, kw_only=True)
class Weak(Taught, ABC):
    """Weakly changed where guesses are made, strongly where they are learned."""

    policy: Policy = "plain"


BETWEEN: dict[Sees, tuple[type[SoundRecipe], ...]] = {
    "crops": (Cropped,),
    "numbered": (Cropped,),
    "hiding": (Patched, Cropped),
    "masked": (Patched, Gentle),
    "kept": (Hidden,),
    "named": (Patched, Gentle),
    "blocks": (Patched, Gentle),
    "labels": (Taught,),
    "guesses": (Taught,),
    "strong": (Weak,),
}


PAPERS: dict[Any, Policy] = {catalog.BYOL: "byola"}  # BYOL-A


def on_sounds(kind: Any) -> Any:
    """A generic method as a recipe for sounds."""
    own = {"policy": PAPERS[kind]} if kind in PAPERS else {}
    return sees.recipe(kind, SoundRecipe, *BETWEEN.get(kind.sees, ()), module=__name__, **own)
