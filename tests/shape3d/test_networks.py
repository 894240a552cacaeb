"""Encoders of points: what padding, order and numbers must not change, and the layers against their formulas."""

import copy
import importlib.util
import itertools
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, build, describe
from partwhole.core.methods.mae import MAE
from partwhole.core.norm import BatchNorm
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d import grouped
from partwhole.shape3d.acd import ComponentContrast
from partwhole.shape3d.dgcnn import DGCNN, EdgeConv
from partwhole.shape3d.norm import MLP
from partwhole.shape3d.pointnet2 import Everywhere, Group, PointNet2, Propagate
from partwhole.shape3d.transformer import PerPoint, PointPatches


def patches(channels: int, per: int | None = None) -> TransformerEncoder:
    return TransformerEncoder(PointPatches(channels, 16, patches=10, size=6, per=per), dim=16, depth=1, heads=2)


ENCODERS = {
    "pointnet2": lambda channels: PointNet2(channels, width=0.1, samples=(24, 8), neighbours=0.25, dim=12),
    "pointnet2-everywhere": lambda channels: Everywhere(ENCODERS["pointnet2"](channels)),
    "pointnet2-layer": lambda channels: PointNet2(channels, width=0.1, samples=(24, 8), dim=12, norm="layer"),
    "dgcnn": lambda channels: DGCNN(channels, width=0.1, neighbours=6, dim=12),
    "dgcnn-layer": lambda channels: DGCNN(channels, width=0.1, neighbours=6, dim=12, norm="layer"),
    "transformer": lambda channels: PerPoint(patches(channels)),
    "transformer-crops": lambda channels: PerPoint(patches(channels, per=5)),
}
every = pytest.mark.parametrize("name", ENCODERS)


def cloud(B: int, P: int, channels: int, seed: int = 0) -> Tensor:
    x = torch.randn(B, P, channels, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return x / x[..., :3].norm(dim=-1).amax(1)[:, None, None]


def make(name: str, channels: int = 3) -> Encoder:
    torch.manual_seed(0)
    encoder = ENCODERS[name](channels).double()
    for module in encoder.modules():
        if isinstance(module, BatchNorm):  # a fresh one has scale 1 and shift 0, and hides mistakes
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return encoder


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@every
@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_padding_changes_neither_result_nor_gradient_nor_statistics(name, channels, mode):
    encoder = make(name, channels).train(mode == "train")
    other = copy.deepcopy(encoder)
    x = cloud(3, 30, channels)
    padded = torch.cat([x[:, :10], torch.full((3, 9, channels), torch.nan), x[:, 10:]], 1).double()
    valid = torch.ones(3, 39, dtype=torch.bool)
    valid[:, 10:19] = False
    y, z = encoder(x), other(padded, valid=valid)[valid].view(3, 30, -1)
    assert y.shape == (3, 30, encoder.dim)
    close(z, y)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    for (key, p), q in zip(encoder.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-7, rtol=1e-7, msg=key)
    for a, b in zip(encoder.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-7, rtol=1e-7)


@every
def test_points_may_come_in_any_order(name):
    encoder, x = make(name, 6), cloud(2, 50, 6)
    order = torch.randperm(50)
    close(encoder(x[:, order]), encoder(x)[:, order])


@every
@pytest.mark.parametrize("gradient", [True, False])
def test_a_shape_in_a_padded_batch_is_as_alone(name, gradient):
    encoder = make(name).eval()
    x = cloud(4, 40, 3)
    lengths = [40, 7, 2, 1]
    valid = torch.arange(40) < torch.tensor(lengths)[:, None]
    with torch.set_grad_enabled(gradient):
        y = encoder(x, valid=valid)
        for b, n in enumerate(lengths):
            close(y[b, :n], encoder(x[b : b + 1, :n])[0])


@every
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_shape_without_points_spoils_nothing(name, mode):
    encoder = make(name).train(mode == "train")
    x = cloud(3, 40, 3)
    valid = torch.arange(40) < torch.tensor([[40], [0], [1]])
    y = encoder(x.masked_fill(~valid[..., None], torch.nan), valid=valid)[valid]
    assert y.isfinite().all()
    y.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@every
def test_equal_points_give_finite_equal_features(name):
    encoder = make(name).eval()
    y = encoder(torch.full((2, 20, 3), 0.5, dtype=torch.double))
    assert y.isfinite().all()
    close(y, y[:1, :1].expand_as(y))


@every
def test_it_is_written_down_and_built_again(name):
    encoder = make(name, 6).eval()
    other = build(describe(encoder)).double().eval()
    other.load_state_dict(encoder.state_dict())
    x = cloud(2, 30, 6)
    assert torch.equal(encoder(x), other(x))


@every
def test_gradients_are_those_of_finite_differences(name):
    encoder, x = make(name), cloud(2, 14, 3)
    weight = torch.randn(2, 14, encoder.dim, dtype=torch.double)
    parameters = [p for p in encoder.parameters() if p.ndim > 1]
    with torch.no_grad():
        directions = [torch.randn_like(p) for p in parameters]

    def value(step: float) -> Tensor:
        for p, d in zip(parameters, directions, strict=True):
            p.data.add_(d, alpha=step)
        out = (encoder(x) * weight).sum()
        for p, d in zip(parameters, directions, strict=True):
            p.data.sub_(d, alpha=step)
        return out

    value(0.0).backward()
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True) if p.grad is not None)
    expected = (value(1e-7) - value(-1e-7)) / 2e-7
    torch.testing.assert_close(slope, expected, atol=1e-4, rtol=2e-4)


@every
def test_half_precision_stays_near(name):
    encoder = make(name).float().train()
    x = cloud(4, 60, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(x).float()
    near = 0.4 if name == "dgcnn" else 0.1  # whose graph of features is another when they move
    assert (half - encoder(x)).norm() < near * encoder(x).norm()


@pytest.mark.slow
@every
def test_components_are_learned_with_it_by_the_rules_of_methods(name):
    batch = {
        "views": [cloud(4, 30, 3).float(), cloud(4, 30, 3).float()],
        "component": [torch.randint(0, 3, (4, 30))] * 2,
        "valid": [torch.arange(30) < torch.tensor([[30], [25], [28], [20]])] * 2,
    }
    check_method(lambda: ComponentContrast(ENCODERS[name](3), dim=8), batch)


@pytest.mark.slow
def test_patches_are_rebuilt_by_the_rules_of_methods():
    hidden = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    batch = {
        "x": cloud(4, 30, 3).float(),
        "hidden": hidden,
        "valid": torch.arange(30) < torch.tensor([[30], [25], [28], [9]]),
    }
    check_method(lambda: MAE(patches(3), dim=8, depth=1, heads=2), batch)


def test_levels_describe_a_shape():
    encoder = make("pointnet2")
    x, valid = cloud(2, 40, 3), torch.arange(40) < torch.tensor([[40], [5]])
    levels = encoder.levels(x, valid=valid)
    assert [f.shape[1] for f, _ in levels] == [8, 24, 40]
    assert all((f[v] >= 0).all() for f, v in levels)
    assert [int(v[1].sum()) for _, v in levels] == [5, 5, 5]
    assert torch.equal(levels[-1][0], encoder(x, valid=valid))


def test_random_centres_only_while_training():
    torch.manual_seed(0)
    encoder = PointNet2(width=0.1, samples=(24, 8), dim=12, sampling="random")
    x = cloud(2, 60, 3).float()
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


# ------------------------------------------------------------------ layers against their formulas


def written_out(x: Tensor, linears: list[Tensor], norms: list[nn.Module], slope: float = 0.0) -> Tensor:
    """The layers on rows (N, D), each normalised by mean and variance of the rows."""
    for weight, norm in zip(linears, norms, strict=True):
        x = x @ weight.T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        x = torch.where(x > 0, x, slope * x)
    return x


@pytest.mark.parametrize("fast", [True, False])
def test_group_is_its_formula(fast):
    torch.manual_seed(0)
    group = Group(4, (5, 6, 7), norm="batch").double()
    group.cached = fast
    for norm in (group.norm, *group.rest.norms):
        nn.init.normal_(norm.weight)
    feature, xyz = torch.randn(2, 9, 4).double(), torch.randn(2, 9, 3).double()
    centre, index = torch.randn(2, 3, 3).double(), torch.stack([torch.randperm(9)[:8].view(2, 4)] * 3, 1).view(2, 3, 4)
    rows = [
        torch.cat([feature[b, j], xyz[b, j] - centre[b, s]]) for b in range(2) for s in range(3) for j in index[b, s]
    ]
    linears = [group.first.weight, *group.rest.weights()]
    expected = written_out(torch.stack(rows), linears, [group.norm, *group.rest.norms]).view(2, 3, 4, 7).amax(2)
    close(group(feature, xyz, centre, index, None), expected)


def test_edge_convolution_is_its_formula():
    torch.manual_seed(0)
    edge = EdgeConv(4, (5, 6), norm="batch").double()
    feature, index = torch.randn(2, 9, 4).double(), torch.randint(9, (2, 9, 3))
    rows = [
        torch.cat([feature[b, j] - feature[b, i], feature[b, i]])
        for b in range(2)
        for i in range(9)
        for j in index[b, i]
    ]
    linears = [edge.first.weight, *edge.rest.weights()]
    expected = written_out(torch.stack(rows), linears, [edge.norm, *edge.rest.norms], 0.2).view(2, 9, 3, 6).amax(2)
    close(edge(feature, index, None), expected)


def test_propagation_is_its_formula():
    torch.manual_seed(0)
    up = Propagate(3, 4, (5, 6), norm="batch").double()
    fine, coarse = torch.randn(2, 8, 3).double(), torch.randn(2, 5, 4).double()
    index, weight = torch.randint(5, (2, 8, 3)), torch.rand(2, 8, 3).double()
    rows = [
        torch.cat([fine[b, i], sum(weight[b, i, n] * coarse[b, index[b, i, n]] for n in range(3))])
        for b in range(2)
        for i in range(8)
    ]
    linears = [torch.cat([up.fine.weight, up.coarse.weight], 1), *up.rest.weights()]
    close(
        up(fine, coarse, (index, weight), None),
        written_out(torch.stack(rows), linears, [up.norm, *up.rest.norms]).view(2, 8, 6),
    )


def test_leaky_layers_leak():
    torch.manual_seed(0)
    layers = MLP(3, 4, norm="layer", slope=0.2)
    assert (layers(torch.randn(20, 3)) < 0).any()
    assert (MLP(3, 4, norm="layer")(torch.randn(20, 3)) >= 0).all()


def layered(point: Tensor, place: Tensor, index: Tensor, mask: Tensor | None, linears: list, norms: list) -> Tensor:
    """What group_max computes, layer by layer."""
    rows = None if mask is None else mask[:, None].expand_as(index)
    x = norms[0](point[index] - place[:, None], rows).relu()
    for weight, norm in zip(linears, norms[1:], strict=True):
        x = norm(x @ weight.T, rows).relu()
    x = x.amax(1)
    return x if mask is None else x.masked_fill(~mask[:, None], 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.booleans(), st.integers(8, 2000))
def test_group_max_is_its_layers(seed, G, K, masked, elements):
    torch.manual_seed(seed)
    P, widths = 15, (3, 4, 30) if seed % 2 else (4, 3, 5)  # the gradient of wide layers takes another way
    point, place = torch.randn(P, widths[0]).double(), torch.randn(G, widths[0]).double()
    index = torch.stack([torch.randperm(P)[:K] for _ in range(G)])
    index = torch.where(torch.arange(K) < torch.randint(1, K + 1, (G, 1)), index, index[:, :1])
    mask = torch.rand(G) < 0.7 if masked else None
    linears = [torch.randn(b, a).double() for a, b in itertools.pairwise(widths)]
    norms = [BatchNorm(w).double() for w in widths]
    for norm in norms:
        nn.init.normal_(norm.weight)  # of either sign
        nn.init.normal_(norm.bias)
    weight = torch.randn(G, widths[-1]).double()
    outs = []
    for function in (layered, grouped.group_max):
        mine = copy.deepcopy(norms)
        leaves = [t.clone().requires_grad_() for t in (point, place, *linears)]
        before, grouped.ELEMENTS = grouped.ELEMENTS, elements
        try:
            out = function(leaves[0], leaves[1], index, mask, leaves[2:], mine)
            with torch.no_grad():
                again = function(leaves[0], leaves[1], index, mask, leaves[2:], copy.deepcopy(mine))
                fixed = [norm.eval() for norm in copy.deepcopy(mine)]
                still = function(leaves[0], leaves[1], index, mask, leaves[2:], fixed)
        finally:
            grouped.ELEMENTS = before
        (out * weight).sum().backward()
        grads = [t.grad for t in (*leaves, *(p for norm in mine for p in norm.parameters()))]
        outs.append([out, again, still, *grads, *(b for norm in mine for b in norm.buffers())])
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(b, a, atol=2e-7, rtol=1e-6)


def test_the_fast_way_is_the_plain_way():
    fast, plain = make("pointnet2"), make("pointnet2")
    for module in plain.modules():
        if isinstance(module, Group):
            module.cached = False
    x, valid = cloud(3, 60, 3), torch.arange(60) < torch.tensor([[60], [40], [9]])
    for given_valid in (None, valid):
        outs = [encoder(x, valid=given_valid) for encoder in (fast, plain)]
        keep = slice(None) if given_valid is None else given_valid
        close(outs[0][keep], outs[1][keep])
        for encoder, out in zip((fast, plain), outs, strict=True):
            encoder.zero_grad()
            out[keep].square().sum().backward()
        for (key, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-7, rtol=1e-6, msg=key)


@pytest.mark.slow
def test_it_is_the_usual_network_where_no_ball_overflows():
    """Then a ball is a set, and the code that everyone writes must agree: weights copied, running statistics."""
    path = Path(__file__).parents[2] / "tools" / "bench" / "plain_pointnet2.py"
    spec = importlib.util.spec_from_file_location("plain_pointnet2", path)
    usual = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(usual)
    torch.manual_seed(0)
    theirs, ours = usual.PlainPointNet2().double().eval(), PointNet2(samples=(150, 130)).double().eval()
    theirs.first.count, theirs.second.count = 150, 130  # its balls need as many points as places

    def copy_layers(blocks: list[nn.Sequential], linears: list[Tensor], norms: list[nn.Module]) -> None:
        for (conv, norm, _), weight, mine in zip(blocks, linears, norms, strict=True):
            nn.init.zeros_(conv.bias)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            weight.data = conv.weight.data.flatten(1)
            mine.weight.data, mine.bias.data = norm.weight.data, norm.bias.data

    for their, mine in ((theirs.first, ours.first), (theirs.second, ours.second)):
        for blocks, group in zip(their.mlps, mine.groups, strict=True):
            copy_layers(list(blocks), [group.first.weight, *group.rest.weights()], [group.norm, *group.rest.norms])
    copy_layers(list(theirs.whole), ours.whole.weights(), list(ours.whole.norms))
    first = ours.whole.linears[0].weight
    first.data = torch.cat([first.data[:, 3:], first.data[:, :3]], 1)  # ours has the place last
    for their, up in ((theirs.up2, ours.up2), (theirs.up1, ours.up1), (theirs.up0, ours.up0)):
        blocks = list(their)[:2]
        wide = blocks[0][0].weight.shape[1] - up.fine.weight.shape[1]
        joined = torch.empty(up.fine.weight.shape[0], up.fine.weight.shape[1] + wide).double()
        copy_layers(blocks, [nn.Parameter(joined), *up.rest.weights()], [up.norm, *up.rest.norms])
        joined = blocks[0][0].weight.data.flatten(1)
        up.fine.weight.data, up.coarse.weight.data = joined[:, :-wide], joined[:, -wide:]
    copy_layers([theirs.up0[2]], ours.head.weights(), list(ours.head.norms))

    x = cloud(2, 200, 3)
    for b in range(2):  # theirs starts at the first point, ours at the outermost
        outermost = x[b].norm(dim=-1).argmax()
        x[b, [0, outermost]] = x[b, [outermost, 0]]
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_wrong_arguments_and_inputs_are_named():
    with pytest.raises(ValueError, match="channels 4"):
        PointNet2(4)
    with pytest.raises(ValueError, match=r"norm='group'"):
        PointNet2(norm="group")
    with pytest.raises(ValueError, match=r"x is \(2, 9, 6\)"):
        PointNet2(width=0.1)(torch.zeros(2, 9, 6))
    with pytest.raises(ValueError, match=r"x is \(2, 9, 3\)"):
        DGCNN(6, width=0.1)(torch.zeros(2, 9, 3))
    with pytest.raises(TypeError, match="PointPatches"):
        PerPoint(TransformerEncoder(nn.Identity(), dim=4, depth=1, heads=1))
