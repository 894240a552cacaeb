"""The tools as processes: torchrun, signals, a process that dies."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


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
