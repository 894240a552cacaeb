"""Views of shapes: geometry that is kept, labels that follow, and randomness that is a function of the seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.shape3d import views
from partwhole.shape3d.views import Augment, Crops, Views

fast = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)


def sphere(count: int, levels: int = 2) -> dict:
    """A sphere whose part is the half and whose components are the octants (level 1: the halves)."""
    normals = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    sign = (normals > 0).long()
    component = torch.stack([sign @ torch.tensor([1, 2, 4]), sign[:, 0]])[:levels]
    return {"points": normals.clone(), "normals": normals, "part": sign[:, 1], "component": component,
            "category": torch.tensor(3)}  # fmt: skip


@fast
@given(seeds, st.sampled_from(["x", "y", "z", None]))
def test_rotations_are_orthonormal_with_determinant_one_and_keep_their_axis(seed, up):
    torch.manual_seed(seed)
    matrix = views.rotation(up).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(3).double(), atol=1e-6)
    assert abs(float(torch.linalg.det(matrix)) - 1) < 1e-6
    if up is not None:
        axis = torch.eye(3).double()[views.AXES[up]]
        assert torch.allclose(matrix @ axis, axis)


def test_free_rotations_point_everywhere_evenly():
    torch.manual_seed(0)
    ends = torch.stack([views.rotation(None)[:, 0] for _ in range(3000)])
    assert ends.mean(0).abs().max() < 0.05
    assert (ends.T @ ends / 3000 - torch.eye(3) / 3).abs().max() < 0.03


@fast
@given(seeds, st.floats(0.3, 1.0), st.floats(1.0, 3.0))
def test_normals_stay_at_right_angles_to_the_surface_under_uneven_scale(seed, low, high):
    torch.manual_seed(seed)
    u, v = torch.randn(2, 50, 3)
    normals = torch.nn.functional.normalize(torch.linalg.cross(u, v), dim=-1)
    matrix = views.stretch(low, high) @ views.rotation(None)
    moved_u, moved = views.transform(u, normals, matrix)
    moved_v, _ = views.transform(v, None, matrix)
    assert moved is not None
    assert (moved * torch.nn.functional.normalize(moved_u, dim=-1)).sum(-1).abs().max() < 1e-3
    assert (moved * torch.nn.functional.normalize(moved_v, dim=-1)).sum(-1).abs().max() < 1e-3
    assert torch.allclose(moved.norm(dim=-1), torch.ones(50), atol=1e-5)
    # and outside stays outside
    outside = torch.linalg.cross(moved_u, moved_v)
    assert ((outside * moved).sum(-1) > 0).all()


def test_unknown_normals_stay_zero():
    _, moved = views.transform(torch.randn(5, 3), torch.zeros(5, 3), views.rotation(None))
    assert moved is not None
    assert (moved == 0).all()


@fast
@given(seeds, st.integers(1, 200), st.integers(1, 300), st.floats(0, 0.9))
def test_choices_repeat_nothing_while_there_is_enough_and_spread_repeats_evenly(seed, size, count, dropout):
    torch.manual_seed(seed)
    index = views.choose(size, count, dropout=dropout)
    assert len(index) == count
    assert 0 <= int(index.min()) <= int(index.max()) < size
    times = torch.bincount(index, minlength=size)
    used = times[times > 0]
    assert int(used.max() - used.min()) <= 1
    assert int((times > 0).sum()) >= min(count, size - int(size * dropout))


@fast
@given(seeds, st.integers(1, 150), st.sampled_from(["axis", "so3", "none"]), st.booleans())
def test_labels_and_components_follow_their_points(seed, points, rotate, normals):
    torch.manual_seed(seed)
    sample = sphere(100)
    sample["points"] += torch.arange(100)[:, None]  # so that a point tells which it was
    augment = Augment(points=points, rotate=rotate, normals=normals)
    index = views.choose(100, points)
    view = augment.on(sample, index)
    assert torch.equal(view["part"], sample["part"][index])
    assert torch.equal(view["component"], sample["component"][:, index])
    assert int(view["category"]) == 3
    assert view["x"].shape == (points, 6 if normals else 3)
    assert "valid" not in view  # all are real, and a network without a mask is twice as fast
    # the view is an affine map of the chosen points in their order
    if points > 10:
        chosen = torch.cat([sample["points"][index], torch.ones(points, 1)], 1).double()
        fitted = torch.linalg.lstsq(chosen, view["x"][:, :3].double(), driver="gelsd").solution
        assert (chosen @ fitted - view["x"][:, :3]).abs().max() < 1e-3


@pytest.mark.parametrize("view", [Augment(dropout=0.3, jitter=0.01), Views(), Crops(by_component=0.5, recentre=True)])
def test_a_view_is_a_function_of_torchs_seed(view):
    sample = sphere(600)

    def flat(made: dict) -> torch.Tensor:
        tensors = [made["x"]] if "x" in made else made["views"] + made.get("crops", [])
        return torch.cat([t.flatten() for t in tensors])

    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(flat(view(sample)))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_view_leaves_the_sample_alone():
    sample = sphere(200)
    before = {k: v.clone() for k, v in sample.items()}
    torch.manual_seed(0)
    for view in (Augment(points=300, normals=True, jitter=0.1), Views(), Crops(recentre=True)):
        made = view(sample)
        for tensor in made.get("views", [made.get("x")]):
            tensor += 1
    assert all(torch.equal(before[k], sample[k]) for k in sample)


def test_every_option_changes_the_view():
    sample = sphere(300)

    def made(**options) -> torch.Tensor:
        torch.manual_seed(5)
        return Augment(points=200, **options)(sample)["x"]

    base = made(rotate="none", scale=(1.0, 1.0), shift=0.0)
    changes = [{"rotate": "axis"}, {"rotate": "so3"}, {"scale": (0.5, 0.6)}, {"shift": 0.3}, {"jitter": 0.1},
               {"dropout": 0.7}, {"normals": True}, {"points": 100}]  # fmt: skip
    for change in changes:
        torch.manual_seed(5)
        options = {"points": 200, "rotate": "none", "scale": (1.0, 1.0), "shift": 0.0, **change}
        other = Augment(**options)(sample)["x"]
        assert other.shape != base.shape or not torch.equal(other, base), change
    x, y = (made(rotate="axis", up=up, scale=(1.0, 1.0), shift=0.0) for up in ("x", "y"))
    assert not torch.equal(x, y)


def test_without_any_change_a_view_is_the_sample():
    sample = sphere(100)
    view = views.plain(sample, normals=True)
    assert torch.equal(view["x"][:, :3], sample["points"])
    assert torch.allclose(view["x"][:, 3:], sample["normals"])
    assert torch.equal(view["part"], sample["part"])


def test_a_neighbourhood_holds_the_nearest_points():
    points = torch.randn(300, 3)
    near = views.neighbourhood(points, 7, 40)
    distance = (points - points[7]).norm(dim=-1)
    rest = torch.ones(300, dtype=torch.bool)
    rest[near] = False
    assert 7 in near
    assert len(near) == 40
    assert distance[near].max() <= distance[rest].min()
    assert len(views.neighbourhood(points, 7, 999)) == 300


def test_a_component_crop_is_one_whole_component():
    sample = sphere(800, levels=1)
    crops = Crops(by_component=1.0, share=(0.01, 0.01))
    for seed in range(20):
        torch.manual_seed(seed)
        inside = crops.crop(sample)
        found = torch.unique(sample["component"][0][inside])
        assert len(found) == 1
        assert len(inside) == int((sample["component"][0] == found[0]).sum())


def test_a_small_component_is_filled_up_with_the_points_around_it():
    sample = sphere(400, levels=1)
    sample["component"] = torch.arange(400)[None]
    torch.manual_seed(0)
    inside = Crops(by_component=1.0, share=(0.2, 0.3)).crop(sample)
    assert len(inside) == 80


@fast
@given(seeds, st.integers(1, 500))
def test_crops_have_the_sizes_asked_for_whatever_the_shape(seed, size):
    torch.manual_seed(seed)
    made = Crops(Augment(points=64, normals=True), views=2, crops=3, points=32)(sphere(size))
    assert [tuple(v.shape) for v in made["views"]] == [(64, 6)] * 2
    assert [tuple(c.shape) for c in made["crops"]] == [(32, 6)] * 3
    assert all(torch.isfinite(t).all() for t in made["views"] + made["crops"])


def test_samples_of_numpy_arrays_do_as_well():
    sample = {k: v.numpy() for k, v in sphere(50).items()}
    assert Augment(points=20, normals=True)(sample)["x"].shape == (20, 6)
    assert len(Crops(points=8)(sample)["crops"]) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rotate": "sideways"}, "axis"),
        ({"up": "w"}, "'x', 'y' or 'z'"),
        ({"points": 0}, "1 or more"),
        ({"scale": (0.0, 1.0)}, "low <= high"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"unturned": 1.5}, "unturned <= 1"),
    ],
)
def test_impossible_options_say_what_is_expected(options, told):
    with pytest.raises(ValueError, match=told):
        Augment(**options)


def test_asking_for_normals_that_are_not_there_is_an_error():
    with pytest.raises(ValueError, match="normals=False"):
        Augment(normals=True)({"points": torch.randn(5, 3)})
    with pytest.raises(ValueError, match="without points"):
        views.choose(0, 5)
    with pytest.raises(ValueError, match="about any axis"):
        views.rotation("north")


def test_the_share_that_stays_unturned_is_the_one_asked_for():
    torch.manual_seed(0)
    sample = sphere(6)
    still = {"scale": (1.0, 1.0), "shift": 0.0}
    for share in (0.0, 0.3, 1.0):
        augment = Augment(points=6, rotate="so3", unturned=share, **still)
        seen = [augment(sample)["x"] for _ in range(400)]
        kept = sum(torch.allclose(x.sort(0).values, sample["points"].sort(0).values) for x in seen) / len(seen)
        assert abs(kept - share) < 0.08
        assert share not in (0, 1) or kept == share


def test_a_shape_that_is_one_component_is_cropped_by_neighbourhood():
    sample = {"points": torch.rand(100, 3), "component": torch.zeros(1, 100, dtype=torch.long)}
    assert len(Crops(by_component=1.0, share=(0.2, 0.3)).crop(sample)) <= 30
