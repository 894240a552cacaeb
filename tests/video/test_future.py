"""Future prediction: against loops written from the papers, and that it learns what can be foretold."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partwhole.core.encoder import Wrapped
from partwhole.core.testing import check_method
from partwhole.core.threads import ranks as as_ranks
from partwhole.core.transformer import TransformerEncoder
from partwhole.video import future
from partwhole.video.clip_views import Blocks, Clip, dpc
from partwhole.video.future import DPC, MemDPC
from partwhole.video.generator import clips
from partwhole.video.tubes import Tubes
from partwhole.vision.pretext import held_out


def tubes() -> TransformerEncoder:
    return TransformerEncoder(Tubes(12, size=16, frames=2, patch=8), dim=12, depth=1, heads=2, cls=True)


def flat() -> Wrapped:
    return Wrapped(nn.Conv2d(3, 6, 8, 8), dim=6)


def gru(cell: nn.GRUCell, x, h):
    r, z, n = (x @ w.mT + b for w, b in zip(cell.weight_ih.chunk(3), cell.bias_ih.chunk(3), strict=True))
    hr, hz, hn = (h @ w.mT + b for w, b in zip(cell.weight_hh.chunk(3), cell.bias_hh.chunk(3), strict=True))
    reset, keep = (r + hr).sigmoid(), (z + hz).sigmoid()
    return keep * h + (1 - keep) * (n + reset * hn).tanh()


def slow(z, steps, cell, predict, temperature):
    """Loops over clips, places, times; then over every pair. Returns the loss and the share that is right."""
    B, N, H, W, D = z.shape
    told, truth = [], []
    for b in range(B):
        for p in range(steps):
            for i in range(H):
                for j in range(W):
                    h = torch.zeros(D, dtype=z.dtype)
                    for n in range(N - steps):
                        h = gru(cell, z[b, n, i, j].relu(), h)
                    for _ in range(p):
                        h = gru(cell, predict(h).relu(), h)
                    told.append(predict(h))
                    truth.append(z[b, N - steps + p, i, j])
    losses, right = [], 0
    for q, one in enumerate(told):
        scores = torch.stack([F.cosine_similarity(one, k, dim=0) / temperature for k in truth])
        losses.append(scores.logsumexp(0) - scores[q])
        right += int(scores.argmax()) == q
    return torch.stack(losses).mean(), right / len(told)


@pytest.mark.parametrize("encoder", [tubes, flat])
@pytest.mark.parametrize("steps", [1, 2])
def test_dpc_by_loops(encoder, steps):
    torch.manual_seed(0)
    method = DPC(encoder(), steps=steps, temperature=0.3).double()
    x = torch.randn(2, 4, 3, 2, 16, 16, dtype=torch.float64)
    out = method({"x": x})
    z = method.blocks(x)
    loss, right = slow(z, steps, method.cell, method.predict, 0.3)
    assert torch.allclose(out["loss"], loss)
    assert float(out["accuracy"]) == pytest.approx(right)
    assert int(out["items"]) == 2 * steps * 4
    block = method.encoder(x[1, 2][None])[0, method.encoder.special :] if encoder is tubes else None
    if block is not None:
        assert torch.allclose(z[1, 2].flatten(0, 1), block)  # one tube of time
    else:
        frames = torch.stack([method.encoder.module(x[1, 2, None, :, t])[0] for t in range(2)]).mean(0)
        assert torch.allclose(z[1, 2], frames.permute(1, 2, 0))


def test_memdpc_by_loops():
    torch.manual_seed(0)
    method = MemDPC(flat(), steps=2, temperature=0.3, slots=5).double()
    x = torch.randn(2, 3, 3, 2, 16, 16, dtype=torch.float64)
    out = method({"x": x})
    z = method.blocks(x)

    def predict(h):
        first, _, last = method.choose
        scores = F.relu(h @ first.weight.mT + first.bias) @ last.weight.mT + last.bias
        weight = scores.exp() / scores.exp().sum()
        return sum(w * m for w, m in zip(weight, method.memory, strict=True))

    ahead = slow(z, 2, method.forth, predict, 0.3)
    back = slow(z.flip(1), 2, method.back, predict, 0.3)
    assert torch.allclose(out["loss"], ahead[0] + back[0])
    assert float(out["accuracy"]) == pytest.approx((ahead[1] + back[1]) / 2)


@pytest.mark.parametrize("encoder", [tubes, flat])
@pytest.mark.parametrize("kind", ["dpc", "memdpc"])
def test_the_contract(encoder, kind):
    def make():
        return DPC(encoder(), steps=2) if kind == "dpc" else MemDPC(encoder(), steps=2, slots=7)

    torch.manual_seed(1)
    check_method(make, {"x": torch.randn(4, 4, 3, 2, 16, 16)})


def test_accuracies_are_those_of_one_process():
    torch.manual_seed(2)
    method, x = DPC(flat(), steps=1, temperature=0.3).double(), torch.randn(5, 3, 3, 2, 16, 16, dtype=torch.float64)
    alone = method({"x": x})
    assert 0 < alone["accuracy"] < 1
    with as_ranks(2) as run:
        both = run(lambda r: method({"x": (x[:3], x[3:])[r]}))
    for name in ("loss", "accuracy", "block"):
        assert torch.allclose((both[0][name] + both[1][name]) / 2, alone[name])


def test_what_is_to_be_told_is_not_looked_at():
    torch.manual_seed(0)
    for method in (DPC(flat(), steps=2), MemDPC(flat(), steps=2, slots=5)):
        z = torch.randn(2, 5, 2, 2, 6, requires_grad=True)
        method.foretold(z).square().sum().backward()
        assert (z.grad[:, :3] != 0).any()
        assert not z.grad[:, 3:].any()


@pytest.mark.parametrize("kind", [DPC, MemDPC])
def test_the_gradient_is_that_of_the_value(kind):
    torch.manual_seed(0)
    method = kind(flat(), steps=2).double()
    z = torch.randn(2, 3, 1, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: method.told(method.foretold(z), z[:, -2:])["loss"], (z,))


def test_what_is_right_is_counted():
    key = F.normalize(torch.randn(50, 4), dim=1)
    query = key[10:40].clone()
    query[:6] = -query[:6]
    assert float(future.found(query, key, 10)) == pytest.approx(24 / 30)
    small, future.PAIRS = future.PAIRS, 120  # two rows at a time
    try:
        assert float(future.found(query, key, 10)) == pytest.approx(24 / 30)
    finally:
        future.PAIRS = small


def test_a_prediction_is_a_mixture_of_slots():
    torch.manual_seed(0)
    method = MemDPC(flat(), steps=1, slots=3)
    with torch.no_grad():
        method.memory.copy_(torch.eye(3, 6))
        made = method.remember(torch.randn(40, 6))
    assert torch.allclose(made.sum(1), torch.ones(40))
    assert (made >= 0).all()


@pytest.mark.parametrize("kind", [DPC, MemDPC])
def test_it_learns_to_foretell(kind):
    """On generated clips it has not seen: far more often right than by chance, and more than before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
    method = kind(Wrapped(net, dim=24), steps=1)
    view = Blocks(clip=Clip(augment=dpc(16), frames=6, stride=1), blocks=3)
    data = clips(60, frames=10, size=32)
    x = torch.stack([view(c)["x"] for c in data])
    before = held_out(method, view, data.subset(range(48, 60)), batch=12)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for step in range(60):
        out = method({"x": x[:48][torch.arange(step * 12, step * 12 + 12) % 48]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    after = held_out(method, view, data.subset(range(48, 60)), batch=12)
    assert after["accuracy"] > max(3 / 48, 1.5 * before["accuracy"])  # by chance 1 / 48
    assert after["block"] > 2 / 12  # 1 / 12
    png = future.picture(method, view, data.subset([50, 51]))
    assert png[:4] == b"\x89PNG"


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="1 or more"):
        DPC(flat(), steps=0)
    with pytest.raises(ValueError, match="2 or more"):
        MemDPC(flat(), slots=1)
    with pytest.raises(ValueError, match="one more is needed"):
        DPC(flat(), steps=3)({"x": torch.zeros(2, 3, 3, 2, 16, 16)})
    with pytest.raises(ValueError, match="blocks of frames"):
        DPC(flat())({"x": torch.zeros(2, 3, 2, 16, 16)})
