"""What follows training on images: measure the features, show what was seen, write the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.core import files, probe_report
from partwhole.core.encoder import Encoder
from partwhole.core.probe import probe
from partwhole.core.report import Page
from partwhole.core.run_page import read_json, run_page
from partwhole.core.transformer import marked
from partwhole.core.watch import Watch
from partwhole.vision import policies
from partwhole.vision.sheet import contact

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe


def finish(recipe: "ImageRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Classes told apart, views and pictures, the page. Writes ``evaluation.json`` and ``report.html``.

    An evaluation that was interrupted goes on. Returns {"text": the table, "report": path}.
    """
    name = type(recipe).__name__
    images, classes = recipe.prepare(), recipe.classes(watch)
    evaluation: dict[str, Any] = {"images": {"unlabelled": len(images), "problems": images.problems}}

    def keep(results: Mapping[str, Any]) -> None:
        evaluation["probe"] = results
        files.write_json(folder / "evaluation.json", evaluation)

    text = "no labelled images to measure on: give --labelled, a folder with a folder of images for each class"
    if classes is not None:
        watch.say(f"telling {len(classes.names)} classes apart, {len(classes.train)} images to learn from")
        begun = read_json(folder / "evaluation.json").get("probe")
        plain, look = recipe.plain(), policies.weak(recipe.size)
        results = probe(
            encoder, classes, plain=plain, look=look, options=recipe.measure, watch=watch, keep=keep, begun=begun
        )
        text = probe_report.table(results, name)
    else:
        files.write_json(folder / "evaluation.json", evaluation)

    def body(page: Page) -> None:
        if classes is None:
            page.note(f"{text[0].upper()}{text[1:]}.")
        else:
            probe_report.section(page, evaluation["probe"], name)
        page.section("What it was shown")
        sheet, columns = _views(recipe, images, encoder)
        page.picture(sheet, "Images, and beside each its views in one step.", width=100 * columns)
        if images.problems:
            rows = [[str(path), str(why)] for path, why in images.problems[:200]]
            page.table(["file", "what"], rows, fold=f"{len(images.problems)} problems with the images")

    lead = f"{name} pre-training on {len(images):,} images without labels."
    return {"text": text, "report": run_page(folder, f"{name} on images", lead, body)}


def _views(recipe: "ImageRecipe", images: Sequence[Any], encoder: Encoder, rows: int = 6) -> tuple[bytes, int]:
    """Some images, and beside each what a step sees of it, hidden patches grey: a PNG, and its columns."""
    view, state = recipe.shown(encoder), torch.get_rng_state()
    torch.manual_seed(recipe.fit.seed)
    some = [images[i * len(images) // rows] for i in range(min(rows, len(images)))]
    seen = [[sample["image"], *_seen(view(sample), encoder)] for sample in some]
    torch.set_rng_state(state)
    return contact(list(zip(*seen, strict=True))), len(seen[0])


def _seen(batch: Mapping[str, Any], encoder: Encoder) -> list[Tensor]:
    """Every x in what a view gives."""
    views = [batch["x"]] if "x" in batch else list(batch["views"])
    hidden = [batch["hidden"]] if isinstance(batch.get("hidden"), Tensor) else list(batch.get("hidden", ()))
    if "keep" in batch:
        L = encoder.embed.count(views[0].shape[-1])  # type: ignore[union-attr,operator]
        hidden = [~marked(batch["keep"][None], L)[0]]
    veiled = [torch.where(_pixels(h, x), 0.0, x) for x, h in zip(views, hidden, strict=False)]
    return [*veiled, *views[len(veiled) :], *batch.get("crops", ())]


def _pixels(hidden: Tensor, x: Tensor) -> Tensor:
    """Which pixels of x (3, S, S) are hidden, given which patches are (L,)."""
    side = round(len(hidden) ** 0.5)
    tile = x.shape[-1] // side
    grown = hidden.view(side, side).repeat_interleave(tile, 0).repeat_interleave(tile, 1)
    rest = x.shape[-1] - side * tile
    return torch.nn.functional.pad(grown, (0, rest, 0, rest))
