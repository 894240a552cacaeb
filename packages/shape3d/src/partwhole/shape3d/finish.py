"""What follows training: measure the features, show them, write the report; each result is kept as soon as known."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.core import files
from partwhole.core.encoder import Encoder
from partwhole.core.evaluate import part_iou
from partwhole.core.watch import Quiet
from partwhole.shape3d import classify, fewshot
from partwhole.shape3d.fewshot import ARMS, Seen

if TYPE_CHECKING:
    from partwhole.shape3d.tasks import ShapeRecipe

SHOWN = 200  # test shapes at most in the page and in ply/


def finish(recipe: "ShapeRecipe", encoder: Encoder, folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Few-shot parts, classification, pictures and the page: ``evaluation.json``, ``report.html``, ``ply/``.

    Returns {"text": the table, "report": path}.
    """
    from partwhole.shape3d.report import write_report

    labelled, prepared = recipe.evaluation(), recipe.prepare(Quiet())
    evaluation: dict[str, Any] = {
        "decomposition": {"engine": ", ".join(prepared.statistics()["engines"]), **prepared.statistics()}
    }
    seen: dict[int, Seen] = {}

    def look(one: Seen) -> None:
        if one.draw == 0 and one.arm == _best_arm(recipe.few_shot.arms):
            seen[one.k] = one

    def keep(few_shot: Mapping[str, Any]) -> None:
        evaluation["few_shot"] = few_shot
        _write(folder / "evaluation.json", evaluation)

    evaluation["labelled"] = {"found": labelled.note, "problems": labelled.problems}
    categories = len(set(labelled.category))
    say(f"few-shot part segmentation on {len(labelled)} labelled shapes of {categories} categories")
    for problem in labelled.told():
        say(problem)
    result = fewshot.few_shot(
        encoder, labelled, recipe.augment, recipe.few_shot, joint=recipe.joint, say=say, look=look, keep=keep
    )
    draws = fewshot.all_draws(labelled, recipe.few_shot)
    svm = classify.svm_accuracy(encoder, labelled, draws, recipe.augment, seed=recipe.few_shot.seed)
    if svm:
        evaluation["classification"] = {"svm": svm}
        _write(folder / "evaluation.json", evaluation)
    shown = [_decomposed(prepared, i) for i in range(0, len(prepared), max(1, len(prepared) // 12))][:12]
    if seen:
        predictions = seen[max(seen)].predictions
        every = max(1, len(predictions) // SHOWN)
        shown += [_predicted(labelled, i, p) for i, p in list(predictions.items())[::every][:SHOWN]]
    report = write_report(folder, evaluation=evaluation, shown=shown, method=type(recipe).__name__)
    return {"text": table(result), "report": report}


def table(few_shot: Mapping[str, Any]) -> str:
    """Mean part IoU over categories, mean and standard deviation over draws, an arm a line."""
    shots = [str(k) for k in few_shot["shots"]]
    lines = [f"{'part IoU (mean over categories)':58s}" + "".join(f"{'k = ' + k:>14s}" for k in shots)]
    for arm, cells in few_shot["arms"].items():
        values = [torch.tensor(cells[k]["category_iou"]) if k in cells else None for k in shots]
        text = ["-" if v is None else _spread(v) for v in values]
        lines.append(f"{arm + ': ' + ARMS[arm]:58s}" + "".join(f"{t:>14s}" for t in text))
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


def _decomposed(prepared: Any, i: int) -> Any:
    from partwhole.shape3d.report import Shown

    sample = prepared[i]
    layers = {"component": sample["component"][-1].numpy()}
    return Shown(prepared.names[i], sample["points"].numpy(), layers, normals=sample["normals"].numpy())


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1).encode()
    files.write(path, lambda file: file.write(text))
