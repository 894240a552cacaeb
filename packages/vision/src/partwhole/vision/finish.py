"""What follows training on images: measure the features, show what was seen, write the report."""

from collections.abc import Mapping
from functools import partial
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
from partwhole.vision.rivals import compared, same_labels, section

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe


def finish(recipe: "ImageRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Classes told apart, annotated images, views and pictures, the page.

    Writes ``evaluation.json``, ``report.html`` and pictures in ``transfer/``.

    An evaluation that was interrupted goes on. Returns {"text": the table, "report": path}.
    """
    name = type(recipe).__name__
    images, classes = recipe.prepare(), recipe.classes(watch)
    given = transfer.annotated(recipe, classes, watch)  # first, for what is not there is told at once
    halves: list[Any] = [] if classes is None else [classes.train, classes.test]
    problems = list(dict.fromkeys(one for part in (images, *halves) for one in part.problems))
    begun = read_json(folder / "evaluation.json")
    evaluation: dict[str, Any] = {"images": {"unlabelled": len(images), "problems": problems}}
    old = begun.get("transfer", {})
    if old.get("of") == fingerprint(encoder):  # what takes long is not forgotten when it is not asked again
        evaluation["transfer"] = old

    def put(key: str, found: Mapping[str, Any]) -> None:
        evaluation[key] = found
        files.write_json(folder / "evaluation.json", {**begun, **evaluation})

    text = "no labelled images to measure on: give --labelled, a folder with a folder of images for each class"
    if classes is not None:
        watch.say(f"telling {len(classes.names)} classes apart, {len(classes.train)} images to learn from")
        keep = partial(put, "probe")
        results = probe(
            encoder, classes, plain=recipe.plain(), look=policies.weak(recipe.size), options=recipe.measure,
            watch=watch, keep=keep, begun=begun.get("probe"),
        )  # fmt: skip
        keep(results)  # of a measurement that was whole already, too
        text = probe_report.table(results, name)

    samples = images if classes is None else classes.test
    which = f"on images that it was {'' if classes is None else 'not '}trained on"
    own = recipe.own(_trained(recipe, encoder, folder, images, classes), samples) if _asks(recipe) else None
    if own is not None and own.numbers:
        put("own", dict(own.numbers))
        text += f"\n{which}: " + ", ".join(f"{k} {v:.3f}" for k, v in own.numbers.items())

    told = None if classes is None else recipe.learned(classes)
    against: list[tuple[str, float]] = []
    if classes is not None and told is not None and own is not None:
        watch.say(f"plain training on the same {len(told)} labels, to compare")
        keep = partial(put, "same_labels")
        device = device_of(encoder)
        plainly = same_labels(
            recipe, classes, told, device=device, watch=watch, keep=keep, begun=begun.get("same_labels")
        )
        if plainly is not None:
            keep(plainly)
            against = compared(plainly, own.numbers["accuracy"], name)
        text += "".join(f"\n  {value:.3f}  {what}" for what, value in against)

    if given is not None:
        where, found, options = given
        keep = partial(put, "transfer")
        transfer.transfer(encoder, found, options, folder, name=where, watch=watch, keep=keep, begun=old)
    if measured := evaluation.get("transfer"):
        text += f"\n{transfer_report.text(measured, name)}"
    files.write_json(folder / "evaluation.json", evaluation)

    def body(page: Page) -> None:
        if classes is None:
            page.note(f"{text[0].upper()}{text[1:]}.")
        else:
            if against:
                section(page, evaluation["same_labels"], against)
            probe_report.section(page, evaluation["probe"], name)
            if told is not None:
                page.note(
                    f"These features were made with {len(told):,} labels: with fewer than that they say too much."
                )
        show.views(page, recipe, images, encoder)
        if own is not None and not against:
            page.section("What it answers")
            if own.numbers:
                numbers = [[name, value] for name, value in own.numbers.items()]
                page.table([which, ""], numbers)
            if own.picture is not None:
                page.picture(*own.picture)
        if measured:
            transfer_report.section(page, measured, folder, name)
        show.maps(page, recipe, encoder, samples)
        if problems:
            rows = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], rows, fold=f"{len(problems)} problems with the images")

    lead = f"{name} pre-training on {len(images):,} images without labels"
    if told is not None:
        also = "" if getattr(recipe, "sees", None) == "labels" else f" and {len(images):,} images without"
        lead = f"{name} on {len(told):,} images with labels{also}"
    lead += "." if recipe.init is None else f", from the encoder of {recipe.init}."
    return {"text": text, "report": run_page(folder, f"{name} on images", lead, body)}


def _asks(recipe: "ImageRecipe") -> bool:
    from partwhole.vision.recipe import ImageRecipe

    return type(recipe).own is not ImageRecipe.own


def _trained(recipe: "ImageRecipe", encoder: Encoder, folder: Path, images: Any, classes: Classes | None) -> Method:
    """The whole method as it was trained, for what only it can be asked."""
    method = recipe.method(copied(encoder), recipe.given(images, classes)).to(device_of(encoder))
    checkpoint.restore(folder, method)
    return method.eval()
