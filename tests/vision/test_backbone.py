"""Networks of timm as encoders."""

import pytest
import torch
from torch import nn

from partwhole.core.encoder import build, describe, pool_for
from partwhole.core.threads import ranks
from partwhole.vision.backbone import Backbone, BatchNorm2d
from partwhole.vision.network import Network


@pytest.mark.parametrize(
    ("name", "tokens", "special"),
    [
        ("resnet10t", 4, 0),
        ("convnext_atto", 4, 0),
        ("vit_tiny_patch16_224", 17, 1),
        ("vit_wee_patch16_reg1_gap_256", 16, 0),
        ("swin_tiny_patch4_window7_224", 4, 0),
    ],
)
def test_a_network_of_timm_gives_tokens(name, tokens, special):
    encoder = Backbone(name, size=64).eval()
    again = build(describe(encoder)).eval()
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = encoder(x)
        assert y.shape == (2, tokens, encoder.dim)
        assert encoder.special == special
        assert torch.equal(again(x), y)
        plain = encoder.net.forward_features(x)
    if plain.ndim == 4:  # a map, with its features first or last
        rows = plain if plain.shape[-1] == encoder.dim else plain.permute(0, 2, 3, 1)
        assert torch.equal(y[:, 1], rows[:, 0, 1])
    else:  # a class token or a register comes before the patches
        assert torch.equal(y[:, special:], plain[:, 1:])
    assert len(encoder.stages()) > 3
    assert pool_for(encoder)(y).shape == (2, encoder.dim)


def test_a_transformer_takes_other_sizes():
    encoder = Backbone("vit_tiny_patch16_224", size=64)
    assert encoder(torch.randn(2, 3, 32, 48)).shape == (2, 7, 192)


def test_a_resnet_can_be_narrow_and_see_small_images():
    narrow = Network(width=0.25).build(32)
    assert narrow.dim == 128
    assert narrow(torch.randn(2, 3, 32, 32)).shape == (2, 1, 128)
    assert Network(width=0.25, stem="small").build(32)(torch.randn(2, 3, 32, 32)).shape == (2, 16, 128)
    assert Network(name="vit", dim=64, depth=1).build(32)(torch.randn(2, 3, 32, 32)).shape == (2, 17, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet19"}, "did you mean resnet18"),
        ({"name": "convnext_atto", "width": 0.5}, "only ResNets have a width"),
        ({"name": "convnext_atto", "stem": "small"}, "no stem that could be made small"),
        ({"name": "resnet10t", "stem": "tiny"}, 'stem is "usual" or "small"'),
        ({"name": "vit_tiny_patch16_224", "size": 40}, "takes no images of 40 pixels a side"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        Backbone(**options)


def test_one_image_of_one_place_is_normalised_by_what_was_seen_before():
    norm = BatchNorm2d(nn.BatchNorm2d(3))
    norm.running_mean += 2
    x = torch.randn(1, 3, 1, 1)
    assert torch.allclose(norm(x), (x - 2) / (1 + norm.eps) ** 0.5)
    assert norm.running_mean.tolist() == [2, 2, 2]


def test_statistics_are_those_of_all_processes():
    """P5: two processes with uneven halves of a batch normalise as one does, and keep the same running statistics."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)

    def run(rank, world):
        norm = BatchNorm2d(torch.nn.BatchNorm2d(4)).double()
        with torch.no_grad():
            norm.weight.copy_(torch.arange(4.0))
        mine = x if world == 1 else (x[:4], x[4:])[rank]
        return norm(mine), norm.running_mean.clone(), norm.running_var.clone()

    whole, mean, var = run(0, 1)
    with ranks(2) as all_of:
        parts = all_of(lambda rank: run(rank, 2))
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), whole, atol=1e-12, rtol=0)
    for part in parts:
        torch.testing.assert_close(part[1:], (mean, var), atol=1e-12, rtol=0)
    norm = torch.nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(4.0))
    torch.testing.assert_close(norm(x), whole)
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
