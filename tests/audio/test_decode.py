"""Sound files are read exactly, in part too, whatever their rate, channels and width."""

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.audio import decode
from partwhole.audio.decode import BadSound


def noise(count: int, channels: int = 1) -> np.ndarray:
    x = np.random.default_rng(count).normal(size=(count, channels)).astype(np.float32)
    return np.clip(0.2 * x, -1, 1)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "a.wav"
    soundfile.write(path, noise(30_000), 22_050, "FLOAT")
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_what_soundfile_writes_is_read(tmp_path, suffix):
    path, t = tmp_path / f"a.{suffix}", np.arange(16_000) / 16_000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * t), 16_000)
    sound = decode.read(path, 16_000)
    assert decode.about(path).rate == 16_000
    assert sound.dtype == torch.float32
    assert abs(len(sound) - 16_000) < 2_400  # mp3 pads
    middle = sound[4_000:12_000]
    assert middle.abs().max() == pytest.approx(0.5, abs=0.05)
    assert torch.fft.rfft(middle).abs().argmax() == 220  # of a second's half


def test_the_whole_file_is_resampled_as_torchaudio_does(long):
    x = torch.from_numpy(soundfile.read(long, dtype="float32")[0])
    assert torch.equal(decode.read(long, 22_050), x)
    expected = torchaudio.functional.resample(x, 22_050, 16_000)
    torch.testing.assert_close(decode.read(long, 16_000), expected.clamp(-1, 1))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([8_000, 16_000, 22_050, 44_100]), st.floats(0, 1.2), st.floats(0.01, 0.5))
def test_a_part_is_what_it_is_in_the_whole(long, rate, begin, seconds):
    start, stop = round(begin * rate), round(begin * rate) + max(1, round(seconds * rate))
    part, whole = decode.read(long, rate, start, stop), decode.read(long, rate)
    torch.testing.assert_close(part, whole[start:stop], atol=2e-6, rtol=0)


def test_a_part_of_a_long_file_is_read_without_the_rest(long, monkeypatch):
    taken, read = [], soundfile.SoundFile.read

    def counted(self, frames=-1, **options):
        taken.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert len(decode.read(long, 16_000, 8_000, 8_800)) == 800
    assert 0 < taken[0] < 4_000


def test_channels_are_averaged_and_wide_rates_reduced(tmp_path):
    x = noise(9_600, 6)
    soundfile.write(tmp_path / "six.wav", x, 96_000, "FLOAT")
    sound = decode.read(tmp_path / "six.wav", 16_000)
    assert len(sound) == 1_600
    expected = torchaudio.functional.resample(torch.from_numpy(x.mean(1)), 96_000, 16_000)
    torch.testing.assert_close(sound, expected, atol=1e-6, rtol=0)


def test_eight_bits_are_read(tmp_path):
    t = np.arange(8_000) / 8_000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 100 * t), 8_000, "PCM_U8")
    sound = decode.read(tmp_path / "a.wav", 8_000)
    assert sound.abs().max() == pytest.approx(0.5, abs=0.01)


def test_containers_are_read_by_pyav(tmp_path):
    av = pytest.importorskip("av")
    path, rate = tmp_path / "a.m4a", 16_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    whole = decode.read(path, rate)
    assert len(whole) == pytest.approx(2 * rate, abs=3_000)
    assert torch.fft.rfft(whole[8_000:24_000]).abs().argmax() == 440
    part = decode.read(path, rate, 20_000, 24_000)
    torch.testing.assert_close(part, whole[20_000:24_000], atol=1e-5, rtol=0)


def test_what_is_no_sound_is_told(tmp_path):
    def say(name: str) -> str:
        with pytest.raises(BadSound) as error:
            decode.read(tmp_path / name, 16_000)
        return str(error.value)

    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "text.m4a").write_text("this is no sound either")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1], np.float32), 16_000, "FLOAT")
    assert "not a sound" in say("text.wav")
    assert "an empty file" in say("empty.flac")
    assert "not a sound" in say("text.m4a")
    assert "zero length" in say("none.wav")
    assert "not finite" in say("nan.wav")
    assert "no such file" in say("missing.wav")
    with pytest.raises(ValueError, match="some are needed"):
        decode.read(tmp_path / "nan.wav", 16_000, 5, 5)
