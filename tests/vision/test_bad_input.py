"""What a person may give by mistake, on the command line: a message that says what to do, and what can be done is."""

import errno
import itertools
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from partwhole.core.watch import Quiet
from partwhole.vision.network import Network
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS

FAST = (
    "--fit.steps 2 --fit.device cpu --batch 4 --source.workers 1 --network.width 0.125 --network.dim 32 "
    "--network.depth 1 --size 32 --measure.arms frozen --measure.shots 1 --measure.draws 1"
).split()


@pytest.fixture(scope="module")
def good(coloured, tmp_path_factory) -> Path:
    return coloured(tmp_path_factory.mktemp("images"), {"red": 5, "blue": 5}, (36, 40))


@pytest.fixture
def vision(tools, capsys):
    """Run a task with words: the exit code, and all that was said, on one line."""

    def call(task, data, *words):
        given = ["--data", str(data)] if data else ["--source.generate", "8", "--source.generate-labelled", "3"]
        code = tools("run", "--modality", "vision", "--task", task, "--folder", "r", *given, *FAST, *words)
        told = capsys.readouterr()
        return code, " ".join(re.sub("[│╭╮╰╯─]", " ", told.out + told.err).split())

    return call


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
@pytest.mark.parametrize("task", ["mae", "beit", "ijepa", "data2vec", "ibot", "dinov2", "dinov3"])
def test_hiding_patches_of_small_images_ends(good, tmp_path, task, patch):
    recipe = TASKS[task](
        data=(good,), size=32, batch=64, source=Source(cache=tmp_path, workers=1),
        network=Network(name="vit", dim=32, depth=1, patch=patch),
    )  # fmt: skip
    if patch > 8:
        with pytest.raises(ValueError, match=rf"have {(32 // patch) ** 2} patches of {patch}: too few.*Raise --size"):
            recipe.build(watch=Quiet())
        return
    for batch in itertools.islice(recipe.build(watch=Quiet()).stream(), 3):
        assert len(batch["x"] if "x" in batch else batch["views"][0]) == 64


@pytest.mark.parametrize(
    ("task", "words", "told"),
    [
        ("simclr", "--size 0", "size is 0; expected 1 or more"),
        ("mae", "--size -1", "size is -1; expected 1 or more"),
        ("mae", "--size 7", "patches of 8 pixels do not fit into an image of 7: choose a smaller patch"),
        ("jigsaw", "--size 3", "tiles of 1 pixels show nothing"),
        ("context", "--size 3", "tiles of 1 pixels show nothing"),
        ("simclr", "--batch 0", "batch is 0; expected 1 or more"),
        ("mae", "--ratio 1", "the ratio to hide lies between 0 and 1, not at 1.0"),
        ("beit", "--ratio 0", "the ratio to hide lies between 0 and 1, not at 0.0"),
        ("ibot", "--ratio 0.9 0.1", "lies between 0 and 1, not at (0.9, 0.1)"),
        ("ibot", "--chance 2", "the chance to hide anything lies in [0, 1], not at 2.0"),
        ("dino", "--crops -1", "-1 crops; expected 0 or more"),
        ("dino", "--size 64 --network.name vit --network.patch 32", "vit takes no images of 24 pixels a side, which "
         "DINO shows it where --size is 64"),
        ("dino", "--network.name convnext_tiny", "convnext_tiny takes no images of 16 pixels a side"),
        ("simclr", "--source.loaders -1", "source.loaders is -1; expected 0 or more"),
        ("simclr", "--source.limit -1", "source.limit is -1; expected 1 or more"),
        ("simclr", "--source.shorter 0", "source.shorter is 0; expected 1 or more"),
        ("simclr", "--network.name resnet19", "timm has no model 'resnet19': did you mean resnet18,"),
        ("simclr", "--network.width 0", "width of the network is 0.0; expected a number above 0"),
        ("mae", "--network.depth 0", "depth of the network is 0; expected 1 or more"),
        ("rotation", "--policy simclr", "Unrecognized options: --policy"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_in_words(vision, good, task, words, told):
    code, said = vision(task, good, *words.split())
    assert code == 2
    assert told in said


@pytest.mark.parametrize(
    ("task", "words", "told"),
    [
        ("simclr", "--batch 12", "a step of 12 images sees each of the 10 several times"),
        ("moco", "--batch 1", "careful: a step of one image has no other to compare it with"),
        ("ibot", "--batch 1", "careful: a step of one image has no other to compare it with"),
        ("simclr", "--size 48", "10 of 10 images that were looked at are smaller than the 48 pixels"),
        ("mae", "--network.patch 7", "32 pixels are 4 patches of 7 a side; the last 4 rows and columns are not seen"),
        ("simclr", "--network.patch 4", "careful: --network.dim, --network.depth, --network.patch changes nothing"),
        ("simclr", "--size 7", "encoder: r"),
    ],
)
def test_what_is_odd_is_told_and_done(vision, good, task, words, told):
    code, said = vision(task, good, *words.split())
    assert code == 0
    assert told in said
    assert "accuracy" in said


def test_images_smaller_than_a_crop_or_a_patch_are_enlarged(vision, tmp_path):
    for i in range(6):
        (tmp_path / "in" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1 + i), (40 * i, 90, 9)).save(tmp_path / "in" / f"{i % 2}" / f"{i}.png")
    code, said = vision("mae", tmp_path / "in")
    assert code == 0
    assert "6 of 6 images that were looked at are smaller than the 32 pixels" in said
    assert "the smallest has 1 a side: they are enlarged" in said


@pytest.mark.parametrize(("count", "told"), [(0, "nothing in it; put images there"), (1, "sees each of the 1 several")])
def test_no_image_and_one(vision, tmp_path, count, told):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40, 40), (9, 9, 99)).save(tmp_path / "in" / "a" / f"{i}.png")
    code, said = vision("simclr", tmp_path / "in")
    assert code == (0 if count else 2)
    assert told in said
    if count:
        assert "no labelled images to measure on: give --labelled, a folder with a folder of images" in said
        assert vision("supervised", tmp_path / "in", "--folder", "s")[0] == 2


def test_many_files_of_which_none_is_an_image(vision, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3000):
        (tmp_path / "in" / f"{i}.txt").touch()
    code, said = vision("simclr", tmp_path / "in")
    assert code == 2
    assert "no image among 3000 files (3000 .txt); put images there" in said


def test_archives_within_others_are_told(vision, good, tmp_path):
    inner, outer, both = (tmp_path / f"{name}.zip" for name in ("inner", "outer", "both"))
    with zipfile.ZipFile(inner, "w") as archive:
        for file in sorted(good.rglob("*.png")):
            archive.write(file, file.relative_to(good))
    for path in (outer, both):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, "deep/inner.zip")
            if path is both:
                archive.write(good / "red" / "0.png", "0.png")
    code, said = vision("simclr", outer)
    assert code == 2
    assert "no image among 1 files (1 .zip)" in said
    assert "archives are not opened within others" in said
    code, said = vision("simclr", both)
    assert code == 0
    assert "both.zip/deep/inner.zip: skipped: 1 archives beside images" in said
    (tmp_path / "in" / "red").mkdir(parents=True)
    for file in (inner, good / "red" / "0.png"):
        shutil.copy(file, tmp_path / "in" / "red")
    code, said = vision("simclr", tmp_path / "in", "--folder", "other")
    assert code == 0
    assert f"{tmp_path / 'in' / 'red' / 'inner.zip'}: skipped: 1 archives beside images" in said


def test_names_that_are_no_text(vision, good, tmp_path, monkeypatch):
    place = os.fsencode(tmp_path / "in") + b"/gr\xfcn"
    os.makedirs(place)
    shutil.copytree(good / "red", tmp_path / "in" / "red")
    for i in range(5):
        shutil.copy(good / "blue" / f"{i}.png", place + b"/%d\xe9.png" % i)
    Path(os.fsdecode(place + b"/broken\xe9.png")).write_bytes(b"")
    out = open("out.txt", "w", encoding="utf-8", errors="strict")  # as a terminal
    monkeypatch.setattr(sys, "stdout", out)
    code, _ = vision("simclr", tmp_path / "in")
    out.close()
    said = Path("out.txt").read_text(encoding="utf-8")
    assert code == 0
    assert r"gr\udcfcn/broken\udce9.png: skipped: an empty file" in said
    assert "accuracy" in said


@pytest.mark.parametrize(("where", "code"), [("--folder", 1), ("--source.cache", 0)])
@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_place_of_a_folder(vision, good, where, code, below):
    Path("file").touch()
    found, said = vision("simclr", good, where, "file/x" if below else "file")
    assert found == code
    told = "A file is where a folder should be: move it or choose another" if code else "the cache cannot be written"
    assert told in said


@pytest.mark.parametrize("full", ["last.pt", "report.html", ".pack"])
def test_a_full_disk_costs_nothing_that_was_done(vision, good, monkeypatch, full):
    replace = Path.replace

    def failing(self, target):
        if target.name.endswith(full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", failing)
        code, said = vision("simclr", good, "--source.cache", "c")
    if full == ".pack":
        assert code == 0
        assert "kept: the cache cannot be written ([Errno 28]" in said
        return
    assert code == 1
    assert "No space left on device" in said
    assert "run the same command again: it goes on from what was saved" in said
    code, said = vision("simclr", good, "--source.cache", "c")
    assert code == 0
    assert ("finished, nothing to train" in said) == (full == "report.html")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later warn of workers
@pytest.mark.parametrize("loaders", ["0", "1"])
def test_a_file_that_goes_while_training_is_named(vision, good, tmp_path, monkeypatch, loaders):
    shutil.copytree(good, tmp_path / "in")
    from partwhole.vision.recipe import ImageRecipe

    given = ImageRecipe.given

    def gone(self, images, classes):
        shutil.rmtree(tmp_path / "in" / "red")
        return given(self, images, classes)

    monkeypatch.setattr(ImageRecipe, "given", gone)
    words = ["--source.memory", "0", "--source.loaders", loaders, "--batch", "10"]
    code, said = vision("simclr", tmp_path / "in", *words)
    assert code == 1
    assert "it is no longer there; put it back, or start again without it" in said
    assert "Traceback" not in said
