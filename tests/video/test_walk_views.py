"""Which frames are drawn, which patches are cut from them, which edges are dropped; pairs of frames."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import Squares, clips

from partwhole.core.data import BadSample, Stream, collate
from partwhole.video.views import FramePair, OneFrame, Walk, Walking, begins, draw
from partwhole.vision import policies, resample

quick = settings(max_examples=25, deadline=None, derandomize=True)
still = Walk(crop=(1.0, 1.0), jitter=(1.0, 1.0), dropout=0.0)


def drawn(video, count, rate, times=200):
    torch.manual_seed(0)
    return [draw(video, count, rate) for _ in range(times)]


@quick
@given(st.integers(1, 30), st.integers(1, 8), st.sampled_from([1.0, 8.0, 12.5, 25.0, 60.0]), st.integers(0, 99))
def test_frames_are_those_nearest_to_their_moments(length, count, rate, seed):
    video = Squares(frames=length, fps=25.0)
    torch.manual_seed(seed)
    if (count - 1) / rate > (length - 0.5) / 25 or count > length:
        with pytest.raises(ValueError, match="draw fewer frames, or more per second, or leave it out"):
            draw(video, count, rate)
        return
    frames = draw(video, count, rate)
    assert len(set(frames)) == count
    assert frames == sorted(frames)
    assert 0 <= frames[0] <= frames[-1] < length
    for i, frame in enumerate(frames):
        ideal = frames[0] + (i * 25 / rate if rate <= 25 else i)
        assert abs(frame - ideal) <= 0.5 + 1e-9


def test_every_beginning_is_as_likely_as_another():
    firsts = torch.tensor([frames[0] for frames in drawn(Squares(frames=10, fps=8.0), 3, 4.0, 3000)])
    counts = firsts.bincount()
    assert len(counts) == 6
    assert (counts - 500).abs().max() < 5 * math.sqrt(500)


def test_frames_that_last_longer_are_drawn_by_their_time():
    """Four frames a second, then one that stays for two seconds."""
    video = Squares(frames=6, times=[0, 0.25, 0.5, 0.75, 2.75, 3.0])
    assert {tuple(f) for f in drawn(video, 3, 4.0)} <= {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}
    assert {tuple(f) for f in drawn(video, 4, 1.0)} == {(0, 3, 4, 5), (1, 3, 4, 5)}
    assert begins(video, 7, 4.0)[0].tolist() == []


def test_a_video_that_is_too_short_is_named_with_what_to_do():
    with pytest.raises(ValueError, match=r"squares 3 has 2 frames in 0.12 s, and 4 at 8 per second take 0.38 s"):
        draw(Squares(3, frames=2), 4, 8.0)
    view = Walking(walk=still, size=64)
    with pytest.raises(BadSample, match=r"sample 0.*squares 0 has 3 frames.*leave it out"):
        next(Stream(clips(1, frames=3), view, batch=1)())


def test_only_the_frames_of_the_walk_are_read():
    video = Squares(frames=20)
    Walking(walk=Walk(frames=4), size=64)({"video": video})
    FramePair(looks=policies.looks("mae", 16))({"video": video})
    assert [len(indices) for indices in video.read] == [4, 2]


# ------------------------------------------------------------------ patches


def test_patches_without_jitter_are_windows_of_the_frame():
    view = Walking(walk=replace(still, patch=16, grid=7), size=64)
    x = torch.arange(2.0 * 3 * 64 * 64).view(2, 3, 64, 64)
    windows = x.unfold(2, 16, 8).unfold(3, 16, 8)  # (T, 3, 7, 7, 16, 16)
    assert torch.allclose(view.patches(x), windows.flatten(2, 3).transpose(1, 2), rtol=1e-5)
    one = Walking(walk=replace(still, patch=16, grid=1), size=64)
    assert torch.allclose(one.patches(x)[:, 0], x[:, :, 24:40, 24:40], rtol=1e-5)


def test_jittered_patches_lie_within_their_windows_and_fill_them_as_told():
    """Of a picture whose pixels say where they are."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    x = torch.stack([rows, columns, 0 * rows]).expand(40, 3, 64, 64)
    torch.manual_seed(0)
    cut = Walking(walk=Walk(patch=16, grid=7, jitter=(0.5, 0.8)), size=64).patches(x)
    assert cut.shape == (40, 49, 3, 16, 16)
    low, high = cut[:, :, :2].amin((-1, -2)), cut[:, :, :2].amax((-1, -2))
    corner = 8 * torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij"), -1).view(49, 2)
    assert (low >= corner - 0.5).all()
    assert (high <= corner + 15.5).all()
    side = (high - low) / 15  # of the middles of 16 pixels
    area = side.prod(-1)
    assert area.min() > 0.45
    assert area.max() < 0.81
    assert area.mean() == pytest.approx(0.65, abs=0.02)
    for t, other in ((0, 1), (5, 6)):  # every patch of every frame has a cut of its own
        assert (low[t] != low[other]).any(-1).all()
    middle = ((low + high) / 2 - corner - 7.5).mean((0, 1))
    assert middle.abs().max() < 0.15


def test_frames_are_whole_where_there_are_no_patches_and_each_has_its_crop():
    video = Squares(frames=1, high=48, wide=48)
    video.x, video.at = video.x.repeat(8, 1, 1, 1), torch.arange(8) / 8.0
    whole = Walking(walk=replace(still, patch=0), size=32)({"video": video})["x"]
    expected = resample.crops(video.x[:1], torch.tensor([[0, 0, 48, 48, 0]]), 32)[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (Walking.mean, Walking.std))
    assert torch.allclose(whole, ((expected - mean) / std).expand(4, -1, -1, -1), atol=1e-5)
    torch.manual_seed(0)
    cropped = Walking(walk=Walk(patch=0, dropout=0.0), size=32)({"video": video})["x"]
    assert all(not torch.equal(cropped[i], cropped[j]) for i in range(4) for j in range(i))


# ------------------------------------------------------------------ edges and shifts


@pytest.mark.parametrize("again", [False, True])
def test_edges_are_dropped_apart_on_the_way_home_or_as_the_authors_do(again):
    torch.manual_seed(0)
    view = Walking(walk=Walk(patch=0, dropout=0.1, again=again), size=32, nodes=200)
    out, home = view.edges()
    home = home.mT
    both, rate = (out & home).double().mean(), 0.1
    assert out.shape == (3, 200, 200)
    assert out.double().mean() == pytest.approx(rate, abs=0.005)
    assert home.double().mean() == pytest.approx(0.19 if again else rate, abs=0.005)  # 1 - .9 * .9
    assert both == pytest.approx(rate if again else rate**2, abs=0.005)


def test_what_is_drawn_is_of_the_seed_the_step_and_the_sample():
    """The same in one process and in a worker; other frames, edges and shifts in the next epoch."""
    view = Walking(walk=Walk(patch=0), size=32, nodes=16, roll=8)
    here, there = (Stream(clips(4), view, batch=4, seed=5, workers=w)() for w in (0, 1))
    first, second = next(here), next(here)
    worker = next(there)
    assert set(first) == {"x", "dropped", "shift"}
    assert first["dropped"].shape == (4, 2, 3, 16, 16)
    assert set(first["shift"].unique().tolist()) <= {0, 8, 16, 24}
    for key in first:
        assert torch.equal(first[key], worker[key])
        assert not torch.equal(first[key], second[key])


# ------------------------------------------------------------------ pairs


class Numbers(Squares):
    """Frames whose pixels are their number."""

    def frames(self, indices):
        self.read.append(list(indices))
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()


def numbers(x):
    mean, std = torch.tensor(Walking.mean)[:, None, None], torch.tensor(Walking.std)[:, None, None]
    return int(((x * std + mean) * 255).round().mean())


def test_a_pair_is_of_two_frames_not_further_apart_than_told():
    view = FramePair(looks=policies.looks("mae", 8, crops=2), apart=0.5)
    video, apart = Numbers(frames=40, fps=8.0), []
    for seed in range(300):
        torch.manual_seed(seed)
        seen = view({"video": video})
        one, two = video.read[-1]
        assert [numbers(x) for x in seen["views"]] == [one, two]
        assert [numbers(x) for x in seen["crops"]] == [one, two]
        apart.append(two - one)
    assert set(apart) == {-4, -3, -2, -1, 1, 2, 3, 4}
    assert {pair[0] for pair in video.read} >= {0, 39}
    assert set(collate([view({"video": video}) for _ in range(2)])) == {"views", "crops"}
    assert set(replace(view, looks=policies.looks("mae", 8))({"video": video})) == {"views"}


def test_a_video_of_one_frame_is_a_pair_with_itself():
    FramePair(looks=policies.looks("simclr", 8))({"video": (video := Numbers(frames=1))})
    assert video.read == [[0, 0]]
    assert OneFrame(look=policies.plain(8))({"video": video}).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Walk(frames=1), "2 or more"),
        (lambda: Walk(rate=0), "more than 0"),
        (lambda: Walk(patch=-1), "1 or more, of 0"),
        (lambda: Walk(crop=(0.9, 0.8)), "crop is"),
        (lambda: Walk(dropout=1.0), "a chance, 0 or more and less than 1"),
        (lambda: Walking(walk=Walk(patch=32), size=31), "lower walk.patch"),
        (lambda: Walking(walk=Walk(patch=0), size=32), "set nodes"),
        (lambda: Walking(walk=Walk(patch=8), size=32, roll=8), "whole frames alone are rolled"),
        (lambda: Walking(walk=Walk(patch=0), size=32, nodes=16, roll=5), "by a part of their 32 pixels; not 5"),
        (lambda: FramePair(looks=policies.looks("mae", 8), apart=-1), "apart is -1"),
        (lambda: draw(Squares(), 2, 0.0), "at more than 0"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
