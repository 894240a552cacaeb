"""A run that was stopped anywhere and started again is bit for bit the run that was not."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from zoo import GENERIC

from partwhole.core import load_encoder
from partwhole.core.checkpoint import BadCheckpoint, OtherRecipe, differences, save_encoder
from partwhole.core.encoder import Encoder
from partwhole.core.files import NotSaved, write
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.watch import Quiet


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Crash(Exception):
    pass


def crashing(stream, tick):
    """Like a power cut while batch ``tick`` is awaited."""

    def cut(start=0):
        for t, batch in enumerate(stream(start), start):
            if t == tick:
                raise Crash
            yield batch

    return cut


def go(cases, name, folder, options, crash=None, **more):
    method, stream = cases.make(name)
    run = Run(method=method, stream=stream if crash is None else crashing(stream, crash))
    try:
        fit(run, Fit(**options), folder, watch=Quiet(), **more)
    except Crash:
        return None
    return method.state_dict()


def lines(folder):
    timing = ("steps_per_second", "memory_mb", "waiting")
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in text]


@pytest.mark.parametrize("name", [*GENERIC, "byol-batchnorm", "hubert", "wav2vec2", "walk", "dpc", "memdpc", "joint"])
def test_S3_resuming_is_exact_and_so_is_a_second_resume(cases, tmp_path, name):
    options = {"steps": 8, "lr": 1e-2, "save_every": 2, "log_every": 1}
    whole = go(cases, name, tmp_path / "whole", options)
    assert go(cases, name, tmp_path / "cut", options, crash=3) is None
    assert go(cases, name, tmp_path / "cut", options, crash=7) is None
    assert same(go(cases, name, tmp_path / "cut", options), whole)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_resuming_is_exact_with_accumulation_sgd_and_no_momentum_yet(cases, tmp_path):
    options = {"steps": 4, "lr": 0.1, "save_every": 1, "accumulate": 2, "optimizer": "sgd", "clip": 0.1}
    whole = go(cases, "byol", None, options)
    for crash in (1, 3, 4, 7):
        assert go(cases, "byol", tmp_path, options, crash=crash) is None
    assert same(go(cases, "byol", tmp_path, options), whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_after_kill_9_at_a_random_step_is_exact(cases, tmp_path, workers):
    whole = cases.slow_train(str(tmp_path / "whole"), 0, 0.0)
    folder = tmp_path / "killed"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    code = f"import torch; torch.set_num_threads(1); import ranks; ranks.slow_train({str(folder)!r}, {workers}, 0.02)"
    dice = random.Random(time.time_ns())
    for target in (dice.randrange(2, 35), dice.randrange(12, 35)):  # the second kill is after a checkpoint
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, start_new_session=True
        )
        give_up = time.monotonic() + 90
        try:
            while process.poll() is None and time.monotonic() < give_up:
                if (folder / "metrics.jsonl").exists() and len(
                    (folder / "metrics.jsonl").read_text().splitlines()
                ) >= target:
                    break
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode in (-signal.SIGKILL, 0)
    assert (folder / "last.pt").exists()
    assert same(cases.slow_train(str(folder), 0, 0.0), whole)
    assert lines(folder) == lines(tmp_path / "whole")


@pytest.mark.slow
def test_every_method_survives_kill_9_at_random_moments():
    """Two kills each; ``python tests/core/kills.py 50`` for a longer campaign."""
    kills = Path(__file__).with_name("kills.py")
    command = [sys.executable, "-W", "ignore", str(kills), str(len(GENERIC)), str(time.time_ns() % 2**31)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_a_finished_run_says_so_and_is_not_trained_again(cases, tmp_path, heard):
    whole = go(cases, "rows", tmp_path, {"steps": 3})
    method, _ = cases.make("rows")

    def untouchable(start=0):
        raise AssertionError("a finished run asked for data")

    fit(Run(method=method, stream=untouchable), Fit(steps=3), tmp_path, watch=heard)
    assert same(method.state_dict(), whole)
    assert "finished" in heard.said[0]


def test_another_recipe_in_the_same_folder_is_refused_by_field(cases, tmp_path):
    go(cases, "rows", tmp_path, {"steps": 3}, identity={"task": "acd", "points": 128})
    with pytest.raises(OtherRecipe) as caught:
        go(cases, "rows", tmp_path, {"steps": 3, "lr": 0.5}, identity={"task": "acd", "points": 256})
    assert "fit.lr: 0.001 there, 0.5 now" in str(caught.value)
    assert "points: 128 there, 256 now" in str(caught.value)
    assert "task" not in str(caught.value)


def test_fields_that_do_not_change_the_result_may_change(cases, tmp_path):
    options = {"steps": 4, "save_every": 1}
    whole = go(cases, "rows", None, options)
    go(cases, "rows", tmp_path, options, crash=2)
    assert same(go(cases, "rows", tmp_path, {**options, "log_every": 3, "device": "cpu"}), whole)


def test_differences_name_nested_fields():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == [
        "a.c: 2 there, 3 now",
        "a.d: None there, 4 now",
    ]


# ------------------------------------------------------------------ files


def edited(path, change):
    """A checkpoint that is whole but for one thing."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncated", "cannot be read as a checkpoint"),
        ("text", "cannot be read as a checkpoint"),
        ("empty", "cannot be read as a checkpoint"),
        ("foreign", "is not a 'partwhole training state"),
        ("pickle", "cannot be read as a checkpoint"),
        ("half a step", "of half a step: the weights are those after 3 steps, the optimizer's state that after 2"),
        ("no step", "has no step that can be read"),
        ("no parts", "has no identity and no method that can be read"),
        ("no recipe", "does not say of which recipe it is"),
    ],
)
def test_a_damaged_checkpoint_says_so_runs_nothing_and_is_left_alone(cases, tmp_path, damage, words):
    go(cases, "rows", tmp_path, {"steps": 2})
    path, witness = tmp_path / "last.pt", tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))

    {
        "truncated": lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "text": lambda: path.write_text("hello"),
        "empty": lambda: path.write_bytes(b""),
        "foreign": lambda: torch.save({"weights": torch.ones(2)}, path),
        "pickle": lambda: torch.save(Evil(), path),
        "half a step": lambda: edited(path, lambda s: s.update(step=3)),
        "no step": lambda: edited(path, lambda s: s.update(step="two")),
        "no parts": lambda: edited(path, lambda s: (s.pop("identity"), s.pop("method"))),
        "no recipe": lambda: edited(path, lambda s: s.update(identity="{")),
    }[damage]()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(BadCheckpoint, match=r"last\.pt .*Delete it") as caught:
        go(cases, "rows", tmp_path, {"steps": 2})
    assert words in str(caught.value)
    assert not witness.exists()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_checkpoint_of_another_network_says_so(cases, tmp_path):
    go(cases, "rows", tmp_path, {"steps": 2})
    with pytest.raises(BadCheckpoint, match="of another network than this recipe builds"):
        go(cases, "groups", tmp_path, {"steps": 2})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("simclr", lambda s: None),  # another method with the same encoder
        ("rows", lambda s: s["method"].pop("head.net.bias")),
        ("rows", lambda s: s["optimizer"].pop("head.net.bias")),
        ("rows", lambda s: s["optimizer"].clear()),
        ("rows", lambda s: s["method"].update({"head.net.bias": torch.ones(7)})),
    ],
)
def test_a_checkpoint_with_other_parts_says_so_and_is_left_alone(cases, tmp_path, name, change):
    go(cases, "rows", tmp_path, {"steps": 2})
    path = tmp_path / "last.pt"
    edited(path, change)
    before = path.read_bytes()
    with pytest.raises(BadCheckpoint, match="of another network than this recipe builds"):
        go(cases, name, tmp_path, {"steps": 2})
    assert path.read_bytes() == before


def test_sgd_without_momentum_has_nothing_to_remember(cases, tmp_path):
    options = {"steps": 4, "save_every": 1, "optimizer": "sgd", "betas": (0.0, 0.0)}
    assert go(cases, "rows", tmp_path, options, crash=2) is None
    assert same(go(cases, "rows", tmp_path, options), go(cases, "rows", None, options))


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_what_to_do(cases, tmp_path):
    options = {"steps": 6, "save_every": 2}
    assert go(cases, "byol", tmp_path, options, crash=3) is None
    before = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # as a full disk does, writes now fail
    try:
        with pytest.raises(NotSaved, match=r"cannot write .*last\.pt.*MB are free.*is intact.*run the same command"):
            go(cases, "byol", tmp_path, options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "metrics.jsonl"]
    assert same(go(cases, "byol", tmp_path, options), go(cases, "byol", None, options))


def test_a_folder_that_cannot_be_made_is_named_before_training(cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotSaved, match=r"cannot write .*file/run"):
        go(cases, "rows", tmp_path / "file" / "run", {"steps": 2})


def test_write_leaves_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "a"
    write(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half")
        raise KeyError

    with pytest.raises(KeyError):
        write(path, fails)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ------------------------------------------------------------------ the encoder


def test_the_encoder_comes_back_with_its_weights(cases, tmp_path):
    encoder = cases.encoder().eval()
    save_encoder(encoder, tmp_path)
    again = load_encoder(tmp_path)
    assert same(again.state_dict(), encoder.state_dict())
    assert not again.training
    x = torch.randn(2, 6, 3)
    assert torch.equal(again(x), encoder(x))
    assert again.state_dict().keys() == encoder.state_dict().keys()


class Outside(Encoder):
    def __init__(self, dim=2):
        super().__init__()
        self.dim, self.net = dim, torch.nn.Linear(2, dim)


@pytest.mark.parametrize("damage", ["weights", "unreadable", "json", "format", "missing", "folder", "stranger"])
def test_a_damaged_or_foreign_encoder_says_so(cases, tmp_path, damage):
    save_encoder(cases.encoder(), tmp_path)
    weights, about = tmp_path / "encoder.safetensors", tmp_path / "encoder.json"
    folder, kind, words = tmp_path, BadCheckpoint, ""
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
        words = "encoder.safetensors is truncated.* The command of its run, called again, writes it anew"
    elif damage == "unreadable":
        weights.unlink()
        weights.mkdir()
        words = "encoder.safetensors is truncated, unreadable or of another encoder"
    elif damage == "json":
        about.write_text(about.read_text()[:20])
        words = "encoder.json is damaged"
    elif damage == "format":
        about.write_text(about.read_text().replace('"format": 1', '"format": 9'))
        words = "format 9, and this version reads 1"
    elif damage == "missing":
        about.unlink()
        kind, words = FileNotFoundError, "encoder.json is missing"
    elif damage == "folder":
        folder, kind, words = tmp_path / "nowhere", FileNotFoundError, "no such folder"
    else:
        about.write_text(json.dumps({"format": 1, "encoder": {"class": "os:system", "arguments": {}}}))
        kind, words = ValueError, "os"
    with pytest.raises(kind, match=words):
        load_encoder(folder)
