"""Bad files: each message says which file, what was found and what to do; the other shapes go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from partwhole.core.watch import Quiet
from partwhole.shape3d import decompose, files
from partwhole.shape3d.decompose import engines

BOX = trimesh.creation.box()


def off(vertices: np.ndarray, faces: np.ndarray) -> str:
    rows = [" ".join(map(str, v)) for v in vertices.tolist()] + ["3 " + " ".join(map(str, f)) for f in faces.tolist()]
    return f"OFF\n{len(vertices)} {len(faces)} 0\n" + "\n".join(rows) + "\n"


def changed(row: int, value: object) -> str:
    lines = off(BOX.vertices, BOX.faces).split("\n")
    lines[row] = str(value)
    return "\n".join(lines)


def cut(suffix: str, share: float = 0.6) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        BOX.export(path.with_name(f"whole{suffix}"))
        whole = path.with_name(f"whole{suffix}").read_bytes()
        path.with_name(f"whole{suffix}").unlink()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


BAD: dict[str, tuple[str, str | bytes | Callable[[Path], None], str]] = {
    "no faces": ("a.off", off(BOX.vertices, BOX.faces[:0]), "8 vertices and no faces"),
    "obj without faces": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "3 vertices and no faces"),
    "no vertices": ("a.off", "OFF\n0 0 0\n", "no vertices"),
    "nan": ("a.off", changed(2, "nan 0 0"), "1 vertices that are NaN"),
    "infinite": ("a.off", changed(5, "0 inf 0"), r"1 vertices that are infinite \(the first is number 3\)"),
    "index too large": ("a.off", changed(12, "3 0 1 99"), r"outside 0..7 \(the first is face 2\)"),
    "index negative": ("a.off", changed(12, "3 0 1 -1"), "outside 0..7"),
    "obj index too large": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "outside 0..2"),
    "zero area": ("a.off", off(BOX.vertices * [1, 0, 0], BOX.faces), "no area"),
    "all vertices equal": ("a.off", off(BOX.vertices * 0, BOX.faces), "no area"),
    "empty file": ("a.obj", "", "empty file"),
    "text named obj": ("a.obj", "Dear diary,\nfine weather today.\n", "not an OBJ mesh"),
    "text named off": ("a.off", "Dear diary,\nfine weather today.\n", "does not begin with OFF"),
    "text named stl": ("a.stl", "Dear diary,\nfine weather today.\n", "a.stl"),
    "text named ply": ("a.ply", "Dear diary,\nfine weather today.\n", "a.ply"),
    "text named glb": ("a.glb", "Dear diary,\nfine weather today.\n", "a.glb"),
    "text named npy": ("a.npy", "Dear diary,\nfine weather today.\n", "a.npy"),
    "text named xyz": ("a.xyz", "Dear old diary,\nfine weather today.\n", "not a number"),
    "truncated off": ("a.off", cut(".off"), "cut off"),
    "truncated obj": ("a.obj", cut(".obj", 0.2), "a.obj"),
    "obj cut in a face": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2", "cut off"),
    "truncated ply": ("a.ply", cut(".ply"), "a.ply"),
    "truncated stl": ("a.stl", cut(".stl"), "a.stl"),
    "truncated glb": ("a.glb", cut(".glb"), "a.glb"),
    "uneven lines": ("a.xyz", "0 0 0\n1 1\n", "different lengths"),
    "two columns": ("a.txt", "0 0\n1 1\n", "lines of 2 values"),
    "three points": ("a.xyz", "0 0 0\n1 1 1\n0 1 0\n", "fewer than 4"),
    "one place": ("a.xyz", "0 0 0\n" * 10, "fewer than 4"),
    "pickled": ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "never loaded"),
    "no known key": ("a.npz", lambda path: np.savez(path, stuff=np.zeros((5, 3))), "stuff.*points, xyz"),
    "normals do not match": (
        "a.npz",
        lambda path: np.savez(path, points=np.random.default_rng(0).random((9, 3)), normals=np.ones((5, 3))),
        "5 normals for 9 points",
    ),
    "unknown kind": ("a.docx", "x", "shapes are read from"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_name_the_finding_and_the_advice(tmp_path: Path, name: str) -> None:
    file, content, expected = BAD[name]
    path = tmp_path / file
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(files.BadShape, match=f"(?s){expected}") as caught:
        files.read(path)
    assert caught.value.path == str(path)
    assert caught.value.found
    assert caught.value.do
    assert str(path) in str(caught.value)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BOX.export(tmp_path / "a.off")

    def no(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", no)
    with pytest.raises(files.BadShape, match="no permission to read"):
        files.read(tmp_path / "a.off")


def test_empty_folder_folder_without_shapes_and_missing_path_say_so(tmp_path: Path) -> None:
    with pytest.raises(files.BadShape, match="empty folder; put meshes"):
        files.find(tmp_path)
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(files.BadShape, match=r"1 files, none of them a shape \(.md\)"):
        files.find(tmp_path)
    with pytest.raises(files.BadShape, match="no such file or folder"):
        files.find(tmp_path / "nowhere")
    with pytest.raises(files.BadShape, match="no such file"):
        files.read(tmp_path / "nowhere.off")


def test_a_folder_in_which_nothing_can_be_read_is_an_error_that_names_files(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.obj").write_text("hello")
    with pytest.raises(files.BadShape, match=r"2 files, none could be decomposed \(0.obj: .*'v' line"):
        decompose.prepare(tmp_path, tmp_path / "cache", watch=Quiet())


def test_bad_files_among_good_ones_are_listed_and_the_rest_goes_on(tmp_path: Path, heard: Any) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    BOX.export(shapes / "good.off")
    (shapes / "nan.off").write_text(changed(2, "nan 0 0"))
    (shapes / "text.obj").write_text("hello")
    prepared = decompose.prepare(shapes, tmp_path / "cache", workers=1, watch=heard)
    assert prepared.names == ["shapes/good.off"]
    assert [Path(path).name for path, _ in prepared.failures] == ["nan.off", "text.obj"]
    assert "NaN" in prepared.failures[0][1]
    assert "failed 2" in heard.said[-1]
    assert "manifest.jsonl" in heard.said[-1]
    lines = [json.loads(line) for line in (tmp_path / "cache/manifest.jsonl").read_text().splitlines()]
    assert sorted(line["status"] for line in lines) == ["done", "failed", "failed"]


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        (BOX.vertices * 1e9, BOX.faces),
        (BOX.vertices * 1e-9, BOX.faces),
        (BOX.vertices + 1e6, BOX.faces),
        (BOX.vertices, np.concatenate([BOX.faces, BOX.faces[::-1], BOX.faces[:, ::-1]])),
        (BOX.vertices * [1, 1, 0], BOX.faces),
        (BOX.vertices[BOX.faces[0]], np.array([[0, 1, 2]])),
    ],
    ids=["huge", "tiny", "far away", "duplicate faces", "flat", "one triangle"],
)
def test_odd_but_usable_meshes_give_a_normalised_sample(
    tmp_path: Path, vertices: np.ndarray, faces: np.ndarray
) -> None:
    (tmp_path / "a.off").write_text(off(vertices, faces))
    options = decompose.Decompose(points=300)
    prepared = decompose.prepare(tmp_path / "a.off", tmp_path / "cache", options, workers=1, watch=Quiet())
    sample = prepared[0]
    assert sample["points"].shape == (300, 3)
    assert sample["component"].shape == (1, 300)
    assert float(sample["points"].norm(dim=1).max()) == pytest.approx(1, abs=2e-3)
    assert float(sample["points"].mean(0).abs().max()) < 2e-3
    assert sample["component"].max() == 0  # a box, flat or not, is one component


@pytest.mark.slow
def test_a_million_faces_are_simplified_and_decomposed(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=8)
    assert len(ball.faces) > 1_000_000
    ball.export(tmp_path / "ball.ply")
    assert len(engines.clean(files.read(tmp_path / "ball.ply"), 2500)[1]) <= 2600
    prepared = decompose.prepare(tmp_path / "ball.ply", tmp_path / "cache", workers=1, watch=Quiet())
    assert prepared.failures == []
    assert prepared[0]["component"].max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "coacdd"}, "'coacdd' is unknown: one of auto"),
        ({"thresholds": ()}, "one or more"),
        ({"thresholds": (0.1, 1.5)}, "from 0.01 to 1"),
        ({"points": 0}, "points is 0"),
        ({"preprocess_resolution": 2}, "needs 5 or more"),
    ],
)
def test_options_that_would_crash_an_engine_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompose.Decompose(**change)
