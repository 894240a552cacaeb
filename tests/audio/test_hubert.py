"""HuBERT: its head against plain arithmetic, what it counts, and that it is a method."""

import pytest
import torch
from torch import Tensor

from partwhole.audio.hubert import HuBERT
from partwhole.audio.waveform import Waveform
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method(**options) -> HuBERT:
    embed = Waveform(8, channels=6, kernels=(4, 3), strides=(3, 2), reach=5)
    return HuBERT(TransformerEncoder(embed, dim=8, depth=1, heads=2), **{"units": 7, "dim": 5, **options})


def batch() -> dict[str, Tensor]:
    """Sounds of 11 tokens and less; one shows nothing, one hides nothing, one is too short for any token."""
    lengths = torch.tensor([73, 73, 60, 41, 5])
    g = torch.Generator().manual_seed(1)
    hidden = torch.rand(5, 11, generator=g) < 0.6
    hidden[1], hidden[2] = True, False
    ids = torch.randint(7, (5, 11), generator=g)
    return {"x": draw(5, 73), "valid": torch.arange(73) < lengths[:, None], "hidden": hidden, "ids": ids}


@pytest.mark.parametrize("unmasked", [0.0, 0.5])
def test_it_is_a_method(unmasked):
    check_method(lambda: method(unmasked=unmasked), batch())


@pytest.mark.parametrize("unmasked", [0.0, 0.5])
def test_the_loss_is_that_of_the_loops(unmasked):
    torch.manual_seed(0)
    net, some = method(unmasked=unmasked, temperature=0.2).double().eval(), batch()
    some["x"] = some["x"].double()
    tokens = net.encoder(some["x"], hidden=some["hidden"], token=net.mask_token, valid=some["valid"])
    real = net.encoder.embed.tokens_valid(some["x"], some["valid"])
    losses: dict[bool, list[Tensor]] = {True: [], False: []}
    right = 0
    for b in range(5):
        for t in range(11):
            if not real[b, t]:
                continue
            y, unit = net.project(tokens[b, t]), int(some["ids"][b, t])
            score = torch.stack([torch.cosine_similarity(y, e, dim=0) / 0.2 for e in net.codewords])
            masked = bool(some["hidden"][b, t])
            losses[masked].append(score.exp().sum().log() - score[unit])
            right += masked and int(score.argmax()) == unit
    out = net(some)
    expected = torch.stack(losses[True]).mean() + unmasked * torch.stack(losses[False]).mean()
    assert torch.allclose(out["loss"], expected, atol=1e-9)
    assert out["items"] == len(losses[True])
    assert out["accuracy"].item() == pytest.approx(right / len(losses[True]))


def test_units_that_follow_from_the_sound_are_learned():
    """A tone has its unit wherever it is; the hidden ones are told by what is around."""
    torch.manual_seed(0)
    net, t = method(units=2), torch.arange(133) / 6
    kind = torch.arange(16) % 2
    x = torch.stack([(t * (1.0 + 1.7 * k) + p).sin() for k, p in zip(kind, torch.rand(16) * 6, strict=True)])
    hidden = torch.rand(16, net.encoder.embed.count(133)) < 0.4
    some = {"x": x, "hidden": hidden, "ids": kind[:, None].expand_as(hidden)}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        net(some)["loss"].backward()
        optimizer.step()
    assert net.eval()(some)["accuracy"] > 0.95


def test_it_says_what_it_needs():
    for bad in ({"temperature": 0.0}, {"unmasked": -1.0}):
        with pytest.raises(ValueError, match="above 0 and unmasked 0 or more"):
            method(**bad)
