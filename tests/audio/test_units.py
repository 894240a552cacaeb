"""Units: exactly one for each token of the encoder, made of its window, the same however the sounds are cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.audio import units
from partwhole.audio.units import MFCC, Layer, Units, lasting, of_tokens, prepare, tokens
from partwhole.audio.waveform import Waveform
from partwhole.core.checkpoint import BadCheckpoint
from partwhole.core.encoder import Vectors
from partwhole.core.tokenizer import nearest
from partwhole.core.transformer import TransformerEncoder

HOP, WINDOW = 160, 225
quick = settings(max_examples=25, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mfcc() -> MFCC:
    return MFCC(8000, hop=HOP, window=WINDOW)


def tones(count: int = 12) -> list[dict]:
    """One of three tones each, a little noise, of several lengths."""
    out = []
    for i in range(count):
        t = torch.arange(1500 + 331 * (i % 4)) / 8000
        x = (2 * torch.pi * t * [300, 1000, 2600][i % 3]).sin() + 0.02 * draw(len(t), seed=i)
        out.append({"sound": 0.3 * x, "rate": 8000, "tone": i % 3})
    return out


@quick
@given(samples=st.integers(WINDOW, 4000))
def test_one_row_for_each_token_of_the_encoder(samples):
    net, sound = Waveform(8), draw(samples)
    assert (net.hop, net.window) == (HOP, WINDOW)
    assert mfcc()(sound).shape == (net.count(samples), 39)
    assert tokens(sound, mfcc()) == net.count(samples)


def test_a_row_is_of_its_window_and_its_differences_of_the_rows_around():
    sound, features = draw(4000), mfcc()
    clean, at = features(sound), 2000
    sound[at] += 5
    moved = (features(sound) - clean).abs().amax(1) > 1e-4
    still = (features(sound)[:, :13] - clean[:, :13]).abs().amax(1) > 1e-4
    inside = [i for i in range(len(clean)) if i * HOP <= at < i * HOP + WINDOW]
    assert set(still.nonzero()[:, 0].tolist()) <= set(inside)
    assert still.any()
    assert not moved[: inside[0] - 4].any()
    assert not moved[inside[-1] + 5 :].any()


def test_differences_are_those_of_the_formula():
    rows = mfcc()(draw(4000))
    padded = torch.nn.functional.pad(rows[:, :13].mT[None], (2, 2), mode="replicate")[0].mT
    for i in range(len(rows)):
        slope = sum(n * (padded[i + 2 + n] - padded[i + 2 - n]) for n in (1, 2)) / 10
        assert torch.allclose(rows[i, 13:26], slope, atol=1e-4)


@quick
@given(data=st.data(), piece=st.sampled_from([3, 7, 100]))
def test_pieces_are_as_the_whole(data, piece):
    sound, features = draw(6000), mfcc()
    length = tokens(sound, features)
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first, length))
    rows = list(of_tokens(features, sound, first, last, piece=piece))
    assert sum(map(len, rows)) == last - first
    if rows:
        assert torch.allclose(torch.cat(rows), features(sound)[first:last], atol=1e-3)


def test_sounds_that_differ_get_units_that_differ():
    made = prepare(samples := tones(), mfcc(), count=6)
    assert len(made) == len(samples)
    mine = [made[i][6:-6] for i in range(12)]  # at the ends differences are cut short
    for a in range(12):
        assert len(made[a]) == Waveform(8).count(len(samples[a]["sound"]))
        for b in range(12):
            if samples[a]["tone"] != samples[b]["tone"]:
                assert not set(mine[a].tolist()) & set(mine[b].tolist())
    assert torch.equal(made[3], nearest(mfcc()(samples[3]["sound"]), made.means)[0])


def test_units_follow_the_seed_and_no_generator_and_few_tokens_may_be_asked():
    state = torch.get_rng_state()
    a, b, c = (prepare(tones(), mfcc(), count=5, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.means, b.means)
    assert not torch.equal(a.means, c.means)
    some = prepare(tones(), mfcc(), count=5, most=40)
    assert not torch.equal(some.means, a.means)
    assert torch.equal(state, torch.get_rng_state())


def test_memory_is_bounded_by_what_is_asked(monkeypatch):
    """Of many sounds no more are clustered than asked, and none is asked for more than twice."""
    seen: list[int] = []

    class Many(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    rows: list[int] = []
    monkeypatch.setattr(units, "kmeans", lambda x, count, seed: rows.append(len(x)) or x[:count])
    monkeypatch.setattr(units, "LEAST", 5)
    prepare(Many(tones(40)), mfcc(), count=3, most=60)
    assert 60 <= rows[0] < 65
    assert max(seen.count(i) for i in range(40)) == 2
    assert sum(seen.count(i) == 2 for i in range(40)) <= 13


def test_a_sound_too_short_for_two_tokens_is_followed_by_silence():
    made = prepare([{"sound": draw(n)} for n in (0, 3, 300, 384, 385, 386, 900)], mfcc(), count=3)
    assert [len(made[i]) for i in range(7)] == [2, 2, 2, 2, 2, 2, 5]
    assert torch.equal(lasting(draw(400), HOP, WINDOW), draw(400))


def test_round_two_is_a_layer_of_the_first_network():
    torch.manual_seed(0)
    net = TransformerEncoder(Waveform(8, channels=6), dim=8, depth=3, heads=2, cls=True).eval()
    sound = draw(2000)
    with torch.no_grad():
        each = net.layers(sound[None], 3)
        for layer in (1, 2, 3):
            assert torch.equal(Layer(net, layer)(sound), each[layer - 1][0, 1:])
    made = prepare(tones(4), Layer(net, 2), count=4)
    assert len(made[0]) == net.embed.count(len(tones()[0]["sound"]))
    for bad in (0, 4):
        with pytest.raises(ValueError, match="choose 1 to 3"):
            Layer(net, bad)
    with pytest.raises(ValueError, match="over a Waveform"):
        Layer(TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2), 1)


def test_units_come_back_from_their_file(tmp_path):
    made, path = prepare(tones(), mfcc(), count=5), tmp_path / "units.safetensors"
    made.save(path)
    again = Units.load(path)
    assert all(torch.equal(again[i], made[i]) for i in range(12))
    assert again[0].dtype == torch.int64
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="Delete it"):
        Units.load(path)
    Units(made.ids[:-1], made.ends, made.means).save(path)
    with pytest.raises(BadCheckpoint, match="other units"):
        Units.load(path)


def test_it_says_what_it_needs():
    with pytest.raises(ValueError, match="there are none"):
        prepare([], mfcc(), count=2)
    with pytest.raises(ValueError, match="ask for a smaller vocabulary"):
        prepare(tones(1), mfcc(), count=500)

    class Wrong(MFCC):
        def __call__(self, sound):
            return super().__call__(sound)[1:]

    with pytest.raises(ValueError, match="one for each"):
        prepare(tones(1), Wrong(8000, hop=HOP, window=WINDOW), count=2)
