"""Generic methods as recipes for images: what ``core.sees`` asks of a modality, and what differs for some of them."""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partwhole.core import catalog, distributed, files, masks, sees
from partwhole.core.catalog import Sees
from partwhole.core.data import Batches, View, collate, some
from partwhole.core.encoder import Encoder
from partwhole.core.evaluate import accuracy
from partwhole.core.fit import Run
from partwhole.core.masks import Ratio, grid, hide_blocks, target_blocks
from partwhole.core.method import Method
from partwhole.core.methods import MAE, FixMatch, PseudoLabel, Supervised
from partwhole.core.probe import Classes, check_count
from partwhole.core.sees import Kept
from partwhole.core.tokenizer import Tokenizer
from partwhole.vision.images import Images
from partwhole.vision.network import Network
from partwhole.vision.pretext import drawn
from partwhole.vision.recipe import ImageRecipe, Own, Policy, named

LABELLED = "labelled.txt"  # in the folder of a run: the images whose labels it learns from
LEAST = 9  # patches of which some can be hidden in blocks


@dataclass(frozen=True, kw_only=True)
class Cropped(ImageRecipe, ABC):
    """Of which crops are seen, as DINO has them."""

    policy: Policy = "dino"


@dataclass(frozen=True, kw_only=True)
class Patched(ImageRecipe, ABC):
    """For our transformer over patches, of which the method hides some."""

    network: Network = Network(name="vit")

    def encoder(self) -> Encoder:
        if self.network.name != "vit":
            raise ValueError(
                f"{type(self).__name__} hides patches, which only our own transformer can leave out: leave "
                f"--network.name at vit, not {self.network.name}"
            )
        encoder = super().encoder()
        if (patches := self.tokens(encoder)) < LEAST:
            raise ValueError(
                f"images of {self.size} pixels have {patches} patches of {self.network.patch}: too few to hide some of "
                f"them, {LEAST} are needed. Raise --size, or lower --network.patch"
            )
        return encoder


@dataclass(frozen=True, kw_only=True)
class Gentle(Patched, ABC):
    """With a crop and a flip alone: what is hidden makes the task. It trains patches, and nothing of the whole."""

    network: Network = Network(name="vit", cls=False)
    policy: Policy = "mae"


@dataclass(frozen=True)
class HiddenBlocks:
    """Draws which tokens are hidden, neighbours together: see ``masks.hide_blocks``."""

    where: Tensor
    ratio: Ratio
    chance: float = 1.0

    def __post_init__(self) -> None:
        masks.check(len(self.where), self.ratio, self.chance)

    def __call__(self) -> Tensor:
        return hide_blocks(self.where, self.ratio, size=max(1, len(self.where) / 12), chance=self.chance)


@dataclass(frozen=True, kw_only=True)
class Blocked(ImageRecipe, ABC):
    """What is hidden lies together, in about twelve blocks of an image (BEiT's have 16 of 196 patches and more)."""

    def hiding(self, encoder: Encoder, ratio: Ratio, chance: float = 1.0) -> Callable[[], Tensor]:
        side = round(self.tokens(encoder) ** 0.5)
        return HiddenBlocks(grid(side, side), ratio, chance)


@dataclass(frozen=True)
class WithIds:
    """A batch, and what the tokens of its x are called."""

    tokenizer: Tokenizer

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "ids": self.tokenizer.ids(batch["x"])}


class Named(ImageRecipe, ABC):
    """Whose tokens have names; where views are made on the device, they are named there."""

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        if self.source.views == "samples":
            return super().stream(samples, encoder)
        tokenizer = distributed.first(lambda: self.tokenizer(samples, encoder))  # type: ignore[attr-defined]
        after = WithIds(tokenizer.to(distributed.setup(self.fit.device)))
        return self.streamed(samples, self.view(encoder), after)


@dataclass(frozen=True)
class Blocks:
    """As ``core.sees.Blocks``, where tokens lie in the same places ``where`` (L, 2) in every image."""

    look: View
    where: Tensor

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"x": self.look(sample), **target_blocks(self.where)}


class InBlocks(ImageRecipe, ABC):
    """Of whose tokens blocks are predicted."""

    def view(self, encoder: Encoder) -> View:
        with torch.no_grad():
            where = encoder.embed.coordinates(torch.zeros(1, 3, self.size, self.size))[0]  # type: ignore[union-attr,operator]
        return Blocks(self.look(), where)


@dataclass(frozen=True, kw_only=True)
class Hidden(Gentle, ABC):
    """Three quarters are hidden, here and there."""

    ratio: float = 0.75

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        from partwhole.vision.pictures import reconstruction_picture

        assert isinstance(method, MAE)
        view = Kept(self.plain(), self.hiding(method.encoder, self.ratio))
        shown = some(samples, 6)
        seen = collate([drawn(view, shown, i, 0) for i in range(len(shown))])
        return Own({}, reconstruction_picture(method, seen["x"], seen["keep"]))


@dataclass(frozen=True, kw_only=True)
class Taught(ImageRecipe, ABC):
    """By labels: the augmentation is FixMatch's weak one."""

    policy: Policy = "weak"
    labels_per_class: int | float | None = None
    """Labels of each class that it learns from, drawn by fit.seed; below 1 a share of them (.01, .1), at least one
    each; default: all.
    """

    def classes(self, watch: Any = None) -> Classes:
        if (found := super().classes(watch)) is None:
            raise ValueError(
                f"{type(self).__name__} learns from labels, and the images have none: give --labelled, a folder with a "
                "folder of images for each class"
            )
        return found

    def learned(self, classes: Classes) -> list[int]:
        if self.labels_per_class is None:
            return list(range(len(classes.train)))
        check_count(self.labels_per_class, "labels_per_class")
        return classes.drawn(self.labels_per_class, self.fit.seed)

    def known(self) -> Sequence[Any]:
        classes = self.classes()
        assert isinstance(classes.train, Images)
        return classes.train.subset(self.learned(classes))

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        run, known = super().build(folder, watch), self.known()
        assert isinstance(known, Images)
        lines = "".join(f"{name}\n" for name in known.names).encode()

        def work() -> None:
            if folder is not None and distributed.rank() == 0:
                files.write(folder / LABELLED, lambda file: file.write(lines))

        distributed.attempt(work, "writing down the labelled images")
        if watch is not None and self.labels_per_class is not None:
            watch.say(f"learning from {len(known)} labels" + ("" if folder is None else f", see {folder / LABELLED}"))
        return run

    def shown(self, encoder: Encoder) -> View:
        return sees.WeakAndStrong(self.look(), self.strong())

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        assert isinstance(method, Supervised | PseudoLabel | FixMatch)
        plain = self.plain()
        x, label = (
            torch.stack(all_) for all_ in zip(*((plain(s), torch.tensor(s["label"])) for s in samples), strict=True)
        )
        return Own({"accuracy": accuracy(named(method, x), label)}, None)


BETWEEN: dict[Sees, tuple[type[ImageRecipe], ...]] = {
    "crops": (Cropped,),
    "numbered": (Cropped,),
    "hiding": (Patched, Blocked, Cropped),
    "masked": (Blocked, Gentle),
    "kept": (Hidden,),
    "named": (Blocked, Gentle, Named),
    "blocks": (Gentle, InBlocks),
    "labels": (Taught,),
    "guesses": (Taught,),
    "strong": (Taught,),
}


PAPERS: dict[Any, Policy] = {
    catalog.MoCo: "mocov2",
    catalog.SimSiam: "mocov2",
    catalog.BYOL: "byol",
    catalog.BarlowTwins: "byol",
    catalog.VICReg: "byol",
}  # whose views these papers take; the others are told by what they see


def on_images(kind: Any) -> Any:
    """A generic method as a recipe for images."""
    own = {"policy": PAPERS[kind]} if kind in PAPERS else {}
    return sees.recipe(kind, ImageRecipe, *BETWEEN.get(kind.sees, ()), module=__name__, **own)
