"""Methods of pictures and sounds: against loops from the papers, on several processes, micro-batches, resumed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partwhole.audio.network import Convolutional
from partwhole.core.encoder import Wrapped, build, describe
from partwhole.core.testing import check_loss, check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.multimodal.avts import AVTS, margin_contrast
from partwhole.multimodal.contrast import Contrast
from partwhole.multimodal.l3 import L3
from partwhole.multimodal.network import ClipCNN
from partwhole.multimodal.towers import next_other
from partwhole.video.tubes import Tubes

BANDS = 6


def eye():
    return Wrapped(nn.Conv2d(3, 5, 4, 4), dim=5)


def tubes():
    return TransformerEncoder(Tubes(12, size=8, frames=4, patch=4), dim=12, depth=1, heads=2, cls=True)


class Flat(nn.Module):
    """Spectrograms (B, T, F) -> (B, T, D)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(BANDS, 7)

    def forward(self, x):
        return self.net(x).tanh()


def film():
    return ClipCNN(width=2, segments=2)


def ear():
    return Wrapped(Flat(), dim=7)


def cnn():
    return Convolutional(bands=8, width=2, blocks=2, segments=2, dim=6)


METHODS = {
    "l3": lambda e, s: L3(e, s, hidden=9),
    "avts": lambda e, s: AVTS(e, s, dim=4, hard=0.5, begin=0.3),
    "avts-hard": lambda e, s: AVTS(e, s, dim=4, hard=0.6, begin=0.0),
    "contrast": lambda e, s: Contrast(e, s, dim=4),
}


def batch(count=6, *, clip=False, bands=BANDS, seed=0, index=None):
    draw = torch.Generator().manual_seed(seed)
    shape = (count, 3, 4, 8, 8) if clip else (count, 3, 8, 8)
    return {
        "x": torch.randn(shape, generator=draw),
        "sound": torch.randn(count, 9, bands, generator=draw),
        "shifted": torch.randn(count, 9, bands, generator=draw),
        "draw": torch.rand(count, generator=draw),
        "index": torch.arange(count) if index is None else torch.tensor(index),
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("index", [None, [0, 1, 2, 0, 3, 1]])
def test_the_contract(name, index):
    check_method(lambda: METHODS[name](eye(), ear()), batch(index=index))


@pytest.mark.parametrize(("name", "encoder"), [("l3", film), ("avts-hard", film), ("contrast", tubes)])
def test_the_contract_of_clips_and_convolutions(name, encoder):
    """Batch norm has the statistics of all processes."""
    check_method(lambda: METHODS[name](encoder(), cnn()), batch(8, clip=True, bands=8), ranks=(2,))


def others(index):
    """By loops: the next that is another clip."""
    out = []
    for i in range(len(index)):
        found = -1
        for ahead in range(1, len(index)):
            j = (i + ahead) % len(index)
            if index[j] != index[i]:
                found = j
                break
        out.append(found)
    return out


def test_the_other_sound_is_that_of_the_next_other_clip():
    for index in ([3, 5, 9], [1, 1, 2], [4, 4, 4], [0, 1, 0, 0, 1], [7]):
        everyone = torch.tensor(index)
        assert next_other(everyone, everyone, 0).tolist() == others(index)
        assert next_other(everyone[1:], everyone, 1).tolist() == others(index)[1:]


def test_l3_by_loops():
    torch.manual_seed(0)
    method, b = L3(eye(), ear(), hidden=9).double(), batch(5, index=[0, 1, 1, 2, 3])
    x, sound = b["x"].double(), b["sound"].double()
    first, _, last = method.fuse
    losses, right = [], 0
    partner = others([0, 1, 1, 2, 3])
    for i in range(5):
        v = method.encoder.module(x[i : i + 1])[0].flatten(1).mean(1)
        for j, label in ((i, 1), (partner[i], 0)):
            a = (sound[j] @ method.sound.module.net.weight.mT + method.sound.module.net.bias).tanh().mean(0)
            h = first.weight @ torch.cat([v, a]) + first.bias
            logits = last.weight @ F.gelu(h) + last.bias
            losses.append(logits.exp().sum().log() - logits[label])
            right += int(logits.argmax()) == label
    out = method({**b, "x": x, "sound": sound})
    assert torch.allclose(out["loss"], torch.stack(losses).mean())
    assert float(out["accuracy"]) == pytest.approx(right / 10)
    assert int(out["items"]) == 10
    with torch.no_grad():
        v, a = method.seen(x), method.heard(sound)
        logits = method.answer(v[:, None], a)
        assert logits.shape == (5, 5, 2)
        assert torch.allclose(method.score(v[:, None], a), logits[..., 1] - logits[..., 0])


def test_l3_of_one_clip_alone_has_no_negative():
    method = L3(eye(), ear())
    out = method(batch(3, index=[2, 2, 2]))
    assert int(out["items"]) == 3
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def slow_margin(picture, sound, together, margin=0.99):
    total = 0.0
    for v, a, y in zip(picture, sound, together, strict=True):
        d = (v - a).square().sum().sqrt()
        total = total + (d**2 if y else torch.clamp(margin - d, min=0) ** 2)
    return total / len(picture)


def test_the_margin_loss():
    draw = torch.Generator().manual_seed(0)
    picture, sound = (torch.randn(7, 3, generator=draw, dtype=torch.float64) * 0.4 for _ in range(2))
    together = torch.tensor([True, False, True, False, False, True, False])
    check_loss(
        lambda v, a, y: margin_contrast(v, a, y), picture, sound, together, reference=slow_margin,
        count=lambda v, a, y: len(v),
    )  # fmt: skip
    far = torch.full((1, 3), 5.0)
    assert margin_contrast(far, -far, torch.tensor([False])) == 0
    assert margin_contrast(far[:0], far[:0], together[:0]) == 0
    with pytest.raises(ValueError, match=r"picture \(N, D\)"):
        margin_contrast(picture, sound[:3], together)
    with pytest.raises(ValueError, match="above 0"):
        margin_contrast(picture, sound, together, margin=0.0)


def test_avts_by_loops_and_its_curriculum():
    torch.manual_seed(0)
    method, b = AVTS(eye(), ear(), dim=4, hard=0.5, begin=0.4).double(), batch(5, index=[0, 1, 1, 2, 3])
    method.eval()  # so that the norms are the same for all that is asked of them
    b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
    b["draw"] = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.2], dtype=torch.float64)
    partner = others([0, 1, 1, 2, 3])

    def slow(share):
        v, own, shifted = method.seen(b["x"]), method.heard(b["sound"]), method.heard(b["shifted"])
        negative = [shifted[i] if b["draw"][i] < share else own[partner[i]] for i in range(5)]
        pairs = [(v[i], own[i], True) for i in range(5)] + [(v[i], negative[i], False) for i in range(5)]
        return slow_margin(*zip(*pairs, strict=True))

    for progress, share in ((0.0, 0.0), (0.39, 0.0), (0.4, 0.5), (1.0, 0.5)):
        method.after_step(progress)
        out = method(b)
        assert torch.allclose(out["loss"], slow(share))
    assert not torch.allclose(slow(0.0), slow(0.5))
    near = -method.score(method.seen(b["x"]), method.heard(b["sound"])).detach()
    assert float(out["near"]) == pytest.approx(float(near.mean()))


def test_contrast_by_loops():
    torch.manual_seed(0)
    index = [0, 1, 1, 2, 3]
    method, b = Contrast(eye(), ear(), dim=4, temperature=0.2).double(), batch(5, index=index)
    b = {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
    out = method(b)
    v, a = method.seen(b["x"]), method.heard(b["sound"])
    losses, right = [], 0
    for query, key in ((v, a), (a, v)):
        for i in range(5):
            among = [j for j in range(5) if j == i or index[j] != index[i]]
            cosines = torch.stack([F.cosine_similarity(query[i], key[j], dim=0) for j in among])
            logits = cosines / 0.2
            losses.append(logits.exp().sum().log() - logits[among.index(i)])
            right += int(cosines.argmax()) == among.index(i)
    assert torch.allclose(out["loss"], torch.stack(losses).mean())
    assert float(out["accuracy"]) == pytest.approx(right / 10)
    assert float(out["scale"]) == pytest.approx(5.0)


def test_the_scale_is_clips():
    method = Contrast(eye(), ear())
    assert method.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert method.log_scale.ndim == 1  # vectors do not decay
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    method.after_step(0.1)
    assert method.log_scale.item() == pytest.approx(math.log(100))
    with pytest.raises(ValueError, match="may not begin below"):
        Contrast(eye(), ear(), temperature=0.001)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_that_of_the_value(name):
    torch.manual_seed(0)
    method = METHODS[name](eye(), ear()).double()
    method.after_step(1.0)
    b = {k: v.double() if v.is_floating_point() else v for k, v in batch(3).items()}
    live = tuple(b[k].clone().requires_grad_() for k in ("x", "sound"))
    assert torch.autograd.gradcheck(lambda x, s: method({**b, "x": x, "sound": s})["loss"], live, fast_mode=True)


def test_an_encoder_of_clips_knows_when_and_where():
    torch.manual_seed(0)
    net = build(describe(ClipCNN(width=2, segments=4))).eval()
    x = torch.randn(2, 3, 8, 32, 32)
    tokens, places = net(x), net.map(x)
    assert tokens.shape == (2, 1 + 4 * 2 * 2, 16)
    assert places.shape == (2, 16, 4, 2, 2)
    assert torch.equal(tokens[:, 1:], places.flatten(2).mT)
    assert not torch.allclose(net(x.flip(2))[:, 0], tokens[:, 0], atol=1e-3)
    moments = torch.cat([places.mean((3, 4)), places.amax((3, 4))], 1)  # (B, 2 D, t), a part for each
    by_hand = torch.cat([moments.mT] * 2, -1).flatten(1)  # the mean and the greatest of one moment are that moment
    assert torch.allclose(net.whole(by_hand), tokens[:, 0], atol=1e-5)
    late = x.clone()
    late[:, :, 6:, :8, :8] += 3
    assert torch.allclose(net.map(late)[:, :, 0], places[:, :, 0], atol=1e-5)
    assert not torch.allclose(net.map(late)[:, :, 3], places[:, :, 3], atol=1e-3)
    assert len(net.stages()) == 5
    with pytest.raises(ValueError, match=r"clips \(B, 3, T, H, W\) are needed"):
        net(x[:, :, 0])
    with pytest.raises(ValueError, match="no padded frames"):
        net(x, valid=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="width 0"):
        ClipCNN(width=0)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="hard is 2"):
        AVTS(eye(), ear(), hard=2)
