"""Clips with sound: heard when an object touches a side, at a pitch that its texture tells."""

import numpy as np
import pytest
import torch

from partwhole.video import generator
from partwhole.video.sounding import PITCH, sounding


def test_what_is_heard_is_of_what_is_seen():
    some = sounding(5, frames=20, size=32, seed=3)
    assert len(some) == 5
    one = some[2]
    assert one["rate"] == 8000
    assert one["sound"].shape == (16000,)
    assert one["sound"].dtype == torch.float32
    assert one["sound"].abs().max() <= 1
    assert len(one["video"]) == len(one["masks"]) == 20
    assert torch.equal(one["sound"], sounding(9, frames=20, size=32, seed=3)[2]["sound"])
    assert torch.equal(some.subset([2])[0]["sound"], one["sound"])
    assert not torch.equal(some[1]["sound"], one["sound"])
    assert [s["rate"] for s in some[1:3]] == [8000, 8000]
    assert some.key != sounding(5, frames=20, size=32, seed=3, rate=16000).key
    assert some.names[2] == one["video"].name


def test_a_tone_is_heard_where_an_object_touches_a_side():
    some, heard = sounding(20, frames=24, size=32, seed=1, objects=(1, 1)), 0
    for i, sample in enumerate(some):
        (thing,) = generator.world_of(some.silent.making, i).things
        bounces = thing.bounces(24)
        for time, pace in bounces.tolist():
            middle, r = thing.at(time), thing.radius
            assert min(np.abs(middle - r).min(), np.abs(middle - (1 - r)).min()) < 1e-9
            assert pace == pytest.approx(np.abs(thing.pace).min()) or pace == pytest.approx(np.abs(thing.pace).max())
            if pace < 0.02:
                continue
            heard += 1
            at = round(time / 10 * 8000)
            before, after = (sample["sound"][max(0, at - 400) : at], sample["sound"][at : at + 400])
            if len(before) == len(after) == 400 and np.diff(bounces[:, 0], prepend=-99)[bounces[:, 0] == time] > 6:
                assert after.square().mean() > 20 * before.square().mean()
        # by small steps: as many turns of direction as bounces
        path = np.stack([thing.at(t) for t in np.arange(0, 24, 0.01)])
        turns = (np.diff(np.sign(np.diff(path, axis=0)), axis=0) != 0).sum()
        assert abs(turns - len(bounces)) <= 2 * (len(bounces) > 0)
        if not len(bounces):
            assert sample["sound"].abs().max() < 0.03
    assert heard >= 15


def test_the_pitch_is_told_by_the_texture():
    some, found = sounding(30, frames=24, seed=2, objects=(1, 1), speed=3.0), 0
    for i, sample in enumerate(some):
        (thing,) = generator.world_of(some.silent.making, i).things
        if sample["sound"].abs().max() > 0.1:
            found += 1
            spectrum = torch.fft.rfft(sample["sound"].double()).abs()
            top = float(spectrum.argmax()) * 8000 / len(sample["sound"])
            assert top == pytest.approx(PITCH * thing.waves, abs=8)
    assert found >= 20


def test_what_cannot_be_heard_is_told():
    with pytest.raises(ValueError, match="4800 or more"):
        sounding(2, rate=1000)
