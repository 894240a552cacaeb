"""What the report of a run on images shows beside its numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.core.data import some
from partwhole.core.encoder import Encoder
from partwhole.core.report import Page
from partwhole.core.transformer import marked
from partwhole.vision.pictures import attention_picture, pca_picture, similarity_picture
from partwhole.vision.sheet import contact

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe


def views(page: Page, recipe: "ImageRecipe", images: Sequence[Any], encoder: Encoder, rows: int = 6) -> None:
    """Some images, and beside each what a step sees of it, hidden patches grey."""
    view, state = recipe.shown(encoder), torch.get_rng_state()
    torch.manual_seed(recipe.fit.seed)
    seen = [[sample["image"], *_seen(view(sample), encoder)] for sample in some(images, rows)]
    torch.set_rng_state(state)
    sheet = contact(list(zip(*seen, strict=True)))
    page.section("What it was shown")
    page.picture(sheet, "Images, and beside each what one step sees of it.", width=100 * len(seen[0]))


def maps(page: Page, recipe: "ImageRecipe", encoder: Encoder, samples: Sequence[Any]) -> None:
    """Where in an image features are alike, and what the class token attends to."""
    size = 2 * recipe.size  # twice as many places to look at
    eight, four = some(samples, 8), some(samples, 4)
    page.section("Features where they lie")
    pictures = [pca_picture(encoder, eight, size=size), similarity_picture(encoder, four, size=size)]
    if encoder.special:
        pictures.append(attention_picture(encoder, four, size=size))
    for picture in pictures:
        page.picture(*picture)


def _seen(batch: Mapping[str, Any], encoder: Encoder) -> list[Tensor]:
    """Every x in what a view gives."""
    views = [batch["x"]] if "x" in batch else list(batch["views"])
    if views[0].ndim == 4:  # tiles, or turns
        return list(views[0])
    hidden = [batch["hidden"]] if isinstance(batch.get("hidden"), Tensor) else list(batch.get("hidden", ()))
    if "keep" in batch:
        L = encoder.embed.count(views[0].shape[-1])  # type: ignore[union-attr,operator]
        keep = batch["keep"]
        hidden = [~keep] if keep.dtype == torch.bool else [~marked(keep[None], L)[0]]
    veiled = [torch.where(_pixels(h, x), 0.0, x) for x, h in zip(views, hidden, strict=False)]
    return [*veiled, *views[len(veiled) :], *batch.get("crops", ())]


def _pixels(hidden: Tensor, x: Tensor) -> Tensor:
    """Which pixels of x (3, S, S) are hidden, given which patches are (L,)."""
    side = round(len(hidden) ** 0.5)
    tile = x.shape[-1] // side
    grown = hidden.view(side, side).repeat_interleave(tile, 0).repeat_interleave(tile, 1)
    rest = x.shape[-1] - side * tile
    return torch.nn.functional.pad(grown, (0, rest, 0, rest))
