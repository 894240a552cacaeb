"""Transformers: special and hidden tokens, rotary places, sizes; any module as an encoder; a teacher's drop path."""

import math

import pytest
import torch
from common import coin, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from partwhole.core.encoder import First, Mean, Vectors, Wrapped, build, describe, pool_for
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.teacher import Teacher
from partwhole.core.testing import check_method
from partwhole.core.transformer import SIZES, Block, TransformerEncoder, rotary, turned


def encoder(length: int | None = 12, **options) -> TransformerEncoder:
    torch.manual_seed(0)
    options = {"dim": 12, "depth": 2, "heads": 2, **options}
    return TransformerEncoder(Vectors(3, 12, length=length), **options).double().eval()


ALL = {"cls": True, "registers": 3, "rope": 100.0}


@quick
@given(seed=st.integers(0, 99), junk=st.sampled_from([1e6, torch.inf, torch.nan]))
def test_padding_influences_no_token_and_no_cls(seed, junk):
    net, x, valid = encoder(**ALL), draw(3, 6, 3, seed=seed), coin(3, 6, chance=0.6, seed=seed)
    real = net.real(x, valid)
    assert real is not None
    assert real[:, 0].all()
    assert torch.equal(real[:, 1:], valid)
    clean, dirty = net(x, valid=valid), net(x.masked_fill(~valid[..., None], junk), valid=valid)
    assert clean.shape == (3, 7, 12)
    assert torch.equal(clean[real], dirty[real])


def test_special_tokens_come_first_and_registers_stay_inside():
    x = draw(2, 8, 3)
    plain, cls, both = encoder(), encoder(cls=True), encoder(cls=True, registers=3)
    assert (plain.special, cls.special, both.special) == (0, 1, 1)
    assert [net(x).shape[1] for net in (plain, cls, both, encoder(registers=3))] == [8, 9, 9, 8]
    assert isinstance(pool_for(plain), Mean)
    assert isinstance(pool_for(cls), First)
    changed = x.clone()
    changed[0, 5] += 1
    assert not torch.allclose(both(x)[0, 0], both(changed)[0, 0]), "the CLS token sees all"
    assert torch.equal(both(x)[1], both(changed)[1])
    assert plain.real(x, None) is None
    with pytest.raises(ValueError, match="causal"):
        encoder(cls=True, causal=True)


def test_visible_tokens_with_special_ones():
    net, x, keep = encoder(**ALL), draw(3, 8, 3), coin(3, 8)
    out = net(x, keep=keep)
    assert out.shape[1] == 1 + keep.sum(1).max()
    for b in range(3):
        n = int(keep[b].sum())
        rows = net(x[b : b + 1], keep=keep[b : b + 1])[0]
        assert torch.allclose(out[b, : 1 + n], rows, atol=1e-12)


def test_a_hidden_token_shows_its_place_and_nothing_else():
    net, x, hidden, token = encoder(**ALL), draw(2, 8, 3), coin(2, 8), draw(12)
    out = net(x, hidden=hidden, token=token)
    junk = torch.where(hidden[..., None], draw(2, 8, 3, seed=5), x)
    assert torch.equal(out, net(junk, hidden=hidden, token=token))
    assert not torch.allclose(out, net(x))
    two = torch.tensor([[True, True, *[False] * 6]])
    first, second = net(x[:1], hidden=two, token=token)[0, 1:3]
    assert not torch.allclose(first, second), "hidden tokens are told apart by their places"
    with pytest.raises(ValueError, match="give both or neither"):
        net(x, hidden=hidden)
    with pytest.raises(ValueError, match=r"hidden is \(2, 7\)"):
        net(x, hidden=hidden[:, 1:], token=token)


@quick
@given(axes=st.integers(1, 3), width=st.integers(6, 17), seed=st.integers(0, 99))
def test_rotary_attention_depends_on_differences_of_places_only(axes, width, seed):
    """The product of a turned query and key follows from where one is seen from the other."""
    q, k = draw(1, 1, 4, width, seed=seed), draw(1, 1, 4, width, seed=seed + 1)
    place, shift = draw(1, 4, axes, seed=seed + 2), draw(1, 1, axes, seed=seed + 3)

    def logits(at: Tensor) -> Tensor:
        turn = rotary(at, width, 100.0)
        return turned(q, turn) @ turned(k, turn).mT

    assert torch.allclose(logits(place), logits(place + shift), atol=1e-10)
    assert torch.allclose(logits(torch.zeros_like(place)), q @ k.mT, atol=1e-12)
    assert not torch.allclose(logits(place), q @ k.mT)


def test_rotary_angles_are_those_of_the_formula():
    place, base, width = draw(2, 3, 2), 50.0, 13
    cos, sin = rotary(place, width, base)
    assert cos.shape == (2, 1, 3, 6)
    for b in range(2):
        for token in range(3):
            for pair in range(6):
                axis, j = divmod(pair, 3)
                angle = place[b, token, axis].item() / base ** (j / 3)
                assert cos[b, 0, token, pair].item() == pytest.approx(math.cos(angle), abs=1e-12)
                assert sin[b, 0, token, pair].item() == pytest.approx(math.sin(angle), abs=1e-12)
    with pytest.raises(ValueError, match="at least 6 are needed"):
        rotary(draw(1, 2, 3), 4, base)


def test_P11_every_option_changes_the_tokens():
    x = draw(2, 8, 3)
    options = [{}, {"cls": True}, {"registers": 2}, {"rope": 100.0}, {"rope": 10.0}, {"cls": True, "registers": 2}]
    outs = [encoder(**o)(x)[:, -8:] for o in options]
    for i, a in enumerate(outs):
        assert all(not torch.allclose(a, b) for b in outs[:i])
    again = build(describe(encoder(**ALL)))
    assert isinstance(again, TransformerEncoder)
    assert (again.cls, again.registers, again.rope) == (True, 3, 100.0)


def test_without_places_of_any_kind_the_order_does_not_matter_and_with_rope_it_does():
    x, order = draw(1, 8, 3), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    blind, turning = encoder(length=None), encoder(length=None, rope=100.0)
    assert torch.allclose(blind(x)[:, order], blind(x[:, order]), atol=1e-12)
    assert not torch.allclose(turning(x)[:, order], turning(x[:, order]), atol=1e-3)


def test_sizes_are_those_of_the_papers():
    """Parameters of the blocks: 12 (12 D^2 + 13 D), 5.3, 21.3 and 85.1 millions."""
    for name, width in (("tiny", 192), ("small", 384), ("base", 768)):
        with torch.device("meta"):
            net = TransformerEncoder(Vectors(3, SIZES[name]["dim"]), **SIZES[name])
        assert sum(p.numel() for p in net.trunk.blocks.parameters()) == 12 * (12 * width**2 + 13 * width)
        assert net.heads == width // 64


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(3, 12, 4, 4), torch.ones(2, 3, 8, 8)),
        (nn.Linear(3, 12), torch.ones(2, 4, 3)),
        (nn.Linear(3, 12), torch.ones(2, 3)),
    ],
)
def test_any_module_that_gives_features_is_an_encoder(module, x):
    net = Wrapped(module, 12)
    y = net(x)
    assert y.shape == (2, 1 if x.ndim == 2 else 4, 12)
    assert torch.equal(y.flatten(), (module(x).flatten(2).mT if x.ndim == 4 else module(x)).flatten())
    with pytest.raises(ValueError, match="a map \\(B, 13, H, W\\)"):
        Wrapped(module, 13)(x)


def test_a_wrapped_module_can_be_trained_by_a_method():
    views = [draw(5, 3, 8, 8, seed=i).float() for i in range(2)]
    check_method(lambda: SimCLR(Wrapped(nn.Conv2d(3, 6, 4, 4), 6), hidden=8, dim=4), {"views": views})


@pytest.mark.parametrize("options", [{"cls": True}, ALL])
def test_a_method_on_an_encoder_with_a_cls_token(options):
    batch = {"views": [draw(5, 9, 3, seed=i).float() for i in range(2)], "valid": [coin(5, 9, seed=i) for i in (3, 4)]}
    check_method(lambda: SimCLR(encoder(**options).float(), hidden=8, dim=4), batch)


def test_a_teacher_has_its_own_drop_path():
    student = encoder(drop_path=0.4)
    rates = {}
    for name, teacher in (("none", Teacher(student)), ("own", Teacher(student, drop_path=0.2))):
        rates[name] = [m.drop_path for m in teacher.modules() if isinstance(m, Block)]
    assert rates == {"none": [0, 0], "own": [0.1, 0.2]}
    assert [m.drop_path for m in student.modules() if isinstance(m, Block)] == [0.2, 0.4]
    x = draw(4, 6, 3)
    assert torch.equal(Teacher(student).train()(x), student.eval()(x)), "a teacher in training drops nothing"


@pytest.mark.parametrize("options", [{}, ALL])
def test_the_encoder_compiles_as_one_graph(options):
    net, x, valid = encoder(**options), draw(2, 8, 3), coin(2, 8)
    hidden, token = coin(2, 8, seed=1), draw(12)
    whole = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.allclose(
        whole(x, valid=valid, hidden=hidden, token=token), net(x, valid=valid, hidden=hidden, token=token)
    )
