"""Views: drawn as torchvision draws, made as its functions make them; alone and in a batch the same."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from partwhole.vision import effects, resample, views
from partwhole.vision.effects import NAMES, Cutout, Jitter, RandAugment, Shift
from partwhole.vision.views import MEAN, STD, Augment, Looks, random_box

RAW = Augment(size=32, mean=(0, 0, 0), std=(1, 1, 1))
EVERYTHING = replace(RAW, shift=0.2, jitter=0.8, operations=2, grey=0.2, blur=0.5, solarize=0.3, cutout=0.5)
COLOURS = replace(EVERYTHING, shift=0.0, operations=0, cutout=0.0)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Waves: as smooth as photographs, so that no rounding decides much."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None] / 9, torch.arange(width) / 7
    a, b, c = torch.rand(3, 3, 1, 1, generator=g) * 6
    return ((torch.sin(a + y + x * b / 3) + torch.cos(c + x - y)) * 63 + 128).to(torch.uint8)


def by_torchvision(image, drawn, augment):
    """The same numbers in torchvision's functions, in float64."""
    top, left, h, w, mirrored = drawn["box"].tolist()
    x = tv.resized_crop(image.double() / 255, top, left, h, w, [augment.size] * 2, antialias=True)
    x = tv.horizontal_flip(x) if mirrored else x
    order, amounts = drawn["jitter"][:4].int().tolist(), drawn["jitter"][4:].tolist()
    change = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for i in order:
        x = change[i](x, amounts[i]) if i >= 0 else x
    x = tv.rgb_to_grayscale(x, 3) if drawn["grey"] else x
    x = tv.gaussian_blur(x, [resample.kernel(augment.size)] * 2, [float(drawn["blur"])] * 2) if drawn["blur"] else x
    x = tv.solarize(x, 0.5) if drawn["solarize"] else x
    return tv.normalize(x, list(augment.mean), list(augment.std))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31))
def test_a_view_is_torchvisions_of_the_same_numbers(seed):
    torch.manual_seed(seed)
    image, augment = picture(40, 52, seed), replace(COLOURS, mean=MEAN, std=STD)
    drawn = augment.draw(40, 52)
    found = augment.apply(image[None], {k: v[None] for k, v in drawn.items()})[0]
    off = (found - by_torchvision(image, drawn, augment)).abs() * torch.tensor(STD).view(3, 1, 1)
    # what lies on the threshold of the solarization may fall to either side
    assert (off > 1e-5).double().mean() < (0.01 if drawn["solarize"] else 1e-9)


@pytest.mark.parametrize(
    "sizes", [[(40, 52)] * 9, [(40 + i, 52 - 3 * i) for i in range(9)]], ids=["one size", "ragged"]
)
@pytest.mark.parametrize("device", ["cpu", "other"])
def test_a_batch_is_the_views_one_by_one(sizes, device, monkeypatch):
    images = [picture(h, w, i) for i, (h, w) in enumerate(sizes)]
    alone, drawn = [], []
    for i, image in enumerate(images):
        torch.manual_seed(i)
        alone.append(EVERYTHING({"image": image}))
        torch.manual_seed(i)
        drawn.append(EVERYTHING.draw(*image.shape[1:]))
    if device == "other":
        monkeypatch.setattr(resample, "one_by_one", lambda x: False)
    batch = images if len(set(sizes)) > 1 else torch.stack(images)
    together = EVERYTHING.apply(batch, {k: torch.stack([d[k] for d in drawn]) for k in drawn[0]})
    off = (together - torch.stack(alone)).abs()
    # thresholds, levels and bins (solarize, posterize, equalize) decide by the last bit
    assert (off > 1e-4).double().mean() < (0.001 if device == "other" else 1e-9)
    assert off.mean() < 1e-4


def test_a_view_is_a_function_of_torchs_seed_and_apply_of_its_numbers():
    image = picture(30, 45)
    torch.manual_seed(3)
    first, after = EVERYTHING({"image": image}), torch.rand(1)
    torch.manual_seed(3)
    drawn = EVERYTHING.draw(30, 45)
    assert torch.equal(after, torch.rand(1))
    state = torch.get_rng_state()
    again = EVERYTHING.apply(image[None], {k: v[None] for k, v in drawn.items()})[0]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, EVERYTHING({"image": image}))
    assert torch.equal(image, picture(30, 45))


def test_a_view_is_made_in_full_precision_and_without_gradients():
    image = picture(30, 45)
    torch.manual_seed(0)
    drawn = {k: v[None] for k, v in replace(COLOURS, grey=1.0, blur=1.0).draw(30, 45).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = COLOURS.apply(image[None], drawn)
    assert torch.equal(inside, COLOURS.apply(image[None], drawn))
    assert not inside.requires_grad


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Greatest distance of two empirical distributions (Kolmogorov, Smirnov)."""
    every = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(x.sort().values, every, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(64, 64, (0.2, 1.0)), (60, 100, (0.08, 1.0)), (30, 90, (0.6, 1))]
)
def test_crops_are_drawn_as_torchvisions(height, width, scale):
    torch.manual_seed(0)
    N, ratio, image = 4000, (3 / 4, 4 / 3), torch.zeros(3, height, width)
    ours = torch.stack([random_box(height, width, scale, ratio, 0.0) for _ in range(N)])[:, :4].double()
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    drawn = [transform.make_params([image]) for _ in range(N)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn]).double()
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert farthest(a, b) < 1.95 / math.sqrt(N / 2)  # one in a thousand
    assert farthest(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 1.95 / math.sqrt(N / 2)
    assert farthest(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]) < 1.95 / math.sqrt(N / 2)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**31))
def test_every_crop_lies_within_its_image_however_thin(height, width, seed):
    torch.manual_seed(seed)
    for scale in (None, (0.05, 0.4), (1.0, 1.0)):
        top, left, h, w, mirrored = random_box(height, width, scale, (3 / 4, 4 / 3), 0.5).tolist()
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert min(h, w) >= 1
        assert mirrored in (0, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (20, 3000)])
def test_tiny_and_thin_images_have_views(shape):
    for augment in (EVERYTHING, replace(EVERYTHING, scale=None), Augment(size=1), replace(EVERYTHING, size=2)):
        assert augment({"image": picture(*shape)}).isfinite().all()


def test_chances_ranges_and_orders():
    torch.manual_seed(0)
    N = 4000
    drawn = [COLOURS.draw(40, 40) for _ in range(N)]
    close = 4 * math.sqrt(0.25 / N)
    every = {k: torch.stack([d[k] for d in drawn]) for k in drawn[0]}
    assert abs(every["box"][:, 4].double().mean() - 0.5) < close
    assert abs(every["grey"].mean() - 0.2) < close
    assert abs(every["solarize"].mean() - 0.3) < close
    sigma = every["blur"][every["blur"] > 0]
    assert abs(len(sigma) / N - 0.5) < close
    assert farthest(sigma, torch.empty(N).uniform_(0.1, 2.0)) < 0.06
    order, amounts = every["jitter"].split(4, 1)
    done = order[:, 0] >= 0
    assert abs(done.double().mean() - 0.8) < close
    orders = Counter(map(tuple, order[done].int().tolist()))
    assert len(orders) == 24
    assert max(orders.values()) < 1.5 * N * 0.8 / 24
    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        assert farthest(amounts[:, i], torch.empty(N).uniform_(low, high)) < 1.95 / math.sqrt(N / 2)


def test_what_is_not_to_be_jittered_is_not():
    drawn = torch.stack([Jitter(1.0, 0.4, 0.0, 0.4, 0.0).draw(8) for _ in range(50)])
    assert all(sorted(row) == [-1, -1, 0, 2] for row in drawn[:, :4].int().tolist())


def test_randaugment_draws_each_operation_and_all_of_its_range():
    torch.manual_seed(0)
    drawn = torch.cat([RandAugment(2).draw(32).view(2, 2) for _ in range(3500)])
    for number, name in enumerate(NAMES):
        levels = drawn[drawn[:, 0] == number, 1]
        assert 0.8 < len(levels) / 500 < 1.2, name
        low, high = effects.RANGES[name]
        assert low <= levels.min() <= low + (high - low) * 0.02, name
        assert high - (high - low) * 0.02 <= levels.max() <= high, name
    bits = drawn[drawn[:, 0] == NAMES.index("posterize"), 1]
    assert bits.unique().tolist() == [4, 5, 6, 7, 8]


def test_cutout_and_shift_reach_everywhere_evenly():
    torch.manual_seed(0)
    hidden = torch.zeros(16, 16)
    for _ in range(2000):
        x = torch.zeros(1, 3, 16, 16)
        cut = Cutout((0.0, 0.5))
        cut.apply(x, cut.draw(16)[None])
        assert x.max() in (0, 0.5)
        hidden += x[0, 0] > 0
    assert hidden[4:12, 4:12].min() > 0.6 * hidden.max()
    assert hidden.min() > 0.2 * hidden.max()  # fewer at the border, where the square is cut
    moves = torch.stack([Shift(0.125).draw(32) for _ in range(3000)])
    assert moves.unique().tolist() == list(range(-4, 5))
    assert torch.bincount((moves[:, 0] + 4).long()).min() > 0.75 * 3000 / 9


def test_looks():
    torch.manual_seed(0)
    small = Augment(size=16)
    made = Looks(EVERYTHING, small, 3, small)({"image": picture(40, 40)})
    assert [x.shape[-1] for x in made["views"]] == [32, 16]
    assert [x.shape[-1] for x in made["crops"]] == [16] * 3
    assert not torch.equal(made["crops"][0], made["crops"][1])
    assert "crops" not in Looks(EVERYTHING, small)({"image": picture(40, 40)})
    with pytest.raises(ValueError, match="say by"):
        Looks(small, small, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 2.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"hue": 0.6}, "hue is 0.6; expected 0 to 0.5"),
        ({"flip": 1.5}, "flip"),
        ({"sigma": (0.0, 1.0)}, "sigma"),
        ({"brightness": -1.0}, "brightness"),
        ({"shift": 1.0}, "shift"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8).byte(), torch.zeros(8, 8).byte(), "a.jpg", torch.zeros(3, 0, 8).byte()],
)
def test_what_is_no_image_is_said(image):
    with pytest.raises(ValueError, match="an image is"):
        Augment(size=8)({"image": image})


def test_a_batch_on_a_cpu_goes_through_in_parts_that_stay_in_its_cache(monkeypatch):
    monkeypatch.setattr(views, "CACHE", 3 * 32 * 32 * 2)
    test_a_batch_is_the_views_one_by_one([(40, 52)] * 9, "cpu", monkeypatch)
