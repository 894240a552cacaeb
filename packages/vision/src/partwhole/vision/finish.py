"""What follows training on images: measure the features, show what was seen, write the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partwhole.core import checkpoint, files, probe_report
from partwhole.core.checkpoint import copied
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.method import Method
from partwhole.core.probe import Classes, fingerprint, probe
from partwhole.core.report import Page
from partwhole.core.run_page import read_json, run_page
from partwhole.core.watch import Watch
from partwhole.vision import policies, show, transfer, transfer_report

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe


def finish(recipe: "ImageRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Classes told apart, annotated images, views and pictures, the page.

    Writes ``evaluation.json``, ``report.html`` and pictures in ``transfer/``.

    An evaluation that was interrupted goes on. Returns {"text": the table, "report": path}.
    """
    name = type(recipe).__name__
    images, classes = recipe.prepare(), recipe.classes(watch)
    halves: list[Any] = [] if classes is None else [classes.train, classes.test]
    problems = list(dict.fromkeys(one for part in (images, *halves) for one in part.problems))
    evaluation: dict[str, Any] = {"images": {"unlabelled": len(images), "problems": problems}}
    before = read_json(folder / "evaluation.json")
    old = before.get("transfer", {})
    if old.get("of") == fingerprint(encoder):  # what takes long is not forgotten when it is not asked again
        evaluation["transfer"] = old

    def keep(results: Mapping[str, Any]) -> None:
        evaluation["probe"] = results
        files.write_json(folder / "evaluation.json", evaluation)

    text = "no labelled images to measure on: give --labelled, a folder with a folder of images for each class"
    if classes is not None:
        watch.say(f"telling {len(classes.names)} classes apart, {len(classes.train)} images to learn from")
        plain, look = recipe.plain(), policies.weak(recipe.size)
        results = probe(
            encoder,
            classes,
            plain=plain,
            look=look,
            options=recipe.measure,
            watch=watch,
            keep=keep,
            begun=before.get("probe"),
        )
        keep(results)  # also where nothing was left to measure
        text = probe_report.table(results, name)
    else:
        files.write_json(folder / "evaluation.json", evaluation)

    samples = images if classes is None else classes.test
    own = recipe.own(_trained(recipe, encoder, folder, images, classes), samples) if _asks(recipe) else None
    if own is not None and own.numbers:
        evaluation["own"] = dict(own.numbers)
        files.write_json(folder / "evaluation.json", evaluation)
        text += "\non images that it was not trained on: " + ", ".join(f"{k} {v:.3f}" for k, v in own.numbers.items())

    if (given := transfer.annotated(recipe, classes, watch)) is not None:
        where, found, options = given

        def put(results: Mapping[str, Any]) -> None:
            evaluation["transfer"] = results
            files.write_json(folder / "evaluation.json", evaluation)

        transfer.transfer(encoder, found, options, folder, name=where, watch=watch, keep=put, begun=old)
    if measured := evaluation.get("transfer"):
        text += f"\n{transfer_report.text(measured, name)}"

    def body(page: Page) -> None:
        if classes is None:
            page.note(f"{text[0].upper()}{text[1:]}.")
        else:
            probe_report.section(page, evaluation["probe"], name)
        show.views(page, recipe, images, encoder)
        if own is not None:
            page.section("What it answers")
            if own.numbers:
                numbers = [[name, value] for name, value in own.numbers.items()]
                page.table(["on images that it was not trained on", ""], numbers)
            page.picture(*own.picture)
        if measured:
            transfer_report.section(page, measured, folder, name)
        show.maps(page, recipe, encoder, samples)
        if problems:
            rows = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], rows, fold=f"{len(problems)} problems with the images")

    lead = f"{name} pre-training on {len(images):,} images without labels."
    return {"text": text, "report": run_page(folder, f"{name} on images", lead, body)}


def _asks(recipe: "ImageRecipe") -> bool:
    from partwhole.vision.recipe import ImageRecipe

    return type(recipe).own is not ImageRecipe.own


def _trained(recipe: "ImageRecipe", encoder: Encoder, folder: Path, images: Any, classes: Classes | None) -> Method:
    """The whole method as it was trained, for what only it can be asked."""
    method = recipe.method(copied(encoder), recipe.given(images, classes)).to(device_of(encoder))
    checkpoint.restore(folder, method)
    return method.eval()
