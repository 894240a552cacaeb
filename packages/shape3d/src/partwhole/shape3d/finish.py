"""What follows training: measure the features, show them, write the report; each result is kept as soon as known."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from partwhole.core import files
from partwhole.core.encoder import Encoder
from partwhole.core.evaluate import part_iou
from partwhole.core.run_page import read_json
from partwhole.core.watch import Steps, Watch
from partwhole.shape3d import classify, fewshot
from partwhole.shape3d.fewshot import Seen

if TYPE_CHECKING:
    from partwhole.shape3d.gallery import Shown
    from partwhole.shape3d.recipe import ShapeRecipe

SHOWN = 200  # test shapes at most in the page and in ply/
PREDICTIONS = "predictions.safetensors"  # index of a test shape -> its parts (P,): what the page shows


def finish(recipe: "ShapeRecipe", encoder: Encoder, folder: Path, watch: Watch) -> Mapping[str, Any]:
    """Few-shot parts, classification, pictures, the page.

    Writes ``evaluation.json``, ``predictions.safetensors``, ``report.html``, ``pictures/`` and ``ply/``. An evaluation
    that was interrupted goes on.

    Returns {"text": the table, "report": path}.
    """
    from partwhole.shape3d.report import write_report

    method = type(recipe).__name__
    labelled, prepared = recipe.check(watch), recipe.prepare(Steps(watch))
    statistics = prepared.statistics()
    evaluation: dict[str, Any] = {
        "decomposition": {"engine": ", ".join(statistics["engines"]), **statistics},
        "labelled": {"found": labelled.note, "problems": labelled.problems},
    }
    begun = read_json(folder / "evaluation.json").get("few_shot")
    most = max(fewshot.draw(labelled, recipe.few_shot, 0).support, default=0)

    def look(one: Seen) -> None:
        if (one.draw, one.k, one.arm) == (0, most, _best_arm(recipe.few_shot.arms)):
            parts = {str(i): part.short() for i, part in one.predictions.items()}
            files.write(folder / PREDICTIONS, lambda file: file.write(save(parts)))

    def keep(few_shot: Mapping[str, Any]) -> None:
        evaluation["few_shot"] = few_shot
        files.write_json(folder / "evaluation.json", evaluation)

    categories = len(set(labelled.category))
    watch.say(f"few-shot part segmentation on {len(labelled)} labelled shapes of {categories} categories")
    left_out = read_json(folder / "run.json").get("recipe", {}).get("labelled")
    apart = recipe.labelled is None or str(recipe.labelled.absolute()) == left_out
    if not apart and recipe.data and not recipe.source.retain_labelled:
        watch.say(
            f"careful: what {recipe.labelled} has in common with the unlabelled shapes was not left out of training"
        )
    result = fewshot.few_shot(
        encoder,
        labelled,
        recipe.augment,
        recipe.few_shot,
        joint=recipe.joint,
        watch=watch,
        look=look,
        keep=keep,
        begun=begun,
        processes=recipe.source.workers or os.cpu_count() or 1,
    )
    draws = fewshot.all_draws(labelled, recipe.few_shot)
    svm = classify.svm_accuracy(encoder, labelled, draws, recipe.augment, seed=recipe.few_shot.seed)
    if svm:
        evaluation["classification"] = {"svm": svm}
        files.write_json(folder / "evaluation.json", evaluation)
    some = range(0, len(prepared), max(1, len(prepared) // 12))[:12]
    shown = [_decomposed(prepared, i) for i in some if recipe.decompose.engine != "none"]
    predictions = sorted((int(i), part.long()) for i, part in load_file(folder / PREDICTIONS).items())
    every = max(1, len(predictions) // SHOWN)
    shown += _pictured([_predicted(labelled, i, part) for i, part in predictions[::every][:SHOWN]])
    report = write_report(folder, evaluation=evaluation, shown=shown, method=method)
    return {"text": table(result, method), "report": report}


def table(few_shot: Mapping[str, Any], method: str) -> str:
    """Mean part IoU over categories, mean and standard deviation over draws, an arm a line."""
    from partwhole.shape3d.report import arm_names

    shots = [str(k) for k in few_shot["shots"]]
    lines = [f"{'part IoU (mean over categories)':58s}" + "".join(f"{'k = ' + k:>14s}" for k in shots)]
    for arm, cells in few_shot["arms"].items():
        values = [torch.tensor(cells[k]["category_iou"]) if k in cells else None for k in shots]
        text = ["-" if v is None else _spread(v) for v in values]
        lines.append(f"{arm_names(arm, method)[1]:58s}" + "".join(f"{t:>14s}" for t in text))
    return "\n".join([*lines, *few_shot["problems"]])


def _spread(values: Tensor) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def _best_arm(arms: tuple[str, ...]) -> str:
    return next(arm for arm in ("finetune", "joint", "linear", "scratch", "random") if arm in arms)


def _predicted(labelled: Any, i: int, prediction: Tensor) -> Any:
    from partwhole.shape3d.report import Shown

    sample, c = labelled[i], labelled.category[i]
    first, known = labelled.first[c], sample["part"] >= 0
    iou = part_iou(prediction, sample["part"], labelled.part_mask[c], valid=known).item()
    layers = {
        "truth": torch.where(known, sample["part"] - first, -1).numpy(),
        "prediction": (prediction - first).numpy(),
    }
    return Shown(
        labelled.names[i], sample["points"].numpy(), layers, score=iou, normals=sample["normals"].numpy(),
        parts=labelled.parts[c], category=labelled.categories[c],
    )  # fmt: skip


def _pictured(shapes: "list[Shown]") -> "list[Shown]":
    """The same; those that the page has pictures of with their convex components, found from their points."""
    from partwhole.shape3d.decompose.points import decompose_points
    from partwhole.shape3d.gallery import groups

    pictured = {id(s) for _, group in groups(shapes) for s in group}
    return [
        replace(s, layers={"component": decompose_points(s.points, normals=s.normals), **s.layers})
        if id(s) in pictured
        else s
        for s in shapes
    ]


def _decomposed(prepared: Any, i: int) -> Any:
    from partwhole.shape3d.report import Shown

    sample = prepared[i]
    layers = {"component": sample["component"][-1].numpy()}
    return Shown(prepared.names[i], sample["points"].numpy(), layers, normals=sample["normals"].numpy())
