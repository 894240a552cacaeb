"""Reading, finding and sampling shapes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.shape3d import files
from partwhole.shape3d.files import Geometry

BOX = trimesh.creation.box(extents=(1, 2, 3))
NO_FACES = np.zeros((0, 3), np.int64)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the writer of .gltf leaves a file open
@pytest.mark.parametrize("suffix", files.MESHES)
def test_every_kind_of_mesh_is_read_as_the_same_surface(tmp_path: Path, suffix: str) -> None:
    BOX.export(tmp_path / f"box{suffix}")
    geometry = files.read(tmp_path / f"box{suffix}")
    assert geometry.faces.shape == (12, 3)
    assert geometry.faces.dtype == np.int64
    assert geometry.vertices.dtype == np.float64
    read = trimesh.Trimesh(geometry.vertices, geometry.faces)
    assert read.area == pytest.approx(BOX.area, rel=1e-6)
    assert read.volume == pytest.approx(BOX.volume, rel=1e-6)


def test_a_scene_is_joined_with_its_transforms(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for x in (0, 10):
        scene.add_geometry(BOX, transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    scene.export(tmp_path / "two.glb")
    geometry = files.read(tmp_path / "two.glb")
    assert len(geometry.faces) == 24
    assert np.ptp(geometry.vertices, axis=0) == pytest.approx([11, 2, 3])


@pytest.mark.parametrize("text", ["OFF\n# a comment\n4 2 0\n", "OFF4 2 0\n", "OFF 4 2 0\n\n"])
def test_off_heads_that_occur_in_the_wild(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.off").write_text(text + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n3 0 1 2  # again\n")
    # the square is two triangles, and the second face repeats one of them
    assert files.read(tmp_path / "a.off").faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_obj_polygons_slashes_and_indices_from_the_end(tmp_path: Path) -> None:
    text = "mtllib none.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nf -3/1/1 -2//1 -1\nv 0 1 0\nf 1/1 3/1 \\\n4/1\n"
    (tmp_path / "a.obj").write_text(text)
    assert files.read(tmp_path / "a.obj").faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_degenerate_and_repeated_faces_are_dropped_in_order() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0], [2, 0, 0]])
    faces = np.array([[1, 2, 3], [0, 0, 1], [3, 1, 2], [0, 1, 2], [0, 1, 4], [2, 1, 3]])
    assert files.check(Geometry(vertices, faces)).faces.tolist() == [[1, 2, 3], [0, 1, 2]]


@pytest.mark.parametrize("suffix", [".xyz", ".txt", ".pts", ".npy", ".npz", ".ply"])
@pytest.mark.parametrize("with_normals", [False, True])
def test_every_kind_of_cloud_is_read_with_its_normals(tmp_path: Path, suffix: str, with_normals: bool) -> None:
    points, face = trimesh.sample.sample_surface(BOX, 50, seed=0)
    normals = BOX.face_normals[face]
    table = np.concatenate([points, normals], 1) if with_normals else points
    path = tmp_path / f"cloud{suffix}"
    if suffix == ".npy":
        np.save(path, table)
    elif suffix == ".npz":
        np.savez(path, points=points, **({"normals": normals} if with_normals else {}))
    elif suffix == ".ply":
        names = ["x", "y", "z", "nx", "ny", "nz"][: table.shape[1]]
        head = ["ply", "format ascii 1.0", "element vertex 50", *(f"property float {n}" for n in names), "end_header"]
        path.write_text("\n".join(head) + "\n" + "\n".join(" ".join(map(str, row)) for row in table) + "\n")
    else:
        path.write_text(("50\n" if suffix == ".pts" else "") + "\n".join(" ".join(map(str, row)) for row in table))
    geometry = files.read(path)
    assert not geometry.is_mesh
    np.testing.assert_allclose(geometry.vertices, points, atol=1e-6)
    assert (geometry.normals is not None) == with_normals
    if geometry.normals is not None:
        np.testing.assert_allclose(geometry.normals, normals, atol=1e-6)


def test_colours_are_not_taken_for_normals(tmp_path: Path) -> None:
    table = np.random.default_rng(0).random((50, 6)) * [1, 1, 1, 255, 255, 255]
    np.savetxt(tmp_path / "a.xyz", table)
    assert files.read(tmp_path / "a.xyz").normals is None


def test_components_of_the_published_layout_are_kept(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", np.concatenate([random.random((50, 3)), random.integers(0, 5, (50, 1))], 1))
    component = files.read(tmp_path / "a.npy").component
    assert component is not None
    assert set(component.tolist()) == set(range(5))


def test_find_goes_through_any_layout_and_skips_what_is_no_shape(tmp_path: Path) -> None:
    for name in ("b/2.off", "a/deep/1.OBJ", "c.xyz", "a/1_labels.txt", "README.txt", ".hidden/x.off", "note.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = files.find(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a/deep/1.OBJ", "b/2.off", "c.xyz"]
    assert files.find([tmp_path, tmp_path / "c.xyz"]) == found
    assert files.find(tmp_path / "README.txt") == [tmp_path / "README.txt"]
    top = tmp_path.name
    assert files.names(found, tmp_path) == [f"{top}/a/deep/1.OBJ", f"{top}/b/2.off", f"{top}/c.xyz"]


def test_names_are_never_shared(tmp_path: Path) -> None:
    for name in ("x/s/1.off", "y/s/1.off"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    roots = [tmp_path / "x/s", tmp_path / "y/s"]
    assert len(set(files.names(files.find(roots), roots))) == 2


def test_sampling_follows_area_lies_on_the_surface_and_repeats_exactly() -> None:
    geometry = Geometry(BOX.vertices, BOX.faces)
    points, normals, face = files.sample(geometry, 20_000, 3)
    share = np.bincount(face, minlength=12) / 20_000
    assert np.abs(share - BOX.area_faces / BOX.area).max() < 0.01
    on = (points - BOX.vertices[BOX.faces[face, 0]]) * normals
    assert np.abs(on.sum(1)).max() < 1e-12
    assert (np.abs(points) <= np.array([0.5, 1, 1.5]) + 1e-12).all()
    assert np.abs(points.mean(0)).max() < 0.05
    np.testing.assert_allclose(normals, BOX.face_normals[face], atol=1e-12)
    again = files.sample(geometry, 20_000, 3)
    assert all((a == b).all() for a, b in zip(again, (points, normals, face), strict=True))
    assert (files.sample(geometry, 20_000, 4)[0] != points).any()


def test_points_are_spread_evenly_within_a_triangle() -> None:
    triangle = Geometry(np.array([[0, 0, 0], [4.0, 0, 0], [0, 2, 0]]), np.array([[0, 1, 2]]))
    x, y, _ = files.sample(triangle, 20_000, 0)[0].T
    assert np.histogram(x / 4, bins=[0, 0.25, 0.5, 1])[0] / 20_000 == pytest.approx([7 / 16, 5 / 16, 1 / 4], abs=0.02)
    assert y.mean() == pytest.approx(2 / 3, abs=0.02)


def test_a_cloud_gives_its_own_points_without_repetition() -> None:
    points = np.random.default_rng(0).random((100, 3))
    taken, normals, index = files.sample(Geometry(points, NO_FACES), 60, 0)
    assert len(set(index.tolist())) == 60
    assert (points[index] == taken).all()
    assert not normals.any()
    assert len(files.sample(Geometry(points, NO_FACES), 500, 0)[0]) == 100


@settings(deadline=None, max_examples=50)
@given(st.integers(-250, 250), st.integers(0, 10**6))
def test_normalised_points_have_mean_zero_and_radius_one_at_any_scale(power: int, seed: int) -> None:
    raw = np.random.default_rng(seed).normal(size=(50, 3)) + 3
    points, centre, radius = files.normalise(raw * 10.0**power)
    assert np.abs(points.mean(0)).max() < 1e-10
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(points * radius + centre, raw * 10.0**power, rtol=1e-9)


def test_neither_reading_nor_preparing_imports_torch() -> None:
    code = "import sys, partwhole.shape3d.files, partwhole.shape3d.decompose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
