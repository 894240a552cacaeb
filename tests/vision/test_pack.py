"""Looking at every image once: the same whoever does it, kept whole or made again, and never in the way."""

import errno
import io
import os
import pickle  # noqa: TID251  only to see what travels to other processes
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partwhole.core import files
from partwhole.core.data import Stream
from partwhole.vision import pack
from partwhole.vision.images import read_images


@pytest.fixture
def place(tmp_path):
    """Twelve images of different sizes in two classes, three of them broken."""
    random = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "in" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (5 + i, 9, 3), np.uint8)).save(path)
    (tmp_path / "in" / "a" / "04.png").write_bytes(b"")
    (tmp_path / "in" / "b" / "05.png").write_bytes(b"text")
    whole = (tmp_path / "in" / "b" / "07.png").read_bytes()
    (tmp_path / "in" / "b" / "07.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def same(a, b):
    assert (a.names, a.labels, a.classes, a.key) == (b.names, b.labels, b.classes, b.key)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x["image"], y["image"])


def never(*_, **__):
    raise AssertionError("decoded again")


def test_packed_and_decoded_are_the_same(place, monkeypatch, heard):
    plain = read_images(place / "in")
    packed = read_images(place / "in", cache=place / "cache", watch=heard)
    assert isinstance(plain.pixels, pack.Decoded)
    assert isinstance(packed.pixels, pack.Packed)
    same(plain, packed)
    assert len(plain) == 9
    assert sorted(os.path.basename(p) for p, _ in packed.problems) == ["04.png", "05.png", "07.png"]
    assert plain.problems == packed.problems
    done, values = heard.steps[-1]
    assert (done, values["total"], values["failed"]) == (12, 12, 3)
    heard.steps.clear()
    wanted = list(plain)
    monkeypatch.setattr(pack, "decode", never)
    again = read_images(place / "in", cache=place / "cache", watch=heard)
    assert all(torch.equal(x["image"], y["image"]) for x, y in zip(again, wanted, strict=True))
    assert (again.names, again.labels, again.key) == (plain.names, plain.labels, plain.key)
    assert again.problems == plain.problems
    assert heard.steps == []


def test_samples_are_the_callers_own(place):
    packed = read_images(place / "in", cache=place / "cache")
    for images in (packed, read_images(place / "in")):
        images[0]["image"].zero_()
        assert images[0]["image"].any()


def test_several_processes_find_the_same(place, monkeypatch, heard):
    plain = read_images(place / "in")
    monkeypatch.setattr(pack, "ALONE", 0.0)
    monkeypatch.setattr(pack, "CHUNK", 2)
    packed = read_images(place / "in", cache=place / "cache", workers=2, watch=heard)
    same(plain, packed)
    assert isinstance(packed.pixels, pack.Packed)
    assert packed.problems == plain.problems
    assert [done for done, _ in heard.steps] == [2, 4, 6, 8, 10, 12]


def test_pixels_that_do_not_fit_are_decoded_when_asked_for(place, monkeypatch):
    monkeypatch.setattr(pack, "CHUNK", 2)
    cache = place / "cache"
    whole = sum(s["image"].numel() for s in read_images(place / "in"))
    small = read_images(place / "in", cache=cache, memory=whole - 1)
    assert isinstance(small.pixels, pack.Decoded)
    assert sum(p.stat().st_size for p in cache.rglob("*.pack")) < 2_000
    same(small, read_images(place / "in"))
    monkeypatch.setattr(pack, "_look", never)
    same(small, read_images(place / "in", cache=cache, memory=whole - 1))  # what was found is kept all the same
    monkeypatch.undo()
    assert isinstance(read_images(place / "in", cache=cache, memory=whole).pixels, pack.Packed)


@pytest.mark.parametrize("at", [0, 0.3, 0.6, 0.9, 1])
@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_damaged_pack_is_made_again(place, at, how, heard):
    plain = read_images(place / "in", cache=place / "cache")
    path = plain.pixels.path
    data = bytearray(path.read_bytes())
    where = min(int(at * len(data)), len(data) - 1)
    if how == "cut":
        data = data[:where]
    else:
        data[where] ^= 255
    del plain
    path.write_bytes(data)
    images = read_images(place / "in", cache=place / "cache", watch=heard)
    same(images, read_images(place / "in"))
    assert isinstance(images.pixels, pack.Packed)
    assert heard.steps


def test_a_pack_is_of_these_files_and_options(place):
    def key(**options):
        return read_images(place / "in", cache=place / "cache", **options).key

    first = key()
    assert len({first, key(shorter=4), key(largest=200)}) == 3
    assert key(workers=1) == key(memory=0) == first
    path = place / "in" / "a" / "00.png"
    os.utime(path, ns=(1, 1))
    second = key()
    Image.new("RGB", (9, 9), "red").save(path)
    assert len({first, second, key()}) == 3
    assert (read_images(place / "in", cache=place / "cache")[0]["image"][0] == 255).all()


def test_only_the_latest_packs_are_kept(place, monkeypatch):
    monkeypatch.setattr(pack, "KEPT", 2)
    first = read_images(place / "in", cache=place / "cache")
    for shorter in (2, 3, 4):
        read_images(place / "in", cache=place / "cache", shorter=shorter)
    assert len(list((place / "cache" / "images").iterdir())) == 2
    assert first[0]["image"].any()


def test_a_pack_travels_by_its_path(place):
    images = read_images(place / "in", cache=place / "cache").subset([3, 1])
    data = pickle.dumps(images)
    assert len(data) < 4_000
    same(images, pickle.loads(data))


@pytest.mark.parametrize("how", ["packed", "zip"])
def test_loaders_read_what_one_process_reads(place, how):
    if how == "zip":
        for i in range(30):
            Image.effect_noise((99, 99), 60).save(place / "in" / f"{i}.png")
        shutil.make_archive(str(place / "set"), "zip", place / "in")
        images = read_images(place / "set.zip")
    else:
        images = read_images(place / "in", cache=place / "cache")
    images[0]  # so that the archive is open before others inherit it
    batches = [iter(Stream(images, _corner, batch=6, workers=workers)()) for workers in (0, 2)]
    for _ in range(20):
        one, two = next(batches[0]), next(batches[1])
        assert torch.equal(one, two)


def _corner(sample):
    return sample["image"][:, :5, :9]


def test_a_cache_that_cannot_be_written_costs_no_run(place):
    (place / "cache").write_text("in the way")
    images = read_images(place / "in", cache=place / "cache")
    same(images, read_images(place / "in"))
    assert [reason for _, reason in images.problems if reason.startswith("kept: the cache cannot be written")]


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_costs_no_run_and_no_second_look(place, monkeypatch, after, heard):
    class Full(io.BytesIO):
        left = after

        def write(self, data):
            Full.left -= 1
            if Full.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def write(path, fill):
        with files.writing(path):
            fill(Full())

    monkeypatch.setattr(files, "write", write)
    monkeypatch.setattr(pack, "CHUNK", 2)
    images = read_images(place / "in", cache=place / "cache", watch=heard)
    monkeypatch.undo()
    same(images, read_images(place / "in"))
    assert [reason for _, reason in images.problems if "No space left" in reason]
    assert [done for done, _ in heard.steps] == [2, 4, 6, 8, 10, 12]


def test_what_changes_later_is_told_when_asked_for(place):
    images = read_images(place / "in")
    Path(images.names[0]).unlink()
    with pytest.raises(ValueError, match="no longer there"):
        images[0]


KILLED = """
import os, sys, time
from partwhole.vision import pack
from partwhole.vision.images import read_images

def slow(*args):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(30 if sys.argv[2] == "wait" else 0.1)
    os.kill(os.getpid(), 9)

pack.ALONE, pack.CHUNK, pack._look = 0.0, 2, slow
try:
    read_images(sys.argv[1], workers=2)
except pack.Ended as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_killed_worker_is_told(place):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, place / "in", "die"], capture_output=True, text=True, timeout=90
    )
    assert "was killed near" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.slow
def test_workers_end_with_their_parent(place):
    """After kill -9 nobody tells them."""
    code = KILLED.replace("    os.write(1", "    pack.end_with(os.getppid())\n    os.write(1")
    parent = subprocess.Popen([sys.executable, "-c", code, place / "in", "wait"], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists()


def test_the_work_begins_with_watching_the_parent(place, monkeypatch):
    watched = []
    monkeypatch.setattr(pack, "end_with", watched.append)
    entry = pack.Entry("x", str(place / "in" / "a" / "00.png"), "", -1, 9, 0, ())
    pack._look([entry], pack.Decoding(None, None), True, 1)
    assert watched == [1]
    pack._look([entry], pack.Decoding(None, None), True, os.getpid())
    assert watched == [1]


def test_what_workers_import_is_light():
    code = "import sys, partwhole.vision.pack; print([m for m in ('torch', 'PIL', 'joblib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_runs_at_once_do_not_harm_each_other(place):
    code = "import sys; from partwhole.vision.images import read_images; print(read_images(sys.argv[1], cache=sys.argv[2]).key)"  # noqa: E501
    shutil.rmtree(place / "cache", ignore_errors=True)
    runs = [
        subprocess.Popen([sys.executable, "-c", code, place / "in", place / "cache"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    keys = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert keys == {read_images(place / "in", cache=place / "cache").key}
    assert [p.suffix for p in (place / "cache" / "images").iterdir()] == [".pack"]
