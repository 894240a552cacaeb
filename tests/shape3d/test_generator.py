"""The generated shapes: what their meshes, labels and samples promise."""

import numpy as np
import pytest

from partwhole.shape3d import files, generator
from partwhole.shape3d.generate import solids


def volume(triangles: np.ndarray) -> float:
    return float(np.einsum("fi,fi->", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])) / 6)


def test_there_are_at_least_eight_categories_of_two_to_six_parts():
    assert len(generator.CATEGORIES) >= 8
    assert all(2 <= len(set(parts)) == len(parts) <= 6 for parts in generator.PARTS.values())


@pytest.mark.parametrize("category", generator.CATEGORIES)
def test_every_solid_is_closed_and_faces_outwards(category):
    for number in range(6):
        made = generator.shape(category, number)
        for piece in range(made.solid.max() + 1):
            faces = made.geometry.faces[made.solid == piece]
            edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
            there, back = ({tuple(e) for e in edges}, {(b, a) for a, b in edges})
            assert len(there) == len(edges), "an edge is run through twice in one direction"
            assert there == back, "an edge has a face on one side only"
            assert volume(made.geometry.vertices[faces]) > 0


@pytest.mark.parametrize("category", generator.CATEGORIES)
def test_meshes_are_small_and_lose_nothing_when_checked(category):
    for number in range(6):
        made = generator.shape(category, number)
        assert 60 <= len(made.geometry.faces) <= 2_000
        assert len(made.part) == len(made.solid) == len(made.geometry.faces)
        checked = files.check(made.geometry, made.name)
        assert len(checked.faces) == len(made.geometry.faces), "degenerate or repeated faces"


@pytest.mark.parametrize("category", generator.CATEGORIES)
def test_every_part_occurs_and_shapes_of_a_category_differ(category):
    made = [generator.shape(category, n) for n in range(24)]
    assert set(np.concatenate([m.part for m in made])) == set(range(len(generator.PARTS[category])))
    assert len({m.geometry.vertices.tobytes() for m in made}) == len(made)
    assert len({len(m.geometry.faces) for m in made}) >= 3, "no variety of structure"
    assert all(len(np.unique(m.part)) >= 2 for m in made)


def test_a_shape_depends_on_its_number_and_seed_and_not_on_how_many_are_made():
    few, many = generator.generate(5, seed=3), generator.generate(30, seed=3)
    for a, b in zip(few, many, strict=False):
        assert a.name == b.name
        assert np.array_equal(a.geometry.vertices, b.geometry.vertices)
    alone = generator.generate(2, seed=3, categories=["chair"])
    assert np.array_equal(alone[1].geometry.vertices, many[12].geometry.vertices)
    other = generator.generate(5, seed=4)
    assert not np.array_equal(few[0].geometry.vertices, other[0].geometry.vertices)


@pytest.mark.parametrize("category", generator.CATEGORIES)
def test_parts_and_convex_pieces_agree_only_roughly(category):
    """In three of four shapes at least: a part of several solids, a solid of several parts, or a hollow one."""
    from scipy.spatial import ConvexHull

    rough = 0
    for number in range(12):
        made = generator.shape(category, number)
        pairs = set(zip(made.solid, made.part, strict=True))
        corners = [made.geometry.vertices[made.geometry.faces[made.solid == s]] for s in range(made.solid.max() + 1)]
        bent = any(volume(c) < 0.8 * ConvexHull(c.reshape(-1, 3)).volume for c in corners)
        rough += bent or len(pairs) != len({s for s, _ in pairs}) or len(pairs) != len({p for _, p in pairs})
    assert rough >= 9


def test_the_winding_number_is_one_inside_a_closed_surface_and_zero_outside():
    cup = solids.shell([(0.5, 0.0), (0.5, 1.0)], 0.1, 0, sides=24)
    skin = cup.vertices[cup.faces]
    inside_the_wall, in_the_hollow, outside = [0.44, 0.5, 0], [0, 0.5, 0], [0.9, 0.5, 0]
    numbers = generator.winding(np.array([inside_the_wall, in_the_hollow, outside]), skin)
    assert np.allclose(numbers, [1, 0, 0], atol=1e-4)


def test_visible_samples_lie_inside_no_other_solid_and_hidden_ones_do():
    a, b = solids.box((0, 0, 0), (2, 2, 2), 0), solids.box((1, 0, 0), (1, 1, 1), 1)
    geometry = files.Geometry(
        np.concatenate([a.vertices, b.vertices]), np.concatenate([a.faces, b.faces + len(a.vertices)])
    )
    which = np.repeat([0, 1], [len(a.faces), len(b.faces)])
    made = generator.Shape("two boxes", "none", geometry, which, which)
    points, normals, part = generator.visible(made, 3_000)
    small, large = points[part == 1], points[part == 0]
    assert (small[:, 0] >= 1 - 1e-9).all(), "the small box is seen only where it sticks out"
    assert not ((np.abs(large[:, 0] - 1) < 1e-9) & (np.abs(large[:, 1:]) < 0.5 - 1e-9).all(1)).any(), (
        "the covered square"
    )
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    # areas: the cube's six sides of 4 without a square of 1, and of the small one half of 4 sides and one side
    assert abs((part == 1).mean() - 3 / 26) < 0.02


@pytest.mark.parametrize("category", ["mug", "lamp"])
def test_the_solids_of_hollow_things_touch_without_crossing(category):
    """Crossing skins make CoACD remesh the whole shape: four times as slow, and slowest for thin walls."""
    crossing = 0
    for number in range(12):
        made = generator.shape(category, number)
        points, _, face = files.sample(made.geometry, 1_500, 0)
        crossing += generator.hidden(made, points, made.solid[face]).any()
    assert crossing <= 1


@pytest.mark.parametrize("category", ["chair", "mug", "quadruped"])
def test_sampling_is_a_function_of_the_seed(category):
    made = generator.shape(category, 1)
    first, again, other = (generator.visible(made, 500, seed=s) for s in (0, 0, 1))
    assert len(first[0]) == len(first[1]) == len(first[2]) == 500
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("suffix", [".off", ".ply"])
def test_written_shapes_come_back_with_their_faces(tmp_path, suffix):
    paths = generator.write(tmp_path, 6, seed=2, suffix=suffix)
    assert files.find(tmp_path) == sorted(paths)
    for path, made in zip(paths, generator.generate(6, seed=2), strict=True):
        read = files.read(path)
        assert np.array_equal(read.faces, made.geometry.faces)
        assert np.allclose(read.vertices, made.geometry.vertices, atol=1e-5)


def test_an_unknown_category_or_format_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no generated category 'sofa'; there are chair"):
        generator.shape("sofa", 0)
    with pytest.raises(ValueError, match=r"\.off or \.ply"):
        generator.write(tmp_path, 1, suffix=".stl")


def test_a_tube_keeps_its_radius_along_a_bent_path():
    path = solids.bezier([(0, 0, 0), (0, 2, 0), (2, 2, 0)], 12)
    bent = solids.tube(path, 0.1, 0, sides=8)
    rings = bent.vertices[: 12 * 8].reshape(12, 8, 3)
    assert np.allclose(np.linalg.norm(rings - path[:, None], axis=-1), 0.1)
