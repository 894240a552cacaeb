"""The command line: help at every level, nearest names, a run's folder, and going on, with a small made-up modality."""

import errno
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
TASKS = '''
"""Toys to try the tools on."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from partwhole.core.data import Stream
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method


class Wide(Encoder):
    def __init__(self, dim: int = 4):
        super().__init__()
        self.dim, self.net = dim, nn.Linear(3, dim)

    def forward(self, x, *, valid=None):
        return self.net(x)


class Small(Method):
    def forward(self, batch):
        return {"loss": self.encoder(batch["x"]).square().mean()}


def same(x):
    return {"x": x}


@dataclass(frozen=True)
class Net:
    """The network."""

    dim: int = 4
    """Its width."""
    kind: Literal["flat", "deep"] = "flat"


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Make outputs small.

    A toy.
    """

    data: tuple[Path, ...] = ()
    """Folders to read."""
    other: Path | None = None
    net: Net = Net()
    pair: tuple[int, float] = (1, 2.0)
    names: dict[str, int] | None = None
    batch: int = 4
    """Samples in a step."""
    shots: int = 3
    fit: Fit = Fit(steps=12, save_every=3, log_every=4)
    incidental: ClassVar[frozenset[str]] = frozenset({"shots"})

    def prepare(self, watch: Any = None):
        Path("prepared").write_text("yes")
        if watch is not None:
            watch.step(1, {"total": 2})
            watch.step(2, {"total": 2})
            watch.say("two prepared")

    def build(self, folder: Path | None = None) -> Run:
        if self.batch == 13:
            from partwhole.core.data import hide
            hide(1, 0.5)
        if self.batch == 14:
            raise KeyError("a defect")
        samples = list(torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(0)))
        return Run(method=Small(Wide(self.net.dim)), stream=Stream(samples, same, batch=self.batch))

    def finish(self, encoder: Encoder, folder: Path, say=print):
        say("evaluating")
        if self.batch in (15, 16):
            os.kill(os.getpid(), signal.SIGTERM if self.batch == 15 else signal.SIGINT)
        size = sum(p.double().sum().item() for p in encoder.parameters())
        return {"table": [["arm", "size"], ["x", size], ["shots", self.shots]], "report": folder / "report.html"}


@dataclass(frozen=True)
class Bare:
    """Neither prepares nor evaluates."""

    fit: Fit = Fit(steps=2)
    build = Shrink.build
    net: Net = Net()
    batch: int = 4


TASKS = {"shrink": Shrink, "bare": Bare}
RECIPES = {"shrink": {"paper": Shrink(net=Net(dim=2)), "best": Shrink(net=Net(dim=8))}}
'''


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Call a tool by name with words; it returns the exit code. Runs in an empty folder."""
    (tmp_path / "toybox").mkdir()
    (tmp_path / "toybox" / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "toybox"]:
        monkeypatch.delitem(sys.modules, name)

    def call(tool, *words):
        module, recipes = importlib.import_module(tool), importlib.import_module("recipes")
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *words])
        try:
            return recipes.guarded(module.main)
        except SystemExit as stop:
            return stop.code

    return call


@pytest.fixture
def toy(tools):
    """``run.py`` on the toy task."""
    return lambda *words: tools("run", "--modality", "toybox.tasks", "--task", "shrink", *words)


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


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "choose a modality, with --modality:\n  shape3d"),
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


def test_another_recipe_in_the_folder_is_refused_and_incidental_fields_are_not(toy, capsys):
    assert toy("--folder", "r") == 0
    capsys.readouterr()
    assert toy("--folder", "r", "--fit.lr", "0.5", "--net.dim", "7") == 2
    error = capsys.readouterr().err
    assert "net.dim: 4 there, 7 now; fit.lr: 0.001 there, 0.5 now. Choose another --folder" in error
    assert toy("--folder", "r", "--shots", "9", "--fit.log-every", "1") == 0
    assert re.search(r"^shots +9$", capsys.readouterr().out, re.MULTILINE)


def test_tensorboard_events_are_written(toy, capsys):
    pytest.importorskip("tensorboard")
    assert toy("--folder", "r", "--tensorboard") == 0
    assert list(Path("r").glob("events.out.tfevents.*"))


def test_a_recipe_without_evaluation_says_where_its_encoder_is(tools, capsys):
    assert tools("run", "--modality", "toybox.tasks", "--task", "bare", "--folder", "r") == 0
    assert "load_encoder('r')" in capsys.readouterr().out


def test_expected_errors_are_one_line_and_defects_keep_their_traceback(toy, capsys):
    assert toy("--batch", "13") == 2
    assert "run.py: hiding a part of 1 positions" in capsys.readouterr().err
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

    assert sys.modules["recipes"].guarded(work) == code
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


# ------------------------------------------------------------------ as processes


def start(tmp_path, *command):
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--shard"]])
def test_torchrun_gives_the_run_of_one_process(toy, tmp_path, capsys, words):
    from partwhole.core import load_encoder

    assert toy("--folder", "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    task = [str(TOOLS / "run.py"), "--modality", "toybox.tasks", "--task", "shrink", "--folder", "two", *words]
    process = start(tmp_path, *torchrun, *task)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert out.count("evaluating") == out.count("report:") == 1  # one process speaks
    one, two = (load_encoder(f, allow=("toybox",)).state_dict() for f in ("one", "two"))
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-5
    assert toy("--folder", "two") == 0
    assert "finished, nothing to train" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(toy, tmp_path, capsys):
    import signal

    steps = ["--fit.steps", "600", "--folder", "r", "--fit.log-every", "1"]
    task = ["--modality", "toybox.tasks", "--task", "shrink", *steps]
    process = start(tmp_path, sys.executable, str(TOOLS / "run.py"), *task)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("1/600"), first + process.stdout.read()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert re.search(r"run.py: SIGTERM: stopped and saved after step \d+ in r; run it again to go on", out)
    assert "Traceback" not in out
    assert toy(*steps) == 0
    assert "going on after step" in capsys.readouterr().out


@pytest.mark.slow
def test_P15_a_process_that_dies_ends_the_others(tmp_path):
    (tmp_path / "dies.py").write_text(
        """
import os, sys
sys.path.insert(0, sys.argv[1])
import ranks, torch
from partwhole.core import distributed
from partwhole.core.fit import Fit, Run, fit
distributed.setup("cpu")
method, stream = ranks.make("rows")
forward = method.forward
def failing(batch):
    failing.calls += 1
    if failing.calls == 3 and distributed.rank() == 1:
        raise KeyError("a defect on one rank")
    return forward(batch)
failing.calls = 0
method.forward = failing
fit(Run(method=method, stream=stream), Fit(steps=50, device="cpu"))
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "dies.py"]
    process = start(tmp_path, *command, str(Path(__file__).parent / "core"))
    out, _ = process.communicate(timeout=120)  # a hang would end here
    assert process.returncode != 0
    assert "a defect on one rank" in out
    assert "in batch 2: " in out
