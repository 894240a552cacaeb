"""Sounds as tokens: exact lengths, padding that reaches nothing real, positions that show nothing hidden."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.audio.waveform import PAPER, Waveform, standardised
from partwhole.core.encoder import build, describe
from partwhole.core.methods import MAE, Data2Vec
from partwhole.core.transformer import TransformerEncoder

quick = settings(max_examples=25, deadline=None, derandomize=True)
layers = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embed(positions: str = "conv", **options) -> Waveform:
    torch.manual_seed(0)
    small = {"channels": 6, "kernels": (4, 3), "strides": (3, 2), "reach": 5}
    return Waveform(8, positions=positions, **{**small, **options}).double()  # type: ignore[arg-type]


def encoder(positions: str = "conv", **options) -> TransformerEncoder:
    return TransformerEncoder(embed(positions), dim=8, depth=2, heads=2, **options).double().eval()


@quick
@given(layers=layers, samples=st.integers(1, 200))
def test_tokens_are_counted_as_the_convolutions_count_them(layers, samples):
    kernels, strides = zip(*layers, strict=True)
    net, length = Waveform(2, channels=2, kernels=kernels, strides=strides, reach=1), samples
    for kernel, stride in layers:
        length = max(0, (length - kernel) // stride + 1) if length >= kernel else 0
    assert net.count(samples) == length
    if length:
        assert net(torch.zeros(1, samples)).shape == (1, length, 2)
        assert net.count(net.samples(length)) == length
        assert net.count(net.samples(length) - 1) == length - 1
    else:
        with pytest.raises(ValueError, match="pad shorter ones"):
            net(torch.zeros(1, samples))


def test_a_token_is_made_of_its_window_and_nothing_else():
    net, x = embed("sincos"), draw(1, 60).requires_grad_()
    for layer in net.layers:
        layer.norm = torch.nn.Identity()
    y = x[..., None]  # without the mean of the whole
    for layer in net.layers:
        y = layer(y)
    for token in range(net.count(60)):
        (grad,) = torch.autograd.grad(y[0, token].sum(), x, retain_graph=True)
        touched = grad[0].nonzero()[:, 0]
        assert touched.min() == token * net.hop
        assert touched.max() == token * net.hop + net.window - 1


def test_the_usual_sizes():
    for net, hop, window in ((Waveform(8), 160, 225), (Waveform(768, **PAPER), 320, 400)):
        assert (net.hop, net.window) == (hop, window)


@quick
@given(data=st.data(), positions=st.sampled_from(["conv", "sincos"]), junk=st.sampled_from([0.0, 1e4, torch.nan]))
def test_padding_influences_nothing_real_and_batched_is_single(data, positions, junk):
    net = encoder(positions)
    lengths = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))
    longest = max(*lengths, net.embed.window + data.draw(st.integers(0, 9)))
    x = draw(len(lengths), longest, seed=sum(lengths)) * 3 + 1
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    real = net.embed.tokens_valid(x, valid)
    got = net(x.masked_fill(~valid, junk), valid=valid)
    assert got.isfinite().all()
    assert torch.equal(got[real], net(x, valid=valid)[real])
    for row, length in enumerate(lengths):
        assert real[row].sum() == net.embed.count(length)
        assert real[row, : net.embed.count(length)].all()
        if real[row].any():
            alone = net(x[row : row + 1, :length])[0]
            assert torch.allclose(got[row, : len(alone)], alone, atol=1e-9)


@quick
@given(seed=st.integers(0, 99))
def test_a_token_is_real_where_all_of_its_samples_are(seed):
    net = embed()
    valid = torch.rand(3, 40, generator=torch.Generator().manual_seed(seed)) < 0.93
    real = net.tokens_valid(draw(3, 40), valid)
    for row in range(3):
        for token in range(net.count(40)):
            assert real[row, token] == valid[row, token * net.hop : token * net.hop + net.window].all()


@pytest.mark.parametrize("positions", ["conv", "sincos"])
def test_hidden_tokens_show_nothing_of_themselves(positions):
    """Nor does the convolution of positions: it sees tokens as they enter, hidden ones replaced or left out."""
    net, x = encoder(positions), draw(1, 60)
    token = draw(8, seed=3)
    features = net.embed.features(x)  # for sounds overlap between neighbouring windows
    other = features + draw(*features.shape, seed=4)
    hidden = torch.zeros(1, features.shape[1], dtype=torch.bool)
    hidden[0, 2:6] = True
    changed = torch.where(hidden[..., None], other, features)
    assert torch.equal(net(features, hidden=hidden, token=token), net(changed, hidden=hidden, token=token))
    assert torch.equal(net(features, keep=~hidden), net(changed, keep=~hidden))
    index = (~hidden).nonzero()[None, :, 1]
    assert torch.equal(net(features, keep=index), net(features, keep=~hidden))
    assert not torch.allclose(net(features), net(changed))


def test_features_may_be_given_in_place_of_sounds():
    net, x = encoder(), draw(2, 60)
    valid = torch.arange(60) < torch.tensor([60, 41])[:, None]
    real = net.embed.tokens_valid(x, valid)
    features = net.embed.features(x, valid=valid)
    assert torch.allclose(net(features, valid=real)[real], net(x, valid=valid)[real])
    assert torch.equal(net.real(features, real), real)


def test_positions_tell_order():
    silence = draw(1, 1).expand(1, 100)
    for positions in ("conv", "sincos"):
        tokens = encoder(positions)(silence)[0]
        assert (tokens[0] - tokens[1]).abs().max() > 1e-6, "by the number, or by what is beside"
    place = embed("sincos").position(silence)[0]
    assert (place[0] - place[1]).abs().max() > 0.1
    assert not embed().position(silence).any()
    assert embed().coordinates(silence)[0, :, 0].tolist() == list(range(embed().count(100)))


def test_loudness_and_offset_change_nothing_and_silence_is_finite():
    net, x = encoder(), draw(1, 60)
    assert torch.allclose(net(x * 50 + 3), net(x), atol=1e-4)
    assert net(torch.zeros(1, 60, dtype=torch.float64)).isfinite().all()
    valid = torch.zeros(1, 60, dtype=torch.bool)
    assert standardised(torch.full((1, 60), torch.nan), valid).eq(0).all()


def test_generic_methods_take_it_and_it_can_be_written_down():
    net = encoder()
    again = build(describe(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.double().eval()(draw(1, 60)), net(draw(1, 60)))
    hidden = torch.zeros(2, net.embed.count(60), dtype=torch.bool)
    hidden[:, 3:5] = True
    batch = {"x": draw(2, 60), "hidden": hidden}
    for method in (Data2Vec(encoder(), layers=1), MAE(encoder("sincos"), dim=8, depth=1, heads=2)):
        assert method.double()(batch)["loss"].isfinite()


def test_what_is_rebuilt_lies_in_the_middle_of_a_window():
    net, x = embed(), draw(1, 62)
    plain = standardised(x)[0]
    before = (net.window - net.hop) // 2
    for token, target in enumerate(net.target(x)[0]):
        assert torch.equal(target, plain[token * net.hop + before : token * net.hop + before + net.hop])
    with pytest.raises(ValueError, match="leave gaps"):
        embed(kernels=(1, 1)).target(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": (3,)}, "as many numbers"),
        ({"kernels": (), "strides": ()}, "as many numbers"),
        ({"kernels": (3, 0)}, "as many numbers"),
        ({"positions": "none"}, "positions are"),
        ({"reach": 4}, "an odd number"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        embed(**options)
    with pytest.raises(ValueError, match="an even number"):
        Waveform(7, positions="sincos")
