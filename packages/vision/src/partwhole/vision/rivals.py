"""What else the same labels are good for: plain training on them, from scratch and from where a method began."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from partwhole.core.probe import ALL, Arm, Classes, probe
from partwhole.core.probe_report import ROWS, cells
from partwhole.core.report import Page
from partwhole.core.watch import Watch
from partwhole.vision import policies

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe

BEGAN = "the encoder that it began with"


def same_labels(
    recipe: "ImageRecipe",
    classes: Classes,
    rows: list[int],
    *,
    device: torch.device,
    watch: Watch,
    keep: Callable[[dict[str, Any]], None],
    begun: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """As ``probe``, of the encoder that the recipe's training began with, with the labels that it learned from.

    What is trained takes as many steps, of as many labelled images, at the same rate as the recipe's own training.
    Where the weights that it began with are there no more, it is what ``begun`` brings.
    """
    torch.manual_seed(recipe.fit.seed)
    try:
        began = recipe.begun(recipe.encoder())
    except (ValueError, OSError) as error:
        watch.say(f"plain training on the same labels is {'as it was' if begun else 'left out'}: {error}")
        return begun
    fit, plain = recipe.fit, getattr(recipe, "sees", None) == "labels"  # plain training is no rival of itself
    arms: tuple[Arm, ...] = ("random",) if recipe.init is None else ("scratch", "frozen")
    if not plain:
        arms = (*arms, "scratch" if recipe.init is None else "finetune")
    same = {"steps": fit.steps, "lr": fit.lr, "batch": recipe.batch, "seed": fit.seed}
    options = replace(recipe.measure, arms=arms, readouts=("ridge",), shots=(), draws=1, **same)
    k = getattr(recipe, "labels_per_class", None)
    return probe(
        began.to(device),
        classes,
        plain=recipe.plain(),
        look=policies.weak(recipe.size),
        options=options,
        supports={ALL if k is None else f"{k:g}": [rows]},
        watch=watch,
        keep=keep,
        begun=begun,
    )


def compared(results: Mapping[str, Any], own: float, method: str) -> list[tuple[str, float]]:
    """(what was trained, its accuracy), the method's own answers last."""
    return [*((ROWS[row].format(BEGAN), found[0].mean) for row, found in cells(results).items()),
            (f"{method}, what it answers", own)]  # fmt: skip


def section(page: Page, results: Mapping[str, Any], rows: list[tuple[str, float]]) -> None:
    """A table of ``compared``."""
    [(k, count)] = results["labels"].items()
    each = "all there are" if k == ALL else f"{k if k.isdigit() else f'{100 * float(k):g} %'} of each class"
    page.section("With the same labels")
    page.table([f"{count:,} labels, {each}", "accuracy"], [list(row) for row in rows], best="column", digits=3)
    steps = results["options"]["steps"]
    page.text(
        f"On {results['test']:,} test images. Whatever is trained takes {steps:,} steps of as many labelled images, at "
        "the same highest rate. One draw of the labels and one seed: small differences may be chance."
    )
