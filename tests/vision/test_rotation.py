"""Rotation, and what all pretext tasks share: the crop, the measure on held-out images, the sheet of pictures."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from partwhole.core.catalog import Given
from partwhole.core.data import Stream, collate
from partwhole.core.encoder import Embed, Wrapped
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.vision import pretext
from partwhole.vision.rotation import Rotation, RotationPrediction, Turned, picture

quick = settings(max_examples=25, deadline=None, derandomize=True)


class Patches(Embed):
    def __init__(self, patch, dim):
        super().__init__()
        self.net = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x, *, valid=None):
        y = self.net(x).flatten(2).mT
        return y + torch.linspace(0, 3, y.shape[1] * y.shape[2], dtype=y.dtype).view(1, *y.shape[1:]).sin()


def vit(cls=True):
    return TransformerEncoder(Patches(4, 16), dim=16, depth=1, heads=2, cls=cls)


def cnn():
    layers = nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 16, 3, 2, 1)
    return Wrapped(nn.Sequential(*layers), 16)


def images(count=6, side=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{"image": torch.randint(256, (3, side + i, side), generator=draw, dtype=torch.uint8)} for i in range(count)]


def places(high, wide):
    """An image whose red says the row and whose green says the column of a pixel."""
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    return torch.stack([y, x, 0 * x]).to(torch.uint8)


@pytest.mark.parametrize("make", [vit, lambda: vit(cls=False), cnn], ids=["cls", "tokens", "cnn"])
def test_it_is_a_method_with_any_encoder(make):
    batch = collate([Turned(16)(one) for one in images()])
    check_method(lambda: RotationPrediction(make()), batch)


def test_all_four_are_turns_of_one_crop_and_exact():
    torch.manual_seed(3)
    x = Turned(17)(images()[0])["x"]
    assert x.shape == (4, 3, 17, 17)
    for turns in range(4):
        expected = torch.from_numpy(np.rot90(x[0].numpy(), turns, (1, 2)).copy())
        assert torch.equal(x[turns], expected)
    torch.manual_seed(3)
    raw = Turned(17).turned(images()[0])
    mean, std = torch.tensor(pretext.MEAN), torch.tensor(pretext.STD)
    assert torch.allclose(x, (raw - mean[:, None, None]) / std[:, None, None], atol=1e-6)


def test_right_answers_are_counted():
    class Oracle(nn.Module):
        """Knows a turn by where the corner that is marked lies; mistakes a half turn for none."""

        def forward(self, x):
            marked = torch.stack([x[:, 0, 0, 0], x[:, 0, -1, 0], x[:, 0, -1, -1], x[:, 0, 0, -1]], -1)
            return (marked * torch.tensor([1.0, 1.0, 0.0, 1.0])) @ torch.eye(4) - 0.1 * torch.tensor([0, 1, 1, 1.0])

    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, 0, 0] = 255
    view = Turned(8, area=(1.0, 1.0), mean=(0, 0, 0), std=(1, 1, 1))
    method = RotationPrediction(Wrapped(Oracle(), 4))
    method.head = nn.Module()
    method.head.forward = lambda tokens, valid: 10 * tokens[:, 0]
    x = pretext.crop(image, 8, area=(1.0, 1.0), flip=False)
    out = method({"x": torch.stack([x.rot90(k, (1, 2)) for k in range(4)])[None]})
    assert out["accuracy"] == 0.75
    assert out["items"] == 4
    with pytest.raises(ValueError, match=r"x must be \(B, 4, 3, S, S\).* got \(4, 3, 8, 8\)"):
        method({"x": view.turned({"image": image})})


# ------------------------------------------------------------------ the crop


@quick
@given(high=st.integers(1, 40), wide=st.integers(1, 40), side=st.integers(1, 40), seed=st.integers(0, 999))
def test_a_crop_of_any_image_is_a_square_in_0_1(high, wide, side, seed):
    torch.manual_seed(seed)
    x = pretext.crop(torch.full((3, high, wide), 51, dtype=torch.uint8), side)
    assert x.shape == (3, side, side)
    assert torch.allclose(x, torch.tensor(0.2))


@pytest.mark.parametrize(("edge", "side"), [(40, 24), (24, 40), (32, 32)])
def test_resizing_is_torchvisions(edge, side):
    from torchvision.transforms.v2.functional import resize

    image = images(1, edge)[0]["image"][:, :edge]
    ours = pretext.crop(image, side, area=(1.0, 1.0), flip=False)
    torch.testing.assert_close(ours, resize(image / 255, [side, side], antialias=True))


def test_crops_lie_anywhere_are_as_large_as_asked_and_mirrored_half_of_the_time():
    image, found = places(60, 100), []
    torch.manual_seed(0)
    for _ in range(600):
        x = pretext.crop(image, 50, area=(0.25, 1.0)) * 255
        rows, columns = x[0].mean(1), x[1].mean(0)
        assert rows[-1] > rows[0], "never upside down"
        found.append((rows.mean(), columns.mean(), (rows[-1] - rows[0]) / 49 * 50, columns[0] > columns[-1]))
    y, x, edge, mirrored = torch.tensor(found).T
    assert 0.44 < mirrored.mean() < 0.56
    assert (edge.min() > 29, edge.max() < 61) == (True, True)
    assert (edge / 60).square().mean().item() == pytest.approx(0.625, abs=0.03)  # of the area, even
    assert (x.mean() - 49.5).abs() < 2
    assert (y.mean() - 29.5).abs() < 1
    assert x.std() > 15


# ------------------------------------------------------------------ held-out images


class Half(nn.Module):
    """A stand-in for a method: its accuracy is the first pixel of each thing, its items are uneven."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        assert not self.training
        x = batch["x"].double().flatten(1)[:, 0]
        return {"loss": x.mean() + self.p, "accuracy": x.mean(), "items": torch.tensor(len(x))}


def test_held_out_is_one_number_whatever_the_batch_and_moves_nothing():
    method, view, samples = Half().train(), Turned(8), images(7)
    before = torch.get_rng_state()
    found = [pretext.held_out(method, view, samples, seed=5, batch=b) for b in (1, 3, 64)]
    assert torch.equal(before, torch.get_rng_state())
    assert method.training
    for one in found[1:]:
        assert one == pytest.approx(found[0])
    assert set(found[0]) == {"loss", "accuracy"}
    by_hand = [pretext.drawn(view, samples, i, 5)["x"].flatten()[0].item() for i in range(7)]
    assert found[0]["accuracy"] == pytest.approx(sum(by_hand) / 7)
    assert pretext.held_out(method, view, samples, seed=6) != pytest.approx(found[0])
    twins = samples[:1] * 2
    assert not torch.equal(*(pretext.drawn(view, twins, i, 5)["x"] for i in (0, 1))), "each has a view of its own"
    with pytest.raises(ValueError, match="no sample"):
        pretext.held_out(method, view, [])


def test_it_learns_what_is_up():
    """Images that are bright above and dark below: held out, nearly all are told."""

    def bright_above(count, seed):
        ramp = torch.linspace(160, 60, 16)[None, :, None] + 30 * torch.randn(
            count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)
        )
        return [{"image": one.clamp(0, 255).to(torch.uint8)} for one in ramp]

    torch.manual_seed(0)
    method, view = RotationPrediction(vit()), Turned(16)
    test = bright_above(40, 1)
    before = pretext.held_out(method, view, test)["accuracy"]
    fit(Run(method=method, stream=Stream(bright_above(40, 0), view, batch=10)), Fit(steps=40, lr=3e-3), watch=Quiet())
    assert before < 0.6
    assert pretext.held_out(method, view, test)["accuracy"] > 0.9


# ------------------------------------------------------------------ pictures, recipes


def opened(png):
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1) / 255


def test_the_picture_shows_the_answers_framed_green_and_red():
    class Says(nn.Module):
        """A method of one answer."""

        def __init__(self, answer):
            super().__init__()
            self.p, self.answer = nn.Parameter(torch.zeros(())), answer

        def logits(self, x):
            return torch.eye(4)[self.answer].expand(len(x), 4)

    view, samples = Turned(24), images(4)
    sheet = opened(picture(Says(2), view, samples))
    assert sheet.shape == (3, 3 * 124 - 4, 4 * 124 - 4)
    middle = sheet[:, 124 + 1, 60::124]  # the frame of each answer
    assert (middle[1] > middle[0]).tolist() == [False, False, True, False]
    drawn = pretext.drawn(view.turned, samples, 2, 0)
    want = pretext.framed(drawn[0], True)  # turned by 180 degrees, and back
    again = nn.functional.interpolate(want[None], (120, 120), mode="bilinear", antialias=True)[0]
    assert (sheet[:, 124:244, 248:368] - again).abs().mean() < 0.05  # 256 colours for all


def test_a_recipe_makes_the_method_and_the_view():
    @dataclass(frozen=True, kw_only=True)
    class Base:
        size: int = 16

    @dataclass(frozen=True, kw_only=True)
    class Both(Rotation, Base):
        pass

    encoder = vit()
    method, view = Both().method(encoder, Given(things=3, batch=2)), Both().view(encoder)
    assert method.encoder is encoder
    assert method(collate([view(one) for one in images(3)]))["loss"].isfinite()
