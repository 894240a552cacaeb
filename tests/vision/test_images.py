"""Images from files of every kind, folders and archives of every layout, and other data sets."""

import contextlib
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from partwhole.vision import find as finding
from partwhole.vision.decode import BadImage, decode
from partwhole.vision.images import read_images

RED = (200, 30, 40)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(seed=0, size=(10, 8), kind="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def put(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(i))


# ------------------------------------------------------------------ decoding


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]), st.integers(0, 9)
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_lossless_files_come_back_as_they_were(width, height, kind, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture(1, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data), np.asarray(upright))
    assert decode(data).shape == ((8, 10, 3) if orientation < 5 else (10, 8, 3))


def test_16_bits_are_scaled_not_clipped():
    wide = np.array([[0, 257, 32768, 65535], [128, 129, 1000, 65407]], np.uint16)
    for kind in ("PNG", "TIFF"):
        got = decode(encoded(Image.fromarray(wide), kind))
        assert np.array_equal(got[..., 0], np.round(wide / 257).astype(np.uint8))
        assert (got == got[..., :1]).all()
    pgm = b"P5 4 2 65535\n" + wide.astype(">u2").tobytes()
    assert np.array_equal(decode(pgm)[..., 2], np.round(wide / 257).astype(np.uint8))


def test_transparency_lies_on_white():
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[0] = (*RED, 255)
    clear[1] = (*RED, 51)
    got = decode(encoded(Image.fromarray(clear)))
    assert (got[0] == RED).all()
    assert np.abs(got[1].astype(int) - (0.2 * np.array(RED) + 0.8 * 255)).max() <= 1
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((0, 0), 0)
    got = decode(encoded(palette, transparency=0))
    assert got[0, 0].tolist() == [255] * 3
    assert got[1, 1].tolist() == list(RED)
    grey = decode(encoded(Image.new("LA", (2, 2), (10, 0))))
    assert (grey == 255).all()


def test_every_mode_becomes_rgb():
    for mode, kind in (("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("CMYK", "TIFF")):
        got = decode(encoded(Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode), kind))
        assert got.shape == (3, 4, 3)
        assert got.dtype == np.uint8
        assert got.min() > 245, mode


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0))]
    for kind in ("GIF", "PNG", "TIFF"):
        got = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert np.abs(got.astype(int) - RED).max() <= 2, kind


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(["PNG", "JPEG"]))
@settings(max_examples=25, deadline=None)
def test_the_shorter_side_is_reduced_and_never_enlarged(width, height, shorter, kind):
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).round().astype(np.uint8)
    got = decode(encoded(Image.fromarray(ramp), kind), shorter=shorter)
    if min(width, height) <= shorter:
        assert got.shape == ramp.shape
    else:
        scale = shorter / min(width, height)
        assert min(got.shape[:2]) == shorter
        assert abs(got.shape[1] - width * scale) <= 0.5 + 1e-9
        assert shorter < 8 or abs(float(got.mean()) - 127.5) < 4  # not a crop


def test_reduction_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for kind in ("PNG", "JPEG"):
        got = decode(encoded(Image.fromarray(stripes), kind), shorter=16)
        assert np.abs(got[:, 2:-2].astype(int) - 128).max() < 20, kind


def test_what_is_no_image_says_why(capfd):
    jpeg = picture(0, (60, 60), "JPEG", quality=95)
    bad = {
        "an empty file": b"",
        "not an image": b"GIF? no, text.",
        "a broken image": jpeg[: len(jpeg) // 2],
        "more than 4095": picture(0, (64, 64)),
        "floating point": encoded(Image.new("F", (2, 2)), "TIFF"),
        "values from": encoded(Image.fromarray(np.array([[70_000]], np.int32)), "TIFF"),
    }
    for reason, data in bad.items():
        with pytest.raises(BadImage, match=reason):
            decode(data, "it", largest=4095)
    assert decode(picture(0, (63, 65)), largest=4095).shape == (65, 63, 3)
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_refused_by_its_header():
    header = bytearray(picture(0, (1, 1)))
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # the size in a PNG's first chunk
    import zlib

    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="more pixels than PIL reads"):
        decode(bytes(header))
    header[16:24] = (10_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="10000 x 10000 pixels, more than 50000000"):
        decode(bytes(header), largest=50_000_000)


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
@settings(max_examples=60, deadline=None)
def test_whatever_is_broken_is_an_image_or_a_reason(at, value, kind):
    data = bytearray(picture(3, (12, 9), kind))
    data[at % len(data)] = value
    with contextlib.suppress(BadImage):
        assert decode(bytes(data), largest=10_000).dtype == np.uint8


# ------------------------------------------------------------------ finding


def test_folders_of_classes(tmp_path):
    put(tmp_path, "dog/1.png", "cat/deep/er/2.PNG", "cat/1.JPG", ".hidden/x/1.png", "cat/._1.png", "readme.txt")
    images = read_images(tmp_path)
    assert images.classes == ["cat", "dog"]
    assert [os.path.relpath(n, tmp_path) for n in images.names] == ["cat/1.JPG", "cat/deep/er/2.PNG", "dog/1.png"]
    assert images.labels == [0, 0, 1]
    assert images[2]["label"] == 1
    assert images[0]["image"].shape == (3, 8, 10)
    assert images[0]["image"].dtype == torch.uint8
    assert [s["label"] for s in images[1:]] == [0, 1]
    assert images[-1]["label"] == 1
    with pytest.raises(IndexError):
        images[3]


def test_a_flat_folder_has_no_labels_even_one_folder_down(tmp_path):
    put(tmp_path / "a", "1.png", "2.png")
    put(tmp_path / "b", "images/1.png", "images/2.png")
    for name in "ab":
        images = read_images(tmp_path / name)
        assert images.labels == [None, None]
        assert images.classes == []
        assert set(images[0]) == {"image"}


def test_images_beside_the_folders_of_classes_have_no_label(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "1.png")
    images = read_images(tmp_path)
    assert images.labels == [None, 0, 1]
    assert images.problems[0][1].startswith("kept: 1 images beside")


@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_parts(tmp_path, top):
    put(tmp_path, *(f"{top}{name}" for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "unlabeled/4.png")))

    def names(split):
        images = read_images(tmp_path, split=split)
        return [(os.path.basename(n), None if k is None else images.classes[k]) for n, k in zip(images.names, images.labels, strict=True)]  # fmt: skip  # noqa: E501

    assert names("train") == [("1.png", "a"), ("2.png", "b")]
    assert names("test") == [("3.png", "a")]
    assert names("unlabelled") == [("1.png", "a"), ("2.png", "b"), ("4.png", None)]
    assert sorted(names(None)) == [("1.png", "a"), ("2.png", "b"), ("3.png", "a"), ("4.png", None)]


def test_the_test_part_is_the_one_with_classes(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "test/4.png")
    assert [os.path.basename(n) for n in read_images(tmp_path, split="test").names] == ["3.png"]
    put(tmp_path, "test/b/5.png")
    assert "val" not in "".join(n.replace(str(tmp_path), "") for n in read_images(tmp_path, split="test").names)


def test_a_folder_called_train_alone_is_a_class(tmp_path):
    put(tmp_path, "train/1.png", "bus/2.png")
    assert read_images(tmp_path).classes == ["bus", "train"]
    with pytest.raises(BadImage, match="no image of the part 'test'"):
        read_images(tmp_path, split="test")


def archive(folder, path, entries):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for entry in entries:
                made.write(folder / entry, f"set/{entry}")
    else:
        with tarfile.open(path, {"tar": "w", "gz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}[path.suffix[1:]]) as made:
            for entry in entries:
                made.add(folder / entry, f"./set/{entry}")
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_archives_are_read_as_the_folders_they_hold(tmp_path, suffix):
    entries = ["a/1.png", "b/2.png", "b/3.jpg", "notes.txt"]
    put(tmp_path / "in", *entries)
    path = archive(tmp_path / "in", tmp_path / f"set{suffix}", entries)
    got, want = read_images(path, cache=tmp_path / "cache"), read_images(tmp_path / "in")
    assert [n.split("set/")[1] for n in got.names] == ["a/1.png", "b/2.png", "b/3.jpg"]
    assert all(n.startswith(f"{path}/") for n in got.names)
    assert (got.labels, got.classes) == (want.labels, want.classes)
    assert all(torch.equal(g["image"], w["image"]) for g, w in zip(got, want, strict=True))
    assert read_images(path, cache=tmp_path / "cache", split=None).key == got.key


def test_a_compressed_tar_needs_a_cache(tmp_path):
    put(tmp_path, "1.png")
    path = archive(tmp_path, tmp_path / "set.tar.gz", ["1.png"])
    with pytest.raises(BadImage, match="unpack it"):
        read_images(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadImage, match="not a readable archive"):
        read_images(path, cache=tmp_path / "cache")


def test_broken_archives_are_told(tmp_path):
    put(tmp_path, *(f"{i}.png" for i in range(4)))
    path = archive(tmp_path, tmp_path / "set.tar", [f"{i}.png" for i in range(4)])
    with tarfile.open(path) as made:
        third = made.getmembers()[2]
    path.write_bytes(path.read_bytes()[: third.offset_data + 20])
    images = read_images(path)
    assert len(images) == 2
    assert any("cut off" in reason for _, reason in images.problems)
    for suffix in (".zip", ".tar"):
        (tmp_path / f"bad{suffix}").write_bytes(b"this is no archive" * 100)
        with pytest.raises(BadImage, match=r"not a readable (zip|tar) archive"):
            read_images(tmp_path / f"bad{suffix}")


def test_a_broken_member_of_a_zip_is_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_STORED) as made:
        made.writestr("1.png", picture(1))
        made.writestr("2.png", picture(2))
    data = bytearray((tmp_path / "set.zip").read_bytes())
    data[data.index(picture(2)) + 60] ^= 255
    (tmp_path / "set.zip").write_bytes(data)
    images = read_images(tmp_path / "set.zip")
    assert len(images) == 1
    assert "Bad CRC" in images.problems[0][1]


def test_an_archive_that_is_replaced_is_read_anew(tmp_path):
    for i in (1, 2):
        (tmp_path / "new.zip").unlink(missing_ok=True)
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as made:
            made.writestr("1.png", picture(i))
        os.utime(tmp_path / "new.zip", ns=(i, i))
        (tmp_path / "new.zip").replace(tmp_path / "set.zip")
        assert np.array_equal(read_images(tmp_path / "set.zip")[0]["image"].permute(1, 2, 0), decode(picture(i)))


def test_a_forked_process_opens_an_archive_of_its_own(tmp_path, monkeypatch):
    """A handle from before the fork would share its place in the file with the parent's."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as made:
        made.writestr("1.png", picture(1))
    images = read_images(tmp_path / "set.zip")
    opened = finding._archive.cache_info().misses
    images[0]
    assert finding._archive.cache_info().misses == opened
    monkeypatch.setattr(finding.os, "getpid", lambda: -1)
    images[0]
    assert finding._archive.cache_info().misses == opened + 1


def test_places_without_images_say_what_is_there(tmp_path):
    with pytest.raises(BadImage, match="no such file or folder"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(BadImage, match="nothing in it"):
        read_images(tmp_path)
    (tmp_path / "a.csv").touch()
    with pytest.raises(BadImage, match=r"no image among 1 files \(1 .csv\)"):
        read_images(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(BadImage, match="none of 1 images can be read"):
        read_images(tmp_path)
    with pytest.raises(BadImage, match="no path given"):
        read_images([])


def test_links_in_circles_pipes_and_links_to_nothing_are_passed_over(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    images = read_images(tmp_path)
    assert len(images) == 1
    assert sorted(os.path.basename(p) for p, _ in images.problems) == ["gone.png", "pipe.png"]


def test_what_may_not_be_read_is_told(tmp_path, monkeypatch):
    put(tmp_path, "1.png", "2.png")
    access = os.access
    monkeypatch.setattr(finding.os, "access", lambda p, mode: not str(p).endswith("2.png") and access(p, mode))
    images = read_images(tmp_path)
    assert len(images) == 1
    assert "no permission" in images.problems[0][1]


def test_several_places_become_one_set(tmp_path):
    put(tmp_path, "one/a/1.png", "one/b/1.png", "two/c/1.png", "two/b/1.png", "flat/1.png")
    images = read_images([tmp_path / "one", tmp_path / "two", tmp_path / "flat", tmp_path / "one", "digits:"])
    assert images.classes[:3] == ["a", "b", "c"]
    assert images.labels[:5] == [0, 1, 1, 2, None]
    assert len(images) == 5 + 1347
    assert images[5]["image"].shape == (3, 32, 32)
    assert images.classes[images[5]["label"]] == "0"


def test_a_limit_is_a_seeded_choice(tmp_path):
    put(tmp_path, *(f"{i}.png" for i in range(9)))
    chosen = [read_images([tmp_path, "digits:"], limit=40, seed=seed).names for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(c) for c in chosen] == [40] * 3


def test_subsets(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(3)))
    images = read_images(tmp_path)
    some = images.subset([5, 0, 4]).subset([2, 0])
    assert some.names == [images.names[4], images.names[5]]
    assert some.labels == [1, 1]
    assert torch.equal(some[1]["image"], images[5]["image"])
    assert some.classes == images.classes
    assert len({images.key, some.key, images.subset([4, 5]).key, images.subset([5, 4]).key}) >= 3
