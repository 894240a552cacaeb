"""Learning from the video that is to be followed."""

import copy

import pytest
import torch
from squares import Squares

from partwhole.core.data import BadSample
from partwhole.video.adapt import Adaptation, adapt
from partwhole.video.maps import frame_map
from partwhole.video.network import FrameResNet
from partwhole.video.views import Walk, Walking
from partwhole.video.walk import RandomWalk

few = Adaptation(steps=10, lr=3e-3, size=48, walk=Walk(frames=3, patch=16, grid=3))


def encoder():
    torch.manual_seed(0)
    return FrameResNet(width=0.125, size=32)


def test_it_leaves_the_encoder_as_it_is_and_is_a_function_of_the_seed():
    old, video = encoder(), Squares(frames=20)
    before, x = copy.deepcopy(old.state_dict()), torch.randn(1, 3, 48, 48)
    new, again = adapt(old, video, few), adapt(old, video, few)
    assert all(torch.equal(v, before[k]) for k, v in old.state_dict().items())
    assert old.training
    assert not new.training
    assert torch.equal(frame_map(new, x), frame_map(again, x))
    assert not torch.allclose(frame_map(new, x), frame_map(old.eval(), x), rtol=1e-3)


def test_walks_through_the_video_return_more_often_afterwards():
    old, video = encoder(), Squares(frames=20)
    view = Walking(walk=few.walk, size=48)
    torch.manual_seed(1)
    seen = [view({"video": video}) for _ in range(8)]
    batch = {k: torch.stack([one[k] for one in seen]) for k in seen[0]}

    def chance(network):
        with torch.no_grad():
            return RandomWalk(network, dim=None).train()(batch)["chance"]

    assert chance(adapt(old, video, few)) > chance(old) + 0.05


def test_a_video_that_is_too_short_is_named():
    with pytest.raises(BadSample, match=r"squares 0 has 2 frames.*draw fewer frames"):
        adapt(encoder(), Squares(frames=2), few)
