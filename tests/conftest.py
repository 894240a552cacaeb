"""What every test relies on, and the tools on a small made-up modality."""

import importlib
import shutil
import signal
import sys
from pathlib import Path

import pytest

from partwhole.core.watch import Quiet

TOOLS = Path(__file__).parent.parent / "tools"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C, and so would children
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Heard(Quiet):
    """A watch that keeps what it is told."""

    def __init__(self):
        self.steps, self.metrics, self.said = [], [], []

    def step(self, done, values):
        self.steps.append((done, values))

    def evaluated(self, done, metrics):
        self.metrics.append((done, metrics))

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def heard():
    """A watch that keeps what it is told: ``steps`` and ``metrics``, each with its number, and ``said``."""
    return Heard()


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Call a tool by name with words; it returns the exit code. Runs in an empty folder."""
    (tmp_path / "toybox").mkdir()
    shutil.copy(Path(__file__).with_name("toytasks.py"), tmp_path / "toybox" / "tasks.py")
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
