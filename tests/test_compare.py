"""The table of several runs: seeds together, spreads of the right things."""

import importlib
import json
from pathlib import Path
from statistics import stdev

import pytest


@pytest.fixture
def compare(tools):
    return importlib.import_module("compare")


def write(folder: Path, seed: int, loss: str, values: list[float]) -> Path:
    folder.mkdir()
    identity = {"task": "acd", "loss": loss, "fit": {"seed": seed, "steps": 3}}
    (folder / "run.json").write_text(json.dumps({"task": "acd", "recipe_name": None, "identity": identity}))
    arms = {"scratch": {"1": {"category_iou": [0.5, 0.6]}}, "linear": {"1": {"category_iou": values}}}
    classification = {"svm": {"pretrained": [0.9, 0.7]}}
    (folder / "evaluation.json").write_text(json.dumps({"few_shot": {"arms": arms}, "classification": classification}))
    return folder


def test_seeds_are_one_row_and_both_spreads_are_told(compare, tmp_path, capsys):
    folders = [write(tmp_path / str(s), s, "prototype", [0.6 + s / 10, 0.8 + s / 10]) for s in (0, 1)]
    folders.append(write(tmp_path / "pair", 0, "pair", [0.4, 0.4]))
    compare.main([str(f) for f in folders])
    lines = capsys.readouterr().out.splitlines()
    draws, seeds = stdev([0.65, 0.85]), stdev([0.7, 0.8])
    assert f"| acd-prototype | 2 | linear | 0.750 ± {draws:.3f} ({seeds:.3f}) | 0.800 ± 0.141 (0.000) |" in lines
    assert f"| acd-prototype | 1 | scratch | 0.550 ± {stdev([0.5, 0.6]):.3f} | - |" in lines
    assert "| acd-pair | 1 | linear | 0.400 ± 0.000 | 0.800 ± 0.141 |" in lines


def test_arms_of_one_run_may_lie_in_two_folders_and_other_draws_are_another_row(compare, tmp_path, capsys):
    folders = [write(tmp_path / name, 0, "pair", [0.4, 0.6]) for name in ("a", "b", "c")]
    for folder, arm, supports in zip(folders, ("scratch", "linear", "linear"), (["x"], ["x"], ["y"]), strict=True):
        evaluation = json.loads((folder / "evaluation.json").read_text())["few_shot"]
        kept = {"few_shot": {"arms": {arm: evaluation["arms"][arm]}, "supports": supports, "options": {"arms": [arm]}}}
        (folder / "evaluation.json").write_text(json.dumps(kept))
    compare.main([str(f) for f in folders])
    rows = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["| acd-pair", "1", arm] for arm in ("scratch", "linear", "linear")]


def of(folder: Path, seed: int, evaluation: dict) -> Path:
    folder.mkdir()
    identity = {"task": "crw", "fit": {"seed": seed}}
    (folder / "run.json").write_text(json.dumps({"task": "crw", "recipe_name": None, "identity": identity}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def following(best: list[float]) -> dict:
    rows = {
        "random": [{"cat": {"J": [x], "F": [x]}} for x in (0.1, 0.3)],
        "encoder": [{"cat": {"J": best, "F": [0.5, 0.5]}}],
    }
    return {"following": {"rows": rows, "sequences": ["cat"], "options": {"preset": "crw", "arms": list(rows)}}}


def test_objects_followed_are_a_table(compare, tmp_path, capsys):
    folders = [of(tmp_path / str(s), s, following([0.2 + s / 5, 0.4 + s / 5])) for s in (0, 1)]
    compare.main([str(f) for f in folders])
    spread, half = stdev([0.1, 0.3]), stdev([0.4, 0.5])
    assert capsys.readouterr().out.splitlines() == [
        "| run | seeds | arm | J&F | J | F |",
        "|---|---|---|---|---|---|",
        "| crw | 1 | random | " + " | ".join([f"0.200 ± {spread:.3f}"] * 3) + " |",
        f"| crw | 2 | encoder | 0.450 ({half:.3f}) | 0.400 ({2 * half:.3f}) | 0.500 (0.000) |",
    ]


def test_classes_told_apart_are_too_and_other_measurements_are_other_columns(compare, tmp_path, capsys):
    arms = {"scratch": {"5": [0.5], "all": [0.7]}, "frozen linear": {"5": [0.6], "all": [0.8]}}
    probed = {"arms": arms, "shots": ["5", "all"], "options": {"draws": 1}, "train": 9, "test": 3}
    compare.main([str(of(tmp_path / "a", 0, following([0.2]))), str(of(tmp_path / "b", 0, {"probe": probed}))])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | seeds | arm | k = 5 | k = all | J&F | J | F |"
    assert "| crw | 1 | frozen linear | 0.600 | 0.800 | - | - | - |" in lines


def test_an_evaluation_without_numbers_is_named(compare, tmp_path):
    import recipes

    with pytest.raises(recipes.Usage, match="nothing to compare"):
        compare.main([str(of(tmp_path / "a", 0, {"clips": {}}))])


def test_an_unfinished_run_is_named(compare, tmp_path):
    import recipes

    with pytest.raises(recipes.Usage, match=r"has no run\.json"):
        compare.main([str(tmp_path)])
