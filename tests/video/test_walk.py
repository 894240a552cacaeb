"""The contrastive random walk: its loss against loops, what must hold of it, and the method."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partwhole.core.encoder import Encoder, Wrapped
from partwhole.core.testing import check_loss, check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.video.walk import RandomWalk, rolled, steps, walk, walk_loss
from partwhole.vision.embed import Patches

quick = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 7), st.integers(1, 6))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edges(B, T, N, rate=0.3, seed=0):
    return torch.rand(B, 2, T - 1, N, N, generator=torch.Generator().manual_seed(seed)) < rate


def row(node, others, gone, temperature):
    """The chances of one node's edges, by plain arithmetic."""
    if all(gone):
        gone = [False] * len(gone)
    weight = []
    for other, cut in zip(others, gone, strict=True):
        cosine = sum(a * b for a, b in zip(node, other, strict=True)) / math.hypot(*node) / math.hypot(*other)
        weight.append(0.0 if cut else math.exp(cosine / temperature))
    return [w / sum(weight) for w in weight]


def by_loops(nodes, dropped, back, *, temperature, shortest, both):
    """As the paper has it: for every length, a walker carries the chances of where it is from frame to frame."""
    B, T, N, _ = nodes.shape
    logs = []
    for b in range(B):
        ways = [(0, 1)] + ([(T - 1, -1)] if both else [])
        for first, turn in ways:
            for k in range(shortest, T):
                frames = [first + turn * i for i in range(k + 1)] + [first + turn * i for i in reversed(range(k))]
                for n in range(N):
                    at = [float(n == m) for m in range(N)]
                    for here, there in pairwise(frames):
                        seen = nodes if there > here else back
                        direction = 0 if there > here else 1
                        gone = dropped[b, direction, min(here, there)].tolist()
                        rows = [
                            row(seen[b, here, m].tolist(), seen[b, there].tolist(), gone[m], temperature)
                            for m in range(N)
                        ]
                        at = [sum(at[m] * rows[m][j] for m in range(N)) for j in range(N)]
                    logs.append(math.log(at[n] + 1e-20))
    return torch.tensor(-sum(logs) / len(logs), dtype=torch.float64)


@pytest.mark.parametrize(("shortest", "both"), [(1, True), (1, False), (2, True), (2, False)])
def test_the_loss_is_that_of_a_walker(shortest, both):
    options = {"temperature": 0.2, "shortest": shortest, "both": both}
    inputs = normal(3, 4, 4, 3), edges(3, 4, 4), normal(3, 4, 4, 3, seed=1)
    check_loss(
        lambda *x: walk_loss(*x, **options),
        *inputs,
        reference=lambda *x: by_loops(*x, **options),
        count=lambda nodes, *_: len(nodes),
    )


def test_without_dropped_edges_and_with_the_same_nodes_on_the_way_home():
    nodes = normal(3, 3, 4, 5)
    none = torch.zeros(3, 2, 2, 4, 4, dtype=torch.bool)
    expected = by_loops(nodes, none, nodes, temperature=0.1, shortest=1, both=True)
    assert torch.allclose(walk_loss(nodes, temperature=0.1), expected, rtol=1e-9)
    check_loss(lambda x: walk_loss(x, temperature=0.1), nodes, count=len)


def test_it_is_the_loss_of_the_authors_code():
    """Restarts, cross entropy of the whole product, from two steps out on: with the same edges dropped."""
    nodes, dropped = normal(2, 5, 6, 8).float(), edges(2, 5, 6, 0.2)
    q = nn.functional.normalize(nodes, dim=-1)
    score = torch.einsum("btnd,btmd->btnm", q[:, :-1], q[:, 1:])
    there = [score[:, t].masked_fill(dropped[:, 0, t], -1e20).div(0.07).softmax(-1) for t in range(4)]
    home = [score[:, t].mT.masked_fill(dropped[:, 1, t], -1e20).div(0.07).softmax(-1) for t in range(4)]
    terms = []
    for k in range(2, 5):
        product = torch.eye(6).expand(2, 6, 6)
        for step in there[:k] + home[:k][::-1]:
            product = product @ step
        logits = (product + 1e-20).log().flatten(0, 1)
        terms.append(nn.functional.cross_entropy(logits, torch.arange(6).repeat(2)))
    ours = walk_loss(nodes, dropped, temperature=0.07, shortest=2, both=False)
    assert torch.allclose(ours, torch.stack(terms).mean(), rtol=1e-4)


@quick
@given(sizes, st.sampled_from([1e-3, 0.01, 0.07, 1.0, 10.0]), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans())
def test_rows_of_every_step_are_chances(size, temperature, rate, float64):
    B, T, N, D = size
    nodes = normal(B, T, N, D).to(torch.float64 if float64 else torch.float32)
    dropped = edges(B, T, N, rate)
    out, home = steps(nodes, dropped, temperature=temperature)
    assert len(out) == len(home) == T - 1
    product = torch.eye(N, dtype=nodes.dtype).expand(B, N, N)
    for step in [*out, *home[::-1]]:
        product = product @ step
        for chances in (step, product):
            assert (chances >= 0).all()
            assert torch.allclose(chances.sum(-1), torch.ones((), dtype=nodes.dtype), atol=1e-5)
    for way, gone in zip((out, home), dropped.unbind(1), strict=True):
        for t, step in enumerate(way):
            cut = gone[:, t] & ~gone[:, t].all(-1, keepdim=True)
            assert (step[cut] == 0).all()
            if temperature == 1.0:
                assert (step[~cut] > 0).all()
    value = walk(nodes, dropped, temperature=temperature)
    assert 0 <= value.loss < 50
    assert 0 <= value.chance <= 1
    assert 0 <= value.returned <= 1


@quick
@given(sizes, st.sampled_from([0.01, 0.05, 0.5]), st.sampled_from([0.0, 0.3]), st.booleans())
def test_a_video_backwards_has_the_same_loss(size, temperature, rate, other):
    B, T, N, D = size
    nodes, dropped = normal(B, T, N, D), edges(B, T, N, rate)
    back = normal(B, T, N, D, seed=1) if other else nodes
    value = walk_loss(nodes, dropped, back, temperature=temperature)
    again = walk_loss(back.flip(1), dropped.flip(1, 2), nodes.flip(1), temperature=temperature)
    assert torch.allclose(again, value, rtol=1e-9)


@quick
@given(sizes, st.integers(0, 9))
def test_what_nodes_are_called_and_how_long_they_are_does_not_matter(size, seed):
    B, T, N, D = size
    nodes, dropped = normal(B, T, N, D), edges(B, T, N)
    value = walk_loss(nodes, dropped)
    order = [torch.randperm(N, generator=torch.Generator().manual_seed(seed + t)) for t in range(T)]
    renamed = torch.stack([nodes[:, t, order[t]] for t in range(T)], 1)
    moved = dropped.clone()
    for t in range(T - 1):
        moved[:, 0, t] = dropped[:, 0, t][:, order[t]][:, :, order[t + 1]]
        moved[:, 1, t] = dropped[:, 1, t][:, order[t + 1]][:, :, order[t]]
    assert torch.allclose(walk_loss(renamed, moved), value, rtol=1e-9)
    lengths = normal(B, T, N, 1, seed=seed).exp()
    assert torch.allclose(walk_loss(nodes * lengths, dropped), value, rtol=1e-6)


@quick
@given(st.integers(2, 6), st.integers(1, 12), st.sampled_from([0.01, 0.05, 0.1]))
def test_a_still_video_of_distinct_patches_costs_nothing(T, N, temperature):
    still = torch.eye(N, dtype=torch.float64).expand(2, T, N, N)
    found = walk(still, temperature=temperature)
    assert found.loss < 3 * T * N * math.exp(-1 / temperature) + 1e-12
    assert found.returned == 1


def test_nodes_that_are_all_alike_cost_the_log_of_their_number_and_do_not_return():
    found = walk(torch.ones(2, 4, 7, 3))
    assert found.loss == pytest.approx(math.log(7), rel=1e-5)
    assert found.chance == pytest.approx(1 / 7, rel=1e-5)
    assert found.returned == 0


def test_a_way_that_is_cut_is_not_taken():
    """Two nodes that stay as they are: with the straight edge of one gone, it must go over the other, and is lost."""
    nodes = torch.eye(2).expand(1, 2, 2, 2)
    dropped = torch.zeros(1, 2, 1, 2, 2, dtype=torch.bool)
    dropped[0, 0, 0, 0, 0] = True
    assert walk(nodes, both=False).returned == 1
    assert walk(nodes, dropped, both=False).returned == 0.5
    assert walk_loss(nodes, dropped, both=False) > 5


def test_where_no_way_leads_back_the_loss_and_its_gradient_are_finite():
    nodes = normal(1, 6, 5, 8).float().requires_grad_()
    value = walk_loss(nodes, temperature=1e-3)
    value.backward()
    assert value.isfinite()
    assert nodes.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": normal(2, 1, 4, 3)}, "of two frames or more"),
        ({"nodes": normal(2, 3, 4)}, "of two frames or more"),
        ({"shortest": 3}, "shortest is 1 to 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"back": normal(2, 3, 5, 3)}, "give the same nodes twice"),
        ({"dropped": edges(2, 3, 5)}, r"bool \(2, 2, 2, 4, 4\) is needed"),
        ({"dropped": edges(2, 3, 4).long()}, "bool"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        walk_loss(**{"nodes": normal(2, 3, 4, 3), **change})


# ------------------------------------------------------------------ the method


def cnn():
    layers = nn.Conv2d(3, 12, 3, 2, 1), nn.GELU(), nn.Conv2d(12, 12, 3, 2, 1)
    return Wrapped(nn.Sequential(*layers), 12)


def vit():
    return TransformerEncoder(Patches(16, size=16, patch=4), dim=16, depth=1, heads=2, cls=True)


def patches(B=5):
    return {"x": normal(B, 3, 6, 3, 8, 8).float(), "dropped": edges(B, 3, 6, 0.1)}


def frames(B=5):
    shift = 4 * torch.randint(4, (B, 3, 2), generator=torch.Generator().manual_seed(0))
    return {"x": normal(B, 3, 3, 16, 16).float(), "dropped": edges(B, 3, 16, 0.1), "shift": shift}


@pytest.mark.parametrize("batch", [patches(), frames()], ids=["patches", "frames"])
@pytest.mark.parametrize("make", [cnn, vit])
def test_it_is_a_method_on_patches_and_on_frames(make, batch):
    torch.manual_seed(0)
    check_method(lambda: RandomWalk(make(), dim=8), batch)


def test_patches_are_pooled_and_places_are_not():
    method = RandomWalk(vit(), dim=None)
    x = frames()["x"]
    assert torch.equal(method.nodes(x), method.encoder(x.flatten(0, 1))[:, 1:].unflatten(0, (5, 3)))
    x = patches()["x"]
    assert torch.allclose(method.nodes(x)[1, 2, 3], method.encoder(x[1, 2, 3][None])[0, 1:].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match=r"patches .* or frames .* are needed"):
        method.nodes(x[0, 0])


@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_each_frame_is_rolled_by_its_own_shift(B, T, H, W, seed):
    x = normal(B, T, 2, H, W)
    shift = torch.randint(-9, 9, (B, T, 2), generator=torch.Generator().manual_seed(seed))
    y = rolled(x, shift)
    for b in range(B):
        for t in range(T):
            assert torch.equal(y[b, t], x[b, t].roll(shift[b, t].tolist(), (1, 2)))


class Where(Encoder):
    """Tokens that say where they are, and nothing of what is there; or the reverse."""

    def __init__(self, content: float):
        super().__init__()
        self.content, self.dim = content, 48 + 16

    def forward(self, x, *, valid=None):
        pixels = nn.functional.pixel_unshuffle(x, 4).flatten(2).mT * self.content
        return torch.cat([pixels, torch.eye(16, dtype=x.dtype).expand(len(x), 16, 16) * (1 - self.content)], -1)


def test_positions_alone_lead_home_unless_frames_are_rolled():
    batch = {"x": normal(4, 3, 3, 16, 16), "shift": frames(4)["shift"]}
    still = {**batch, "x": batch["x"][:, :1].expand(-1, 3, -1, -1, -1)}
    unrolled = {"x": batch["x"]}
    by_place, by_content = RandomWalk(Where(0.0), dim=None), RandomWalk(Where(1.0), dim=None)
    assert by_place(unrolled)["loss"] < 1e-3
    assert by_place(batch)["loss"] > 3
    assert by_place(batch)["returned"] < 0.5
    assert by_content(still)["loss"] < 1e-3  # rolled there and back, content is where it was
    assert by_content(still)["returned"] == 1


def test_frames_are_rolled_by_whole_nodes_alone():
    batch = {"x": normal(2, 2, 3, 18, 18).float(), "shift": torch.zeros(2, 2, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match="frames of 18 pixels have 16 nodes"):
        RandomWalk(vit())(batch)
