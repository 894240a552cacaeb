"""Patches of images as tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core.encoder import build, describe
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.embed import Patches

sides = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(h=sides, w=sides, patch=st.integers(1, 4), rest=st.integers(0, 3), channels=st.sampled_from([1, 3]))
def test_the_target_of_a_patch_is_its_pixels_and_a_picture_is_made_of_them(h, w, patch, rest, channels):
    embed = Patches(8, size=32, patch=patch, channels=channels)
    rest = min(rest, patch - 1)
    x = torch.randn(2, channels, h * patch + rest, w * patch + rest)
    target = embed.target(x)
    assert target.shape == (2, h * w, embed.target_dim)
    for i in range(h):
        for j in range(w):
            tile = x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            assert torch.equal(target[:, i * w + j], tile.flatten(1))
    assert torch.equal(embed.picture(target, x), x[..., : h * patch, : w * patch])
    assert embed(x).shape == (2, h * w, 8)


def test_a_token_is_a_linear_map_of_its_patch_and_its_position():
    embed = Patches(16, size=8, patch=4)
    x = torch.randn(2, 3, 8, 8)
    weight = embed.project.weight.flatten(1)
    plain = embed.target(x) @ weight.mT + embed.project.bias
    torch.testing.assert_close(embed(x) - embed.position(x), plain)


def test_positions_are_sines_of_row_and_column():
    """By loops, as in MAE (He et al., 2022): half of the features for each axis, sines before cosines."""
    embed, dim = Patches(16, size=12, patch=4), 16
    position = embed.position(torch.zeros(1, 3, 12, 12))[0]
    for i in range(3):
        for j in range(3):
            for axis, place in enumerate((i, j)):
                for f in range(dim // 4):
                    angle = torch.tensor(place / 1e4 ** (f / (dim // 4)))
                    found = position[i * 3 + j, axis * dim // 2 :][[f, dim // 4 + f]]
                    torch.testing.assert_close(found, torch.stack([angle.sin(), angle.cos()]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_crop_lies_over_the_same_extent(positions):
    """Its corners are not the first patches of the whole but as far apart as all of it; the middle stays the middle."""
    embed = Patches(16, size=24, patch=4, positions=positions)
    whole, crop = (embed.position(torch.zeros(1, 3, s, s))[0].unflatten(0, (s // 4, s // 4)) for s in (24, 12))
    near = (whole.unflatten(0, (3, 2)).unflatten(2, (3, 2)).mean((1, 3)) - crop).square().mean()
    far = (whole[:3, :3] - crop).square().mean()
    assert near < 0.6 * far
    where = embed.coordinates(torch.zeros(1, 3, 12, 24))[0].unflatten(0, (3, 6))
    assert where.shape == (3, 6, 2)
    torch.testing.assert_close(where, -where.flip(0, 1))  # the middle is 0
    torch.testing.assert_close(where[0, 0], torch.pi * torch.tensor([-4 / 3, -5 / 3]))


def test_it_is_written_down_and_built_again():
    encoder = TransformerEncoder(Patches(32, size=16, patch=4, positions="learned"), dim=32, depth=1, heads=2, cls=True)
    again = build(describe(encoder))
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), encoder(x))
    assert encoder(x).shape == (2, 17, 32)
    assert encoder(torch.randn(2, 3, 8, 12)).shape == (2, 7, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 4, "patch": 8}, "do not fit"),
        ({"positions": "none"}, '"sincos" or "learned"'),
        ({"dim": 6}, "a multiple of 4"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Patches(**{"dim": 8, **options})


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 16, 4), (3, 16, 16)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\) of 8 pixels or more"):
        Patches(8)(torch.zeros(shape))
    with pytest.raises(ValueError, match="no padded patches"):
        TransformerEncoder(Patches(8), dim=8, depth=1, heads=1)(
            torch.zeros(1, 3, 64, 64), valid=torch.ones(1, 64, dtype=torch.bool)
        )
