"""Context prediction: where the tiles are from, what guards them, what the answers depend on."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from partwhole.core.catalog import Given
from partwhole.core.data import Stream, collate
from partwhole.core.encoder import Embed, Wrapped
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.vision import context, pretext
from partwhole.vision.context import PLACES, Context, ContextPrediction, Neighbours, picture


class Patches(Embed):
    def __init__(self, patch, dim):
        super().__init__()
        self.net = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x, *, valid=None):
        return self.net(x).flatten(2).mT


def vit():
    return TransformerEncoder(Patches(4, 16), dim=16, depth=1, heads=2, cls=True)


def cnn():
    return Wrapped(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 16, 3, 2, 1)), 16)


def images(count=6, side=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{"image": torch.randint(256, (3, side, side), generator=draw, dtype=torch.uint8)} for _ in range(count)]


def places(side):
    """An image whose red says the row and whose green says the column of a pixel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([y, x, 0 * x]) / 255


@pytest.mark.parametrize("make", [vit, cnn])
def test_it_is_a_method_with_any_encoder(make):
    batch = collate([Neighbours(8)(one) for one in images(5)])
    check_method(lambda: ContextPrediction(make(), hidden=12), batch)


@pytest.mark.parametrize(("tile", "gap", "jitter"), [(32, 0.5, 0.07), (16, 0.5, 0.25), (20, 0.0, 0.0), (32, 1.0, 0.4)])
def test_tiles_lie_in_their_cells_and_move_as_far_as_they_may(tile, gap, jitter):
    cell = pretext.cell_of(tile, gap)
    most, image = round(jitter * tile), places(3 * cell)
    torch.manual_seed(0)
    moved = []
    for _ in range(200):
        cut = pretext.tiles(image, tile, cell, jitter=most)
        assert cut.shape == (9, 3, tile, tile)
        corner = (cut[:, :2, 0, 0] * 255).round().long()
        middle = torch.tensor([[r, c] for r in range(3) for c in range(3)]) * cell + (cell - tile) // 2
        moved.append(corner - middle)
        assert torch.equal(cut[4], image[:, corner[4, 0] :, corner[4, 1] :][:, :tile, :tile])
    moved = torch.stack(moved).flatten(0, 1)
    assert (moved.amin(0).tolist(), moved.amax(0).tolist()) == ([-most] * 2, [most] * 2)
    if most:
        assert moved.double().std().item() == pytest.approx(((2 * most + 1) ** 2 / 12 - 1 / 12) ** 0.5, rel=0.05)
        apart = moved.view(200, 9, 2).double().flatten(1).T.corrcoef()
        assert (apart - torch.eye(18)).abs().max() < 0.3, "each by its own"


def test_colours_of_a_tile_are_displaced_each_by_its_own_and_stay_within_the_image():
    image, found = places(36).sum(0, keepdim=True).expand(3, -1, -1), []
    torch.manual_seed(0)
    for _ in range(100):
        cut = pretext.tiles(image, 12, 12, jitter=0, shift=2)
        found.append((cut[:, :, 0, 0] * 255).round())
    spread = torch.stack(found)  # (100, 9, 3): row + column of each colour's corner
    assert (spread[:, 4].amin(), spread[:, 4].amax()) == (24 - 4, 24 + 4)
    assert spread[:, 0].amin() == 0, "not beyond the image"
    assert (spread[:, 4, 0] != spread[:, 4, 1]).double().mean() > 0.5
    with pytest.raises(ValueError, match="moved by 0 to 2 pixels, not by 3"):
        pretext.tiles(image, 8, 12, jitter=3)


def test_the_guard_keeps_one_colour_and_makes_weak_noise_of_the_others():
    cut = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    view, kept = Neighbours(32), []
    torch.manual_seed(0)
    plain = Neighbours(32, guard=False).seen(cut)
    for _ in range(100):
        x = view.seen(cut)
        same = (x == plain).all(-1).all(-1)
        assert (same.sum(1) == 1).all()
        kept.append(same.double())
        own = plain[same].std(dim=(1, 2))  # (9,)
        noise = x[~same].view(9, 2, 32, 32)
        assert (noise.std(dim=(2, 3)) / own[:, None] - 0.01).abs().max() < 0.002
        assert noise.mean((2, 3)).abs().max() < 0.005
    assert (torch.stack(kept).mean(0) - 1 / 3).abs().max() < 0.2
    with pytest.raises(ValueError, match="the gap must be twice as much"):
        Neighbours(32, gap=0.1)


def test_an_answer_depends_on_its_tile_and_the_middle_alone():
    torch.manual_seed(0)
    method, x = ContextPrediction(vit().double(), hidden=12).double(), torch.randn(2, 9, 3, 8, 8).double()
    answer = method.logits(x)
    assert answer.shape == (2, 8, 8)
    for tile in range(9):
        other = x.clone()
        other[:, tile] += 1
        changed = ((method.logits(other) - answer).abs() > 1e-9).any(-1).all(0).tolist()
        assert changed == [tile in (4, place) for place in PLACES]
    with pytest.raises(ValueError, match=r"x must be \(B, 9, 3, t, t\).* got \(2, 8, 3, 8, 8\)"):
        method.logits(x[:, 1:])


def test_accuracy_is_the_share_of_neighbours_that_are_placed_right():
    class Said(ContextPrediction):
        def logits(self, x):
            said = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
            return 10 * torch.eye(8)[said].expand(len(x), 8, 8)

    out = Said(vit(), hidden=4)({"x": torch.zeros(3, 9, 3, 8, 8)})
    assert out["accuracy"] == 0.75
    assert out["items"] == 24


def test_it_learns_where_a_tile_is_from():
    """Images that grow brighter downwards and to the right, by an amount that the middle must be known for."""

    def ramps(count, seed):
        made = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.linspace(-1, 1, 36), torch.linspace(-1, 1, 36), indexing="ij")
        level = 90 + 75 * torch.rand(count, 1, 1, 1, generator=made)
        whole = level + 60 * y + 20 * x.abs() + 4 * torch.randn(count, 3, 36, 36, generator=made)
        return [{"image": one.clamp(0, 255).to(torch.uint8)} for one in whole]

    torch.manual_seed(0)
    method, view = ContextPrediction(cnn(), hidden=32), Neighbours(12, guard=False, area=(1.0, 1.0))
    test = ramps(30, 1)
    before = pretext.held_out(method, view, test)["accuracy"]
    fit(Run(method=method, stream=Stream(ramps(40, 0), view, batch=10)), Fit(steps=60, lr=5e-3), watch=Quiet())
    assert before < 0.2
    assert pretext.held_out(method, view, test)["accuracy"] > 0.3  # a mirrored image has two of each


@pytest.mark.slow
def test_colours_that_a_lens_displaced_give_the_place_away_but_for_the_guard():
    """Noise, whose red image is larger than its green one, as a simple lens makes it."""

    def aberrated(count, seed):
        made, out = torch.Generator().manual_seed(seed), []
        for _ in range(count):
            noise = torch.rand(1, 1, 54, 54, generator=made)
            large = nn.functional.interpolate(noise, (62, 62), mode="bilinear", align_corners=True)[0, :, 4:58, 4:58]
            out.append({"image": (torch.cat([large, noise[0], noise[0]]) * 255).to(torch.uint8)})
        return out

    def learned(guard):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 64, 9, 3), nn.GELU(), nn.Conv2d(64, 64, 3, 1), nn.GELU()
        method, test = ContextPrediction(Wrapped(nn.Sequential(*layers), 64), hidden=64), aberrated(60, 1)
        view = Neighbours(18, gap=0.0, jitter=0.0, guard=guard, area=(1.0, 1.0))
        run = Run(method=method, stream=Stream(aberrated(300, 0), view, batch=20))
        fit(run, Fit(steps=300, lr=3e-3), watch=Quiet())
        return pretext.held_out(method, view, test)["accuracy"]

    assert learned(guard=False) > 0.25
    assert learned(guard=True) < 0.17  # of 480 answers, chance is .125


def test_the_picture_shows_where_a_tile_was_put():
    method, samples = ContextPrediction(vit(), hidden=8), images(3)
    png = picture(method, Neighbours(8), samples)
    assert png == picture(method, Neighbours(8), samples)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    from partwhole.core.report import picture_html

    assert "<img" in picture_html(png)


def test_the_picture_frames_right_places_green_and_wrong_ones_red(monkeypatch):
    class Says(nn.Module):
        """Places each neighbour where it is from, but for the third, which it puts where the first is from."""

        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        def logits(self, x):
            return torch.eye(8)[torch.tensor([0, 1, 0, 3, 4, 5, 6, 7])].expand(len(x), 8, 8)

    rows: list[Any] = []
    monkeypatch.setattr(context, "sheet", lambda shown: rows.append(shown) or b"")
    picture(Says(), Neighbours(8), images(8))  # type: ignore[arg-type]
    _, placed, truth = rows[0]
    for i in range(8):
        inside = placed[i][:, 3:-3, 3:-3]
        assert torch.equal(placed[i], pretext.framed(inside, good=i != 2))
        for place, y, x in ((p, p // 3 * 10, p % 3 * 10) for p in range(9)):
            tile, own = inside[:, y : y + 8, x : x + 8], truth[i][:, y : y + 8, x : x + 8]
            if place == 4 or (i != 2 and place == PLACES[i]):
                assert torch.equal(tile, own)
            elif i != 2 or place != PLACES[0]:
                assert (tile == 1).all()


def test_a_recipe_makes_the_method_and_the_view():
    @dataclass(frozen=True, kw_only=True)
    class Base:
        size: int = 16

    @dataclass(frozen=True, kw_only=True)
    class Both(Context, Base):
        pass

    recipe, encoder = Both(gap=0.8), vit()
    method, view = recipe.method(encoder, Given(things=3, batch=2)), recipe.view(encoder)
    assert view == Neighbours(8, gap=0.8)
    assert method(collate([view(one) for one in images(3)]))["loss"].isfinite()
