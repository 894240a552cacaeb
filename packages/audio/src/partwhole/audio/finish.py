"""What follows training on sounds: measure the features, show and play what was heard, write the report."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.audio.pictures import player, sheet, span
from partwhole.audio.sources import Among
from partwhole.core import checkpoint, files, probe_report
from partwhole.core.charts import heat_map
from partwhole.core.checkpoint import copied
from partwhole.core.data import some
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.evaluate import PENALTIES, embed, ridge
from partwhole.core.probe import Classes, probe
from partwhole.core.report import Page
from partwhole.core.run_page import read_json, run_page
from partwhole.core.transformer import marked
from partwhole.core.watch import Watch

if TYPE_CHECKING:
    from partwhole.audio.recipe import SoundRecipe

SHOWN = 6  # sounds whose views are shown, and that can be played
PLAYED = 3.0  # seconds of each, at the most
CONFUSED = 20  # classes of which a table is drawn, at the most


def finish(recipe: "SoundRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Classes told apart, which are taken for which, views, pictures and players, the page.

    Writes ``evaluation.json`` and ``report.html``. An evaluation that was interrupted goes on. Returns {"text": the
    table, "report": path}.
    """
    name = type(recipe).__name__
    sounds, classes = recipe.prepare(), recipe.classes(watch)
    halves: list[Any] = [] if classes is None else [classes.train, classes.test]
    problems = list(dict.fromkeys(one for part in (sounds, *halves) for one in part.problems))
    begun = read_json(folder / "evaluation.json")
    evaluation: dict[str, Any] = {"sounds": {"unlabelled": len(sounds), "problems": problems}}

    def put(key: str, found: Any) -> None:
        evaluation[key] = found
        files.write_json(folder / "evaluation.json", {**begun, **evaluation})

    text = "no labelled sounds to measure on: give --labelled, a folder with a folder of sounds for each class"
    confused: list[list[int]] = []
    if classes is not None:
        watch.say(f"telling {len(classes.names)} classes apart, {len(classes.train)} sounds to learn from")
        keep = partial(put, "probe")
        results = probe(
            encoder, classes, plain=recipe.plain(), look=recipe.weak(), options=recipe.measure, watch=watch, keep=keep,
            begun=begun.get("probe"),
        )  # fmt: skip
        keep(results)  # of a measurement that was whole already, too
        text = probe_report.table(results, name)
        confused = confusion(recipe, encoder, classes)
        put("confusion", confused)

    samples = sounds if classes is None else classes.test
    which = f"on sounds that it was {'' if classes is None else 'not '}trained on"
    own = recipe.own(_trained(recipe, encoder, folder, sounds, classes), samples)
    if own is not None and own.numbers:
        put("own", dict(own.numbers))
        text += f"\n{which}: " + ", ".join(f"{k} {v:.3f}" for k, v in own.numbers.items())
    files.write_json(folder / "evaluation.json", evaluation)
    told = None if classes is None else recipe.learned(classes)

    def body(page: Page) -> None:
        if classes is None:
            page.note(f"{text[0].upper()}{text[1:]}.")
        else:
            probe_report.section(page, evaluation["probe"], name)
            if told is not None:
                page.note(
                    f"These features were made with {len(told):,} labels: with fewer than that they say too much."
                )
            _confused(page, classes, confused)
        _views(page, recipe, Among(sounds), encoder)
        if own is not None:
            page.section("What it answers")
            if own.numbers:
                numbers = [[name, value] for name, value in own.numbers.items()]
                page.table([which, ""], numbers)
            for picture, caption in own.pictures:
                page.picture(picture, f"{caption} These are {which.removeprefix('on ')}.")
        if problems:
            rows = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], rows, fold=f"{len(problems)} problems with the sounds")

    lead = f"{name} pre-training on {len(sounds):,} sounds without labels"
    if told is not None:
        also = "" if getattr(recipe, "sees", None) == "labels" else f" and {len(sounds):,} sounds without"
        lead = f"{name} on {len(told):,} sounds with labels{also}"
    lead += "." if recipe.init is None else f", from the encoder of {recipe.init}."
    return {"text": text, "report": run_page(folder, f"{name} on sounds", lead, body)}


def confusion(recipe: "SoundRecipe", encoder: Encoder, classes: Classes) -> list[list[int]]:
    """How many test sounds of each class, a row, were taken for each, by a linear layer on the frozen features learned
    with all labels."""
    from partwhole.audio.recipe import parts, seen

    train, test = (embed(encoder, parts(seen(recipe.plain(), half))).float() for half in (classes.train, classes.test))
    found = ridge(train, classes.train_label.to(train.device), test, penalty=PENALTIES).cpu()
    count = len(classes.names)
    return torch.bincount(classes.test_label * count + found, minlength=count**2).view(count, count).tolist()


def _confused(page: Page, classes: Classes, table: Sequence[Sequence[int]]) -> None:
    page.section("Which is taken for which")
    names, count = list(classes.names), len(classes.names)
    if count <= CONFUSED:
        page.raw(heat_map(names, names, table, x="taken for", y="what it is"))
    off = sorted(((n, i, j) for i, row in enumerate(table) for j, n in enumerate(row) if i != j and n), reverse=True)
    if off:
        said = [f"{names[i]} for {names[j]} ({n} of {sum(table[i])})" for n, i, j in off[:5]]
        page.text("Test sounds, by a linear layer learned with all labels. Most often taken: " + ", ".join(said) + ".")
    else:
        page.text("Test sounds, by a linear layer learned with all labels: none is taken for another.")


def _views(page: Page, recipe: "SoundRecipe", samples: Sequence[Any], encoder: Encoder) -> None:
    """Some sounds to play, and beside the spectrogram of each what a step sees of it, hidden patches grey."""
    view, whole, state = recipe.shown(encoder), recipe.plain(), torch.get_rng_state()
    torch.manual_seed(recipe.fit.seed)
    chosen = some(samples, SHOWN)
    rows = [[recipe.drawn(whole(s), None, encoder), *_seen(recipe, view(s), encoder)] for s in chosen]
    torch.set_rng_state(state)
    page.section("What it heard")
    low, high = span([x for row in rows for x in row])
    caption = "Spectrograms of sounds, low pitch below, and beside each what one step sees of it."
    page.picture(sheet(rows, low, high), caption)
    names = some(recipe.prepare().names, SHOWN)
    most = round(PLAYED * recipe.mel.rate)
    page.grid([player(s["sound"][:most], s["rate"], n) for s, n in zip(chosen, names, strict=True)], width=290)


def _seen(recipe: "SoundRecipe", batch: Mapping[str, Any], encoder: Encoder) -> list[Tensor]:
    """The spectrogram of every x in what a view gives, hidden parts not a number."""
    views = [batch["x"]] if "x" in batch else list(batch["views"])
    hidden = [batch["hidden"]] if isinstance(batch.get("hidden"), Tensor) else list(batch.get("hidden", ()))
    if "keep" in batch:
        keep = batch["keep"]
        count = encoder.embed.count(len(views[0]))  # type: ignore[union-attr,operator]
        hidden = [~keep] if keep.dtype == torch.bool else [~marked(keep[None], count)[0]]
    views += list(batch.get("crops", ()))
    return [recipe.drawn(x, hidden[i] if i < len(hidden) else None, encoder) for i, x in enumerate(views)]


def _trained(recipe: "SoundRecipe", encoder: Encoder, folder: Path, sounds: Any, classes: Classes | None) -> Any:
    """The whole method as it was trained, for what only it can be asked."""
    method = recipe.method(copied(encoder), recipe.given(sounds, classes)).to(device_of(encoder))
    checkpoint.restore(folder, method)
    return method.eval()
