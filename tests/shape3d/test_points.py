"""The point decomposition: what it must find, what must not change it; its measures against brute force."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from partwhole.shape3d.decompose import extent
from partwhole.shape3d.decompose import points as points_module
from partwhole.shape3d.decompose.measure import adjusted_rand_index, oracle_part_iou, rand_index
from partwhole.shape3d.decompose.points import decompose_points, decompose_points_levels

seeds = st.integers(0, 2**16)
few = settings(max_examples=8, deadline=None)


def boxes(*given: tuple[tuple[float, float, float], tuple[float, float, float]], count: int, seed: int = 0):
    """Points (count, 3) on the outside of a union of boxes (low, high), evenly by area, and the box of each."""
    rng = np.random.default_rng(seed)
    low, high = np.array([b[0] for b in given], float), np.array([b[1] for b in given], float)
    size = high - low
    faces = np.stack([size[:, 1] * size[:, 2], size[:, 0] * size[:, 2], size[:, 0] * size[:, 1]], axis=1)
    points, owners = np.empty((0, 3)), np.empty(0, dtype=int)
    while len(points) < count:
        at = rng.choice(3 * len(given), size=4 * count, p=faces.ravel() / faces.sum())
        box, axis = at // 3, at % 3
        p = low[box] + rng.random((len(at), 3)) * size[box]
        side = rng.random(len(at)) < 0.5
        p[np.arange(len(at)), axis] = np.where(side, low[box, axis], high[box, axis])
        inside = ((p[:, None] > low - 1e-9) & (p[:, None] < high + 1e-9)).sum(2) == 3
        inside[np.arange(len(at)), box] = False
        keep = ~inside.any(1)
        points, owners = np.concatenate([points, p[keep]]), np.concatenate([owners, box[keep]])
    return points[:count], owners[:count]


def sphere(count: int, seed: int = 0, stretch: tuple[float, float, float] = (1, 1, 1)):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * np.array(stretch)


def chair(count: int, seed: int = 0):
    legs = [((x, 0, z), (x + 0.12, 0.9, z + 0.12)) for x in (0, 0.88) for z in (0, 0.88)]
    return boxes(((0, 0.9, 0), (1, 1.05, 1)), ((0, 1.05, 0), (1, 2.1, 0.12)), *legs, count=count, seed=seed)


def count_of(points: np.ndarray, **options) -> int:
    return len(np.unique(decompose_points(points, **options)))


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return adjusted_rand_index(a, b) == 1.0


SHAPES = {
    "sphere": (sphere(1200), 1),
    "ellipsoid": (sphere(1200, stretch=(1, 0.3, 0.5)), 1),
    "box": (boxes(((0, 0, 0), (1, 2, 3)), count=1200)[0], 1),
    "plate": (boxes(((0, 0, 0), (1, 0.02, 1)), count=1200)[0], 1),
    "rod": (boxes(((0, 0, 0), (0.02, 2, 0.02)), count=600)[0], 1),
    "L": (boxes(((0, 0, 0), (1, 0.3, 0.4)), ((0, 0.3, 0), (0.3, 1, 0.4)), count=1500)[0], 2),
    "T": (boxes(((0, 1, 0), (1.2, 1.3, 0.4)), ((0.45, 0, 0), (0.75, 1, 0.4)), count=1500)[0], 2),
    "two spheres": (np.concatenate([sphere(700), sphere(700, 1) + np.array([3, 0, 0])]), 2),
    "sphere and box": (np.concatenate([sphere(700), boxes(((2, 0, 0), (3, 1, 1)), count=400)[0]]), 2),
    "chair": (chair(2048)[0], 6),
    "flat square": (np.pad(np.random.default_rng(0).random((800, 2)), ((0, 0), (0, 1))), 1),
    "line": (np.random.default_rng(0).random((200, 1)) * np.array([1.0, 2.0, 3.0]), 1),
    "four points": (np.eye(4)[:, :3], 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_parts_of_known_shapes_are_counted(name: str):
    points, count = SHAPES[name]
    assert count_of(points) == count


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_box_of_a_chair_is_a_part(seed: int):
    points, truth = chair(2048, seed=seed)
    assert count_of(points) == 6
    assert oracle_part_iou(decompose_points(points), truth) > 0.92


@few
@given(seeds, st.integers(4, 400))
def test_labels_cover_all_points_and_are_numbered_by_size(seed: int, count: int):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    labels = decompose_points(points)
    sizes = np.bincount(labels)
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    assert sizes.min() > 0
    assert (np.diff(sizes) <= 0).all()


@few
@given(seeds)
def test_order_of_the_points_does_not_matter(seed: int):
    points, _ = chair(800)
    order = np.random.default_rng(seed).permutation(len(points))
    assert same_partition(decompose_points(points)[order], decompose_points(points[order]))


@few
@given(st.integers(-30, 30), st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_and_place_do_not_matter(exponent: int, scale: float, shift: float):
    points, _ = chair(800)
    labels = decompose_points(points)
    assert same_partition(labels, decompose_points(points * 2.0**exponent))
    assert adjusted_rand_index(labels, decompose_points(points * scale + shift)) > 0.95


@few
@given(seeds)
def test_points_that_occur_twice_do_not_matter(seed: int):
    points, _ = chair(1000)
    drawn = np.random.default_rng(seed).integers(0, len(points), 3000)  # with replacement
    distinct = np.unique(drawn)
    assert same_partition(
        decompose_points(points[drawn]), decompose_points(points[distinct])[np.searchsorted(distinct, drawn)]
    )
    assert count_of(points[drawn]) <= 7


def test_same_input_same_labels():
    points = chair(3000)[0].astype(np.float32)
    first = decompose_points(points, seed=1)
    assert (first == decompose_points(points, seed=1)).all()
    assert (first != decompose_points(points, seed=2)).any()  # 3,000 points: another 2,048 are cut
    assert adjusted_rand_index(first, decompose_points(points, seed=2)) > 0.8


@pytest.mark.parametrize("sigma", [0.005, 0.01, 0.02])
def test_noise_does_not_shatter(sigma: float):
    points, _ = chair(2048)
    scale = np.linalg.norm(points - points.mean(0), axis=1).max()
    noisy = points + sigma * scale * np.random.default_rng(0).normal(size=points.shape)
    labels = decompose_points(noisy)
    assert 3 <= len(np.unique(labels)) <= 9


def test_normals_keep_surfaces_apart_that_face_each_other():
    rods = [((0, y, 0), (2, y + 0.3, 0.3)) for y in (0, 0.32)]  # the gap is narrower than the spacing
    points, owner = boxes(*rods, count=2048)
    size = np.array([2, 0.3, 0.3])
    away = (points - np.array([[1, y + 0.15, 0.15] for y in (0, 0.32)])[owner]) / size
    side = np.abs(away).argmax(1)
    normals = np.zeros_like(points)
    normals[np.arange(len(points)), side] = np.sign(away[np.arange(len(points)), side])
    links = points_module._cloud(points, None).edges
    kept = points_module._cloud(points, normals).edges
    wall = (side == 1) & (np.abs(points[:, 1] - 0.31) < 0.02)  # the two that face each other
    across = [(wall[e].all(1) & (owner[e[:, 0]] != owner[e[:, 1]])).sum() for e in (links, kept)]
    assert across[0] > 100
    assert across[1] == 0
    same = [(owner[e[:, 0]] == owner[e[:, 1]]).sum() for e in (links, kept)]
    assert same[0] == same[1]
    unknown = decompose_points(points, normals=np.zeros_like(points))
    assert (unknown == decompose_points(points)).all()
    ball, shell = sphere(1000), sphere(1000, seed=1)  # a ball in a hollow one
    both, owner = np.concatenate([0.93 * ball, shell]), np.arange(2000) // 1000
    assert count_of(both) == 1
    assert same_partition(decompose_points(both, normals=np.concatenate([ball, -shell])), owner)


@few
@given(seeds, st.floats(0.001, 0.2))
def test_all_planes_at_once_equal_plane_by_plane(seed: int, thickness: float):
    points, _ = chair(500, seed=seed)
    points = np.unique(points + np.random.default_rng(seed).normal(size=points.shape) * 0.01, axis=0)
    cloud = points_module._cloud(points, None)
    axis = np.random.default_rng(seed).normal(size=3)
    heights = points @ axis
    offsets = np.linspace(heights.min(), heights.max(), 9)[1:-1]
    found = points_module._sweep(points, extent.reach(points), cloud.edges, heights, offsets, thickness)
    for offset, size in zip(offsets, found, strict=True):
        sides = [np.flatnonzero(heights <= offset), np.flatnonzero(heights > offset)]
        if min(map(len, sides)) < points_module.FEWEST:
            assert size == np.inf
            continue
        pieces = [rows for side in sides for rows in points_module._connected(cloud, side)]
        total = sum(extent.size(extent.farthest(points[rows]), thickness) for rows in pieces)
        assert size == pytest.approx(total, rel=1e-6)


@few
@given(seeds, st.integers(5, 200))
def test_size_of_a_hull_is_its_volume_and_grown_by_its_area(seed: int, count: int):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    hull = ConvexHull(points)
    assert extent.size(extent.farthest(points), 0) == pytest.approx(hull.volume, rel=0.1)
    grown = extent.size(extent.farthest(points), 1) - extent.size(extent.farthest(points), 0)
    assert grown == pytest.approx(hull.area, rel=0.1)


def test_concavity_is_the_depth_of_a_notch_and_the_height_of_a_gap():
    none = np.empty((0, 4))
    assert extent.concavity(sphere(2000), none, 0.05) < 0.02
    plates = [((0, y, 0), (1, y + 0.01, 1)) for y in (0, 0.5)]
    between, _ = boxes(*plates, count=3000)
    assert 0.05 < extent.concavity(between, none, 0.02) < 0.25  # the sides stand open, at most 0.25 from a plate
    notched, _ = boxes(((0, 0, 0), (1, 0.5, 1)), ((0, 0.5, 0), (0.3, 1, 1)), ((0.7, 0.5, 0), (1, 1, 1)), count=3000)
    assert extent.concavity(notched, none, 0.05) == pytest.approx(0.3, abs=0.03)  # the walls of the notch are as thick
    half = sphere(4000)
    half = half[half[:, 0] > 0]
    assert extent.concavity(half, none, 0.04) > 0.15  # the open face
    assert extent.concavity(half, np.array([[1.0, 0, 0, 0]]), 0.04) < 0.03  # known to be a cut


def test_levels_nest_and_the_finest_is_first_class():
    points, _ = chair(1500)
    levels = decompose_points_levels(points, tolerances=(0.3, 0.1, 0.03))
    assert levels.shape == (3, 1500)
    for coarse, fine in pairwise(levels):
        assert all(len(np.unique(coarse[fine == label])) == 1 for label in np.unique(fine))
    assert levels[0].max() < levels[2].max()
    assert (decompose_points(points, tolerance=0.03) == levels[2]).all()


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.empty((0, 3)), "no points"),
        (np.zeros((5, 2)), r"\(P, 3\)"),
        (np.zeros((50, 3)), "1 distinct points of 50"),
        (np.eye(3), "3 distinct"),
        (np.array([[0, 0, 0], [1, 0, np.nan], [0, 1, 0], [0, 0, 1]]), "1 of 4 points hold NaN"),
        (np.array([[0, 0, 0], [1, 0, np.inf], [0, 1, 0], [0, 0, 1]]), "infinity"),
    ],
)
def test_unusable_points_are_refused_with_the_reason(points: np.ndarray, words: str):
    with pytest.raises(ValueError, match=words):
        decompose_points(points)


def test_unusable_options_are_refused():
    with pytest.raises(ValueError, match="tolerances"):
        decompose_points(sphere(100), tolerance=0)
    with pytest.raises(ValueError, match="normals of shape"):
        decompose_points(sphere(100), normals=sphere(99))


# Measures -------------------------------------------------------------------------------------------------------------

labels = st.lists(st.integers(0, 5), min_size=2, max_size=25)


@settings(deadline=None)
@given(st.data())
def test_rand_indices_equal_the_count_over_all_pairs(data: st.DataObject):
    a = data.draw(labels)
    b = data.draw(st.lists(st.integers(-2, 3), min_size=len(a), max_size=len(a)))
    pairs = list(combinations(range(len(a)), 2))
    both = np.array([(a[i] == a[j], b[i] == b[j]) for i, j in pairs])
    assert rand_index(a, b) == pytest.approx((both[:, 0] == both[:, 1]).mean())
    # Adjusted: (index - expected) / (maximum - expected), all as numbers of pairs that are together in both.
    together, expected = both.all(1).sum(), both[:, 0].sum() * both[:, 1].sum() / len(pairs)
    most = both.sum() / 2
    adjusted = 1.0 if most == expected else (together - expected) / (most - expected)
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted)


@settings(deadline=None)
@given(st.data())
def test_oracle_part_iou_equals_the_loop_over_points(data: st.DataObject):
    component = np.array(data.draw(labels))
    part = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(component), max_size=len(component))))
    guess = np.empty_like(part)
    for c in set(component.tolist()):
        guess[component == c] = np.bincount(part[component == c]).argmax()
    ious = [((guess == p) & (part == p)).sum() / ((guess == p) | (part == p)).sum() for p in set(part.tolist())]
    assert oracle_part_iou(component, part) == pytest.approx(np.mean(ious))


def test_measures_of_equal_and_of_trivial_labellings():
    part = np.array([0, 0, 1, 1, 2])
    assert oracle_part_iou(part + 7, part) == rand_index(part + 7, part) == adjusted_rand_index(part + 7, part) == 1
    assert oracle_part_iou(np.arange(5), part) == 1
    assert oracle_part_iou(np.zeros(4), [0, 0, 0, 1]) == pytest.approx(0.375)
    assert adjusted_rand_index(np.zeros(5), np.ones(5)) == rand_index([3], [4]) == 1
    with pytest.raises(ValueError, match="5 component labels and 4 part labels"):
        oracle_part_iou(part, part[:4])
