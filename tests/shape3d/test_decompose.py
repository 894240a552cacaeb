"""Engines that abort, crash, hang; interruption; a cluster that loses a worker."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from partwhole.core.watch import Quiet
from partwhole.shape3d import decompose
from partwhole.shape3d.decompose import engines, pool
from partwhole.shape3d.decompose.packed import Prepared

FAST = {
    "mcts_iterations": 4,
    "mcts_nodes": 4,
    "mcts_max_depth": 1,
    "resolution": 500,
    "preprocess_resolution": 15,
}  # of CoACD


def quickly(shapes: Any, cache: Path, **more: Any) -> Prepared:
    more = {"workers": 1, "watch": Quiet(), **more}
    return decompose.prepare(shapes, cache, decompose.Decompose(**{"points": 300, **more.pop("options", {})}), **more)


def boxes(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        trimesh.creation.box(extents=(1, 1 + i / 10, 2)).export(folder / f"{i:02d}.off")
    return folder


def dumbbell() -> trimesh.Trimesh:
    """Two balls and a thin bar between them: three convex components."""
    ball = trimesh.creation.icosphere(subdivisions=1)
    bar = trimesh.creation.box(extents=(4, 0.4, 0.4))
    return trimesh.util.concatenate([ball.copy().apply_translation([x, 0, 0]) for x in (-2, 2)] + [bar])


# Engines


@pytest.mark.parametrize(("engine", "fewest"), [("coacd", 3), ("vhacd", 3), ("points", 3)])
def test_each_engine_separates_the_balls_from_the_bar(tmp_path: Path, engine: str, fewest: int) -> None:
    dumbbell().export(tmp_path / "a.off")
    prepared = quickly(tmp_path / "a.off", tmp_path / "cache", options={"engine": engine, "points": 1024, **FAST})
    assert prepared.statistics()["engines"] == {engine: 1}
    assert prepared.statistics()["fallbacks"] == 0
    component, x = prepared[0]["component"][0].numpy(), prepared[0]["points"][:, 0].numpy()
    assert component.max() + 1 >= fewest
    left, right = component[x < -0.7], component[x > 0.7]
    assert not set(left) & set(right)


def test_levels_are_stored_in_the_order_asked(tmp_path: Path) -> None:
    dumbbell().export(tmp_path / "a.off")
    prepared = quickly(tmp_path / "a.off", tmp_path / "cache", options={"thresholds": (1.0, 0.1), **FAST})
    component = prepared[0]["component"]
    assert component.shape == (2, 300)
    assert component[0].max() < component[1].max()
    assert prepared.records[0]["components"] == (component.amax(1) + 1).tolist()


def test_clouds_are_decomposed_as_points_and_given_components_are_kept(tmp_path: Path) -> None:
    points = np.asarray(trimesh.sample.sample_surface(dumbbell(), 600, seed=0)[0])
    np.save(tmp_path / "cloud.npy", points)
    given = (points[:, :1] > 0) * 3.0
    np.save(tmp_path / "given.npy", np.concatenate([points, given], 1))
    prepared = quickly(tmp_path, tmp_path / "cache")
    assert prepared.statistics()["engines"] == {"points": 1, "given": 1}
    component, x = prepared[1]["component"][0], prepared[1]["points"][:, 0]
    assert component.max() == 1
    assert component[x > 0.1].float().mean() == 1


@pytest.mark.slow
def test_the_same_shape_gives_the_same_components_in_another_process_and_order(tmp_path: Path) -> None:
    dumbbell().export(tmp_path / "a.off")
    first = quickly(tmp_path / "a.off", tmp_path / "cache1")[0]
    second = quickly([tmp_path / "a.off"], tmp_path / "cache2")[0]
    assert all((first[k] == second[k]).all() for k in first)


# Engines that misbehave

FAKES = """
    import ctypes, os, sys, time
    import numpy as np

    def fine(vertices, faces, threshold, options):
        assert "torch" not in sys.modules, "the children must not import torch"
        assert os.environ["OMP_NUM_THREADS"] == "1"
        return [vertices]

    def abort(vertices, faces, threshold, options):
        print("assertion of the engine failed", file=sys.stderr, flush=True)
        os.abort()

    def crash(vertices, faces, threshold, options):
        ctypes.string_at(0)

    def leave(vertices, faces, threshold, options):
        os._exit(3)

    def sleep(vertices, faces, threshold, options):
        time.sleep(1000)

    def burn(vertices, faces, threshold, options):
        while True:
            pass

    def fill(vertices, faces, threshold, options):
        kept = []
        while True:
            kept.append(bytearray(b"x" * 2**24))
            time.sleep(0.01)

    def throw(vertices, faces, threshold, options):
        raise RuntimeError("no luck")

    def nothing(vertices, faces, threshold, options):
        return []

    def noise(vertices, faces, threshold, options):
        print("{not an answer}", flush=True)
        os.write(1, b"{neither is this}")
        return [vertices]

    def slow(vertices, faces, threshold, options):
        time.sleep(0.3)
        return [vertices]
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "misbehaving.py").write_text(textwrap.dedent(FAKES))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))


@pytest.mark.parametrize(
    ("engine", "limits", "reason"),
    [
        ("abort", {}, r"ended by SIGABRT \(assertion of the engine failed\)"),
        ("crash", {}, "ended by SIGSEGV"),
        ("leave", {}, "with status 3"),
        ("sleep", {"wall_seconds": 1.5}, "hung: no result after 1.5 s, killed"),
        ("burn", {"cpu_seconds": 1}, "used more than 1 CPU seconds, ended"),
        ("fill", {"memory_mb": 300}, "MemoryError|used more than 300 MB"),
        ("throw", {}, "RuntimeError: no luck"),
        ("nothing", {}, "returned no component"),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_an_engine_that_ends_or_blocks_its_process_is_recorded_and_the_next_one_used(
    tmp_path: Path, engine: str, limits: dict, reason: str
) -> None:
    shapes = boxes(tmp_path / "shapes", 1)
    prepared = quickly(shapes, tmp_path / "cache", options={"engine": f"misbehaving:{engine}", **limits})
    assert prepared.failures == []
    assert prepared.records[0]["engine"] == "points"
    assert prepared.statistics()["fallbacks"] == 1
    assert len(prepared.records[0]["reasons"]) == 1
    assert engine != "burn" or prepared.records[0]["seconds"] > 1  # the time of lost attempts is counted
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(prepared.records[0]["reasons"][0])


@pytest.mark.usefixtures("fakes")
def test_children_have_one_thread_and_no_torch_and_what_engines_print_does_no_harm(tmp_path: Path) -> None:
    shapes = boxes(tmp_path / "shapes", 2)
    for engine in ("fine", "noise"):
        prepared = quickly(shapes, tmp_path / "cache", options={"engine": f"misbehaving:{engine}"})
        assert prepared.statistics()["engines"] == {f"misbehaving:{engine}": 2}


def test_coacd_that_runs_out_of_time_is_followed_by_vhacd() -> None:
    job = {"skip": [], "reasons": [], "path": "a", "options": {}}
    assert pool._after(job, "coacd", "used more than 60 CPU seconds, ended")["skip"] == [
        "coacd",
        "coacd with preprocessing",
    ]
    assert pool._after(job, "coacd", "ended by SIGABRT")["skip"] == ["coacd"]
    assert engines.stages("auto", True) == ["coacd", "coacd with preprocessing", "vhacd", "points"]
    assert engines.stages("auto", False) == ["points"]


@pytest.mark.usefixtures("fakes")
def test_children_are_replaced_when_they_are_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Counted(pool._Child):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(pool, "_Child", Counted)
    monkeypatch.setattr(pool, "SHAPES_PER_CHILD", 2)
    shapes = boxes(tmp_path / "shapes", 5)
    assert len(quickly(shapes, tmp_path / "cache", options={"engine": "misbehaving:fine"})) == 5
    assert len(started) == 3
    assert all(child.process.poll() is not None for child in started)


RUN = """
import sys
from partwhole.shape3d import decompose
options = decompose.Decompose(points=300, engine="misbehaving:slow")
decompose.prepare(sys.argv[1], sys.argv[2], options, workers=1)
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("fakes")
def test_interrupted_at_any_moment_it_goes_on_from_there(tmp_path: Path, kill: signal.Signals) -> None:
    shapes, manifest = boxes(tmp_path / "shapes", 8), tmp_path / "cache" / "manifest.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    arguments = [sys.executable, "-c", RUN, str(shapes), str(tmp_path / "cache")]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(arguments, env=environment, start_new_session=True, **pipes)
    deadline = time.monotonic() + 60
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    os.killpg(process.pid, kill)  # as a terminal does on Ctrl-C
    output, _ = process.communicate(timeout=30)
    done = manifest.read_bytes().count(b"\n")
    assert 2 <= done < 8
    if kill != signal.SIGKILL:
        assert f"stopped: {done} of 8 shapes are done and kept; the same call goes on from there" in output
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children.stdout.split()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.stdout.split())  # no orphan works on
    after = quickly(shapes, tmp_path / "cache", options={"engine": "misbehaving:slow"})
    assert len(after) == 8
    assert after.statistics()["cached"] == done


@pytest.mark.usefixtures("fakes")
def test_after_the_time_allowed_it_stops_and_says_what_is_left(tmp_path: Path) -> None:
    shapes = boxes(tmp_path / "shapes", 40)
    options = {"engine": "misbehaving:slow"}
    prepared = quickly(shapes, tmp_path / "cache", options=options, seconds=4.0)
    assert 0 < len(prepared) < 40
    assert len(prepared) + len(prepared.left) == 40
    assert prepared.statistics()["left"] == len(prepared.left)
    assert prepared.failures == []
    with pytest.raises(TimeoutError, match="none of 1 shapes"):
        quickly(shapes / "39.off", tmp_path / "cache2", options=options, seconds=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("fakes")
def test_a_cluster_that_loses_a_worker_midway_loses_no_shape(tmp_path: Path) -> None:
    import distributed  # slow to import

    shapes, manifest = boxes(tmp_path / "shapes", 16), tmp_path / "cache" / "manifest.jsonl"
    killed = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(sys.path.insert, 0, str(tmp_path / "lib"))
        workers = client.run(os.getpid)

        def kill() -> None:
            while not manifest.exists():
                time.sleep(0.05)
            killed.append(manifest.read_bytes().count(b"\n"))
            os.kill(next(iter(workers.values())), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        options = {"engine": "misbehaving:slow"}
        prepared = quickly(
            shapes, tmp_path / "cache", options=options, workers=2, backend="dask", address=cluster.scheduler_address
        )
        thread.join()
    assert 0 < killed[0] < 16
    assert len(prepared) == 16
    assert prepared.failures == []
    local = quickly(shapes, tmp_path / "local", options=options)
    assert local.names == prepared.names
    assert all((a["component"] == b["component"]).all() for a, b in zip(local, prepared, strict=True))


def test_an_unknown_backend_and_a_missing_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="slurm"):
        quickly(boxes(tmp_path / "shapes", 1), tmp_path / "cache", backend="slurm")
    with pytest.raises(RuntimeError, match=r"needs a package that is not here .*ray"):
        quickly(tmp_path / "shapes", tmp_path / "cache", backend="ray")


def test_engine_none_samples_points_and_cuts_nothing(tmp_path: Path) -> None:
    prepared = quickly(boxes(tmp_path / "in", 2), tmp_path / "cache", options={"engine": "none"})
    assert [one["engine"] for one in prepared.records] == ["none"] * 2
    assert all(not sample["component"].any() and len(sample["points"]) == 300 for sample in prepared)
