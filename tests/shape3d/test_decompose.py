"""Hull labels against exact ones; engines that abort, crash, hang; interruption; a cluster that loses a worker."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from partwhole.shape3d import decompose, files
from partwhole.shape3d.decompose import engines, hulls, pool
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.files import Geometry


class Quiet:
    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, done: int, values: dict) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


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


# Labels by half-spaces


def triangle_distance(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Distance (P, T) of points (P, 3) to triangles (T, 3, 3): to the plane above the inside, else to an edge."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    edge = np.full((len(points), len(triangles)), np.inf)
    inside = np.ones(edge.shape, bool)
    for start, end in ((a, b), (b, c), (c, a)):
        along, to = end - start, points[:, None] - start
        share = np.clip((to * along).sum(-1) / (along * along).sum(-1), 0, 1)
        edge = np.minimum(edge, np.linalg.norm(to - share[..., None] * along, axis=-1))
        inside &= (np.cross(along, to) * normal).sum(-1) >= 0
    return np.where(inside, np.abs(((points[:, None] - a) * normal).sum(-1)), edge)


def exact_distance(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Signed distance (P,) of points to the convex hull of vertices, negative inside."""
    hull = ConvexHull(vertices)
    distance = triangle_distance(points, vertices[hull.simplices]).min(1)
    inside = (points @ hull.equations[:, :3].T + hull.equations[:, 3]).max(1) <= 0
    return np.where(inside, -distance, distance)


def some_components(seed: int, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(random.integers(4, 40), 3)) * 0.3 + random.uniform(-1, 1, 3) for _ in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_pruned_labels_are_those_of_all_half_spaces(seed: int, count: int) -> None:
    found = hulls.planes(some_components(seed, count))
    points = np.random.default_rng(seed).uniform(-2, 2, (200, 3)).astype(np.float32)
    values = found.normals @ points.T + found.offsets[:, None]
    expected = np.maximum.reduceat(values, found.starts[:-1], axis=0)
    labels = hulls.label(points, found)
    at = expected[labels, np.arange(200)]
    np.testing.assert_allclose(at, expected.min(0), atol=1e-6)  # the same up to rounding between equals
    assert (labels == expected.argmin(0)).mean() > 0.99


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_points_inside_one_hull_alone_belong_to_it(seed: int) -> None:
    components = some_components(seed, 5)
    points = np.concatenate([np.random.default_rng(seed).dirichlet(np.ones(len(c)), 20) @ c for c in components])
    distance = np.stack([exact_distance(points, c) for c in components])
    alone = (distance < -1e-5).sum(0) == 1
    assert (hulls.label(points, hulls.planes(components))[alone] == distance.argmin(0)[alone]).all()


def test_labels_agree_with_the_exact_nearest_hull_on_a_real_decomposition() -> None:
    mesh = dumbbell()
    sampled = files.sample(Geometry(mesh.vertices, mesh.faces), 1000, 0)[0]
    frame, points = engines.to_frame(Geometry(mesh.vertices, mesh.faces), sampled)
    # its three true components: the bar ends inside the balls
    ball = len(trimesh.creation.icosphere(subdivisions=1).vertices)
    components = [frame.vertices[:ball], frame.vertices[ball : 2 * ball], frame.vertices[2 * ball :]]
    exact = np.stack([exact_distance(points, c) for c in components]).argmin(0)
    assert (hulls.label(points, hulls.planes(components)) == exact).mean() >= 0.99


def test_labelling_2048_points_takes_less_than_5_ms() -> None:
    random = np.random.default_rng(0)
    centres = random.uniform(-1, 1, (30, 3))
    directions = random.normal(size=(30, 100, 3))
    components = list(centres[:, None] + 0.2 * directions / np.linalg.norm(directions, axis=-1, keepdims=True))
    found = hulls.planes(components)
    assert len(found.offsets) > 5000
    points = np.concatenate([c[:70] for c in components])[:2048]
    seconds = []
    for _ in range(20):
        start = time.process_time()
        hulls.label(points, found)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.005


@pytest.mark.parametrize("kind", ["flat", "line", "point", "three"])
def test_degenerate_components_have_half_spaces(kind: str) -> None:
    random = np.random.default_rng(0)
    flat = random.random((20, 3)) * {"flat": [1, 1, 0], "line": [1, 0, 0], "point": [0, 0, 0], "three": [1, 1, 1]}[kind]
    found = hulls.planes([flat[:3] if kind == "three" else flat, random.random((20, 3)) + 5])
    assert np.isfinite(found.normals).all()
    near = flat[:3].mean(0, keepdims=True)
    assert hulls.label(np.concatenate([near, near + 5]), found).tolist() == [0, 1]


def test_small_components_go_to_their_neighbours() -> None:
    points = np.linspace(0, 1, 100)[:, None] * [1, 0, 0]
    labels = np.array([7] * 40 + [3] * 5 + [9] * 55)
    merged = hulls.merge_small(points, labels, 10)
    assert merged.tolist() in ([0] * 42 + [1] * 58, [0] * 43 + [1] * 57)
    assert hulls.merge_small(points[:5], labels[40:45], 10).tolist() == [0] * 5


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
    distributed = pytest.importorskip("distributed")
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
