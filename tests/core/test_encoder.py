"""Encoders: padding, visible tokens, pools, batch norm over ranks, and writing an encoder down."""

import json

import pytest
import torch
from common import coin, draw, quick
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Encoder, First, Head, Max, Mean, Vectors, blank, build, describe, mlp
from partwhole.core.masks import indices
from partwhole.core.norm import BatchNorm
from partwhole.core.threads import ranks
from partwhole.core.transformer import Transformer, TransformerEncoder, attention_mask, pack


def encoder(**options) -> TransformerEncoder:
    torch.manual_seed(0)
    options = {"dim": 8, "depth": 2, "heads": 2, **options}
    return TransformerEncoder(Vectors(3, 8, length=12), **options).double().eval()


@quick
@given(causal=st.booleans(), seed=st.integers(0, 99), junk=st.sampled_from([1e6, torch.inf, torch.nan]))
def test_padding_influences_nothing_real(causal, seed, junk):
    net, x, valid = encoder(causal=causal), draw(3, 6, 3, seed=seed), coin(3, 6, chance=0.6, seed=seed)
    clean = net(x, valid=valid)
    dirty_x = x.masked_fill(~valid[..., None], junk)
    dirty = net(dirty_x, valid=valid)
    assert torch.equal(clean[valid], dirty[valid])
    assert clean.isfinite().all(), "rows without any real token included"
    weights = list(net.parameters())
    grads = [torch.autograd.grad(net(a, valid=valid)[valid].square().sum(), weights) for a in (x, dirty_x)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_a_padded_row_is_as_the_row_by_itself():
    net, x = encoder(), draw(2, 9, 3)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[0, :4], valid[1] = True, True
    assert torch.allclose(net(x, valid=valid)[0, :4], net(x[:1, :4])[0], atol=1e-12)
    assert torch.allclose(net(x, valid=torch.ones_like(valid)), net(x), atol=1e-12)


def test_causal_tokens_see_no_later_one():
    x = draw(1, 6, 3)
    changed = x.clone()
    changed[0, 4] += 1
    for valid in (None, torch.ones(1, 6, dtype=torch.bool)):
        a, b = (encoder(causal=True)(v, valid=valid) for v in (x, changed))
        assert torch.equal(a[0, :4], b[0, :4])
        assert not torch.allclose(a[0, 4:], b[0, 4:])
    assert not torch.allclose(encoder()(x)[0, :4], encoder()(changed)[0, :4])


def test_every_query_sees_a_key():
    valid = coin(5, 7, chance=0.3)
    valid[0] = False
    for causal in (False, True):
        assert attention_mask(valid, causal).expand(5, 1, 7, 7).any(-1).all()


def test_keep_encodes_the_visible_tokens_alone():
    net, x = encoder(), draw(3, 8, 3)
    keep = coin(3, 8, seed=2)
    keep[2] = False
    out = net(x, keep=keep)
    index, there = pack(keep)
    tokens = net.embed(x)
    assert out.shape[:2] == index.shape == (3, int(keep.sum(1).max()))
    for b in range(2):
        alone = net.trunk(tokens[b : b + 1, keep[b]])
        assert torch.allclose(out[b, there[b]], alone[0], atol=1e-12)
        assert index[b, there[b]].tolist() == keep[b].nonzero()[:, 0].tolist()
    assert net(x, keep=torch.zeros_like(keep)).shape == (3, 1, 8)


class Beside(Vectors):
    """Each token is told what is beside it."""

    def situated(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        tokens = tokens if seen is None else tokens * seen[..., None]
        return tokens + tokens.roll(1, 1)


def test_tokens_are_situated_among_what_is_seen_alone():
    torch.manual_seed(0)
    net = TransformerEncoder(Beside(3, 8), dim=8, depth=1, heads=2).double().eval()
    x, hidden, token = draw(2, 6, 3), coin(2, 6, seed=3), draw(8)
    valid = torch.arange(6) < torch.tensor([6, 4])[:, None]
    other = torch.where(hidden[..., None] | ~valid[..., None], draw(2, 6, 3, seed=9), x)
    for what in ({"hidden": hidden, "token": token}, {"keep": ~hidden}, {"keep": indices(~hidden)}):
        assert torch.equal(net(x, valid=valid, **what), net(other, valid=valid, **what))
    assert not torch.allclose(net(x), net(other))
    tokens = net.embed(x)
    assert torch.allclose(net(x), net.trunk(tokens + tokens.roll(1, 1)))


def test_pack_finds_each_rows_true_entries_in_their_order():
    keep = coin(6, 60, seed=5)
    keep[3] = False
    index, there = pack(keep)
    assert index.shape[1] == keep.sum(1).max()
    for b in range(6):
        assert index[b, there[b]].tolist() == keep[b].nonzero()[:, 0].tolist()
        assert not keep[b, index[b, ~there[b]]].any()
    assert pack(torch.zeros(2, 5, dtype=torch.bool))[0].shape == (2, 1)


def test_keep_and_valid_together():
    net, x, keep, valid = encoder(), draw(2, 8, 3), coin(2, 8, chance=0.7), coin(2, 8, chance=0.7, seed=1)
    assert torch.equal(net(x, keep=keep, valid=valid), net(x, keep=keep & valid, valid=valid))
    assert torch.allclose(net(x, keep=keep, valid=valid), net(x, keep=keep & valid), atol=1e-12)


def test_masks_of_another_length_are_an_error():
    net, x = encoder(), draw(2, 8, 3)
    with pytest.raises(ValueError, match=r"keep is \(2, 7\), but the tokens are \(2, 8\)"):
        net(x, keep=torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be the first axes"):
        net(x, valid=torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="13 vectors came"):
        net(draw(2, 13, 3))
    with pytest.raises(ValueError, match="cannot be split over 3 heads"):
        encoder(heads=3)
    with pytest.raises(ValueError, match="drop_path"):
        encoder(drop_path=1.0)


def test_P11_every_option_changes_the_tokens():
    x = draw(2, 8, 3)
    options = [{}, {"depth": 3}, {"heads": 4}, {"causal": True}]
    outs = [encoder(**o)(x) for o in options]
    for i, a in enumerate(outs):
        assert all(not torch.allclose(a, b) for b in outs[:i])
    torch.manual_seed(0)
    dropped = encoder(drop_path=0.5)
    assert torch.equal(dropped(x), outs[0]), "no branch is dropped in eval mode"
    assert not torch.equal(dropped.train()(x), outs[0])


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    net = Transformer(4, 1, 1, drop_path=0.4).double()
    block = net.blocks[0]
    branch = torch.ones(20000, 1, 4, dtype=torch.float64)
    dropped = block.drop(branch)  # type: ignore[operator]
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.6}
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("pool", [Mean(), Max(), First()])
def test_pools_read_real_tokens_only(pool):
    x, valid = draw(4, 6, 3), coin(4, 6, chance=0.6)
    valid[3] = False
    got = pool(x.masked_fill(~valid[..., None], torch.nan), valid)
    for b in range(3):
        assert torch.allclose(got[b], pool(x[b : b + 1, valid[b]])[0])
    assert not got[3].any(), "a row without real tokens is zero"
    assert torch.allclose(pool(x, torch.ones_like(valid)), pool(x))


def test_head_hands_valid_to_its_pool():
    x, valid = draw(4, 6, 8), coin(4, 6, chance=0.6)
    net = mlp(8, 5, 3, norm="layer").double()
    assert torch.equal(Head(Mean(), net)(x, valid), net(Mean()(x, valid)))
    assert not torch.allclose(Head(Mean(), net)(x, valid), Head(Mean(), net)(x))


def test_P11_mlp_has_the_norm_it_is_told():
    kinds = {norm: [type(m).__name__ for m in mlp(4, 5, 6, 7, norm=norm)] for norm in (None, "layer", "batch")}
    assert kinds[None] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert kinds["layer"] == ["Linear", "LayerNorm", "GELU", "Linear", "LayerNorm", "GELU", "Linear"]
    assert kinds["batch"] == ["Linear", "BatchNorm", "GELU", "Linear", "BatchNorm", "GELU", "Linear"]
    with pytest.raises(ValueError, match="norm is None"):
        mlp(4, 5, 6, norm="group")  # type: ignore[arg-type]


# ------------------------------------------------------------------ batch norm


def test_batch_norm_is_torchs():
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    for step in range(3):
        x = draw(9, 4, seed=step) * 3 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-12)
        for name in ("running_mean", "running_var"):
            assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-12)


def test_batch_norm_counts_real_positions_only():
    x, valid = draw(3, 5, 4), coin(3, 5, chance=0.6)
    ours, alone = BatchNorm(4).double(), BatchNorm(4).double()
    dirty = x.masked_fill(~valid[..., None], 1e3).requires_grad_()
    got, expected = ours(dirty, valid)[valid], alone(x[valid])
    assert torch.allclose(got, expected, atol=1e-12)
    assert torch.allclose(ours.running_var, alone.running_var, atol=1e-12)
    got.square().mul(draw(*got.shape)).sum().backward()
    assert dirty.grad is not None
    assert not dirty.grad[~valid].any()


def test_batch_norm_of_one_or_no_position_uses_what_it_knows():
    norm = BatchNorm(4).double()
    norm(draw(8, 4) * 2)
    before = norm.running_mean.clone()
    one = draw(1, 4)
    assert torch.allclose(norm(one), norm.eval()(one), atol=1e-12)
    norm.train()
    assert norm(draw(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).isfinite().all()
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_may_see_next_to_nothing_after_a_batch(rows):
    """As a head does that is called for whole things and for hidden tokens, of which there may be none."""
    norm = BatchNorm(4).double()
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    before = norm(x)
    kept = norm.running_mean.clone()
    (before.square().sum() + norm(x[:rows]).sum()).backward()
    assert torch.equal(norm.running_mean, kept)
    alone = torch.autograd.grad(BatchNorm(4).double()(x).square().sum(), x)[0]
    assert torch.equal(x.grad[1:], alone[1:])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_P1_batch_norm_is_the_same_over_ranks(world):
    x, weight, valid = draw(7, 5, 4), draw(7, 5, 4, seed=1), coin(7, 5, chance=0.7)
    alone = BatchNorm(4).double()
    live = x.clone().requires_grad_()
    (alone(live, valid) * weight).sum().backward()
    pieces, many = x.tensor_split(world), [BatchNorm(4).double() for _ in range(world)]
    lives = [p.clone().requires_grad_() for p in pieces]
    masks, weights = valid.tensor_split(world), weight.tensor_split(world)
    with ranks(world) as run:
        outs = run(lambda r: (many[r](lives[r], masks[r]) * weights[r]).sum())
    torch.stack(outs).sum().backward()
    assert live.grad is not None
    assert torch.allclose(torch.cat([p.grad for p in lives if p.grad is not None]), live.grad, atol=1e-12)
    assert all(torch.allclose(m.running_var, alone.running_var, atol=1e-12) for m in many)


# ------------------------------------------------------------------ writing it down


class Nested(Encoder):
    def __init__(self, inner: Encoder, *, sizes: tuple[int, ...] = (1, 2), name: str | None = None):
        super().__init__()
        self.inner, self.sizes, self.name, self.dim = inner, sizes, name, inner.dim

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.inner(x, valid=valid)


class Forgetful(Encoder):
    def __init__(self, width: int):
        super().__init__()
        self.dim = width


class Starred(Encoder):
    def __init__(self, *sizes: int):
        super().__init__()
        self.sizes = sizes


def test_an_encoder_is_written_down_and_built_again():
    net = Nested(encoder(heads=4, drop_path=0.1), sizes=(3, 4), name="x")
    described = json.loads(json.dumps(describe(net)))
    again = build(described, allow=(__name__,))
    assert isinstance(again, Nested)
    assert describe(again) == described
    assert again.load_state_dict(net.state_dict())
    x = draw(2, 5, 3)
    assert torch.equal(again.double().eval()(x), net(x))


def test_what_cannot_be_written_down_is_an_error():
    class Local(Embed):
        pass

    for module, message in (
        (Forgetful(3), "does not keep its argument 'width'"),
        (Starred(1, 2), "unnamed"),
        (Local(), "inside a function"),
        (nn.Linear(2, 2), "neither an Encoder nor an Embed"),
        (Nested(encoder(), sizes=torch.ones(2)), "'sizes' is a Tensor"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=message):
            describe(module)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "not in partwhole"),
        ("partwhole_evil.core:Encoder", "not in partwhole"),
        ("partwhole.core.encoder:mlp", "neither an Encoder nor an Embed"),
        ("partwhole.core.encoder:Mean", "neither an Encoder nor an Embed"),
        ("partwhole.core.encoder:importlib.import_module", "neither an Encoder nor an Embed"),
        ("partwhole.core.encoder:Gone", "cannot be found"),
        ("partwhole.gone:Encoder", "cannot be found"),
        ("partwhole.core.encoder", "cannot be found"),
    ],
)
def test_a_strangers_description_runs_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        build({"class": name, "arguments": {}})
    with pytest.raises(ValueError, match="keys 'class' and 'arguments'"):
        build({"class": name})


def test_blank_clears_what_is_not_real():
    x, valid = draw(2, 3, 4), coin(2, 3)
    assert torch.equal(blank(x, valid), x * valid[..., None])
    assert blank(x, None) is x
