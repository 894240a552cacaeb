"""Pictures and .ply files of point clouds: the nearer hides the farther, and colours are those of the labels."""

import io
import os

import numpy as np
import pytest
import trimesh
from PIL import Image

from partwhole.shape3d.render import colours, pictures, png, raster, surface, turn, write_ply


def ball(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball beside a plate: points, normals, and which of the two each point is on."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    labels = np.arange(count) % 2
    plate = np.stack([rng.uniform(0.5, 1.5, count), rng.uniform(-0.5, 0.5, count), np.zeros(count)], 1)
    points = np.where(labels[:, None] == 0, normals * 0.4 - [0.5, 0, 0], plate)
    return points, np.where(labels[:, None] == 0, normals, [0, 0, 1]), labels


def test_ply_is_read_by_trimesh_with_colours_and_labels(tmp_path):
    points, _, labels = ball(0, 50)
    path = write_ply(tmp_path / "new" / "a.ply", points, colours(labels), labels=labels)
    cloud = trimesh.load(path)
    assert np.allclose(cloud.vertices, points, atol=1e-6)
    assert (np.asarray(cloud.colors)[:, :3] == colours(labels)).all()
    stored = cloud.metadata["_ply_raw"]["vertex"]["data"]["label"]
    assert (np.ravel(stored) == labels).all()


def test_ply_refuses_what_does_not_fit_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"points and colour must both be \(P, 3\)"):
        write_ply(tmp_path / "a.ply", np.eye(3), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="colour must be uint8"):
        write_ply(tmp_path / "a.ply", np.eye(3), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"labels must be \(3,\)"):
        write_ply(tmp_path / "a.ply", np.eye(3), np.zeros((3, 3), np.uint8), labels=np.zeros(2))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_ply(tmp_path / "a.ply", np.eye(3), np.zeros((3, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_the_nearer_surface_hides_the_farther():
    side = np.linspace(-1, 1, 30)
    plane = np.stack([*np.meshgrid(side, side), np.zeros((30, 30))], -1).reshape(-1, 3)
    points = np.concatenate([plane - np.array([0, 0, 0.3]), plane + np.array([0, 0, 0.3])])
    normals = np.tile([0.0, 0, 1], (1800, 1))
    index, light = raster(points, normals, 0.08, size=120, rotation=np.eye(3))
    inner = index[10:-10, 10:-10]
    assert (inner >= 900).all()  # the front plane has no holes, and nothing of the back one is seen
    assert ((light >= 0) & (light <= 1)).all()
    back, _ = raster(points, normals, 0.08, size=120, rotation=np.diag([-1.0, 1, -1]))
    assert (back[10:-10, 10:-10] < 900).all()


def test_of_two_tilted_discs_the_nearer_is_seen_at_each_pixel():
    points = np.array([[0, 0, 0.02], [0.08, 0, 0], [-1, 0, 0], [1, 0, 0]])
    tilted = np.array(
        [0.5**0.5, 0, 0.5**0.5]
    )  # the first is nearer, but behind the second where that one has its centre
    index, _ = raster(points, np.stack([tilted, *np.eye(3)[[2, 2, 2]]]), 0.13, size=200, rotation=np.eye(3))
    at = [round(99 + x * 198 / 2.26) for x in (0, 0.08)]
    assert [index[100, x] for x in at] == [0, 1]


def test_a_point_is_drawn_where_it_is():
    points = np.array([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]])
    index, _ = raster(points, np.tile([0.0, 0, 1], (3, 1)), 0.1, size=100, rotation=np.eye(3))
    where = {i: np.argwhere(index == i).mean(0) for i in range(3)}
    assert where[0][0] > 80  # below
    assert where[0][1] < 20  # left
    assert where[1][1] > 80
    assert where[2][0] < 20
    assert where[2][1] == pytest.approx(49.5, abs=1)


def test_the_sign_of_a_normal_does_not_matter():
    points, normals, _ = ball(0)
    flipped = normals * np.where(np.arange(len(normals)) % 2, 1, -1)[:, None]
    one, other = (raster(points, n, 0.1, size=90) for n in (normals, flipped))
    assert (one[0] == other[0]).all()
    assert np.allclose(one[1], other[1])


def test_estimated_normals_are_those_of_the_surface():
    points, normals, _ = ball(3, 2000)
    found, radius = surface(points)
    agree = abs((found * normals).sum(1))
    assert np.median(agree) > 0.99
    assert 0.01 < radius < 0.2


def test_pictures_are_clear_where_nothing_is_and_coloured_where_something_is():
    points, _, _ = ball(0)
    made = pictures(points, {"truth": np.zeros(400, int)}, size=80)["truth"]
    assert made.shape == (80, 80, 4)
    back = np.asarray(Image.open(io.BytesIO(png(made))).convert("RGBA"))
    assert back.shape == made.shape
    assert back[0, 0, 3] == 0
    solid = back[back[..., 3] == 255].astype(int)
    assert len(solid) > 500
    assert (solid[:, 2] > solid[:, 0]).all()  # the first colour is a blue


def test_the_first_rotation_is_one():
    assert np.allclose(turn() @ turn().T, np.eye(3))
    assert np.linalg.det(turn()) == pytest.approx(1)
    assert (turn() @ [0, 1, 0])[1] > 0.8  # up stays up
