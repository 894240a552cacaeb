"""Crops, blur and moves are torchvision's, for one image and for many at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from partwhole.vision import resample

some = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@st.composite
def boxes(draw):
    """An image's height and width, and a crop of it."""
    sides = st.integers(1, 70)
    height, width = draw(sides), draw(sides)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    h, w = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    return height, width, [top, left, h, w, draw(st.integers(0, 1))]


def theirs(image, box, size):
    """In float64, as float32 loses more there than here."""
    top, left, h, w, mirrored = box
    x = tv.resized_crop(image.double() / 255, top, left, h, w, [size, size], antialias=True)
    return tv.horizontal_flip(x) if mirrored else x


@some
@given(boxes(), st.integers(1, 130), seeds)
def test_a_crop_is_torchvisions(case, size, seed):
    height, width, box = case
    image = pictures(3, height, width, seed=seed)
    want = theirs(image, box, size)
    assert (resample.crops(image[None], torch.tensor([box]), size)[0] - want).abs().max() < 1e-5
    at_once = resample._crops_at_once(image[None], torch.tensor([box]), size)[0]
    assert (at_once - want).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(300, 500), (1200, 40), (40, 1300), (1, 2000), (2, 1)])
def test_large_and_long_ones_too(shape):
    image = pictures(3, *shape)
    for box in ([0, 0, *shape, 1], [0, 0, (shape[0] + 1) // 2, (shape[1] + 1) // 2, 0]):
        want = theirs(image, box, 112)
        assert (resample.crops(image[None], torch.tensor([box]), 112)[0] - want).abs().max() < 1e-4
        assert (resample._crops_at_once(image[None], torch.tensor([box]), 112)[0] - want).abs().max() < 1e-5


def test_many_at_once_are_those_one_by_one_of_one_size_or_several(monkeypatch):
    images = pictures(7, 3, 33, 50)
    chosen = torch.tensor([[i, 2 * i, 33 - 2 * i, 50 - 3 * i, i % 2] for i in range(7)])
    one = resample.crops(images, chosen, 24)
    assert torch.equal(one, resample.crops(list(images), chosen, 24))
    monkeypatch.setattr(resample, "one_by_one", lambda x: False)
    monkeypatch.setattr(resample, "AT_ONCE", 3 * 33 * 50 * 2)
    assert (resample.crops(images, chosen, 24) - one).abs().max() < 1e-6
    assert (resample.crops(list(images), chosen, 24) - one).abs().max() < 1e-6


@some
@given(st.integers(2, 80), st.floats(0.1, 3.0), seeds)
def test_blur_is_torchvisions(size, sigma, seed):
    x = pictures(2, 3, size, size, seed=seed).double() / 255
    reach = min(resample.kernel(size) // 2, size - 1)
    want = tv.gaussian_blur(x, [2 * reach + 1] * 2, [sigma, sigma])
    assert (resample.blur_(x.clone(), sigma) - want).abs().max() < 1e-7
    many = resample.blur_(x.clone(), torch.tensor([sigma, 2 * sigma]).view(-1, 1, 1, 1).double())
    assert (many[0] - want[0]).abs().max() < 1e-7
    assert (many[1] - tv.gaussian_blur(x[1], [2 * reach + 1] * 2, [2 * sigma] * 2)).abs().max() < 1e-7


def test_the_kernel_is_a_tenth_of_the_side_and_odd():
    assert [resample.kernel(size) for size in (8, 32, 64, 96, 224)] == [3, 3, 7, 9, 23]
    one = torch.rand(3, 1, 1)
    assert torch.equal(resample.blur_(one.clone(), 1.0), one)


@some
@given(st.integers(2, 40), st.floats(-60, 60), st.floats(-0.4, 0.4), seeds)
def test_moves_are_torchvisions(size, angle, share, seed):
    from partwhole.vision.effects import MOVES

    x = pictures(3, size, size, seed=seed).double() / 255
    degrees = float(torch.rad2deg(torch.atan(torch.tensor(share, dtype=torch.float64))))
    pixels, still = int(share * size), {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    corner = {"center": [0.0, 0.0]}
    for name, value, options in [
        ("rotate", angle, {**still, "angle": angle}),
        ("shear_x", share, {**still, "shear": [degrees, 0.0], **corner}),
        ("shear_y", share, {**still, "shear": [0.0, degrees], **corner}),
        ("translate_x", share, {**still, "translate": [pixels, 0]}),
        ("translate_y", share, {**still, "translate": [0, pixels]}),
    ]:
        # torchvision's own fill counts the border twice: of what is filled with 0 there is nothing to count
        want = tv.affine(x - 0.5, **options, interpolation=InterpolationMode.BILINEAR) + 0.5
        matrix = torch.tensor(MOVES[name][0](value, size), dtype=torch.float64)
        found = resample.affine_(x.clone(), matrix)
        assert (found - want).abs().max() < 1e-4, name
        both = resample.affine_(torch.stack([x, x]), torch.stack([matrix, torch.eye(3).double()[:2].flatten()]))
        assert torch.allclose(both[0], found)
        assert torch.allclose(both[1], x)


@some
@given(st.integers(2, 12), st.data())
def test_a_shift_is_a_crop_of_the_mirrored_surroundings(size, data):
    down, right = (data.draw(st.integers(1 - size, size - 1)) for _ in range(2))
    x = torch.rand(3, size, size)
    wide = tv.pad(x, [size - 1] * 4, padding_mode="reflect")
    want = wide[:, size - 1 - down :, size - 1 - right :][:, :size, :size]
    assert torch.equal(resample.translate(x, down, right), want)
