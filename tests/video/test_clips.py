"""Folders of videos become samples; what is wrong with some is told, and what is known is known again."""

import io
import os
import pickle  # noqa: TID251  only to see what travels to other processes
import shutil

import numpy as np
import pytest
import torch
from burnt import number, picture, write
from PIL import Image

from partwhole.core.data import some
from partwhole.video import folder, index
from partwhole.video.clips import Clips, read_clips
from partwhole.video.packets import BadVideo
from partwhole.video.readers import FileVideo, FolderVideo, close_all
from partwhole.video.sound import sound


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    at = tmp_path_factory.mktemp("made")
    write(at / "a.mp4", 30, g=10, bf=2)
    write(at / "b.avi", 20, codec="mpeg4")
    frames(at / "frames", 12)
    return at


def frames(at, count, size=None):
    at.mkdir(parents=True)
    for i in range(count):
        image = Image.fromarray(picture(i))
        (image if size is None else image.resize(size)).save(at / f"{i}.png")
    return at


@pytest.fixture
def place(made, tmp_path):
    """Two files and a folder of frames that can be used, three things that cannot."""
    at = tmp_path / "in"
    shutil.copytree(made, at)
    (at / "more").mkdir()
    shutil.move(at / "b.avi", at / "more" / "b.avi")
    (at / "more" / "broken.mp4").write_bytes((at / "a.mp4").read_bytes()[:700])
    (at / "empty.webm").touch()
    (at / "readme.txt").write_text("no video")
    write(at / "short.mp4", 3)
    yield at
    close_all()


def test_all_videos_below_a_folder(place, heard):
    clips = read_clips(place, least=5, watch=heard, workers=1, fps=10)
    assert [os.path.relpath(name, place) for name in clips.names] == ["a.mp4", "frames", "more/b.avi"]
    assert [len(sample["video"]) for sample in clips] == [30, 12, 20]
    assert isinstance(clips[0]["video"], FileVideo)
    assert isinstance(clips[1]["video"], FolderVideo)
    assert clips[1]["video"].fps == 10
    assert [number(clips[i]["video"].frames([11])[0]) for i in range(3)] == [11, 11, 11]  # 10.png after 9.png
    told = {os.path.relpath(path, place): reason for path, reason in clips.problems}
    assert told["empty.webm"].startswith("skipped: an empty file; download")
    assert told["more/broken.mp4"].startswith("skipped: not a video that can be read (Invalid data")
    assert told["short.mp4"] == "skipped: 3 frames, and 5 are needed; give longer ones"
    assert len(told) == 3
    assert heard.steps[-1] == (6, {"total": 6, "failed": 2})
    assert all(line.count("skipped") == 1 for line in clips.told())


def test_processes_find_the_same(place, monkeypatch):
    alone = read_clips(place, workers=1)
    monkeypatch.setattr(index, "ALONE", 0.0)
    together = read_clips(place, workers=2)
    assert (alone.names, alone.key, sorted(alone.problems)) == (together.names, together.key, sorted(together.problems))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a["video"].frames([1, 0]), b["video"].frames([1, 0]))


def test_what_is_known_is_not_looked_at_again(place, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    before = read_clips(place, cache=cache, workers=1)
    asked = []
    looked = index.looked
    monkeypatch.setattr(index, "looked", lambda entry, reader: asked.append(entry.path) or looked(entry, reader))
    again = read_clips(place, cache=cache, workers=1)
    assert asked == []
    assert (again.names, again.key, again.problems) == (before.names, before.key, before.problems)
    for a, b in zip(before, again, strict=True):
        assert torch.equal(a["video"].frames([1, 2]), b["video"].frames([1, 2]))
        assert torch.equal(a["video"].times(), b["video"].times())
    write(place / "new.mp4", 8)
    os.utime(place / "a.mp4", (1, 1))
    more = read_clips(place, cache=cache, workers=1)
    assert sorted(map(os.path.basename, asked)) == ["a.mp4", "new.mp4"]
    assert len(more) == len(before) + 1
    assert more.key != before.key
    (file,) = (cache / "videos").iterdir()
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    asked.clear()
    assert read_clips(place, cache=cache, workers=1).key == more.key
    assert len(asked) == 7


def test_what_is_kept_survives_a_kill(place, tmp_path, monkeypatch):
    """What was looked at is written down from time to time, not only at the end."""
    monkeypatch.setattr(index, "SAVED", 0.0)
    looked, asked = index.looked, []

    def some_of(entry, reader):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(entry.path)
        return looked(entry, reader)

    monkeypatch.setattr(index, "looked", some_of)
    with pytest.raises(KeyboardInterrupt):
        read_clips(place, cache=tmp_path / "cache", workers=1)
    asked.append("and on")
    monkeypatch.setattr(index, "looked", lambda entry, reader: asked.append(entry.path) or looked(entry, reader))
    read_clips(place, cache=tmp_path / "cache", workers=1)
    assert len(asked) == 3 + 1 + 3


def test_a_cache_that_cannot_be_written_costs_the_cache(place, tmp_path):
    (tmp_path / "cache").write_text("a file")
    clips = read_clips(place, cache=tmp_path / "cache", workers=1)
    assert len(clips) == 4
    assert any("kept: the cache cannot be written" in reason for _, reason in clips.problems)
    assert number(clips[0]["video"].frames([7])[0]) == 7


def test_clips_travel_and_are_chosen(place):
    clips = read_clips(place, workers=1)
    copy = pickle.loads(pickle.dumps(clips))
    assert torch.equal(copy[0]["video"].frames([9]), clips[0]["video"].frames([9]))
    few = clips.subset([2, 0]).subset([1])
    assert few.names == clips.names[:1]
    assert few.key != clips.key
    assert number(few[0]["video"].frames([3])[0]) == 3
    assert [len(s["video"]) for s in clips[1:3]] == [12, 20]
    assert len(clips[-1]["video"]) == 3
    with pytest.raises(IndexError):
        clips[4]
    assert len(read_clips(place, limit=2, workers=1)) <= 2
    assert [s["video"].name for s in some(clips, 2)] == [clips.names[0], clips.names[2]]


def test_of_davis_as_plain_videos_masks_are_none(tmp_path):
    frames(tmp_path / "JPEGImages" / "480p" / "dog", 3)
    frames(tmp_path / "Annotations" / "480p" / "dog", 3)
    assert [os.path.relpath(n, tmp_path) for n in read_clips(tmp_path, workers=1).names] == ["JPEGImages/480p/dog"]


def test_pictures_beside_videos_are_no_frames(made, tmp_path):
    shutil.copy(made / "a.mp4", tmp_path)
    shutil.copy(made / "frames" / "0.png", tmp_path / "cover.png")
    os.symlink(tmp_path / "nowhere.mp4", tmp_path / "gone.mp4")
    assert [os.path.basename(n) for n in read_clips(tmp_path, workers=1).names] == ["a.mp4"]


def test_links_to_nothing_among_frames_are_passed_over(made, tmp_path):
    at = tmp_path / "frames"
    shutil.copytree(made / "frames", at)
    os.symlink(tmp_path / "nowhere.png", at / "5a.png")
    assert len(read_clips(at, workers=1)[0]["video"]) == 12


def test_no_clips(tmp_path):
    with pytest.raises(BadVideo, match="no such file or folder; check the path"):
        read_clips(tmp_path / "no")
    with pytest.raises(BadVideo, match="no video in it; put videos"):
        read_clips(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadVideo, match=r"no video in it \(only .txt\)"):
        read_clips(tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(BadVideo, match=r"none of 1 videos can be used; the first: .*a.mp4: skipped: an empty file"):
        read_clips(tmp_path, workers=1)
    with pytest.raises(ValueError, match="reader is 'ffmpeg'"):
        read_clips(tmp_path, reader="ffmpeg")  # type: ignore
    with pytest.raises(BadVideo, match="none of 1 videos"):
        read_clips(write(tmp_path / "b.mp4", 3), least=4, workers=1)


def test_folders_of_frames(tmp_path):
    at = frames(tmp_path / "a", 4)
    (at / "2.png").write_bytes(b"broken")
    clips = read_clips(at, workers=1)
    assert [number(x) for x in clips[0]["video"].frames([0, 1, 2])] == [0, 1, 3]
    assert "kept: 1 of 4 frames cannot be read (the first: 2.png: not an image" in clips.problems[0][1]
    Image.new("RGB", (9, 9)).save(at / "1.png")
    with pytest.raises(BadVideo, match=r"frames of different sizes: 0.png has 96 x 64 pixels, 1.png 9 x 9"):
        folder.look(at)
    assert sorted(["10a", "9a", "a2", "2", "a10", "b"], key=folder.natural) == ["2", "9a", "10a", "a2", "a10", "b"]


def test_an_empty_list_of_clips_is_one():
    assert len(Clips([], [])) == 0


# ------------------------------------------------------------------ sound


def test_sound_is_in_time_and_resampled(tmp_path):
    path = write(tmp_path / "a.mp4", 50, sound=2.0)
    wave, rate = sound(path)
    assert (wave.dtype, wave.ndim, rate) == (torch.float32, 1, 16000)
    assert abs(len(wave) / rate - 2.0) < 0.1
    truth = np.sin(np.arange(len(wave)) * 0.2) / 2
    middle = slice(8000, 24000)
    assert np.abs(wave.numpy()[middle] - truth[middle]).mean() < 0.03
    half, rate = sound(path, rate=8000)
    assert rate == 8000
    assert abs(len(half) - len(wave) / 2) < 600
    assert np.abs(half.numpy()[4000:12000] - truth[8000:24000:2]).mean() < 0.05


def test_no_sound(tmp_path):
    with pytest.raises(BadVideo, match="no sound in it"):
        sound(write(tmp_path / "a.mp4", 3))
    with pytest.raises(BadVideo, match="cannot be"):
        sound(tmp_path / "no.mp4")
    (tmp_path / "b.mp4").write_bytes(io.BytesIO(b"x" * 99).read())
    with pytest.raises(BadVideo, match="not a file that can be read"):
        sound(tmp_path / "b.mp4")
