"""Which views teach what: SimCLR by single operators and by pairs of them (Chen et al., 2020, section 3.1, figure 5).

The training of the run is one by all of a policy, whose encoder is kept. What follows is a training for each operator
and for each pair, from the same weights and on the same order of images; of each only its numbers are kept.

As in the paper: seven operators, one branch changed and the other not, a linear layer on frozen features, the mean of
each row beside it. Differently: both branches begin with the square in the middle of an image, not with one random crop
of it; a crop is always applied first (see ``operators.applied``), so that a pair with it is trained once; the linear
layer is a ridge regression, and the same features are asked for their nearest neighbours too. Strengths of cutout,
noise and Sobel filter are ours, and so is the scale: there a ResNet-50 on ImageNet.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from partwhole.core import catalog, files, probe_report
from partwhole.core.charts import heat_map
from partwhole.core.checkpoint import differences
from partwhole.core.data import View, as_it_is
from partwhole.core.doctor import Collapsed
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.fit import NonFinite, Run, fit
from partwhole.core.probe import ALL, Classes, Probe, fingerprint, probe
from partwhole.core.report import Page, Spread, decimal
from partwhole.core.run_page import read_json, run_page
from partwhole.core.sees import SeesViews
from partwhole.core.watch import Quiet, Watch
from partwhole.vision import care, policies, show
from partwhole.vision.images import Images
from partwhole.vision.operators import OPERATORS, Operated, applied, check, pair
from partwhole.vision.recipe import ImageRecipe

READOUTS = {"linear": "linear layer", "knn": "nearest neighbours"}
Cells = Mapping[str, Mapping[str, list[float | None]]]  # "crop+colour" -> readout -> accuracy of each draw


@dataclass(frozen=True, kw_only=True)
class Augmentations(catalog.SimCLR, SeesViews, ImageRecipe):
    """SimCLR by single operators and by pairs of them: a heat map of what each teaches (Chen et al., 2020)."""

    operators: tuple[str, ...] = tuple(OPERATORS)
    """Of crop, cutout, colour, sobel, noise, blur, rotate: each is trained with alone, and with each of the others."""
    seeds: int = 1
    """Trainings of each cell, from other weights and in another order: with 2 or more there is a spread."""
    measure: Probe = Probe(arms=("random", "frozen"), shots=())

    incidental: ClassVar[frozenset[str]] = ImageRecipe.incidental | {"operators", "seeds"}  # more may be asked for

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.operators)
        if not self.operators or len(set(self.operators)) < len(self.operators):
            raise ValueError(
                f"operators are one or more, each named once, and are {', '.join(self.operators) or 'none'}"
            )
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, and is {self.seeds}")

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """What is trained, by name: a first and a second operator; the single ones first."""
        every = [(a, a) for a in self.operators] + [(a, b) for a in self.operators for b in self.operators]
        return {cell_name(*one): one for one in every}

    def classes(self, watch: Any = None) -> Classes:
        if (found := super().classes(watch)) is None:
            raise ValueError(
                "what operators teach is measured by labels, and the images have none, or all of them the same: give "
                "--labelled, a folder with a folder of images for each class"
            )
        found.problems()  # said before hours of training
        return found

    def shown(self, encoder: Encoder) -> View:
        return Each(tuple(Operated(size=self.size, names=(name,)) for name in self.operators))

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        run = super().build(folder, watch)
        if watch is not None:
            count = len(self.pairs) * self.seeds + self.seeds - 1
            watch.say(
                f"first a training by all of {self.policy}, of {self.fit.steps} steps; {count} more of as many follow, "
                f"by {', '.join(self.operators)}" + (" and their pairs" if len(self.operators) > 1 else ", alone")
            )
        return run

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Train and measure what is not yet in ``evaluation.json``, and write the page."""
        return finish(self, encoder, folder, watch or Quiet())


@dataclass(frozen=True)
class Each:
    """Views by every one of some operators: {"views": [x, ...]}."""

    views: tuple[Operated, ...]

    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"views": [view(sample) for view in self.views]}


def cell_name(first: str, second: str) -> str:
    """Equal for pairs that are the same."""
    return "+".join(applied(first, second))


# ------------------------------------------------------------------ the trainings


class Study:
    """Accuracy for every pair of operators and draw, and for the whole policy, which is that of ``encoder`` at first.

    What is missing is trained and measured as it is made. Then ``results`` is {"of": what decides the numbers,
    "cells": {"crop+colour": {"linear": [of each draw], "knn": [...]}}}; None where a training was given up.
    keep, begun: is told the results so far, and brings those that an interrupted study kept; of them cells are taken
    that were trained and measured alike.
    """

    def __init__(
        self,
        recipe: Augmentations,
        encoder: Encoder,
        images: Images,
        classes: Classes,
        *,
        watch: Watch,
        keep: Callable[[dict[str, Any]], None],
        begun: Mapping[str, Any],
    ):
        self.recipe, self.images, self.watch, self.keep = recipe, images, watch, keep
        self.device = device_of(encoder)
        plain = recipe.plain()  # is made once for all cells
        train, test = ([plain(half[i]) for i in range(len(half))] for half in (classes.train, classes.test))
        self.classes = replace(classes, train=train, test=test)
        self.results: dict[str, Any] = {"of": decisive(recipe, encoder, images, classes), "cells": {}}
        if begun and not differences(begun.get("of"), self.results["of"]):
            self.results["cells"] = begun["cells"]
        elif begun:
            watch.say("the cells in evaluation.json were trained or measured otherwise: all are trained anew")
        views = {name: pair(*one, recipe.size) for name, one in recipe.pairs.items()}
        if not self.drawn(recipe.policy):
            self.put(recipe.policy, self.worth(encoder))
        jobs = [(name, view, d) for d in range(recipe.seeds) for name, view in views.items()]
        jobs += [(recipe.policy, recipe.looks(0), d) for d in range(1, recipe.seeds)]
        waiting = [job for job in jobs if self.drawn(job[0]) <= job[2]]
        done = len(jobs) - len(waiting)
        if done:
            watch.say(f"{done} of {len(jobs)} trainings are kept in evaluation.json")
        for number, (name, view, draw) in enumerate(waiting, done):
            found = self.trained(name, view, draw, _Part(watch, name, number, len(jobs), recipe.fit.steps))
            self.put(name, found)
            words = [
                f"{readout} {'none' if found[key] is None else f'{found[key]:.3f}'}"
                for key, readout in READOUTS.items()
            ]
            watch.say(f"{number + 1} of {len(jobs)}  {name}: {', '.join(words)}")

    def drawn(self, name: str) -> int:
        return len(self.results["cells"].get(name, {}).get("linear", ()))

    def put(self, name: str, found: Mapping[str, float | None]) -> None:
        for readout, value in found.items():
            self.results["cells"].setdefault(name, {}).setdefault(readout, []).append(value)
        self.keep(self.results)

    def trained(self, name: str, view: View, draw: int, watch: Watch) -> dict[str, float | None]:
        """Worth of an encoder that is trained by these views; None where its training cannot go on."""
        how = replace(self.recipe.fit, seed=self.recipe.fit.seed + draw, device=str(self.device), shard=False)
        recipe = replace(self.recipe, fit=how)
        torch.manual_seed(how.seed)
        method = recipe.method(recipe.begun(recipe.encoder()), recipe.given(self.images, self.classes))
        run = Run(method=method, stream=recipe.streamed(self.images, view), faster=care.faster(recipe, self.images))
        try:
            fit(run, how, watch=watch)
        except (Collapsed, NonFinite) as error:  # one cell of many
            watch.say(f"given up: {error}")
            return dict.fromkeys(READOUTS)
        return self.worth(method.encoder)

    def worth(self, encoder: Encoder) -> dict[str, float | None]:
        alone = replace(self.recipe.measure, arms=("frozen",), shots=(), draws=1, readouts=("knn", "ridge"))
        arms = probe(encoder, self.classes, plain=as_it_is, look=as_it_is, options=alone)["arms"]
        return {readout: arms[f"frozen {readout}"][ALL][0] for readout in READOUTS}


def decisive(recipe: Augmentations, encoder: Encoder, images: Images, classes: Classes) -> dict[str, Any]:
    """What decides the numbers of a cell."""
    kept = {name: getattr(recipe, name) for name in ("size", "batch", "policy", "temperature")}
    halves = [[half.key, len(half)] for half in (images, classes.train, classes.test)]  # type: ignore[attr-defined]
    origins = recipe.origins()
    if lost := [f"{path} (--{name})" for name, path in origins.items() if not path.exists()]:
        raise FileNotFoundError(f"{', '.join(lost)} is there no more: each cell begins with it. Put it back")
    about = {
        **kept,
        "network": {k: v for k, v in asdict(recipe.network).items() if k != "weights"},
        "contents": {name: files.digest(path) for name, path in origins.items()} or None,
        "fit": recipe.fit.identity(),
        "neighbours": recipe.measure.neighbours,
        "images": halves,
        "encoder": fingerprint(encoder),
    }
    return json.loads(json.dumps(about))


class _Part(Quiet):
    """Tells of one training of several as a part of all."""

    def __init__(self, watch: Watch, name: str, number: int, count: int, steps: int):
        self.watch, self.name, self.first, self.total = watch, name, number * steps, count * steps

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.watch.step(self.first + done, {"total": self.total})

    def say(self, text: str) -> None:
        self.watch.say(f"{self.name}: {text}")


# ------------------------------------------------------------------ the page


def finish(recipe: Augmentations, encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Measure the whole policy, train and measure every cell, draw the map.

    Writes ``evaluation.json``, after every cell, and ``report.html``. Returns {"table", "text", "report": path}.
    """
    images, classes = recipe.prepare(), recipe.classes(watch)
    problems = list(dict.fromkeys(one for part in (images, classes.train, classes.test) for one in part.problems))  # type: ignore[attr-defined]
    path, whole = folder / "evaluation.json", f"all of {recipe.policy}"
    before = read_json(path)
    evaluation: dict[str, Any] = {**before, "images": {"unlabelled": len(images), "problems": problems}}

    def keep(name: str) -> Callable[[dict[str, Any]], None]:
        def kept(results: dict[str, Any]) -> None:
            evaluation[name] = results
            files.write_json(path, evaluation)

        return kept

    watch.say(f"telling {len(classes.names)} classes apart, {len(classes.train)} images to learn from")
    plain, look = recipe.plain(), policies.weak(recipe.size)
    probed = probe(
        encoder, classes, plain=plain, look=look, options=recipe.measure, watch=watch, keep=keep("probe"),
        begun=before.get("probe"),
    )  # fmt: skip
    begun = before.get("study") or {}
    cells = Study(recipe, encoder, images, classes, watch=watch, keep=keep("study"), begun=begun).results["cells"]
    said = summary(recipe, cells, probed)

    def body(page: Page) -> None:
        section(page, recipe, cells, probed, said)
        show.views(page, recipe, images, encoder)
        page.text(f"Beside each image, from the left: {', '.join(recipe.operators)}. The other view is the image.")
        probe_report.section(page, probed, whole)
        page.text(f"Measured here is the encoder that is kept: it was trained by {whole}, as the curves below show.")
        if problems:
            told = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "what"], told, fold=f"{len(problems)} problems with the images")

    lead = f"SimCLR by {len(recipe.operators)} operators on images, alone and in pairs, on {len(images):,} images."
    page = run_page(folder, "Augmentations of images", lead, body)
    text = f"{said}\n{probe_report.table(probed, whole)}"
    return {"table": table(recipe, cells), "text": text, "report": page}


def rows(recipe: Augmentations, cells: Cells, readout: str) -> list[list[Spread]]:
    """The map: a row for each first operator, a column for each second one, and the mean of the row."""
    found = []
    for first in recipe.operators:
        row = [values(recipe, cells, cell_name(first, second), readout) for second in recipe.operators]
        means = [Spread.of(draw).mean for draw in zip(*row, strict=True)]
        found.append([Spread.of(each) for each in [*row, means]])
    return found


def values(recipe: Augmentations, cells: Cells, name: str, readout: str) -> list[float | None]:
    """Of the draws that the recipe asks for."""
    return cells[name][readout][: recipe.seeds]


def table(recipe: Augmentations, cells: Cells) -> list[list[str]]:
    """The maps as rows of text, for a terminal."""
    out: list[list[str]] = []
    for readout, about in READOUTS.items():
        out.append([about, *recipe.operators, "mean"])
        found = rows(recipe, cells, readout)
        out += [[name, *map(probe_report.plus, row)] for name, row in zip(recipe.operators, found, strict=True)]
    return out


def ranking(recipe: Augmentations, cells: Cells, probed: Mapping[str, Any]) -> list[tuple[str, Spread, Spread]]:
    """Every cell once, in words, and what it stands beside, with both accuracies; the best linear layer first."""
    told = {name: ", then ".join(applied(*one)) for name, one in recipe.pairs.items()}
    told[recipe.policy] = f"all of {recipe.policy}"
    linear, near = ([Spread.of(values(recipe, cells, name, readout)) for name in told] for readout in READOUTS)
    found = list(zip(told.values(), linear, near, strict=True))
    random = [Spread.of(probed["arms"].get(f"random {readout}", {}).get(ALL, ())) for readout in READOUTS]
    if any(one.count for one in random):
        found.append(("random network", random[0], random[1]))
    return sorted(found, key=lambda row: -row[1].mean if row[1].count else 1.0)


def summary(recipe: Augmentations, cells: Cells, probed: Mapping[str, Any]) -> str:
    """One plain sentence: the best cell, the best operator alone, and what they stand beside."""
    ranked = [(name, linear) for name, linear, _ in ranking(recipe, cells, probed) if linear.count]
    beside = [(name, linear) for name, linear in ranked if name in (f"all of {recipe.policy}", "random network")]
    trained = [one for one in ranked if one not in beside]
    alone = [one for one in trained if one[0] in recipe.operators]
    chosen = {"best": trained[:1], "best alone": [] if alone[:1] == trained[:1] else alone[:1]}
    parts = [f"{title}: {name} {decimal(x.mean, 3)}" for title, found in chosen.items() for name, x in found]
    parts += [f"{name}: {decimal(linear.mean, 3)}" for name, linear in beside]
    said = "; ".join([*parts, f"chance: {decimal(1 / len(probed['classes']), 3)}"])
    return f"{said[0].upper()}{said[1:]}."


def section(page: Page, recipe: Augmentations, cells: Cells, probed: Mapping[str, Any], said: str) -> Page:
    """The maps, what they show, and every cell in words."""
    page.section("What each teaches").text(said)
    maps = []
    for readout, about in READOUTS.items():
        found = rows(recipe, cells, readout)
        maps.append(
            heat_map(
                recipe.operators,
                [*recipe.operators, "mean"],
                [[one.mean for one in row] for row in found],
                spreads=[[one.std if one.count > 1 else math.nan for one in row] for row in found]
                if recipe.seeds > 1
                else None,
                apart=1,
                title=f"Accuracy, {about}",
                x="second operator",
                y="first operator",
                text=lambda value: decimal(value, 3),
            )
        )
    page.grid(maps, width=430)
    page.text(
        "On the diagonal one operator is alone; the last column is the mean of the row. Of two views of an image one "
        "is the square in its middle, the other is that, changed by the operators one after the other. A crop is "
        "always taken first: a pair with it was trained once and stands twice."
        f"\n\nEach is a training of {recipe.fit.steps:,} steps of {recipe.batch} images, measured on features that are "
        f"then left as they are: learned from {probed['train']:,} labels, asked of {probed['test']:,} other images. "
        f"By the choice of these alone a number is uncertain by up to {decimal(0.5 / probed['test'] ** 0.5, 3)}."
    )
    if recipe.seeds > 1:
        page.text(f"Mean \N{PLUS-MINUS SIGN} standard deviation over {recipe.seeds} trainings.")
    ranked = [list(one) for one in ranking(recipe, cells, probed)]
    return page.table(["operators", *READOUTS.values()], ranked, best="column", fold="All of them, the best first")
