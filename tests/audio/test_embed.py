"""Networks of spectrograms: padding changes nothing, patches can be put together again."""

import copy
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.audio.embed import SpectrogramPatches, normalised
from partwhole.audio.network import Convolutional, Network, in_turn
from partwhole.core.encoder import build, describe, pool_for
from partwhole.core.methods import SimCLR
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder

BANDS = 16


@lru_cache
def networks():
    torch.manual_seed(0)
    made = [
        Convolutional(bands=BANDS, width=4, blocks=2, dim=8, mean=-3.0, std=2.0),
        Convolutional(bands=BANDS, width=4, blocks=1, segments=3, dim=8, centre="sound", std=2.0),
        Network(name="vit", dim=32, depth=1, tall=8, wide=4).build(BANDS, -3.0, 2.0),
        Network(name="vit", dim=32, depth=1, tall=BANDS, wide=1).build(BANDS, -3.0, 2.0),  # frames
    ]
    return [one.double().eval() for one in made]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 20), st.integers(0, 3), st.integers(0, 2**20))
def test_padding_changes_no_embedding_of_what_is_real(length, padding, which, seed):
    encoder = networks()[which]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, length, BANDS, generator=generator, dtype=torch.float64)
    junk = 1e6 * torch.randn(2, padding, BANDS, generator=generator, dtype=torch.float64)
    valid = (torch.arange(length + padding) < length).expand(2, -1)
    with torch.no_grad():
        alone, padded = encoder(x), encoder(torch.cat([x, junk], 1), valid=valid)
        real = encoder.real(torch.cat([x, junk], 1), valid)
    assert real[0].sum() == alone.shape[1]
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone)
    pool = pool_for(encoder)
    torch.testing.assert_close(pool(padded, real), pool(alone, None))


def test_padding_takes_no_part_in_training_statistics():
    torch.manual_seed(0)
    x = torch.randn(4, 13, BANDS)
    valid = (torch.arange(20) < 13).expand(4, -1)
    states = []
    for given_ in ((x, None), (torch.cat([x, torch.full((4, 7, BANDS), 9e3)], 1), valid)):
        encoder = Convolutional(bands=BANDS, width=4, blocks=2, dim=8)
        encoder.load_state_dict(states[0][0]) if states else None
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        y = encoder(given_[0], valid=given_[1])[:, 0]
        y.sum().backward()
        states.append((before, y, encoder.norms[1].running_var.clone(), encoder.convolutions[0].weight.grad))
    for a, b in zip(states[0][1:], states[1][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.sampled_from([(2, 3), (8, 1), (16, 4), (4, 4)]))
def test_patches_are_put_together_again(length, sides):
    tall, wide = sides
    embed = SpectrogramPatches(8, bands=BANDS, tall=tall, wide=wide)
    x = torch.randn(2, length, BANDS)
    target = embed.target(x)
    assert target.shape == (2, embed.count(length), tall * wide)
    torch.testing.assert_close(embed.picture(target)[:, :length], x)


def test_a_patch_holds_its_own_frames_and_bands():
    embed = SpectrogramPatches(8, bands=4, tall=2, wide=3)
    x = torch.zeros(1, 6, 4)
    x[0, 3:, 2:] = 1  # the second patch in time, the upper in pitch
    assert embed.target(x).sum(-1)[0].tolist() == [0, 0, 0, 6]
    assert embed.coordinates(x)[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    valid = torch.tensor([[True, False, False, False, False, False]])
    assert embed.tokens_valid(x, valid).tolist() == [[True, True, False, False]]
    torch.testing.assert_close(embed.position(x[:, :3]), embed.position(x)[:, :2])


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_networks_can_be_written_down(name):
    network = Network(name=name, dim=32, depth=1, width=4, tall=8, wide=4)
    encoder = network.build(BANDS, -1.5, 2.5)
    again = build(describe(encoder))
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 24, BANDS)
    assert torch.equal(again.eval()(x), encoder.eval()(x))
    assert len(encoder.stages()) > 1
    assert set(map(id, encoder.parameters())) >= {id(p) for s in encoder.stages() for p in s.parameters()}


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="tall must divide"):
        SpectrogramPatches(8, bands=16, tall=5)
    with pytest.raises(ValueError, match=r"spectrograms \(B, T, 16\) are needed"):
        Convolutional(bands=16)(torch.zeros(2, 16, 9))
    with pytest.raises(ValueError, match=r"spectrograms \(B, T, 16\) are needed"):
        TransformerEncoder(SpectrogramPatches(8, bands=16), dim=8, depth=1, heads=1)(torch.zeros(2, 16, 9))
    with pytest.raises(ValueError, match=r"network\.depth is 0"):
        Network(depth=0)


@pytest.mark.parametrize("which", [1, 2])
def test_methods_hold_over_padding_processes_and_resuming(which):
    generator = torch.Generator().manual_seed(0)
    views, valid = [], []
    for length in (22, 17):
        lengths = torch.randint(5, length + 1, (8,), generator=generator)
        views.append(torch.randn(8, length, BANDS, generator=generator, dtype=torch.float64))
        valid.append(torch.arange(length) < lengths[:, None])

    def make():
        torch.manual_seed(0)
        return SimCLR(copy.deepcopy(networks()[which]).train(), hidden=16, dim=8).double()

    check_method(make, {"views": views, "valid": valid})


def test_segments_are_pooled_in_turn():
    x, valid = torch.rand(2, 7, 3), torch.arange(7) < torch.tensor([[7], [5]])
    found = in_turn(x, valid, 3)
    for row, n in zip(range(2), (7, 5), strict=True):
        inside = x[row, :n].mT[None]
        mean = torch.nn.functional.adaptive_avg_pool1d(inside, 3)[0].mT
        most = torch.nn.functional.adaptive_max_pool1d(inside, 3)[0].mT
        torch.testing.assert_close(found[row], torch.cat([mean, most], 1).flatten())
    assert in_turn(x, torch.zeros(2, 7, dtype=torch.bool), 3).eq(0).all()


def test_what_a_sound_has_throughout_can_be_taken_out():
    torch.manual_seed(0)
    x, colour = torch.randn(2, 9, BANDS), 5 * torch.randn(1, 1, BANDS)
    valid = torch.arange(9) < torch.tensor([[9], [4]])
    plain, changed = (normalised(y, valid, "sound", 3.0, 2.0) for y in (x, x + colour))
    torch.testing.assert_close(plain, changed)
    torch.testing.assert_close(plain[1, :4].mean(0), torch.zeros(BANDS))
    torch.testing.assert_close(normalised(x, None, "set", 3.0, 2.0), (x - 3) / 2)
