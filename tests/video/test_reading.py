"""Any frame by its index is the one that a decoding from beginning to end gives, in any file and by any reader."""

import os
import pickle  # noqa: TID251  only to see what travels to other processes
import random
import sys

import numpy as np
import pytest
import torch
from burnt import FILES, later, number, sequential, turned, without_times, write
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core.data import Stream
from partwhole.video import pyav, readers
from partwhole.video.backends import READERS, choose, doubted, missing
from partwhole.video.packets import BadVideo
from partwhole.video.pyav import PyAV, look
from partwhole.video.readers import Frames, Ids, close_all, read_video

DECORD = pytest.mark.skipif(bool(missing("decord")), reason="decord is not here")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("videos")
    for name, options in FILES.items():
        write(at / name, **options)
    without_times(at / "short.mp4", at / "zero.mp4")
    later(at / "long.mp4", at / "later.mp4", 0.5)
    for k in (1, 2, 3):
        turned(at / "short.mp4", at / f"turned{k}.mp4", k)
    return at


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_all()


@pytest.mark.parametrize("name", [*FILES, "zero.mp4", "later.mp4"])
def test_every_frame_is_that_of_a_sequential_decoding(place, name):
    truth, times = sequential(place / name)
    packets = look(place / name)
    assert len(packets) == len(truth)
    assert not packets.lost
    if name == "later.mp4":
        assert 0 < number(truth[0]) < 20, "the edit list leaves out the beginning"
    else:
        assert [number(x) for x in truth] == list(range(len(truth)))
    assert packets.counted == (name in ("zero.mp4", "reordered264.avi"))
    if not packets.counted:
        np.testing.assert_allclose(packets.times, times)
    reader, draw = PyAV(place / name, packets), random.Random(0)
    asked = [[draw.randrange(len(truth)) for _ in range(draw.choice([1, 1, 4]))] for _ in range(30)]
    asked += [list(range(i, min(i + 7, len(truth)))) for i in range(0, len(truth), 7)]  # onward from where it was
    asked += [[i] for i in reversed(range(len(truth)))]
    for indices in asked:
        np.testing.assert_array_equal(reader.frames(indices), truth[indices])
    reader.close()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_calls_in_any_order(place, data):
    name = data.draw(st.sampled_from(["open.mp4", "reordered.avi", "short.mkv", "uneven.mp4"]))
    truth, _ = sequential(place / name)
    reader = PyAV(place / name, look(place / name))
    for indices in data.draw(st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=5), min_size=1, max_size=6)):
        np.testing.assert_array_equal(reader.frames(indices), truth[indices])
    reader.close()


def test_pictures_that_no_other_needs_are_passed_over_and_change_nothing(place, monkeypatch):
    def decoded(names):
        monkeypatch.setattr(pyav, "PASSED_OVER", names)
        reader = PyAV(place / "long.mp4", look(place / "long.mp4"))
        made = reader.frames([50, 58])
        return made, reader.count

    thrifty, few = decoded({"h264"})
    plain, many = decoded(set())
    np.testing.assert_array_equal(thrifty, plain)
    assert few < 0.75 * many


def test_turned_as_players_show_it(place):
    stored = read_video(place / "short.mp4").frames([7])[0]
    for quarters in (1, 2, 3):
        video = read_video(place / f"turned{quarters}.mp4")
        assert video.size == ((96, 64) if quarters % 2 else (64, 96))
        assert torch.equal(video.frames([7])[0], torch.rot90(stored, -quarters, (1, 2)))


def test_threads_change_nothing(place):
    truth, _ = sequential(place / "short.mp4")
    reader = PyAV(place / "short.mp4", look(place / "short.mp4"), threads=3)
    for i in (50, 3, 4, 59, 0):
        np.testing.assert_array_equal(reader.frames([i])[0], truth[i])
    reader.close()


def test_what_a_video_says_of_itself(place):
    video = read_video(place / "uneven.mp4", name="mine")
    assert (len(video), video.name, video.size) == (60, "mine", (64, 96))
    assert video.times().dtype == torch.float64
    assert torch.allclose(video.times() * 1000, torch.tensor(FILES["uneven.mp4"]["times"]).double())
    x = video.frames([5, 5, 2])
    assert x.shape == (3, 3, 64, 96)
    assert x.dtype == torch.uint8
    assert [number(one) for one in x] == [5, 5, 2]
    with pytest.raises(IndexError, match="frame 60 was asked for; it has 60, from 0 to 59"):
        video.frames([60])
    with pytest.raises(IndexError, match="frame -1"):
        video.frames([-1])
    with pytest.raises(IndexError, match="no frame was asked for"):
        video.frames([])
    copy = pickle.loads(pickle.dumps(video))
    assert torch.equal(copy.frames([5, 5, 2]), x)


# ------------------------------------------------------------------ damage


def cut(source, path, share):
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_of_a_file_that_is_cut_off_the_rest_is_kept_and_told(place, tmp_path):
    truth, _ = sequential(place / "short.mkv")
    long = write(tmp_path / "long.mkv", 120, g=12)
    packets = look(cut(long, tmp_path / "cut.mkv", 0.5))
    assert 30 < len(packets) < 90
    assert "lasts 4.8 s, and its frames end at" in packets.lost
    begun = write(tmp_path / "begun.mp4", g=12, bf=2, container={"movflags": "faststart"})
    packets = look(cut(begun, tmp_path / "cut.mp4", 0.7))
    assert "says it has 60 frames" in packets.lost
    whole, _ = sequential(begun)
    reader = PyAV(tmp_path / "cut.mp4", packets)
    np.testing.assert_array_equal(reader.frames(range(len(packets))), whole[: len(packets)])
    reader.close()
    assert len(truth) == 60


def test_an_end_that_gives_no_picture_is_left_out(place, tmp_path):
    source = write(tmp_path / "a.mp4", g=12, bf=2, container={"movflags": "faststart"})
    places = look(source).place
    data = bytearray(source.read_bytes())
    data[int(places[56]) :] = bytes(len(data) - int(places[56]))
    (tmp_path / "b.mp4").write_bytes(data)
    packets = look(tmp_path / "b.mp4")
    assert 53 <= len(packets) <= 56
    assert "of 60 frames give no picture" in packets.lost
    reader = PyAV(tmp_path / "b.mp4", packets)
    assert [number(x) for x in reader.frames(range(len(packets)))] == np.rint(packets.times * 25).tolist()
    reader.close()


def test_damage_in_the_middle_shows_the_last_picture_and_ends_with_the_next_whole_one(tmp_path):
    source = write(tmp_path / "a.mp4", g=12, bf=2, scenecut_threshold=0, container={"movflags": "faststart"})
    before = look(source)
    whole = before.start.tolist()
    begin, end = int(before.place[whole[2] + 1]), int(before.place[whole[3]])
    data = bytearray(source.read_bytes())
    data[begin:end] = bytes(end - begin)
    (tmp_path / "b.mp4").write_bytes(data)
    packets = look(tmp_path / "b.mp4")
    assert len(packets) == 60
    reader = PyAV(tmp_path / "b.mp4", packets)
    first, last = int(before.frame[whole[2]]), int(before.frame[whole[3]])
    for i in [*range(first + 1, last), 3, first, last, 59]:
        shown = number(reader.frames([i])[0])
        assert shown == (i if i <= first or i >= last else first)
    reader.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_bytes(b"no video" * 99), "not a video that can be read"),
        (lambda p: None, r"cannot be opened \(No such file"),
    ],
)
def test_no_video(tmp_path, make, says):
    make(tmp_path / "a.mp4")
    with pytest.raises(BadVideo, match=says):
        read_video(tmp_path / "a.mp4")


def test_a_file_with_sound_alone(tmp_path):
    import av

    with av.open(str(tmp_path / "a.m4a"), "w") as out:
        track = out.add_stream("aac", rate=16000)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        piece.sample_rate = 16000
        out.mux([*track.encode(piece), *track.encode(None)])
    with pytest.raises(BadVideo, match=r"no moving pictures in it \(audio\)"):
        look(tmp_path / "a.m4a")


# ------------------------------------------------------------------ other readers


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
@pytest.mark.parametrize("name", ["long.mp4", "short.mp4", "short.mkv", "plain.avi", "uneven.mp4", "turned1.mp4"])
def test_another_reader_where_it_is_right(place, name, reader):
    if missing(reader):
        pytest.skip(missing(reader))
    video = read_video(place / name, reader=reader)
    assert (video.reader, video.why) == (reader, "asked for")
    truth = read_video(place / name, reader="pyav")
    x, y = video.frames([9, 40, 9, 59]), truth.frames([9, 40, 9, 59])
    assert x.shape == y.shape
    assert (x.float() - y.float()).abs().mean() < 4


@DECORD
def test_decord_is_not_taken_where_it_is_wrong(place, tmp_path):
    for name, doubt in {
        "reordered.avi": "an AVI with frames stored in another order",
        "open.mp4": "open groups of pictures",
        "zero.mp4": "the packets do not say",
        "later.mp4": "frames that are stored and not shown",
    }.items():
        video = read_video(place / name, reader="decord")
        assert video.reader == "pyav"
        assert f"not by decord: {doubt}" in video.why
    packets = look(place / "short.mp4")
    assert not doubted(place / "short.mp4", packets, "decord")
    assert "it counts 60 frames, the packets 1" in doubted(place / "short.mp4", look(place / "one.mp4"), "decord")


@DECORD
def test_frames_that_are_others_are_seen(place, monkeypatch):
    class Off(READERS["decord"]):
        def frames(self, indices):
            return super().frames([max(0, i - 1) for i in indices])

    monkeypatch.setitem(READERS, "decord", Off)
    assert "is another one" in doubted(place / "short.mp4", look(place / "short.mp4"), "decord")


def test_which_reader(place, monkeypatch):
    h264, vp9 = look(place / "short.mp4"), look(place / "vp9.webm")
    assert choose("", h264) == ("pyav", "the fastest for h264 with pictures that can be passed over")
    if missing("torchcodec"):
        name, why = choose(place / "vp9.webm", vp9)
        assert name == "pyav"
        assert "not by torchcodec: torchcodec" in why
        with pytest.raises(ValueError, match="reader 'torchcodec' was asked for, and torchcodec"):
            choose("", h264, "torchcodec")
    with pytest.raises(ValueError, match="reader is 'cv2'; expected one of auto, pyav"):
        choose("", h264, "cv2")


# ------------------------------------------------------------------ processes and memory


def shown(sample):
    return {"number": [number(x) for x in sample["video"].frames([0, 41, 17])]}


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
def test_few_files_stay_open(place, tmp_path):
    videos = [read_video(write(tmp_path / f"{i}.mp4", 3)) for i in range(8)]
    count = len(os.listdir("/proc/self/fd"))
    for video in videos * 2:
        video.frames([1])
    assert len(os.listdir("/proc/self/fd")) == count + readers.OPEN
    close_all()
    assert len(os.listdir("/proc/self/fd")) == count


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_what_this_process_has_open(place, workers):
    samples = [{"video": read_video(place / name)} for name in ("short.mp4", "open.mp4", "reordered.avi", "vp9.webm")]
    for sample in samples:
        sample["video"].frames([3])
    batches = Stream(samples, shown, batch=4, workers=workers)(0)
    for _ in range(3):
        assert [x.tolist() for x in next(batches)["number"]] == [[0] * 4, [41] * 4, [17] * 4]


def test_a_file_that_changed_is_opened_anew(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", 10))
    assert number(video.frames([4])[0]) == 4
    again = write(tmp_path / "a.mp4", 30)
    os.utime(again, (1, 1))
    assert number(read_video(again).frames([25])[0]) == 25


def test_a_file_that_is_gone(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", 3))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BadVideo, match="it can no longer be read"):
        video.frames([0])


def test_in_memory():
    x = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    video = Frames(x, fps=10)
    assert torch.equal(video.frames([4, 4, 0]), x[[4, 4, 0]])
    assert (len(video), video.size, video.times().tolist()) == (5, (4, 6), [0, 0.1, 0.2, 0.3, 0.4])
    ids = Ids(torch.arange(5)[:, None, None].expand(5, 4, 6).contiguous())
    assert ids.frames([3]).unique().tolist() == [3]
    with pytest.raises(ValueError, match="expected \\(N, 3, H, W\\) of uint8"):
        Frames(x.float())
    with pytest.raises(ValueError, match="more than 0"):
        Frames(x, fps=0)
    with pytest.raises(ValueError, match="ids from 0 to 299"):
        Ids(torch.arange(300)[:, None, None])
    with pytest.raises(IndexError, match="frame 5 was asked for"):
        ids.frames([5])
