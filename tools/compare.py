"""One table from several finished runs: what every arm of their evaluations is worth, whatever it measures.

    python tools/compare.py runs/a-seed0 runs/a-seed1 runs/a-seed2 runs/b-seed0 ...

Runs that differ in their seed alone, measured alike on the same draws, are one row; their arms may lie in several
folders (one run's folder copied and evaluated with other arms). A cell is the mean over seeds and draws ± the standard
deviation over draws (of the means over seeds); with several seeds, the standard deviation over seeds (of the means over
draws) follows in brackets. Arms that do not read the pre-trained network are taken from the first seed. Markdown.

Of parts of shapes: part IoU at every k; the last column is the accuracy of a linear SVM that tells categories by pooled
frozen features. Of classes of images and sounds: accuracy at every k. Of objects in videos: J&F, J and F.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import recipes

UNTRAINED = ("random", "scratch", "input", "copy", "pixels")  # first words of the names of arms


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of finished runs")
    parser.add_argument("--metric", choices=("category_iou", "shape_iou"), default="category_iou",
                        help="of parts of shapes: mean over categories, or over shapes")  # fmt: skip
    options = parser.parse_args(argv)
    print(table([read(folder, options.metric) for folder in options.folders]))
    return 0


def read(folder: Path, metric: str = "category_iou") -> dict[str, Any]:
    """{"name", "seed", "key", "columns", "arms": {arm: {column: values by draw}}} of a run; Usage where it is not a
    finished one."""
    for name, made_by in (("run.json", "tools/run.py"), ("evaluation.json", "its evaluation, or tools/evaluate.py")):
        if not (folder / name).is_file():
            raise recipes.Usage(f"{folder} has no {name}: it is made by {made_by}")
    try:
        run, evaluation = (json.loads((folder / name).read_text()) for name in ("run.json", "evaluation.json"))
    except ValueError as error:
        raise recipes.Usage(f"what {folder} holds is damaged: {error}. Evaluate it again: tools/evaluate.py") from error
    kind = next((kind for kind in MEASURED if kind in evaluation), None)
    if kind is None:
        raise recipes.Usage(f"{folder} has nothing to compare: {', '.join(MEASURED)} are, and it has none of them")
    found = evaluation[kind]
    measured = {k: v for k, v in found.get("options", {}).items() if k != "arms"}
    same = {k: found[k] for k in ("supports", "sequences", "classes", "train", "test") if k in found}
    identity = {**json.loads(json.dumps(run["identity"])), "measured": measured, **same}
    seed = identity.get("fit", {}).pop("seed", run.get("seed"))
    columns, arms = MEASURED[kind](evaluation, metric)
    return {
        "name": "-".join(filter(None, (run["task"], run.get("recipe_name"), identity.get("loss")))),
        "seed": seed,
        "key": json.dumps(identity, sort_keys=True),
        "columns": columns,
        "arms": arms,
    }


Arms = dict[str, dict[str, Sequence[float]]]


def few_shot(evaluation: Mapping[str, Any], metric: str) -> tuple[list[str], Arms]:
    """Of parts of shapes: the columns, and the values of each arm."""
    arms = evaluation["few_shot"]["arms"]
    svm = evaluation.get("classification", {}).get("svm", {})
    told = {"random": svm.get("random", []), "linear": svm.get("pretrained", [])}
    out = {
        arm: {**{f"k = {k}": cell.get(metric, []) for k, cell in cells.items()}, "category": told.get(arm, [])}
        for arm, cells in arms.items()
    }
    shots = sorted({int(k) for cells in arms.values() for k in cells})
    return [*(f"k = {k}" for k in shots), "category"], out


def probe(evaluation: Mapping[str, Any], metric: str) -> tuple[list[str], Arms]:
    """Of classes."""
    found = evaluation["probe"]
    arms = {arm: {f"k = {k}": values for k, values in cells.items()} for arm, cells in found["arms"].items()}
    return [f"k = {k}" for k in found["shots"]], arms


def following(evaluation: Mapping[str, Any], metric: str) -> tuple[list[str], Arms]:
    """Of objects in videos: the mean over the objects of all videos, for each draw."""
    arms: Arms = {}
    for arm, draws in evaluation["following"]["rows"].items():
        J, F = ([mean(x for cell in draw.values() for x in cell[key]) for draw in draws] for key in "JF")
        arms[arm] = {"J&F": [(j + f) / 2 for j, f in zip(J, F, strict=True)], "J": J, "F": F}
    return ["J&F", "J", "F"], arms


MEASURED = {"few_shot": few_shot, "probe": probe, "following": following}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Rows (run, arm) in the order given."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["key"], []).append(run)
    columns = list(dict.fromkeys(name for run in runs for name in run["columns"]))
    columns.sort(key=_place)
    names = ["run", "seeds", "arm", *columns]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for group in groups.values():
        for arm in dict.fromkeys(arm for run in group for arm in run["arms"]):
            seeds = [run for run in group if arm in run["arms"]][: 1 if arm.split()[0] in UNTRAINED else None]
            cells = [cell([run["arms"][arm].get(name, []) for run in seeds]) for name in columns]
            lines.append(f"| {group[0]['name']} | {len(seeds)} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(column: str) -> float:
    """Columns by the number of labels, all of them after these; then other things."""
    of = column.removeprefix("k = ")
    return float("inf") if of == column else 1e18 if of == "all" else float(of)


def cell(by_seed: Sequence[Sequence[float]]) -> str:
    """Mean ± over draws (over seeds) of values by seed and draw."""
    if not all(by_seed) or len({len(values) for values in by_seed}) > 1:
        return "-"
    draws = [mean(values) for values in zip(*by_seed, strict=True)]
    text = f"{mean(draws):.3f}" + (f" ± {stdev(draws):.3f}" if len(draws) > 1 else "")
    return text + (f" ({stdev(map(mean, by_seed)):.3f})" if len(by_seed) > 1 else "")


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
