"""Clips and blocks of frames: which frames, and that all of them are cropped and coloured alike where they shall be."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.video.clip_views import Blocks, Clip, dpc
from partwhole.video.readers import Frames
from partwhole.vision import policies
from partwhole.vision.views import Augment


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_times(length, frames, stride, seed, middle):
    clip = Clip(augment=policies.plain(8), frames=frames, stride=stride, middle=middle)
    torch.manual_seed(seed)
    if length < frames:
        with pytest.raises(ValueError, match=f"has {length} frames, and a clip {frames}"):
            clip.times(length)
        return
    times = clip.times(length)
    assert len(times) == frames
    assert 0 <= times[0]
    assert times[-1] < length
    step = {b - a for a, b in itertools.pairwise(times)}
    assert len(step) == (frames > 1)
    if (frames - 1) * stride < length and frames > 1:
        assert step == {stride}
    elif frames > 1:
        assert (frames - 1) * (min(step) + 1) >= length  # the largest that fits
    if middle:
        assert abs(times[0] - (length - 1 - times[-1])) <= 1


def test_every_start_is_as_likely():
    torch.manual_seed(0)
    clip = Clip(augment=policies.plain(8), frames=3, stride=2)
    counts = torch.bincount(torch.tensor([clip.times(10)[0] for _ in range(6000)]))
    assert len(counts) == 6
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations


def video(frames: int = 6, same: bool = True) -> dict:
    torch.manual_seed(3)
    x = torch.randint(256, (1 if same else frames, 3, 20, 30), dtype=torch.uint8)
    return {"video": Frames(x.expand(frames, -1, -1, -1))}


def test_all_frames_are_changed_alike():
    clip = Clip(augment=policies.simclr(16), frames=5, stride=1)
    for seed in range(6):
        torch.manual_seed(seed)
        x = clip(video())
        assert x.shape == (3, 5, 16, 16)
        assert x.dtype == torch.float32
        assert torch.equal(x, x[:, :1].expand_as(x))


def test_framewise_colours_differ_and_crops_do_not():
    augment = dpc(16)
    one = Clip(augment=augment, frames=5, stride=1, framewise=True)
    torch.manual_seed(0)
    x = one(video())
    assert min(float((x[:, t] - x[:, 0]).abs().max()) for t in range(1, 5)) > 0.05
    same = Clip(augment=Augment(size=16, scale=(0.3, 1.0)), frames=5, stride=1, framewise=True)
    x = same(video())
    assert torch.equal(x, x[:, :1].expand_as(x))
    sample, some = video(), Clip(augment=Augment(size=8, grey=0.5), frames=6, stride=1, framewise=True)
    grey = [some(sample) for _ in range(60)]
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (augment.mean, augment.std))
    share = torch.stack([((x * std + mean).std(0) < 1e-4).all(-1).all(-1).double().mean() for x in grey])
    assert 0.4 < share.mean() < 0.6
    assert ((share > 0) & (share < 1)).any()


def test_a_view_is_that_of_the_frames_one_by_one():
    sample = video(same=False)
    clip = Clip(augment=policies.plain(20), frames=3, stride=2, middle=True)
    frames = sample["video"].frames(clip.times(6))
    expected = torch.stack([clip.augment({"image": f}) for f in frames], 1)
    assert torch.equal(clip(sample), expected)


def test_only_the_frames_of_the_clip_are_read():
    class Counting(Frames):
        read: list = []

        def frames(self, indices):
            self.read.append(list(indices))
            return super().frames(indices)

    x = Counting(torch.zeros(100, 3, 8, 8, dtype=torch.uint8))
    Clip(augment=policies.plain(8), frames=4, stride=7)({"video": x})
    assert len(x.read) == 1
    assert len(x.read[0]) == 4


def test_blocks_are_the_clip_cut_up():
    sample = video(12, same=False)
    clip = Clip(augment=policies.mae(8), frames=12, stride=1)
    torch.manual_seed(1)
    whole = clip(sample)
    torch.manual_seed(1)
    x = Blocks(clip=clip, blocks=4)(sample)["x"]
    assert x.shape == (4, 3, 3, 8, 8)
    for n in range(4):
        assert torch.equal(x[n], whole[:, 3 * n : 3 * n + 3])


def test_what_cannot_be_is_told():
    for wrong in ({"frames": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            Clip(augment=policies.plain(8), **wrong)
    for blocks in (0, 5):
        with pytest.raises(ValueError, match="cannot be cut"):
            Blocks(clip=Clip(augment=policies.plain(8), frames=8), blocks=blocks)
