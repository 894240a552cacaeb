"""Spectrograms against torchaudio's, and what is random about views: its distribution and its limits."""

from dataclasses import replace

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.audio import policies
from partwhole.audio.mel import Mel, moments
from partwhole.audio.views import Augment, Looks, lines, mixed

MEL = Mel(rate=8_000, bands=32)
STEP = MEL.step


def sample(frames: int, seed: int = 0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {"sound": 0.1 * torch.randn(frames * STEP, generator=generator), "rate": 8_000, **more}


def still(**options) -> Augment:
    return Augment(mel=MEL, frames=50, **{"crop": (1.0, 1.0), **options})


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("bands", [40, 64, 80])
def test_a_spectrogram_is_torchaudios_and_no_band_is_empty(rate, bands):
    mel = Mel(rate=rate, bands=bands)
    sound = torch.randn(2, rate // 4)
    found = mel(sound)
    theirs = torchaudio.transforms.MelSpectrogram(
        rate, n_fft=mel.size, win_length=round(0.025 * rate), hop_length=mel.step, f_min=60, n_mels=bands,
        pad_mode="constant",
    )  # fmt: skip
    assert (theirs.mel_scale.fb.sum(0) > 0).all()
    torch.testing.assert_close(found, (theirs(sound) + mel.floor).log().mT)
    assert found.shape == (2, len(sound[0]) // mel.step + 1, bands)


def test_a_tone_is_where_it_should_be_and_silence_is_the_floor():
    t = torch.arange(8_000) / 8_000
    low, high = (MEL((2 * torch.pi * f * t).sin())[50].argmax() for f in (200.0, 2_000.0))
    assert low < high
    assert torch.equal(MEL(torch.zeros(800)), torch.tensor(MEL.floor).log().expand(11, 32))


def test_moments_are_those_of_all_spectrograms():
    sounds = [sample(n, n) for n in (5, 9, 30)]
    x = torch.cat([MEL(s["sound"]) for s in sounds])
    mean, std = moments(MEL, sounds)
    assert (mean, std) == (pytest.approx(float(x.mean()), abs=1e-4), pytest.approx(float(x.std()), rel=1e-3))


def test_what_cannot_be_is_told():
    for options, say in (({"high": 9_000.0}, "half of the rate"), ({"hop": 0.1}, "not beyond the window"),
                         ({"bands": 0}, "mel.bands is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=say):
            Mel(**{"rate": 8_000, **options})
    for options, say in (({"crop": (0.5, 1.2)}, "crop is"), ({"pitch": (0.0, 1.0)}, "pitch is"),
                         ({"mixup": 2.0}, "mixup is 2.0"), ({"widths": (0.0, 0.2)}, "of widths")):  # fmt: skip
        with pytest.raises(ValueError, match=say):
            still(**options)
    with pytest.raises(ValueError, match="resample"):
        still()({**sample(5), "rate": 16_000})
    with pytest.raises(ValueError, match="one sample or more"):
        still()({"sound": torch.zeros(0), "rate": 8_000})
    with pytest.raises(ValueError, match="mix-up needs other sounds"):
        still(mixup=0.4)(sample(5))
    with pytest.raises(ValueError, match="no policy is called 'x'"):
        policies.looks("x", MEL, 10)
    with pytest.raises(ValueError, match="2 crops"):
        Looks(still(), still(), 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12_000), st.integers(1, 120), st.sampled_from(sorted(policies.POLICIES)), st.booleans())
def test_every_policy_takes_sounds_of_any_length(length, frames, name, fill):
    one = {"sound": torch.randn(length).clamp(-1, 1), "rate": 8_000}
    view = replace(policies.policy(name, MEL, frames), fill=fill)
    x = view({**one, "others": [one, sample(3)]})
    assert x.shape[1] == 32
    assert x.isfinite().all()
    assert len(x) == frames if fill else 1 <= len(x) <= frames


def test_a_plain_look_is_the_middle():
    one = sample(80)
    middle = policies.middle(MEL, 50)
    torch.testing.assert_close(middle(one), MEL(one["sound"][15 * STEP : 65 * STEP])[:50])
    assert torch.equal(middle(one), middle(one))
    assert middle(sample(7)).shape == (7, 32)


def test_crops_begin_anywhere_with_the_same_chance():
    view, torch_state = replace(still(), frames=10), torch.manual_seed(0)
    assert torch_state is not None
    ramp = {"sound": torch.linspace(0, 1, 110 * STEP), "rate": 8_000}
    starts = torch.tensor([float(view.piece(ramp["sound"], 10 * STEP)[0]) for _ in range(3_000)]) * 11 / 10
    counts = torch.histc(starts, 10, 0, 1)
    assert ((counts - 300).abs() < 4 * (300 * 0.9) ** 0.5).all()


def test_lengths_are_uniform_in_their_range():
    view = still(crop=(0.4, 1.0))
    lengths = torch.tensor([len(view.piece(torch.ones(50 * STEP), 50 * STEP)) for _ in range(2_000)]) / (50 * STEP)
    assert 0.4 <= lengths.min() < 0.42
    assert 0.98 < lengths.max() <= 1
    assert lengths.mean() == pytest.approx(0.7, abs=0.015)
    assert lengths.var() == pytest.approx(0.6**2 / 12, rel=0.1)


def test_gain_is_in_decibels_and_noise_as_loud_as_asked():
    torch.manual_seed(0)
    sound = 0.5 * torch.ones(4_000)
    gains = torch.tensor([20 * (still(gain=6.0).piece(sound, 9_999)[0] / 0.5).log10() for _ in range(2_000)])
    assert gains.abs().max() <= 6.001
    assert gains.std() == pytest.approx(12 / 12**0.5, rel=0.05)
    noisy = still(noise=1.0, loudness=(20.0, 20.0)).piece(sound, 9_999) - sound
    assert 20 * (0.5 / noisy.std()).log10() == pytest.approx(20, abs=0.3)
    halves = [torch.equal(still(noise=0.5).piece(sound, 9_999), sound) for _ in range(400)]
    assert 150 < sum(halves) < 250


def test_mixing_is_of_powers_and_others_are_drawn_evenly():
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(mixed(x, y, 0.3), (0.7 * x.exp() + 0.3 * y.exp()).log())
    assert torch.equal(mixed(x, y, 0.0), x)
    torch.manual_seed(0)
    others = [{"sound": torch.full((STEP,), 0.2 * k), "rate": 8_000} for k in range(1, 5)]
    levels = [round(float(still(mixup=1.0).other({"others": others}, 3)[0, 0]), 3) for _ in range(800)]
    counts = torch.tensor([levels.count(level) for level in set(levels)])
    assert len(counts) == 4
    assert ((counts - 200).abs() < 60).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 0.9), st.floats(0.05, 1))
def test_lines_interpolate(size, count, start, share):
    start, span = start * size, share * (1 - start) * size
    weights = lines(size, start, span, count)
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    assert (weights >= 0).all()
    place = (weights @ (torch.arange(size) + 0.5)).sort().values
    expected = start + (torch.arange(count) + 0.5) * span / count
    torch.testing.assert_close(place, expected.clamp(0.5, size - 0.5), atol=1e-4, rtol=0)


def test_pitch_moves_a_band_and_leaves_silence_outside():
    torch.manual_seed(0)
    x = torch.full((4, 32), 5.0)
    wide = still(pitch=(2.0, 2.0)).shifted(x)
    assert ((wide - MEL.silence).abs() < 1e-5).sum() == 4 * 16
    assert (wide - 5).abs().lt(1e-4).sum() == 4 * 16
    assert torch.allclose(still(pitch=(0.5, 0.5)).shifted(x), x)
    tone = torch.zeros(1, 32)
    tone[0, 16] = 1
    places = {int(still(pitch=(0.8, 1.25)).shifted(tone).argmax()) for _ in range(200)}
    assert len(places) > 6


def test_stretching_changes_the_length_alone():
    long = still(stretch=(1.5, 1.5), crop=(1.0, 1.0))(sample(20))
    assert long.shape == (30, 32)
    assert still(stretch=(1.5, 1.5))(sample(200)).shape == (50, 32)
    torch.manual_seed(0)
    lengths = torch.tensor([float(len(still(stretch=(0.5, 2.0))(sample(20)))) for _ in range(300)])
    assert lengths.log2().mean() == pytest.approx(torch.tensor(20.0).log2().item(), abs=0.1)


def test_masks_hide_at_most_their_share():
    torch.manual_seed(0)
    x = torch.randn(50, 32)
    shares = []
    for _ in range(300):
        y = still(masks=(1, 1), widths=(0.2, 0.25)).masked(x)
        rows, columns = (y == x.mean()).all(1).sum(), (y == x.mean()).all(0).sum()
        assert rows <= 10
        assert columns <= 8
        shares.append((float(rows), float(columns)))
    assert torch.tensor(shares).mean(0).tolist() == pytest.approx([5, 4], abs=0.5)


def test_a_fader_changes_loudness_along_the_piece():
    torch.manual_seed(0)
    one = sample(30)
    plain, faded = still()(one), still(fader=1.0, levels=2.0)(one)
    change = (faded - plain)[:, 0]
    torch.testing.assert_close(faded - plain, change[:, None].expand(-1, 32), atol=1e-4, rtol=0)
    torch.testing.assert_close(change.diff(), change.diff().mean().expand(29), atol=1e-3, rtol=0)
    assert change.abs().max() <= 2


def test_two_views_and_shorter_crops():
    looks = policies.looks("byola", MEL, 50, crops=3)
    seen = looks({**sample(60), "others": [sample(20, 1)]})
    assert len(seen["views"]) == 2
    assert [len(x) <= 20 for x in seen["crops"]] == [True] * 3
    assert not torch.equal(seen["views"][0][:10], seen["views"][1][:10])
    assert set(policies.looks("plain", MEL, 50)(sample(60))) == {"views"}
