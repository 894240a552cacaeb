"""Generated scenes: the same for the same numbers, varied, and a class that only form tells."""

import hashlib

import numpy as np
import pytest
import torch

from partwhole.vision import scenes as made
from partwhole.vision.scenes import CLASSES, FORMS, scenes


def test_a_scene_is_a_function_of_its_numbers():
    many, few = scenes(40, seed=3), scenes(7, seed=3)
    first = [few[i] for i in range(7)]
    made._drawn.cache_clear()
    for i in reversed(range(7)):
        assert torch.equal(many[i]["image"], first[i]["image"])
        assert torch.equal(many[i]["mask"], first[i]["mask"])
    assert not torch.equal(scenes(1, seed=4)[0]["image"], first[0]["image"])
    assert len({hashlib.sha256(s["image"].numpy().tobytes()).hexdigest() for s in many}) == 40
    assert many.names[:7] == few.names
    assert len({tuple(s["image"][:, :2, :2].flatten().tolist()) for s in many}) > 35  # they do not share backgrounds


def test_samples_keep_the_contract():
    for size in (8, 33, 64):
        images = scenes(25, size=size, seed=-1)
        assert images.classes == CLASSES
        assert len(CLASSES) >= 8
        for i, sample in enumerate(images):
            assert sample["image"].shape == (3, size, size)
            assert sample["image"].dtype == torch.uint8
            assert sample["mask"].shape == (size, size)
            assert sample["mask"].dtype == torch.int64
            assert sample["label"] == images.labels[i] == i % len(CLASSES)
    images[0]["image"].zero_()
    assert images[0]["image"].any()


def test_masks_show_the_main_object_and_number_the_others_without_gaps():
    shares, others = [], set()
    for sample in scenes(200):
        numbers, counts = sample["mask"].unique(return_counts=True)
        assert numbers.tolist() == list(range(len(numbers)))
        assert len(numbers) >= 2
        shares.append(counts[1].item() / 64**2)
        assert counts[1] == counts[1:].max()
        others.add(len(numbers) - 2)
    assert others == {0, 1, 2}
    assert min(shares) > 0.05
    assert max(shares) < 0.5


def test_the_main_object_has_the_form_of_its_class_and_stands_out():
    """Its mask, moved to the middle and scaled, is nearest to the upright form of its own class for most."""
    grid = np.linspace(-1.2, 1.2, 24)
    forms = np.stack([form(grid[None, :], -grid[:, None]) > 0 for form in FORMS.values()]).astype(float)
    forms = np.stack([_framed(form) for form in forms])
    right, images = 0, scenes(200, seed=1)
    for sample in images:
        mask = _framed((sample["mask"] == 1).numpy().astype(float))
        right += int(np.abs(forms - mask).mean((1, 2)).argmin()) == sample["label"]
    assert right > 120
    inside = torch.stack([s["image"][:, s["mask"] == 1].float().mean(1) for s in images])
    outside = torch.stack([s["image"][:, s["mask"] == 0].float().mean(1) for s in images])
    assert (inside - outside).abs().amax(1).median() > 60


def _framed(mask):
    """What is inside, stretched to 16 x 16."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = torch.from_numpy(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])[None, None].float()
    return torch.nn.functional.interpolate(part, (16, 16), mode="bilinear")[0, 0].numpy()


def test_neither_colour_nor_pixels_tell_the_class():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import KNeighborsClassifier

    images = scenes(1500, size=32)
    x = torch.stack([s["image"] for s in images]).float() / 255
    y, colour = np.array(images.labels), x.mean((2, 3)).numpy()
    assert KNeighborsClassifier(10).fit(colour[:1000], y[:1000]).score(colour[1000:], y[1000:]) < 0.25
    pixels = torch.nn.functional.avg_pool2d(x, 2).flatten(1).numpy()
    assert RidgeClassifier(100).fit(pixels[:1000], y[:1000]).score(pixels[1000:], y[1000:]) < 0.4


def test_up_can_be_told():
    """Objects are lighter above: else a rotated scene would be as good as an upright one."""
    lighter = 0
    for sample in scenes(200, seed=2):
        rows, columns = torch.where(sample["mask"] == 1)
        grey, middle = sample["image"].float().mean(0)[rows, columns], rows.float().mean()
        lighter += int(grey[rows < middle].mean() > grey[rows > middle].mean())
    assert lighter > 150


def test_arguments_that_make_no_scene():
    for options in ({"count": 0}, {"count": 3, "size": 4}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            scenes(**options)
