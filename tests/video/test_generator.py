"""Generated clips: what they are a function of, what their masks say, and what colour tells of them."""

import pickle  # noqa: TID251  # of handles, as processes that read data get them

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.video import generator
from partwhole.video.generator import clips
from partwhole.video.readers import Frames


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    number=st.integers(0, 5),
    size=st.sampled_from([16, 33, 64]),
    order=st.permutations(range(5)),
)
def test_a_frame_is_a_function_of_seed_number_and_time(seed, number, size, order):
    short, long = clips(6, frames=5, size=size, seed=seed)[number], clips(9, frames=12, size=size, seed=seed)[number]
    generator.world_of.cache_clear()
    video, ids = short["video"].frames(range(5)), short["masks"].frames(range(5))
    assert video.dtype == torch.uint8
    assert video.shape == (5, 3, size, size)
    assert short["video"].size == (size, size)
    assert ids.dtype == torch.int64
    assert ids.shape == (5, size, size)
    assert torch.equal(long["video"].frames([*order, 0])[:5], video[list(order)])
    assert torch.equal(long["masks"].frames([*order, 0])[:5], ids[list(order)])
    assert len(long["video"]) == 12
    assert long["video"].times()[3] == 0.3


def test_other_seeds_and_numbers_are_other_clips():
    one, two = clips(2, seed=0), clips(2, seed=1)
    pictures = [c[i]["video"].frames([0]) for c in (one, two) for i in (0, 1)]
    assert len({p.numpy().tobytes() for p in pictures}) == 4
    assert one.key != two.key != clips(2, seed=1, speed=2.0).key
    assert one.subset([1]).key != one.subset([0]).key
    assert torch.equal(one.subset([1])[0]["video"].frames([3]), one[1]["video"].frames([3]))
    assert one.subset([1]).names == [one.names[1]] == [one[1]["video"].name]


@pytest.mark.parametrize("objects", [(1, 1), (2, 3), (6, 8)])
def test_every_object_is_seen_in_the_first_frame(objects):
    counts = set()
    for sample in clips(60, frames=2, size=32, seed=3, objects=objects):
        first = sample["masks"].frames([0])[0]
        found = first.unique().tolist()
        assert found == list(range(len(found)))
        counts.add(len(found) - 1)
        assert min(int((first == k).sum()) for k in found) >= 8
    assert counts == set(range(objects[0], objects[1] + 1))


def test_objects_move_deform_and_cover_each_other_and_nothing_does_at_speed_0():
    moved, areas, covered = [], [], 0
    for sample in clips(20, frames=16, size=48, seed=1):
        ids = sample["masks"].frames(range(16))
        for k in ids[0].unique().tolist()[1:]:
            area = (ids == k).sum((1, 2))
            areas.append(float(area.max() / area[0]))
            covered += bool(area.min() < 0.5 * area[0])
            both, either = ((ids == k) & (ids[0] == k)).sum((1, 2)), ((ids == k) | (ids[0] == k)).sum((1, 2))
            moved.append(float((both / either)[1:].mean()))
    assert 0.15 < sum(moved) / len(moved) < 0.35  # the first mask, copied, is far off
    assert covered >= 5
    still = clips(3, frames=6, size=32, speed=0.0)[1]["masks"].frames(range(6))
    assert torch.equal(still, still[:1].expand_as(still))


@pytest.mark.parametrize(("tint", "least", "most"), [(0.0, 0.0, 1.2), (0.4, 0.9, 1.6), (1.0, 1.7, 9.0)])
def test_colour_tells_an_object_from_the_ground_as_far_as_it_shall(tint, least, most):
    """By how much the mean colour of an object differs from that of the ground, beside patches of the ground."""
    apart, within = [], []
    for sample in clips(30, frames=1, size=64, seed=2, tint=tint, coarse=0.0):
        image, ids = sample["video"].frames([0])[0].double() / 255, sample["masks"].frames([0])[0]
        for k in ids.unique().tolist()[1:]:
            apart.append(float((image[:, ids == k].mean(1) - image[:, ids == 0].mean(1)).norm()))
        cells = image.unfold(1, 16, 16).unfold(2, 16, 16).mean((-2, -1)).flatten(1)
        within.append(float((cells - cells.mean(1, keepdim=True)).norm(dim=0).mean()))
    ratio = (sum(apart) / len(apart)) / (sum(within) / len(within))
    assert least < ratio < most, ratio


def test_a_surface_goes_along_with_its_object():
    """Pixels of one place of the surface look alike at two times; pixels of one place of the frame do not."""
    where, colours = [], []
    sample = clips(1, frames=30, size=96, seed=10, objects=(1, 1), tint=0.0, coarse=0.0)[0]
    (thing,) = generator.world_of(sample["video"].making, 0).things
    at = (np.arange(96) + 0.5) / 96
    for t in (0, 7):
        middle = thing.at(t)
        assert (np.abs(middle - 0.5) <= 0.5 - thing.radius + 1e-9).all()
        u, v, inside = thing.surface(at[None] - middle[0], at[:, None] - middle[1], t)
        where.append(torch.from_numpy(np.stack([u, v])))
        assert torch.equal(sample["masks"].frames([t])[0] == 1, torch.from_numpy(inside > 0))
        colours.append(sample["video"].frames([t])[0].double())
    one = np.full((1, 1), 0.1)
    (u, v), (u7, v7) = (thing.surface(one, one, t)[:2] for t in (0, 7))
    turned = float(np.arctan2(v7, u7).item() - np.arctan2(v, u).item())
    assert np.cos(turned + 7 * thing.turn[1]) > 0.9 > np.cos(turned)
    on = sample["masks"].frames([0])[0] == 1
    nearest = torch.cdist(where[0][:, on].mT, where[1].flatten(1).mT).argmin(1)
    before, after, same = colours[0][:, on], colours[1].flatten(1)[:, nearest], colours[1][:, on]
    before, after, same = (x - x.mean(1, keepdim=True) for x in (before, after, same))
    along, still = (float((before * x).sum() / before.norm() / x.norm()) for x in (after, same))
    assert along > 0.5  # noise and light are of each frame
    assert still < 0.25


def test_handles_are_small_and_memory_is_bounded():
    c = clips(10_000, frames=1000, size=256)
    assert len(pickle.dumps(c[77])) < 1000
    assert len(pickle.dumps(c)) < 1000
    copy = pickle.loads(pickle.dumps(c[77]))
    assert torch.equal(copy["video"].frames([9]), c[77]["video"].frames([9]))
    assert generator.world_of.cache_info().maxsize <= 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"frames": 0},
        {"size": 8},
        {"objects": (3, 2)},
        {"objects": (0, 2)},
        {"objects": (1, 9)},
        {"speed": -1.0},
    ],
)
def test_what_cannot_be_drawn_is_told(wrong):
    with pytest.raises(ValueError, match=r"expected|from 1 to 8"):
        clips(**{"count": 2, **wrong})


def test_frames_that_are_not_there_are_told():
    for handle in (*clips(1, frames=3)[0].values(), Frames(torch.zeros(3, 3, 4, 5, dtype=torch.uint8))):
        for wrong in (3, -1):
            with pytest.raises(IndexError, match="from 0 to 2"):
                handle.frames([0, wrong])
