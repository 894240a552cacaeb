"""Tubes: what a token holds, where it is, and that an image is a clip that stands still."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core.encoder import Wrapped, build, describe
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.video.tubes import Tubes, clip_map
from partwhole.vision.embed import Patches
from partwhole.vision.maps import feature_map

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 2), st.integers(0, 1))
def test_a_token_is_a_tube_of_pixels(shape, more, late):
    """By loops; what is left of the last tubes is left out."""
    t, h, w, tube, side = shape
    more = min(more, side - 1)
    late = min(late, tube - 1)
    embed = Tubes(6, size=4 * side, frames=2 * tube, patch=side, tube=tube)
    x = torch.randn(2, 3, t * tube + late, h * side + more, w * side + more)
    target = embed.target(x)
    assert embed.grid(x) == (t, h, w)
    assert target.shape == (2, t * h * w, embed.target_dim)
    for i in range(t):
        for j in range(h):
            for k in range(w):
                block = x[:, :, i * tube : (i + 1) * tube, j * side : (j + 1) * side, k * side : (k + 1) * side]
                row = (i * h + j) * w + k
                assert torch.equal(target[:, row], block.flatten(1))
                made = torch.einsum("bcrij,dcrij->bd", block, embed.project.weight) + embed.project.bias
                assert torch.allclose(embed(x)[:, row], made + embed.position(x)[:, row], atol=1e-5)
    whole = x[:, :, : t * tube, : h * side, : w * side]
    assert torch.equal(embed.picture(target, x), whole)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.sampled_from([6, 12, 48]))
def test_positions_by_the_formula(t, h, w, dim):
    embed = Tubes(dim, size=12, frames=8, patch=3, tube=2)  # usually 4 x 4 x 4
    x = torch.zeros(1, 3, 2 * t, 3 * h, 3 * w)
    place, n = embed.position(x)[0].view(t, h, w, dim), dim // 6
    for where in [(0, 0, 0), (t - 1, h - 1, w - 1), (t // 2, 0, w - 1)]:
        expected = []
        for at, count in zip(where, (t, h, w), strict=True):
            p = (at + 0.5) * 4 / count - 0.5
            angles = [p * 1e4 ** (-i / n) for i in range(n)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert torch.allclose(place[where], torch.tensor(expected), atol=1e-5)
    rope = embed.coordinates(x)[0].view(t, h, w, 3)
    assert torch.allclose(rope[-1, -1, -1], 2 * torch.pi * (1 - 1 / torch.tensor([t, h, w])))
    assert torch.allclose(rope, -rope.flip(0, 1, 2), atol=1e-5)


def test_space_is_as_for_patches_and_learned_tables_are_laid_over_other_sizes():
    tubes, patches = (
        Tubes(24, size=32, frames=4, patch=8, positions="learned"),
        Patches(24, size=32, patch=8, positions="learned"),
    )
    with torch.no_grad():
        tubes.table.view(2, 16, 24).copy_(patches.table.expand(2, -1, -1))
    for size in (32, 48):
        clip = torch.zeros(1, 3, 4, size, size)
        same = patches.position(clip[:, :, 0])
        assert torch.allclose(tubes.position(clip).view(1, 2, -1, 24), same[:, None].expand(1, 2, -1, -1), atol=1e-6)
        assert torch.allclose(tubes.position(clip[:, :, 0]), same, atol=1e-6)
    with torch.no_grad():
        tubes.table.view(2, 16, 24)[1] += 1
    assert torch.allclose(
        tubes.position(torch.zeros(1, 3, 32, 32)),
        same.new_tensor(0.5) + patches.position(torch.zeros(1, 3, 32, 32)),
        atol=1e-6,
    )
    tubes.position(torch.zeros(1, 3, 6, 40, 24)).sum().backward()
    assert (tubes.table.grad != 0).any()


def test_an_image_is_a_clip_that_stands_still():
    torch.manual_seed(0)
    embed = Tubes(12, size=16, frames=2, patch=8, tube=2)
    encoder = TransformerEncoder(embed, dim=12, depth=1, heads=2, cls=True, rope=100.0)
    image = torch.randn(2, 3, 16, 24)
    clip = image[:, :, None].expand(-1, -1, 2, -1, -1)
    assert torch.allclose(encoder(image), encoder(clip), atol=1e-6)
    assert feature_map(encoder, image).shape == (2, 12, 2, 3)
    assert torch.allclose(feature_map(encoder, image), clip_map(encoder, clip)[:, :, 0], atol=1e-6)


def test_a_map_of_a_clip():
    torch.manual_seed(0)
    encoder = TransformerEncoder(Tubes(12, size=16, frames=8, patch=8), dim=12, depth=1, heads=2, cls=True)
    x = torch.randn(2, 3, 8, 16, 24)
    assert torch.equal(clip_map(encoder, x)[1, :, 3, 0, 2], encoder(x)[1, 1 + 3 * 6 + 2])
    frame = Wrapped(torch.nn.Conv2d(3, 5, 8, 8), dim=5)
    found = clip_map(frame, x)
    assert found.shape == (2, 5, 8, 2, 3)
    assert torch.allclose(found[:, :, 4], frame.module(x[:, :, 4]), atol=1e-6)
    with pytest.raises(ValueError, match="clips are"):
        clip_map(frame, x[:, :, 0])


def test_it_is_written_down_and_made_again():
    embed = Tubes(12, size=48, frames=6, patch=16, tube=3, positions="learned")
    again = build(describe(embed))
    again.load_state_dict(embed.state_dict())
    x = torch.randn(1, 3, 6, 48, 48)
    assert torch.equal(again(x), embed(x))
    assert embed.count(48) == again(x).shape[1] == 18
    assert embed.count(32, 3) == 4


def test_what_does_not_fit_is_told():
    for wrong, words in (
        ({"dim": 8}, "multiple of 6"),
        ({"patch": 100}, "smaller patch"),
        ({"tube": 9}, "shorter tube"),
        ({"positions": "none"}, "positions are"),
    ):
        with pytest.raises(ValueError, match=words):
            Tubes(**{"dim": 12, **wrong})
    embed = Tubes(12, size=16)
    for x in (torch.zeros(1, 2, 8, 16, 16), torch.zeros(1, 3, 8, 4, 16), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match="are needed"):
            embed(x)
    with pytest.raises(ValueError, match="of 1 frames"):
        embed(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="no padded tubes"):
        embed.tokens_valid(torch.zeros(1, 3, 8, 16, 16), torch.ones(1, 2))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_methods_of_core_take_clips(positions):
    from partwhole.core.methods import MAE

    def make():
        embed = Tubes(12, size=16, frames=4, patch=8, positions=positions)
        return MAE(TransformerEncoder(embed, dim=12, depth=1, heads=2), dim=8, depth=1, heads=2)

    hidden = torch.zeros(5, 8, dtype=torch.bool)
    hidden[:, [0, 2, 3, 4, 6, 7]] = True
    check_method(make, {"x": torch.randn(5, 3, 4, 16, 16), "hidden": hidden})
