"""Labels by half-spaces of hulls, against the exact distance."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from partwhole.shape3d import files
from partwhole.shape3d.decompose import engines, hulls
from partwhole.shape3d.files import Geometry


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
    ball, bar = trimesh.creation.icosphere(subdivisions=1), trimesh.creation.box(extents=(4, 0.4, 0.4))
    mesh = trimesh.util.concatenate([ball.copy().apply_translation([x, 0, 0]) for x in (-2, 2)] + [bar])
    sampled = files.sample(Geometry(mesh.vertices, mesh.faces), 1000, 0)[0]
    frame, points = engines.to_frame(Geometry(mesh.vertices, mesh.faces), sampled)
    # its three true components: the bar ends inside the balls
    n = len(ball.vertices)
    components = [frame.vertices[:n], frame.vertices[n : 2 * n], frame.vertices[2 * n :]]
    exact = np.stack([exact_distance(points, c) for c in components]).argmin(0)
    assert (hulls.label(points, hulls.planes(components)) == exact).mean() >= 0.99


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
