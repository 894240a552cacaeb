"""Which seconds of a clip are seen and heard; files with sound, without, silent, too short."""

import numpy as np
import pytest
import torch
from films import film

from partwhole.audio.mel import Mel
from partwhole.core.data import Stream
from partwhole.core.sees import Numbered, WithIndex
from partwhole.multimodal.samples import Source, generated, with_sound
from partwhole.multimodal.views import Paired, Seconds
from partwhole.video.clips import read_clips
from partwhole.video.packets import BadVideo
from partwhole.video.readers import Frames
from partwhole.vision.views import Augment

RATE = 1_000
MEL = Mel(rate=RATE, bands=8, low=20)


def counted(frames=20, *, fps=10.0, seconds=None):
    """Frame t is all of brightness 10 t; sound sample n is n / 4000: both say what time it is."""
    x = (10 * torch.arange(frames, dtype=torch.uint8))[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    count = round((frames / fps if seconds is None else seconds) * RATE)
    return {"video": Frames(x, fps=fps, name="counted"), "sound": torch.arange(count) / 4000, "rate": RATE}


def paired(**how):
    look = Augment(size=8, scale=None, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    gain = how.pop("gain", 0.0)
    return Paired(look=look, mel=MEL, seconds=Seconds(**{"seconds": 0.8, "frames": 4, **how}), gain=gain)


@pytest.mark.parametrize("fps", [10.0, 25.0, 29.97])
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_what_is_seen_is_what_is_heard(fps, frames):
    sample, seconds = counted(round(2 * fps), fps=fps), Seconds(seconds=0.8, frames=frames)
    starts = seconds.starts(sample)
    for start in starts.tolist():
        sound = seconds.heard(sample, start)
        assert len(sound) == 800
        assert float(sound[0]) * 4 == pytest.approx(start, abs=6e-4)
        for k, i in enumerate(seconds.shown(sample, start)):
            asked = start + (k + 0.5) * 0.8 / frames
            assert i / fps <= asked + 1e-5
            assert asked < (i + 1) / fps or i == len(sample["video"]) - 1
    assert float(starts[0]) == 0
    assert float(starts[-1]) + 0.8 <= 2.05


def test_sound_out_of_time_is_so_by_the_gap_and_goes_through_all_of_it():
    sample, seconds = counted(30), Seconds(seconds=0.8, frames=1, gap=0.5)
    starts = seconds.starts(sample)
    for start in starts.tolist():
        found = torch.tensor([seconds.out_of_time(sample, start, s) for s in np.linspace(0, 1, 201)])
        assert ((found - start).abs() >= 0.5 - 1e-6).all()
        assert float(found.min()) >= 0
        assert float(found.max()) <= 2.2 + 1e-6
        before, after = max(0.0, start - 0.5), max(0.0, 1.7 - start)
        assert (found < start).double().mean() == pytest.approx(before / (before + after), abs=0.02)
    early = counted(13)  # 1.3 s: either at its very beginning, or at its end
    assert seconds.starts(early).tolist() == pytest.approx([0.0, 0.5])
    told = "1.20 s of it are seen and heard, and 0.8 s and 0.5 s more out of time are needed"
    assert seconds.short(counted(12)) == told
    assert seconds.short(counted(30, seconds=1.0)).startswith("1.00 s")
    assert Seconds(seconds=0.8, frames=1).short(counted(8)) is None


def test_a_view_is_drawn_evenly_and_by_torch_alone():
    view, sample = paired(gap=0.4), counted(30)
    torch.manual_seed(0)
    seen = [view(sample) for _ in range(400)]
    assert seen[0]["x"].shape == (3, 4, 8, 8)
    assert seen[0]["sound"].shape == seen[0]["shifted"].shape == (80, 8)
    first = torch.stack([s["x"][0, 0, 0, 0] * 255 / 10 for s in seen]).round() - 1  # the frame shown 0.1 s later
    counts = torch.bincount(first.long(), minlength=23)
    assert len(counts) == 23  # frames 0 to 22 have 0.8 s after them
    assert (counts > 0).all()
    assert counts.max() < 45
    draws = torch.stack([s["draw"] for s in seen])
    assert float((draws < 0.25).double().mean()) == pytest.approx(0.25, abs=0.07)
    assert all(not torch.equal(s["sound"], s["shifted"]) for s in seen[:20])
    torch.manual_seed(0)
    assert torch.equal(view(sample)["sound"], seen[0]["sound"])
    one = paired(frames=1)(sample)
    assert one["x"].shape == (3, 8, 8)
    assert set(one) == {"x", "sound"}


def test_gain_changes_loudness_alone():
    noise = torch.rand(800, generator=torch.Generator().manual_seed(0)) - 0.5  # loud in every band
    sample = {**counted(8), "sound": noise}
    still, louder = paired()(sample)["sound"], [paired(gain=6.0)(sample)["sound"] for _ in range(50)]
    change = torch.stack([(x - still)[20:60] for x in louder]) * 10 / np.log(10)  # in decibels
    assert float(change.std((1, 2)).max()) < 0.5
    means = change.mean((1, 2))
    assert float(means.abs().max()) <= 6.1
    assert float(means.max()) > 3
    assert float(means.min()) < -3


def test_batches_are_the_same_from_any_number_of_workers():
    clips = generated(5, frames=20, size=16, seed=0, rate=4_800)
    view = WithIndex(Paired(look=Augment(size=16), mel=Mel(rate=4_800, bands=8), seconds=Seconds(
        seconds=0.8, frames=2, gap=0.5), gain=1.0))  # fmt: skip
    first = next(iter(Stream(Numbered(clips), view, batch=4, seed=1)(3)))
    later = next(iter(Stream(Numbered(clips), view, batch=4, seed=1, workers=2)(3)))
    assert set(first) == {"x", "sound", "shifted", "draw", "index"}
    assert all(torch.equal(first[key], later[key]) for key in first)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="leave the clip out"):
        paired()(counted(7))
    with pytest.raises(ValueError, match="it needs a sound"):
        paired()({"video": counted()["video"]})
    with pytest.raises(ValueError, match="1000 samples a second; the spectrogram is made for 2000: resample"):
        Paired(look=Augment(size=8), mel=Mel(rate=2_000), seconds=Seconds(seconds=0.5, frames=1))(counted())
    with pytest.raises(ValueError, match="0 frames of"):
        Seconds(seconds=1.0, frames=0)
    with pytest.raises(ValueError, match=r"source\.generate_test is 1"):
        Source(generate_test=1)


# ------------------------------------------------------------------ files


def test_files_with_sound_are_read_and_the_others_told(tmp_path):
    folder, cache = tmp_path / "films", tmp_path / "cache"
    folder.mkdir()
    film(folder / "a.mkv", tone=2.0)
    film(folder / "b.mkv", tone=2.0)
    film(folder / "mute.mkv")
    film(folder / "silent.mkv", tone=2.0, silent=True)
    (folder / "broken.mp4").write_bytes(b"nothing")
    from PIL import Image

    (folder / "frames").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16)).save(folder / "frames" / f"{i}.png")
    found = with_sound(read_clips(folder, workers=1), 4_000, cache)
    assert [name.rsplit("/")[-1] for name in found.names] == ["a.mkv", "b.mkv"]
    sample = found[1]
    assert sample["rate"] == 4_000
    assert sample["sound"].shape == (8_000,)
    assert sample["sound"].dtype == torch.float32
    spectrum = torch.fft.rfft(sample["sound"][1_000:5_000]).abs()
    assert int(spectrum.argmax()) == 440
    told = dict((path.rsplit("/")[-1], why) for path, why in found.problems)
    assert told["mute.mkv"] == "skipped: no sound in it"
    assert told["silent.mkv"] == "skipped: its sound is silence"
    assert told["frames"].startswith("skipped: a folder of frames has no sound")
    assert "broken.mp4" in told
    view = Paired(look=Augment(size=8), mel=Mel(rate=4_000, bands=8), seconds=Seconds(seconds=1.0, frames=3))
    assert view(sample)["sound"].shape == (100, 8)
    kept = sorted((cache / "heard").iterdir())
    again = with_sound(read_clips(folder, workers=1), 4_000, cache)
    assert torch.equal(again[0]["sound"], found[0]["sound"])
    assert again.key == found.key
    assert kept == sorted((cache / "heard").iterdir())
    with pytest.raises(BadVideo, match="none of 1 has a sound"):
        with_sound(read_clips(folder / "mute.mkv", workers=1), 4_000, cache)


def test_generated_clips_are_drawn_once(monkeypatch):
    clips = generated(3, frames=12, size=16, seed=4, rate=4_800)
    assert generated(3, frames=12, size=16, seed=4, rate=4_800) is clips
    generated.cache_clear()
    assert isinstance(clips[0]["video"], Frames)
    monkeypatch.setattr("partwhole.multimodal.samples.MEMORY", 1)
    drawn = generated(3, frames=12, size=16, seed=4, rate=4_800)
    assert torch.equal(drawn[2]["video"].frames([1, 5]), clips[2]["video"].frames([1, 5]))
    assert torch.equal(drawn[2]["sound"], clips[2]["sound"])
    assert clips.names == drawn.names
    assert clips[1]["rate"] == 4_800
