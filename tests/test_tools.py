"""The command line: help at every level, nearest names, a run's folder, and going on, with a small made-up modality."""

import errno
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

# ------------------------------------------------------------------ help and typos


def test_help_lists_modalities_then_tasks_and_recipes_then_fields(tools, capsys):
    assert tools("run", "--help") == 0
    text = capsys.readouterr().out
    assert re.search(r"shape3d +\w+", text)
    assert "--folder" in text

    assert tools("run", "--modality", "toybox.tasks", "--help") == 0
    text = capsys.readouterr().out
    assert "shrink  Make outputs small." in text
    assert "bare    Neither prepares nor evaluates." in text
    assert "shrink: paper, best" in text

    assert tools("run", "--modality", "toybox.tasks", "--task", "shrink", "--recipe", "best", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "Make outputs small. A toy.",
        "--net.dim INT Its width. (default: 8)",
        "--fit.lr FLOAT",
        "paper, best",
    ):
        assert part in text
    assert "Optimizer steps. (default: 12)" in text


def test_without_a_modality_all_that_have_tasks_are_listed(tools, capsys):
    assert tools("run") == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: choose a modality, with --modality:\n  ")
    for name in ("shape3d", "vision"):
        assert re.search(rf"^  {name} +\w+", error, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--modality", "shap3d"], "no modality 'shap3d' in partwhole. Did you mean shape3d?"),
        (["--modality", "toybox.task"], "no module 'toybox.task'"),
        (["--modality", "json.decoder"], "json.decoder has no dict TASKS"),
        (["--modalty", "toybox.tasks"], "no option --modalty: did you mean --modality?"),
        (["--modality", "toybox.tasks"], "choose a task of toybox.tasks, with --task:\n  shrink  Make outputs small."),
        (["--modality", "toybox.tasks", "--task", "shrnk"], "no task 'shrnk' in toybox.tasks. Did you mean shrink?"),
        (
            ["--modality", "toybox.tasks", "--task", "shrink", "--recipe", "papers"],
            "no recipe 'papers' in task shrink. Did you mean paper? There are: paper, best",
        ),
        (["--modality", "toybox.tasks", "--task", "bare", "--recipe", "best"], "There are: none"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest_names(tools, capsys, words, answer):
    assert tools("run", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: ")
    assert answer in error


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--fit.stepz", "3"], "--fit.steps"),
        (["--net.kind", "dep"], "deep"),
        (["--fit.lr", "fast"], "float"),
        (["--fit.steps", "0"], "steps must be at least 1"),
        (["--foldr", "x"], "did you mean --folder?"),
    ],
)
def test_a_wrong_field_or_value_exits_2_with_what_is_right(toy, capsys, words, answer):
    assert toy(*words) == 2
    captured = capsys.readouterr()
    assert answer in " ".join((captured.out + captured.err).replace("│", " ").split())
    assert not Path("runs").exists()


# ------------------------------------------------------------------ runs


def test_a_run_leaves_its_record_encoder_and_table_and_the_same_command_goes_on(toy, capsys):
    assert toy("--recipe", "paper", "--fit.seed", "3", "--data", "a", "b") == 0
    out = capsys.readouterr().out
    folder = Path("runs/toybox.tasks-shrink-paper")
    assert "12/12  loss" in out
    assert re.search(r"^arm +size\nx +-?\d\.\d\d\d\nshots +3$", out, re.MULTILINE)
    assert f"report:  {folder / 'report.html'}" in out
    names = {"run.json", "metrics.jsonl", "last.pt", "encoder.safetensors", "encoder.json"}
    assert {p.name for p in folder.iterdir()} == names
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 3
    assert record["recipe"]["net"] == {"dim": 2, "kind": "flat"}
    assert record["recipe"]["data"] == [str(Path("a").absolute()), str(Path("b").absolute())]
    assert "--fit.seed 3" in record["command"]
    assert record["versions"].keys() >= {"python", "torch", "partwhole-core"}
    assert record["machine"]["processes"] == 1

    assert toy("--recipe", "paper", "--fit.seed", "3", "--data", "a", "b") == 0
    again = capsys.readouterr().out
    assert "finished, nothing to train" in again
    assert again.split("arm")[1] == out.split("arm")[1]


def test_E3_a_collapse_is_told_at_the_end_and_ends_the_run_if_asked(toy, capsys):
    words = ["--dead", "--fit.steps", "30", "--fit.log-every", "2"]
    assert toy("--folder", "told", *words) == 0
    assert "\ncareful: the gradient has been 0" in (out := capsys.readouterr().out)
    assert "step 12: std of the encoder's features is 0: it gives the same for every input" in out
    assert toy("--folder", "ended", *words, "--fit.doctor", "stop") == 1
    error = capsys.readouterr().err
    assert error.startswith("run.py: step 12: training has collapsed: the gradient has been 0")
    assert "The state is in ended: --fit.doctor tell goes on with it" in error
    assert Path("ended/last.pt").exists()
    assert not Path("ended/encoder.json").exists()


def test_another_recipe_in_the_folder_is_refused_and_incidental_fields_are_not(toy, capsys):
    assert toy("--folder", "r") == 0
    capsys.readouterr()
    assert toy("--folder", "r", "--fit.lr", "0.5", "--net.dim", "7") == 2
    error = capsys.readouterr().err
    assert "net.dim: 4 there, 7 now; fit.lr: 0.001 there, 0.5 now. Choose another --folder" in error
    assert toy("--folder", "r", "--shots", "9", "--fit.log-every", "1") == 0
    assert re.search(r"^shots +9$", capsys.readouterr().out, re.MULTILINE)


def test_weights_that_training_cannot_begin_with_are_told(toy, capsys):
    for path, words in (
        ("gone.pth", "--other: no weights at gone.pth: no such file. Give a file of weights, or leave --other out"),
        ("toybox", "--other: no weights at toybox: a folder. Give a file of weights, or leave --other out"),
        ("r/weights.pth", "--other is in the folder of this very run, r: choose another --folder"),
    ):
        assert toy("--folder", "r", "--other", path) == 2
        assert words in capsys.readouterr().err
    assert not Path("r").exists()


def test_tensorboard_events_are_written(toy, capsys):
    assert toy("--folder", "r", "--tensorboard") == 0
    assert list(Path("r").glob("events.out.tfevents.*"))


def test_a_recipe_without_evaluation_says_where_its_encoder_is(tools, capsys):
    assert tools("run", "--modality", "toybox.tasks", "--task", "bare", "--folder", "r") == 0
    assert "load_encoder('r')" in capsys.readouterr().out


def test_expected_errors_are_one_line_and_defects_keep_their_traceback(toy, capsys):
    assert toy("--batch", "13") == 2
    assert "run.py: hiding a part of 1 tokens" in capsys.readouterr().err
    with pytest.raises(ValueError, match="hiding a part"):
        toy("--batch", "13", "--traceback")
    with pytest.raises(KeyError, match="a defect"):
        toy("--batch", "14")


# ------------------------------------------------------------------ evaluate, prepare


def test_evaluate_repeats_the_evaluation_from_run_json_anywhere(toy, tools, capsys, monkeypatch, tmp_path):
    assert toy("--recipe", "best", "--folder", "r", "--data", "a") == 0
    table = capsys.readouterr().out.split("evaluating\n")[1].splitlines()[:3]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tools("evaluate", "--folder", "../r") == 0
    assert capsys.readouterr().out.split("evaluating\n")[1].splitlines()[:3] == table
    assert tools("evaluate", "--folder", "../r", "--shots", "8") == 0
    assert re.search(r"^shots +8$", capsys.readouterr().out, re.MULTILINE)


def test_evaluate_says_what_is_wrong_with_a_folder(toy, tools, capsys):
    assert tools("evaluate") == 2
    assert "--folder runs/<name>" in capsys.readouterr().err
    assert toy() == 0
    assert tools("evaluate", "--folder", "runs/nothing") == 2
    assert "Runs beside it: runs/toybox.tasks-shrink" in capsys.readouterr().err
    path = Path("runs/toybox.tasks-shrink/run.json")
    whole = path.read_text()
    for text, words in [
        (whole[:50], "is damaged or foreign"),
        (whole.replace('"net": {', '"nut": {'), "written by another version: recipe has fields that Shrink lacks: nut"),
        (whole.replace('"dim": 4', '"dim": "4"'), "recipe.net.dim is '4', and should be int"),
    ]:
        path.write_text(text)
        assert tools("evaluate", "--folder", str(path.parent)) == 2
        assert words in capsys.readouterr().err


def test_an_evaluation_tells_if_what_the_training_began_with_has_changed(toy, tools, capsys):
    weights = Path("weights.pth")
    weights.write_bytes(b"1")
    assert toy("--folder", "r", "--other", "weights.pth") == 0
    weights.write_bytes(b"2")
    for call in (lambda: toy("--folder", "r", "--other", "weights.pth"), lambda: tools("evaluate", "--folder", "r")):
        capsys.readouterr()
        assert call() == 2
        assert "contents.other: '" in (error := capsys.readouterr().err)
        assert error.count("'") == 4  # there and now
    assert f"began with other weights than those in {weights.absolute()}" in error
    Path("others.pth").write_bytes(b"3")
    assert tools("evaluate", "--folder", "r", "--other", "others.pth") == 2
    weights.unlink()
    assert tools("evaluate", "--folder", "r") == 0
    weights.write_bytes(b"1")
    assert tools("evaluate", "--folder", "r") == 0


def test_a_run_without_its_encoder_is_evaluated_after_its_command(toy, tools, capsys):
    assert toy("--folder", "r") == 0
    (Path("r") / "encoder.json").unlink()
    assert tools("evaluate", "--folder", "r") == 2
    said = capsys.readouterr().err
    assert "is not whole, so there is no encoder to evaluate. Go on with it: python" in said
    (Path("r") / "last.pt").unlink()
    assert tools("evaluate", "--folder", "r") == 2
    assert "has not begun to train" in capsys.readouterr().err


def test_a_file_in_the_way_of_a_run_is_told(toy, capsys):
    Path("r").write_text("in the way")
    assert toy("--folder", "r") == 1
    assert "A file is where a folder should be: move it or choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("batch", "code"), [("15", 143), ("16", 130)])
def test_an_evaluation_that_is_stopped_says_that_the_training_is_whole(toy, capsys, batch, code):
    assert toy("--folder", "r", "--batch", batch) == code
    assert "stopped in the evaluation: the training is whole in r" in capsys.readouterr().out
    assert (Path("r") / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), 2, "No space left on device: 'some/file'"),
        (KeyboardInterrupt("SIGTERM"), 143, "stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_the_machine_says_is_one_line_wherever_it_came_from(tools, capsys, error, code, words):
    def work() -> int:
        raise error

    assert importlib.import_module("recipes").guarded(work) == code
    assert words in capsys.readouterr().err


def test_prepare_runs_only_the_preparation(tools, capsys):
    assert tools("prepare", "--modality", "toybox.tasks", "--task", "shrink") == 0
    assert "two prepared" in capsys.readouterr().out
    assert Path("prepared").exists()
    assert not Path("runs").exists()
    assert tools("prepare", "--modality", "toybox.tasks", "--task", "bare") == 2
    assert "needs no preparation" in capsys.readouterr().err


def test_recipes_survive_json(tools):
    recipes, tasks = importlib.import_module("recipes"), importlib.import_module("toybox.tasks")
    here = Path("a").absolute()
    for recipe in (
        tasks.Shrink(),
        tasks.Shrink(data=(here, here / "b"), other=here, net=tasks.Net(kind="deep"), names={"a": 1}, pair=(3, 4.0)),
        tasks.Shrink(fit=replace(tasks.Shrink().fit, clip=1.0, betas=(0.8, 0.95), optimizer="sgd", threads=2)),
    ):
        assert recipes.from_json(tasks.Shrink, json.loads(json.dumps(recipes.to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"net": {"kind": "round"}}, "recipe.net.kind is 'round', and should be one of 'flat', 'deep'"),
        ({"pair": [1]}, "recipe.pair is .*should have 2 values"),
        ({"data": "a"}, "recipe.data is 'a', and should be a list"),
        ({"other": 3}, "recipe.other is 3"),
        ({"batch": True}, "recipe.batch is True, and should be int"),
        ({"fit": 3}, "recipe.fit is 3, and should be the fields of"),
    ],
)
def test_json_that_does_not_fit_names_the_field(tools, fields, words):
    recipes, tasks = importlib.import_module("recipes"), importlib.import_module("toybox.tasks")
    with pytest.raises(ValueError, match=words):
        recipes.from_json(tasks.Shrink, fields)


def test_a_bar_on_a_terminal_shows_values_and_messages(tools):
    import io

    from rich.console import Console

    progress = importlib.import_module("progress")
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=True, width=120))
    for done in (1, 2, 4):
        bar.step(done, {"total": 4, "loss": 0.123456, "steps_per_second": 2.5})
    bar.say("[a] message")
    bar.evaluated(4, {"iou": 0.5})
    bar.close()
    for part in ("4/4", "loss 0.1235", "steps_per_second 2.5", "[a] message", "iou 0.5"):
        assert part in out.getvalue()
    assert isinstance(progress.make(1), type(progress.make(2)))
