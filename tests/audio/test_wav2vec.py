"""wav2vec 2.0: its loss against the paper's loops, whom it compares with whom, and randomness that follows the data."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.audio.wav2vec import Quantiser, Wav2Vec2, compared, diversity, drawn, masked_contrast, same
from partwhole.audio.waveform import Waveform
from partwhole.core.encoder import Vectors
from partwhole.core.testing import check_loss, check_method
from partwhole.core.transformer import TransformerEncoder

quick = settings(max_examples=25, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(b: int = 3, m: int = 5, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    distractors = torch.randint(-1, m, (b, m, k), generator=g)
    valid = torch.rand(b, m, generator=g) < 0.8
    return draw(b, m, 6, seed=seed), draw(b, m, 6, seed=seed + 1), distractors, valid


def by_loops(context: Tensor, target: Tensor, distractors: Tensor, valid: Tensor) -> Tensor:
    losses = []
    for b in range(len(valid)):
        for m in range(valid.shape[1]):
            if not valid[b, m]:
                continue
            score = [torch.cosine_similarity(context[b, m], y, dim=0) / 0.1 for y in target[b]]
            others = [score[n] for n in distractors[b, m].tolist() if n >= 0 and valid[b, n]]
            if others:
                own = score[m]
                losses.append(torch.stack([own, *others]).exp().sum().log() - own)
    return torch.stack(losses).mean() if losses else context.new_zeros(())


def pairs(context: Tensor, target: Tensor, distractors: Tensor, valid: Tensor) -> Tensor:
    return compared(context, target, distractors, valid)[2].sum()


def test_the_loss_is_what_it_says():
    check_loss(masked_contrast, *inputs(), reference=by_loops, valid=3, count=pairs)


@quick
@given(b=st.integers(1, 3), m=st.integers(1, 6), k=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_loss_is_that_of_the_loops(b, m, k, seed):
    args = inputs(b, m, k, seed)
    value = masked_contrast(*args)
    assert torch.allclose(value, by_loops(*args), atol=1e-9)
    assert value >= 0
    own, others, there = compared(*args)
    assert torch.equal(others.isfinite().any(-1), there)
    assert not own[~there].any()


def test_a_frame_that_is_unlike_all_others_costs_nothing_and_chance_costs_the_logarithm():
    alone = torch.eye(5, dtype=torch.float64)[None]
    others = torch.tensor([[[n for n in range(5) if n != m] for m in range(5)]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    assert masked_contrast(alone, alone, others, valid) < 1e-3
    alike = torch.ones(1, 5, 5, dtype=torch.float64)
    assert masked_contrast(alike, alike, others, valid).item() == pytest.approx(math.log(5))
    with pytest.raises(ValueError, match="are needed; got"):
        masked_contrast(alone[:, :4], alone, others, valid)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        masked_contrast(alone, alone, others, valid, temperature=0)


@quick
@given(g=st.integers(1, 3), v=st.integers(2, 9), seed=st.integers(0, 99))
def test_diversity_is_0_where_entries_are_used_evenly_and_falls_with_evenness(g, v, seed):
    share = draw(g, v, seed=seed).softmax(-1)
    one = torch.zeros(g, v, dtype=torch.float64)
    one[:, 0] = 1
    assert diversity(torch.full((g, v), 1 / v, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
    assert diversity(one).item() == pytest.approx(1 - 1 / v)
    expected = 1 - sum(math.exp(-sum(p * math.log(p) for p in row)) for row in share.tolist()) / (g * v)
    assert diversity(share).item() == pytest.approx(expected)
    leaf = share.clone().requires_grad_()
    assert torch.autograd.gradcheck(diversity, (leaf,))


# ------------------------------------------------------------------ who is compared with whom


def test_the_quantiser_gives_entries_and_the_gradient_of_the_softmax():
    torch.manual_seed(0)
    net = Quantiser(4, groups=2, entries=3, dim=6).double()
    x, noise = draw(2, 5, 4), draw(2, 5, 2, 3, seed=1)
    tau = torch.tensor(0.7, dtype=torch.float64)
    y, codes, likely = net(x, noise, tau)
    logits = net.logits(x).view(2, 5, 2, 3)
    assert torch.equal(codes, (logits + noise).argmax(-1))
    assert torch.equal(net(x, None, tau)[1], logits.argmax(-1))
    assert torch.allclose(likely, logits.softmax(-1))
    table = net.table.detach()
    expected = torch.cat([table[0][codes[..., 0]], table[1][codes[..., 1]]], -1)
    assert torch.allclose(y, expected)
    (got,) = torch.autograd.grad(y.square().sum(), net.logits.bias)
    soft = ((net.logits(x).view(2, 5, 2, 3) + noise) / tau).softmax(-1)
    slope = 2 * torch.einsum("bmgd,gvd->bmgv", expected.view(2, 5, 2, 3), table)
    (want,) = torch.autograd.grad((soft * slope).sum(), net.logits.bias)
    assert torch.allclose(got, want)
    with pytest.raises(ValueError, match="are needed"):
        Quantiser(4, groups=2, entries=3, dim=5)


@quick
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), more=st.integers(0, 3), k=st.integers(1, 12))
def test_distractors_are_other_hidden_frames_of_the_sound_and_follow_its_number(counts, more, k):
    net = Quantiser(4, groups=2, entries=3, dim=6)
    longest, seed = max(*counts, 1), torch.arange(len(counts)) + 7
    there = torch.arange(longest) < torch.tensor(counts)[:, None]
    noise, distractors = drawn(seed, there, k, net)
    for row, count in enumerate(counts):
        mine = distractors[row, :count]
        assert (mine < count).all()
        if count > 1:
            assert (mine >= 0).all()
            assert (mine != torch.arange(count)[:, None]).all()
        else:
            assert (mine == -1).all()
        assert (distractors[row, count:] == -1).all()
        # alone, and beside longer ones
        wide = torch.arange(longest + more) < torch.tensor([[count]])
        for one, all_ in zip(drawn(seed[row : row + 1], wide, k, net), (noise, distractors), strict=True):
            assert torch.equal(one[0, :count], all_[row, :count])


def test_distractors_and_noise_have_their_distributions():
    net = Quantiser(4, groups=1, entries=2, dim=6)
    noise, distractors = drawn(torch.arange(300), torch.ones(300, 4, dtype=torch.bool), 10, net)
    for m in range(4):
        share = torch.bincount(distractors[:, m].flatten(), minlength=4) / 3000
        assert share[m] == 0
        assert (share - 1 / 3).abs()[torch.arange(4) != m].max() < 0.04, "five deviations"
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.13)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.5)


def test_what_has_the_same_codes_is_no_distractor():
    codes = torch.tensor([[[0, 1], [0, 1], [0, 2], [1, 1]]])
    distractors = torch.tensor([[[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]])
    assert same(codes, distractors).tolist() == [
        [[True, False, False], [True, False, False], [False, False, False], [False, False, False]]
    ]


# ------------------------------------------------------------------ the method


def method(**options) -> Wav2Vec2:
    embed = Waveform(8, channels=12, kernels=(4, 3), strides=(3, 2), reach=5)
    encoder = TransformerEncoder(embed, dim=8, depth=1, heads=2)
    return Wav2Vec2(encoder, **{"codebook": (2, 5, 6), "dim": 6, "distractors": 4, **options})


def batch() -> dict[str, Tensor]:
    """Sounds of 11 tokens and less; one hides a single token, one none, one is too short for any."""
    lengths = torch.tensor([73, 73, 60, 41, 30, 5])
    hidden = torch.rand(6, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[3], hidden[4] = torch.arange(11) == 2, False
    return {"x": draw(6, 73).float(), "valid": torch.arange(73) < lengths[:, None], "hidden": hidden,
            "seed": torch.arange(6) + 2**40}  # fmt: skip


def test_it_is_a_method():
    check_method(method, batch())


def test_its_temperature_falls_to_its_end_and_stays():
    net = method(temperature=(2.0, 0.5))
    seen = [net.temperature.item()]
    for progress in (0.35, 0.7, 1.0):
        net.after_step(progress)
        seen.append(net.temperature.item())
    assert seen == pytest.approx([2.0, 1.0, 0.5, 0.5])


def test_noise_follows_the_number_of_a_sound_and_no_generator():
    net, some = method(), batch()
    torch.manual_seed(0)
    first = net(some)
    torch.manual_seed(1)
    assert torch.equal(net(some)["loss"], first["loss"])
    assert not torch.equal(net({**some, "seed": some["seed"] + 1})["loss"], first["loss"])
    order = torch.randperm(6)
    assert torch.allclose(net({k: v[order] for k, v in some.items()})["loss"], first["loss"], atol=1e-5)


def test_sounds_without_two_hidden_frames_add_nothing_to_the_contrast():
    net, some = method(), batch()
    few = {k: v[3:] for k, v in some.items()}
    out = net(few)
    assert out["items"] == 0
    assert out["contrast"] == 0
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_frames_of_the_same_codes_are_not_told_apart():
    net = method().eval()
    with torch.no_grad():
        net.quantiser.logits.weight.zero_()
        net.quantiser.logits.bias.copy_(torch.arange(10.0))
    out = net(batch())
    assert out["items"] == 0
    assert out["contrast"] == 0


def test_every_option_changes_something():
    torch.manual_seed(0)
    options = [{}, {"dim": 5}, {"distractors": 2}, {"weight": 1.0}, {"temperature": (1.0, 0.5)}]
    options += [{"temperature": (2.0, 0.1)}, {"codebook": (3, 5, 6)}, {"codebook": (2, 4, 6)}, {"codebook": (2, 5, 8)}]
    seen = []
    for option in options:
        torch.manual_seed(0)
        net = method(**option)
        for _ in range(3):
            loss = net(batch())["loss"]
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p.sub_(p.grad, alpha=0.1)
            net.after_step(0.5)
        seen.append(loss.item())
    assert len(set(seen)) == len(options)
    assert all(map(math.isfinite, seen))


def test_it_says_what_it_needs():
    with pytest.raises(TypeError, match="features of a Waveform"):
        Wav2Vec2(TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2))
    for bad in ({"distractors": 0}, {"temperature": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="1 or more"):
            method(**bad)


def test_a_state_goes_on():
    net = method()
    net.after_step(0.3)
    other = method()
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert torch.equal(net(batch())["loss"], other(batch())["loss"])
