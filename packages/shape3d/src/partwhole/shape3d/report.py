"""The report of a run on shapes: what the labels bought, in words, tables, charts, pictures and a 3D viewer.

Reads the dictionaries that a run leaves (``evaluation.json``, ``run.json``, ``metrics.jsonl``) and the shapes to show.
Every section appears only when its data is there. Letters: P points of a shape.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from partwhole.core.report import (
    Page,
    Series,
    Spread,
    bar_chart,
    decimal,
    line_chart,
    table_html,
)
from partwhole.core.run_page import read_json, run_page
from partwhole.shape3d.gallery import EXTREME, SAMPLE, Shown, gallery, spaced, write_plys
from partwhole.shape3d.render import write_ply
from partwhole.shape3d.viewer import viewer

__all__ = ["Shown", "few_shot_summary", "write_ply", "write_report"]

ARMS = {  # short and full names; the first is drawn as the baseline
    "scratch": ("from scratch", "random network, all of it trained"),
    "random": ("random linear", "random network, frozen, linear layer trained"),
    "linear": ("{} linear", "{} pre-training, frozen, linear layer trained"),
    "finetune": ("{} fine-tuned", "{} pre-training, linear layer trained, then all of it"),
    "joint": ("{} joint", "random network, {} and labels together"),
}


def write_report(
    folder: Path | str,
    *,
    evaluation: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    shown: Sequence[Shown] = (),
    title: str = "Part segmentation with few labels",
    about: str = "",
    method: str = "ACD",
    up: Literal["x", "y", "z"] = "y",
    sample: int = SAMPLE,
    extreme: int = EXTREME,
    viewer_shapes: int = 100,
    viewer_points: int = 2048,
) -> Path:
    """Write ``folder/report.html``, and for the shapes shown ``folder/ply/*.ply`` and ``folder/pictures/*.png``.

    Args:
        folder: of the run; made when it is missing.
        evaluation, run, metrics: the content of evaluation.json, run.json, metrics.jsonl; by default read from there.
        shown: shapes in any order; the worst and the best are found by their scores.
        title: of the page.
        about: one or two sentences: what was pre-trained, and on what. From the decomposition by default.
        method: the name of the pre-training in the table.
        up: the axis of the shapes that points up.
        sample: how many shapes the grid holds, over all categories evenly.
        extreme: how many worst and how many best.
        viewer_shapes, viewer_points: how many the viewer holds; 100 of 2,048 points weigh about 2 MB.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    evaluation = read_json(folder / "evaluation.json") if evaluation is None else evaluation
    shapes = [s.upright(up).with_error() for s in shown]
    few_shot, decomposition = evaluation.get("few_shot") or {}, evaluation.get("decomposition") or {}
    lead = [about.strip() or _about(decomposition, method), few_shot_summary(few_shot, method)]

    def body(page: Page) -> None:
        if few_shot.get("arms"):
            _few_shot(page, few_shot, method)
        if problems := (evaluation.get("labelled") or {}).get("problems"):
            rows = [[str(path), str(why)] for path, why in problems[:200]]
            page.table(["file", "why"], rows, fold=f"{len(problems)} problems with the labelled shapes")
        if evaluation.get("classification"):
            _classification(page, evaluation["classification"], method)
        if shapes:
            page.section("Shapes")
            gallery(page, shapes, folder / "pictures", sample=sample, extreme=extreme)
            page.section("Turn them yourself")
            most_to_see_first = sorted(spaced(shapes, viewer_shapes), key=lambda s: -len(s.layers))
            page.raw(viewer(most_to_see_first, points=viewer_points))
            write_plys(shown, folder / "ply")
            page.text(
                "The folder ply holds every shape with its predicted parts as a coloured cloud, for MeshLab or Blender."
            )
        if decomposition:
            _decomposition(page, decomposition)

    return run_page(folder, title, " ".join(t for t in lead if t), body, run=run, metrics=metrics)


# -- words and numbers -----------------------------------------------------------------------------------------------


def few_shot_summary(few_shot: Mapping[str, Any], method: str = "ACD") -> str:
    """Two or three plain sentences: the fewest and the most labels, from scratch against the best pre-trained arm."""
    arms, shots = few_shot.get("arms") or {}, few_shot.get("shots") or []
    others = [a for a in arms if a not in ("scratch", "random")]
    if not shots or not others or "scratch" not in arms:
        return ""
    said = []
    for shot in dict.fromkeys((shots[0], shots[-1])):
        plain = _cell(arms, "scratch", shot)
        best = max(others, key=lambda a: _order(_cell(arms, a, shot).mean))
        good = _cell(arms, best, shot)
        if not (plain.count and good.count):
            continue
        start = f"With {_shapes_of(shot)} per category" if not said else f"with {shot}"
        name = "joint training" if best == "joint" else f"{method} pre-training"
        how = {"linear": " (frozen, linear)", "finetune": " (fine-tuned)"}.get(best, "")
        gain = (good.mean - plain.mean) * 100
        size = round(abs(gain))
        verdict = f"{size} point{'' if size == 1 else 's'} {'more' if gain >= 0 else 'less'}"
        if size == 0:
            verdict = "no difference"
        elif abs(gain) < (good.std + plain.std) * 100:
            verdict += ", within the spread"
        said.append(f"{start} {name}{how} reaches {_plus(good)} mean part IoU, from scratch {_plus(plain)}: {verdict}")
        if "random" in arms and (cell := _cell(arms, "random", shot)).count:
            said[-1] += f" (frozen random network, linear: {_plus(cell)})"
    if not said:
        return ""
    text = "; ".join(said) + "."
    first = max((_cell(arms, a, shots[0]) for a in others), key=lambda c: _order(c.mean))
    if first.mean > _cell(arms, "scratch", shots[0]).mean:
        enough = [s for s in shots if _cell(arms, "scratch", s).mean >= first.mean]
        need = f"needs {_shapes_of(enough[0])}" if enough else f"does not get there with {_shapes_of(shots[-1])}"
        text += f" To reach what {shots[0]} labelled reached that way, training from scratch {need} per category."
    draws = few_shot.get("draws")
    return text + (f" Mean and standard deviation over {draws} draws of the labelled shapes." if draws else "")


def _few_shot(page: Page, few_shot: Mapping[str, Any], method: str) -> None:
    arms, shots = few_shot["arms"], few_shot.get("shots") or []
    order = [a for a in ARMS if a in arms] + [a for a in arms if a not in ARMS]
    page.section("What the labels bought")
    charts, tables = [], []
    for key, name in (("category_iou", "mean over categories"), ("shape_iou", "mean over shapes")):
        cells = {a: [_cell(arms, a, s, key) for s in shots] for a in order}
        if not any(c.count for row in cells.values() for c in row):
            continue
        header, rows = ["training", *[f"k = {s}" for s in shots]], [[arm_names(a, method)[0], *cells[a]] for a in order]
        tables.append(table_html(header, rows, best="column", caption=f"Part IoU, {name}"))
        series = [
            Series(arm_names(a, method)[0], shots, [c.mean for c in r], [c.std for c in r]) for a, r in cells.items()
        ]
        options = {"x": "k, labelled shapes per category", "log_x": True, "x_ticks": shots}
        charts.append(line_chart(series, title=f"Part IoU, {name}", **options))
    page.grid(tables)
    draws = few_shot.get("draws")
    over = f"{draws} draws" if draws else "the draws"
    explained = "; ".join(f"{short}: {full}" for short, full in (arm_names(a, method) for a in order) if short != full)
    page.text(
        f"k labelled shapes per category; mean \N{PLUS-MINUS SIGN} standard deviation over {over} of them; the best of "
        f"each column is bold. {explained}."
    )
    page.grid(charts)
    if "scratch" in arms and (rows := _gains(arms, order, shots, method)):
        caption = "Difference to training from scratch on the same labelled shapes, in points (1 point = .01)"
        page.table(["training", *[f"k = {s}" for s in shots]], rows, caption=caption, digits=1)
    per = {s: _per_category(arms, order, s, method) for s in shots}
    if any(per.values()):
        page.heading("By category")
        header = ["category", *[arm_names(a, method)[0] for a in order]]
        for i, shot in enumerate(s for s in shots if per[s]):
            options = {"best": "row"}
            if i == 0:
                page.table(header, per[shot], caption=f"part IoU, k = {shot}", **options)
            else:
                page.table(header, per[shot], fold=f"k = {shot}", **options)
    for problem in few_shot.get("problems") or []:
        page.note(str(problem))
    if supports := few_shot.get("supports"):
        rows = [
            [entry.get("draw", i), f"k = {key}" if key.isdigit() else key, ", ".join(map(str, names))]
            for i, entry in enumerate(supports)
            for key, names in entry.items()
            if isinstance(names, list)
        ]
        page.table(["draw", "", "shapes"], rows, fold="Which shapes were labelled")


def _gains(arms: Mapping, order: Sequence[str], shots: Sequence[int], method: str) -> list[list[Any]]:
    """Rows of paired differences: draw i of an arm and of scratch had the same labelled shapes."""
    rows = []
    for arm in order:
        cells: list[Any] = []
        for shot in shots:
            ours, plain = (arms[a].get(str(shot), {}).get("category_iou", []) for a in (arm, "scratch"))
            pairs = zip(ours, plain, strict=True) if len(ours) == len(plain) else ()
            cells.append(Spread.of([100 * (a - b) for a, b in pairs if a is not None and b is not None]))
        if arm != "scratch" and any(c.count for c in cells):
            rows.append([arm_names(arm, method)[0], *cells])
    return rows


def _per_category(arms: Mapping, order: Sequence[str], shot: int, method: str) -> list[list[Any]]:
    found = {a: arms[a].get(str(shot), {}).get("per_category") or {} for a in order}
    categories = sorted({c for per in found.values() for c in per})
    return [[c, *[Spread.of(found[a].get(c, [])) for a in order]] for c in categories]


def _classification(page: Page, classification: Mapping[str, Any], method: str) -> None:
    names = {"svm": "linear SVM on pooled features"}
    kinds = {"random": "random network", "pretrained": f"{method} pre-training"}
    rows = [
        [names.get(probe, probe), kinds.get(kind, kind), Spread.of(values if isinstance(values, list) else [values])]
        for probe, results in classification.items()
        for kind, values in results.items()
    ]
    page.section("Which category: classification").table(["classifier", "features", "accuracy"], rows, best="column")


def _decomposition(page: Page, found: Mapping[str, Any]) -> None:
    whole = found.get("engine") == "none"
    page.section("The shapes without labels" if whole else "The decomposition behind it")
    names = {
        "engine": "engine",
        "shapes": "shapes",
        "left": "not yet decomposed",
        "fallbacks": "needed another engine than the first",
    }
    rows: list[list[Any]] = [[text, found[key]] for key, text in names.items() if found.get(key) is not None]
    failed, components = found.get("failed") or [], {} if whole else found.get("components") or {}
    rows.append(["failed", len(failed)])
    if (seconds := found.get("seconds")) is not None:
        rows.append(["CPU time", f"{seconds:,.0f} s"])
    for key, name in (("min", "fewest"), ("mean", "mean"), ("max", "most")):
        if (value := components.get(key)) is not None:
            rows.append([f"components per shape, {name}", decimal(float(value), 1) if key == "mean" else value])
    shown = [[name, f"{v:,}" if isinstance(v, int) else v] for name, v in rows]
    parts = [table_html(["", ""], shown)]
    if bars := _binned(components.get("histogram") or []):
        parts.append(bar_chart(bars, title="Components per shape", x="components", y="shapes"))
    page.grid(parts)
    if failed:
        rows = [[str(path), str(why)] for path, why in failed[:200]]
        page.table(["file", "why"], rows, fold=f"{len(failed)} failed: which and why")
        if len(failed) > 200:
            page.note(f"The other {len(failed) - 200} are in evaluation.json.")


def _binned(histogram: Sequence[Sequence[float]], most: int = 40) -> list[tuple[str, float]]:
    """Bars for each count from the least to the greatest, zeros among them; equal bins where there are many."""
    counts = {int(c): n for c, n in histogram}
    if not counts:
        return []
    low, high = min(counts), max(counts)
    wide = -(-(high - low + 1) // most)
    bins = range(low, high + 1, wide)
    names = [str(b) if wide == 1 else f"{b}\N{EN DASH}{b + wide - 1}" for b in bins]
    return [(n, float(sum(counts.get(b + i, 0) for i in range(wide)))) for n, b in zip(names, bins, strict=True)]


# -- small things ----------------------------------------------------------------------------------------------------


def _cell(arms: Mapping, arm: str, shot: int, key: str = "category_iou") -> Spread:
    return Spread.of(arms[arm].get(str(shot), {}).get(key) or [])


def arm_names(arm: str, method: str) -> tuple[str, str]:
    """The short and the full name of an arm."""
    short, full = ARMS.get(arm, (arm, arm))
    return short.format(method), full.format(method)


def _order(value: float | None) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _plus(spread: Spread) -> str:
    text = decimal(spread.mean, 2)
    return f"{text} \N{PLUS-MINUS SIGN} {decimal(spread.std, 2)}" if spread.count > 1 else text


def _shapes_of(count: int) -> str:
    return f"{count} labelled shape{'' if count == 1 else 's'}"


def _about(decomposition: Mapping[str, Any], method: str) -> str:
    if not decomposition.get("shapes"):
        return ""
    usable = decomposition["shapes"] - len(decomposition.get("failed") or []) - decomposition.get("left", 0)
    engine = decomposition.get("engine")
    return f"{method} pre-training on {usable:,} shapes without labels" + (
        f", decomposed by {engine}." if engine and engine != "none" else "."
    )
