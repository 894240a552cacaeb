"""One table from several finished runs: part IoU of every arm at every k, and how well categories are told.

    python tools/compare.py runs/a-seed0 runs/a-seed1 runs/a-seed2 runs/b-seed0 ...

Runs that differ in their seed alone, measured alike on the same draws, are one row; their arms may lie in several
folders (one run's folder copied and evaluated with other arms). A cell is the mean over seeds and draws ± the standard
deviation over draws (of the means over seeds); with several seeds, the standard deviation over seeds (of the means over
draws) follows in brackets. Arms that do not read the pre-trained network (random, scratch) are taken from the first
seed. The last column is the accuracy of a linear SVM that tells categories by pooled frozen features. Markdown.
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

UNTRAINED = ("random", "scratch")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of finished runs")
    parser.add_argument("--metric", choices=("category_iou", "shape_iou"), default="category_iou")
    options = parser.parse_args(argv)
    print(table([read(folder) for folder in options.folders], options.metric))
    return 0


def read(folder: Path) -> dict[str, Any]:
    """{"name", "seed", "key", "arms", "svm": accuracies by arm} of a run; Usage where it is not a finished one."""
    for name, made_by in (("run.json", "tools/run.py"), ("evaluation.json", "its evaluation, or tools/evaluate.py")):
        if not (folder / name).is_file():
            raise recipes.Usage(f"{folder} has no {name}: it is made by {made_by}")
    run, evaluation = (json.loads((folder / name).read_text()) for name in ("run.json", "evaluation.json"))
    few_shot, svm = evaluation["few_shot"], evaluation.get("classification", {}).get("svm", {})
    measured = {k: v for k, v in few_shot.get("options", {}).items() if k != "arms"}
    identity = {**json.loads(json.dumps(run["identity"])), "measured": measured, "draws": few_shot.get("supports")}
    seed = identity.get("fit", {}).pop("seed", run.get("seed"))
    name = "-".join(filter(None, (run["task"], run.get("recipe_name"), identity.get("loss"))))
    return {
        "name": name,
        "seed": seed,
        "key": json.dumps(identity, sort_keys=True),
        "arms": few_shot["arms"],
        "svm": {"random": svm.get("random", []), "linear": svm.get("pretrained", [])},
    }


def table(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Rows (run, arm) in the order given, columns k."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["key"], []).append(run)
    shots = sorted({int(k) for run in runs for cells in run["arms"].values() for k in cells})
    names = ["run", "seeds", "arm", *(f"k = {k}" for k in shots), "category"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for group in groups.values():
        for arm in dict.fromkeys(arm for run in group for arm in run["arms"]):
            seeds = [run for run in group if arm in run["arms"]][: 1 if arm in UNTRAINED else None]
            cells = [cell([run["arms"][arm].get(str(k), {}).get(metric, []) for run in seeds]) for k in shots]
            cells.append(cell([run["svm"].get(arm, []) for run in seeds]))
            lines.append(f"| {group[0]['name']} | {len(seeds)} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(by_seed: Sequence[Sequence[float]]) -> str:
    """Mean ± over draws (over seeds) of values by seed and draw."""
    if not all(by_seed) or len({len(values) for values in by_seed}) > 1:
        return "-"
    draws = [mean(values) for values in zip(*by_seed, strict=True)]
    text = f"{mean(draws):.3f}" + (f" ± {stdev(draws):.3f}" if len(draws) > 1 else "")
    return text + (f" ({stdev(map(mean, by_seed)):.3f})" if len(by_seed) > 1 else "")


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
