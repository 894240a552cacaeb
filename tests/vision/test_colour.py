"""Colours are torchvision's, for one image and for many at once, also where channels are equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from partwhole.vision import colour

some = settings(deadline=None, max_examples=60)


@st.composite
def pictures(draw, images=2):
    """Few values, so that channels are often equal, least or greatest; and small ones, as 1-pixel sides."""
    h, w, levels = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 255]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(0, levels + 1, (images, 3, h, w), generator=g).float() / levels


PAIRS = {
    "brightness": (colour.brightness_, tv.adjust_brightness, st.floats(0, 2)),
    "contrast": (colour.contrast_, tv.adjust_contrast, st.floats(0, 2)),
    "saturation": (colour.saturation_, tv.adjust_saturation, st.floats(0, 2)),
    "hue": (colour.hue_, tv.adjust_hue, st.floats(-0.5, 0.5)),
    "sharpness": (colour.sharpness_, tv.adjust_sharpness, st.floats(0, 2)),
    "solarize": (colour.solarize_, tv.solarize, st.floats(0, 1)),
    "posterize": (colour.posterize_, tv.posterize, st.integers(0, 8)),
}


@pytest.mark.parametrize("name", PAIRS)
@some
@given(data=st.data())
def test_an_amount_changes_as_in_torchvision(name, data):
    ours, theirs, amounts = PAIRS[name]
    x, a, b = data.draw(pictures()), data.draw(amounts), data.draw(amounts)
    # in float64: float32 may fall on either side of a level or a threshold
    want = torch.stack([theirs(x[0].double(), a), theirs(x[1].double(), b)])
    one = x.double()
    assert ours(one[0], a).data_ptr() == one[0].data_ptr()
    ours(one[1], b)
    assert (one - want).abs().max() < 1e-6
    column = torch.tensor([a, b], dtype=torch.float64).view(-1, 1, 1, 1)
    assert (ours(x.double(), column) - want).abs().max() < 1e-6
    if name not in ("solarize", "posterize"):
        assert (ours(x.clone(), column.float()) - want).abs().max() < 1e-5


@some
@given(pictures())
def test_grey_autocontrast_and_equalize_change_as_in_torchvision(x):
    assert (colour.grey_(x.clone()) - tv.rgb_to_grayscale(x, num_output_channels=3)).abs().max() < 1e-6
    assert torch.equal(colour.autocontrast_(x.clone()), tv.autocontrast(x))
    assert torch.equal(colour.equalize_(x.clone()), torch.stack([tv.equalize(one) for one in x]))
    for change in (colour.grey_, colour.autocontrast_, colour.equalize_, colour.sobel_):
        whole, one = change(x.clone()), x.clone()
        assert change(one[1]).data_ptr() == one[1].data_ptr()
        assert torch.allclose(one[1], whole[1])


def test_a_turn_of_the_hue_by_thirds_moves_the_channels():
    x = torch.rand(3, 5, 5)
    assert torch.allclose(colour.hue_(x.clone(), 1 / 3), x[[2, 0, 1]], atol=1e-6)
    assert torch.allclose(colour.hue_(x.clone(), -1 / 3), x[[1, 2, 0]], atol=1e-6)


def test_sobel_is_one_at_a_step_and_zero_on_what_is_even():
    x = torch.zeros(3, 6, 6)
    x[:, :, 3:] = 1
    edges = colour.sobel_(x.clone())
    assert torch.equal(edges[:, :, 2:4], torch.ones(3, 6, 2))
    assert edges[:, :, [0, 1, 4, 5]].sum() == 0
    assert torch.equal(colour.sobel_(x.mT.clone()), edges.mT)
