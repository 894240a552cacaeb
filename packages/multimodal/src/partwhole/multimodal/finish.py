"""What follows training on clips with sound: measure, show and play, write the report.

Writes ``evaluation.json``, ``report.html``, and the encoder of sounds into the folder ``sound/``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from partwhole.core import checkpoint, files
from partwhole.core.checkpoint import copied
from partwhole.core.data import collate
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.evaluate import settled
from partwhole.core.report import Page, Spread
from partwhole.core.run_page import run_page
from partwhole.core.sees import Numbered, WithIndex
from partwhole.core.watch import Watch
from partwhole.multimodal import show
from partwhole.multimodal.measure import RANKS, chance, measure
from partwhole.multimodal.towers import Towers
from partwhole.video.clips import Clips
from partwhole.vision.pretext import drawn, held_out

if TYPE_CHECKING:
    from partwhole.multimodal.recipe import Listening

SETTLED = 16  # clips that a random network sees first, so that it is not also badly scaled
SOUND = "sound"  # the folder of the encoder of sounds, within a run's
COLUMNS = ("correspondence", "synchrony", *(f"{name}@{k}" for name in ("sound", "clip") for k in RANKS))
WORDS = {"correspondence": "its sound, not another's", "synchrony": "in time, not out of it"}
WORDS |= {f"sound@{k}": f"sound of a clip, first {k}" for k in RANKS}
WORDS |= {f"clip@{k}": f"clip of a sound, first {k}" for k in RANKS}


def finish(recipe: "Listening", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Returns {"text": the table, "report": path}."""
    name = type(recipe).__name__
    clips, (test, known) = recipe.prepare(), recipe.evaluation(watch)
    method = trained(recipe, encoder, folder, clips)
    checkpoint.save_encoder(method.sound, folder / SOUND)
    watch.say(f"asking which of {len(test)} sounds belongs to which clip, and which is in time")
    results = compared(recipe, method, clips, test)
    problems = list(dict.fromkeys(one for part in (clips, test) for one in part.problems))
    evaluation = {
        "clips": {"train": len(clips), "test": len(test), "test was trained on": known, "problems": problems},
        **results,
    }
    files.write_json(folder / "evaluation.json", evaluation)
    rows, columns = table(results, name), [c for c in COLUMNS if c in results["chance"]]

    def body(page: Page) -> None:
        page.section("What goes with what")
        if known:
            page.note(
                f"Measured on the {len(test)} clips that it was trained on, of which there are too few to hold some "
                "out: give --test, videos with sound to measure on."
            )
        turned = [[WORDS[c], *(row[i] for row in rows)] for i, c in enumerate(columns, 1)]
        page.table(["", *(row[0] for row in rows)], turned)
        page.text(
            f"{len(test)} clips, {recipe.seconds:g} s from the middle of each. The first row says to how many of the "
            "other clips' sounds its own is preferred; the second, to how many sounds of the same clip that begin "
            f"{recipe.gap:g} s or more too early or too late; the rest, how often the right one is among the first of "
            f"{len(test)}. What ties counts as wrong. In the first two rows the standard error of a mean over clips "
            f"stands beside it; beside the numbers of {recipe.measure.draws} random networks, their deviation."
        )
        own = results["own task"]
        told = ", ".join(f"{key} {value:.3f}" for key, value in own.items())
        page.text(f"What training asks, of these clips: {told}.")
        show.section(page, recipe, method, clips, test)
        if problems:
            shown = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], shown, fold=f"{len(problems)} problems with the videos")

    lead = f"{name} pre-training on {len(clips):,} clips with sound, without labels"
    lead += "." if recipe.init is None else f", from the encoder of pictures of {recipe.init}."
    report = run_page(folder, f"{name} on clips with sound", lead, body)
    return {
        "table": [["", *columns], *map(plain, rows)],
        "text": f"the encoder of sounds: {folder / SOUND}",
        "report": report,
    }


def compared(recipe: "Listening", method: Towers, clips: Clips, test: Clips) -> dict[str, Any]:
    """What the method, and random networks of its kind, are worth; what is so by chance; and what training asks."""

    def worth(one: Towers) -> dict[str, float]:
        return measure(one, test, recipe.plain(), recipe.gap, recipe.measure)

    found = {"trained": worth(method), "random": [], "chance": chance(len(test))}
    state = torch.get_rng_state()
    for draw in range(recipe.measure.draws):
        one = recipe.fresh(clips, 1_000 + draw).to(device_of(method))
        seen = collate([drawn(recipe.plain(), clips, i, 0) for i in range(min(SETTLED, len(clips)))])
        settled(one.encoder, seen["x"])
        settled(one.sound, seen["sound"])
        found["random"].append(worth(one.eval()))
    torch.set_rng_state(state)
    if "synchrony" not in found["trained"]:
        found["chance"].pop("synchrony")  # no clip is long enough
    fit = [i for i in range(len(test)) if recipe.window(recipe.shifted).short(test[i]) is None]
    if fit:
        asked = Numbered(test.subset(fit))
        found["own task"] = dict(held_out(method, WithIndex(recipe.view()), asked, batch=recipe.batch))
    else:
        found["own task"] = {}
    return found


def table(results: Mapping[str, Any], name: str) -> list[list[Any]]:
    """Rows of the method, of random networks and of chance."""
    columns = [c for c in COLUMNS if c in results["chance"]]
    found = results["trained"]
    errors = [Spread(found[c], found[f"{c} error"], 2) if f"{c} error" in found else found[c] for c in columns]
    rows: list[list[Any]] = [[name, *errors]]
    if results["random"]:
        rows.append(["random networks", *(Spread.of([one[c] for one in results["random"]]) for c in columns)])
    return [*rows, ["chance", *(results["chance"][c] for c in columns)]]


def plain(row: Sequence[Any]) -> list[Any]:
    return [cell.mean if isinstance(cell, Spread) else cell for cell in row]


def trained(recipe: "Listening", encoder: Encoder, folder: Path, clips: Clips) -> Towers:
    """The whole method as it was trained, both encoders."""
    method = recipe.method(copied(encoder), recipe.ear(clips)).to(device_of(encoder))
    checkpoint.restore(folder, method)
    return method.eval()
