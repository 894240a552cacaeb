"""What follows training on clips: follow objects by the features, show what was seen, write the report."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partwhole.core import checkpoint, files
from partwhole.core.checkpoint import copied
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.method import Method
from partwhole.core.report import Page
from partwhole.core.run_page import read_json, run_page
from partwhole.core.watch import Watch
from partwhole.video import following_report, side
from partwhole.video.measure import measure

if TYPE_CHECKING:
    from partwhole.video.recipe import ClipRecipe


def finish(recipe: "ClipRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Objects followed, what only this method can be asked, views and films, the page.

    Writes ``evaluation.json``, ``report.html`` and films in ``followed/``. An evaluation that was interrupted goes on.
    Returns {"text": the table, "report": path}.
    """
    name = type(recipe).__name__
    clips, annotated = recipe.prepare(), recipe.evaluation(watch)
    parts = [clips] if annotated is None else [clips, annotated]
    problems = list(dict.fromkeys(one for part in parts for one in part.problems))
    begun = read_json(folder / "evaluation.json")
    evaluation: dict[str, Any] = {"clips": {"unlabelled": len(clips), "problems": problems}}

    def put(key: str, found: Mapping[str, Any]) -> None:
        evaluation[key] = found
        files.write_json(folder / "evaluation.json", {**begun, **evaluation})

    text = "no videos with masks to follow objects in: give --annotated, a folder as of DAVIS or VIP"
    if annotated is not None:
        watch.say(f"following objects in {len(annotated)} videos")
        keep = partial(put, "following")
        results = measure(encoder, annotated, recipe.measure, watch, keep=keep, begun=begun.get("following"))
        keep(results)  # of a measurement that was whole already, too
        text = following_report.table(results, name)

    samples, which = _asked(clips, annotated, recipe)
    own = recipe.own(_trained(recipe, encoder, folder, clips), samples) if _asks(recipe) else None
    if own is not None and own.numbers:
        put("own", dict(own.numbers))
        text += f"\n{which}: " + ", ".join(f"{k} {v:.3f}" for k, v in own.numbers.items())
    files.write_json(folder / "evaluation.json", evaluation)

    def body(page: Page) -> None:
        if annotated is None:
            page.note(f"{text[0].upper()}{text[1:]}.")
        else:
            following_report.section(page, evaluation["following"], name)
            side.followed(page, recipe, encoder, annotated, folder / "followed", watch)
        side.views(page, recipe, clips, encoder)
        if own is not None:
            page.section("What it answers")
            if own.numbers:
                numbers = [[key, value] for key, value in own.numbers.items()]
                page.table([which, ""], numbers)
            if own.picture is not None:
                page.picture(*own.picture)
        if problems:
            rows = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], rows, fold=f"{len(problems)} problems with the videos")

    lead = f"{name} pre-training on {len(clips):,} clips without labels"
    lead += "." if recipe.init is None else f", from the encoder of {recipe.init}."
    return {"text": text, "report": run_page(folder, f"{name} on clips", lead, body)}


def _asked(clips: Any, annotated: Any, recipe: "ClipRecipe") -> tuple[Any, str]:
    """The clips that a method is asked about, and which these are: those to follow objects in, if any are long enough
    for it."""
    if annotated is not None:
        long = [i for i in range(len(annotated)) if recipe.short(annotated[i]["video"]) is None]
        if long:
            return annotated.subset(long), "on clips that it was not trained on"
    return clips, "on clips that it was trained on"


def _asks(recipe: "ClipRecipe") -> bool:
    from partwhole.video.recipe import ClipRecipe

    return type(recipe).own is not ClipRecipe.own


def _trained(recipe: "ClipRecipe", encoder: Encoder, folder: Path, clips: Any) -> Method:
    """The whole method as it was trained, for what only it can be asked."""
    method = recipe.method(copied(encoder), recipe.given(clips)).to(device_of(encoder))
    checkpoint.restore(folder, method)
    return method.eval()
