"""Colorization: colours and their bins against naive formulas, the loss, what is painted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from partwhole.vision import colorization, lab, pretext
from partwhole.vision.colorization import Colorization, Colorizer, Greyed, annealed_mean, paint, prior, rebalancing

quick = settings(max_examples=25, deadline=None, derandomize=True)
colour = st.tuples(*[st.integers(0, 255)] * 3)


class Patches(Embed):
    def __init__(self, patch, dim):
        super().__init__()
        self.net = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x, *, valid=None):
        return self.net(x).flatten(2).mT


def vit(patch=4, cls=True):
    return TransformerEncoder(Patches(patch, 16), dim=16, depth=1, heads=2, cls=cls)


def cnn():
    return Wrapped(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 16, 3, 2, 1)), 16)


def images(count=6, side=24, seed=0):
    """Smooth, in all colours."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 3, 3, generator=draw)
    large = nn.functional.interpolate(small, (side, side), mode="bilinear")
    return [{"image": (one * 255).to(torch.uint8)} for one in large]


# ------------------------------------------------------------------ Lab


def naive(rgb: Sequence[float]) -> tuple[float, float, float]:
    """The formulas of IEC 61966-2-1 and CIE 15, with the constants that scikit-image has, for one colour."""
    r, g, b = (((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in rgb)
    x = 0.412453 * r + 0.357580 * g + 0.180423 * b
    y = 0.212671 * r + 0.715160 * g + 0.072169 * b
    z = 0.019334 * r + 0.119193 * g + 0.950227 * b
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x / 0.95047, y, z / 1.08883)]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def pixel(rgb) -> torch.Tensor:
    return torch.tensor(rgb, dtype=torch.float64)[:, None, None] / 255


@quick
@given(colour)
def test_lab_is_the_formula_and_there_is_a_way_back(rgb):
    x = pixel(rgb)
    got = lab.from_rgb(x)
    assert got.flatten().tolist() == pytest.approx(naive(x.flatten().tolist()), abs=1e-9)
    assert torch.allclose(lab.to_rgb(got), x, atol=1e-5)
    grey = lab.grey(x)
    assert grey.max() == grey.min()
    L, a, b = lab.from_rgb(grey).flatten().tolist()
    assert L == pytest.approx(got[0].item(), abs=1e-3)
    assert abs(a) + abs(b) < 0.05  # the constants' own white is not quite white


def test_known_colours_and_pillows_own_conversion():
    """Pillow's is of another white (D50), so a few units apart."""
    known = {(255, 0, 0): (53.24, 80.09, 67.20), (0, 255, 0): (87.74, -86.18, 83.18), (0, 0, 255): (32.3, 79.2, -107.9)}
    for rgb, expected in known.items():
        assert lab.from_rgb(pixel(rgb)).flatten().tolist() == pytest.approx(expected, abs=0.05)
    from PIL import Image, ImageCms

    image = images(1, 32)[0]["image"]
    srgb, target = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB", 6500)
    change = ImageCms.buildTransform(srgb, target, "RGB", "LAB", renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)
    theirs = ImageCms.applyTransform(Image.fromarray(image.permute(1, 2, 0).numpy()), change)
    assert theirs is not None
    L, *ab = theirs.split()
    ours = lab.from_rgb(image / 255)
    flat = torch.frombuffer(bytearray(L.tobytes()), dtype=torch.uint8).view(32, 32) / 2.55
    assert (ours[0] - flat).abs().max() < 2.5
    for mine, other in zip(ours[1:], ab, strict=True):
        signed = torch.frombuffer(bytearray(other.tobytes()), dtype=torch.uint8).view(32, 32) - 128.0
        assert (mine - signed).abs().mean() < 4


def test_batches_dtypes_and_what_is_no_colour():
    rgb = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(lab.from_rgb(rgb)[1], lab.from_rgb(rgb[1]), atol=1e-4)
    assert (lab.from_rgb(rgb) - lab.from_rgb(rgb.double())).abs().max() < 1e-2
    impossible = torch.tensor([50.0, -110, -110])[:, None, None]
    assert (lab.to_rgb(impossible).min(), lab.to_rgb(impossible).max() <= 1) == (0, True)


# ------------------------------------------------------------------ bins


def colours(steps: int) -> torch.Tensor:
    """The a and b of sRGB's colours, evenly: (steps ** 3, 2)."""
    line = torch.linspace(0, 1, steps, dtype=torch.float64)
    return lab.from_rgb(torch.cartesian_prod(line, line, line).T[:, None])[1:, 0].T


def five(ab: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By a search of all."""
    square, index = (ab[:, None] - centres).square().sum(-1).topk(5, largest=False)
    weight = (-square / 50).exp()
    return index, weight / weight.sum(1, keepdim=True)


def test_the_bins_are_313_ten_apart_and_hold_every_colour():
    bins = lab.bins()
    assert bins.shape == (313, 2)
    assert len(bins.unique(dim=0)) == 313
    assert not (bins % 10).any()
    assert bins[[0, 1, 5, -1]].tolist() == [[-90, 50], [-90, 60], [-80, 20], [100, 0]]
    table = set(map(tuple, bins.long().tolist()))
    hit = {tuple(cell) for cell in (colours(48) / 10).round().long().mul(10).unique(dim=0).tolist()}
    assert len(hit) == 261
    assert hit <= table, "the nearest of every colour is there"
    grid = torch.cartesian_prod(*[torch.arange(-130, 131, 10).double()] * 2)
    touched = {
        tuple(map(int, grid[i])) for i in torch.cat([five(ab, grid)[0].unique() for ab in colours(24).split(8000)])
    }
    assert len(table ^ touched) <= 15, "and it is about what soft encoding touches"


def test_five_bins_of_a_colour_are_those_of_a_search_of_all():
    ab = colours(24)
    ab = torch.cat([ab, (ab + ab.flip(0)) / 2])  # and mixtures, as where pixels are averaged
    index, share = lab.Bins().double()(ab)
    expected = [five(some, lab.bins().double()) for some in ab.split(4000)]
    dense, naive_dense = (
        torch.zeros(len(ab), 313, dtype=torch.float64).scatter_add_(1, i, s)
        for i, s in ((index, share), [torch.cat(x) for x in zip(*expected, strict=True)])
    )
    assert (dense - naive_dense).abs().max() < 1e-9  # which of equally far ones does not matter for the mixture
    assert (share.diff(dim=1) <= 1e-12).all(), "the nearest first"
    assert torch.allclose(share.sum(1), torch.ones(len(ab), dtype=torch.float64))
    none, shares = lab.Bins()(torch.zeros(0, 2))
    assert (none.shape, shares.shape) == ((0, 5), (0, 5))


def test_what_is_at_a_bin_is_mostly_of_it():
    index, share = lab.Bins()(torch.tensor([[0.0, 0.0], [5.0, 0.0]]))
    assert lab.bins()[index[0, 0]].tolist() == [0, 0]
    near, far = 1.0, torch.tensor(-100 / 50).exp()
    assert share[0, 0].item() == pytest.approx((near / (near + 4 * far)).item())
    assert share[1, 0].item() == pytest.approx(share[1, 1].item())


# ------------------------------------------------------------------ how often, and what counts


def test_the_prior_counts_the_nearest_bins_of_the_images():
    red, blue = (
        torch.tensor(c, dtype=torch.uint8)[:, None, None].expand(3, 9, 9) for c in ((200, 30, 30), (20, 40, 180))
    )
    found = prior([{"image": red}] * 3 + [{"image": blue}], Greyed(8, 4))
    assert found.sum().item() == pytest.approx(1)
    assert sorted(found[found > 0].tolist()) == pytest.approx([0.25, 0.75])
    ab = lab.from_rgb(red[:, :1, :1] / 255)[1:].flatten()
    assert (lab.bins()[found.argmax()] - ab).abs().max() <= 5
    some = prior(images(9), Greyed(8, 4), most=3)
    assert torch.equal(some, prior(images(9), Greyed(8, 4), most=3))
    with pytest.raises(ValueError, match="no image"):
        prior([], Greyed(8, 4))


def test_rare_colours_count_more_and_pixels_one_on_average():
    p = torch.rand(313, generator=torch.Generator().manual_seed(0)) ** 8
    p /= p.sum()
    centres, smooth = lab.bins().tolist(), [0.0] * 313
    for i, (a, b) in enumerate(centres):  # each gives its share to its neighbours
        pull = [2.718281828459045 ** (-((a - c) ** 2 + (b - d) ** 2) / 50) for c, d in centres]
        for j in range(313):
            smooth[j] += p[i].item() * pull[j] / sum(pull)
    raw = [1 / (0.5 * s + 0.5 / 313) for s in smooth]
    scale = sum(s * w for s, w in zip(smooth, raw, strict=True))
    weight = rebalancing(p)
    assert weight.tolist() == pytest.approx([w / scale for w in raw], rel=1e-5)
    assert weight[torch.tensor(smooth).argmin()] == weight.max()
    assert torch.allclose(rebalancing(p, uniform=1.0), torch.ones(313))
    assert rebalancing(p, uniform=0.1).max() > weight.max()


@quick
@given(q=st.integers(0, 312), seed=st.integers(0, 99))
def test_the_annealed_mean_lies_between_mean_and_mode(q, seed):
    logits = torch.randn(1, 1, 1, 313, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centres = lab.bins().double()
    mean = (logits.softmax(-1) @ centres).flatten()
    assert torch.allclose(annealed_mean(logits, centres, temperature=1.0).flatten(), mean)
    mode = annealed_mean(logits, centres, temperature=1e-6).flatten()
    assert torch.allclose(mode, centres[logits.argmax()], atol=1e-2)
    p = logits.softmax(-1) ** (1 / 0.38)
    assert torch.allclose(annealed_mean(logits, centres).flatten(), (p / p.sum() @ centres).flatten())
    sure = 60 * nn.functional.one_hot(torch.tensor([[[q]]]), 313).double()
    assert torch.allclose(annealed_mean(sure, centres)[0, :, 0, 0], centres[q], atol=1e-6)


# ------------------------------------------------------------------ the method


@pytest.mark.parametrize("make", [vit, cnn])
@pytest.mark.parametrize("scale", [2, 4])
def test_it_is_a_method_with_any_encoder(make, scale):
    batch = collate([Greyed(16, 4 * scale)(one) for one in images(5)])
    check_method(lambda: Colorizer(make(), scale=scale, width=4), batch)


def test_the_network_sees_no_colour():
    torch.manual_seed(0)
    out = Greyed(16, 8)(images(1)[0])
    x = out["x"] * torch.tensor(pretext.STD)[:, None, None] + torch.tensor(pretext.MEAN)[:, None, None]
    assert (out["x"].shape, out["ab"].shape) == ((3, 16, 16), (2, 8, 8))
    assert (x[0] - x[1]).abs().max() + (x[0] - x[2]).abs().max() < 1e-5
    torch.manual_seed(0)
    rgb = Greyed(16, 8).cut(images(1)[0])
    assert torch.allclose(lab.from_rgb(x)[0], lab.from_rgb(rgb)[0], atol=1e-2)
    assert torch.allclose(out["ab"][:, 0, 0], lab.from_rgb(rgb)[1:, :2, :2].mean((1, 2)), atol=1e-4)


def test_a_pixel_counts_by_how_rare_its_colour_is():
    torch.manual_seed(0)
    method = Colorizer(vit().double(), width=4).double()
    batch = collate([Greyed(16, 16)(one) for one in images(3)])
    batch = {k: v.double() for k, v in batch.items()}
    p = prior(images(3), Greyed(16, 16))
    plain, logits = method(batch)["loss"], method.logits(batch["x"])
    method.rebalance(p, uniform=0.3)
    weight, total, count = rebalancing(p, uniform=0.3).double(), 0.0, 0
    for i in range(3):
        for y in range(16):
            for x in range(16):
                index, share = five(batch["ab"][i, :, y, x][None], lab.bins().double())
                log_p = logits[i, y, x].log_softmax(-1)
                total += -weight[index[0, 0]] * (share[0] * log_p[index[0]]).sum()
                count += 1
    assert method(batch)["loss"].item() == pytest.approx((total / count).item(), rel=1e-6)
    assert method(batch)["loss"].item() != pytest.approx(plain.item(), rel=1e-3)
    assert "weight" in method.state_dict()


def test_maps_need_not_be_square_if_the_colours_say_so():
    method = Colorizer(vit(cls=True), scale=2, width=4)
    x, ab = torch.randn(2, 3, 8, 24), torch.zeros(2, 2, 4, 12)
    assert method({"x": x, "ab": ab})["loss"].isfinite()
    assert method.logits(torch.randn(1, 3, 16, 16)).shape == (1, 8, 8, 313)
    for wrong in (torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 5, 12)):
        with pytest.raises(ValueError, match="the encoder gave 12 tokens for a map of"):
            method({"x": x, "ab": wrong})
    with pytest.raises(ValueError, match="12 tokens for a square map"):
        method.logits(x)
    with pytest.raises(ValueError, match="scale is 3"):
        Colorizer(vit(), scale=3)  # type: ignore[arg-type]


class Knows(Colorizer):
    """Names the nearest bin of each colour of one image, which it was shown."""

    def logits(self, x, shape=None):
        index = self.bins(self.known.flatten(2)[0].mT)[0][:, 0]
        return 50 * nn.functional.one_hot(index, 313).view(1, *self.known.shape[2:], 313).float()


def test_held_out_colours_and_a_painting_by_one_who_knows():
    view, samples = Greyed(16, 16, area=(1.0, 1.0)), images(1)
    method = Knows(vit(), width=4)
    method.known = pretext.drawn(view, samples, 0, 0)["ab"][None]
    found = pretext.held_out(method, view, samples, seed=0)
    assert set(found) == {"loss", "within", "grey_within"}
    assert found["within"] == 1
    near = method.known.norm(dim=1) <= 10
    assert found["grey_within"] == pytest.approx(near.double().mean().item())
    rgb = pretext.drawn(view.cut, samples, 0, 0)[None]
    painted = paint(method, view, rgb)
    assert (lab.from_rgb(painted) - lab.from_rgb(rgb))[:, 1:].norm(dim=1).mean() < 6  # half a bin, and the gamut's edge
    assert (painted - rgb).abs().mean() < 0.05 < (lab.grey(rgb) - rgb).abs().mean()
    assert method.training
    assert "within" not in method(collate([view(samples[0])]))


@pytest.mark.slow
def test_it_learns_to_paint():
    """What is dark is blue, and what is bright is yellow."""

    def two_colours(count, seed):
        small = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
        large = (nn.functional.interpolate(small, (24, 24), mode="nearest") > 0.5).float()
        rgb = (
            large * torch.tensor([0.9, 0.8, 0.1])[:, None, None]
            + (1 - large) * torch.tensor([0.1, 0.1, 0.6])[:, None, None]
        )
        return [{"image": (one * 255).to(torch.uint8)} for one in rgb]

    torch.manual_seed(0)
    method, view, test = Colorizer(cnn(), scale=2, width=16), Greyed(16, 8, area=(0.9, 1.0)), two_colours(20, 1)
    method.rebalance(prior(test, view))
    before = pretext.held_out(method, view, test)
    fit(Run(method=method, stream=Stream(two_colours(40, 0), view, batch=10)), Fit(steps=120, lr=1e-2), watch=Quiet())
    after = pretext.held_out(method, view, test)
    assert before["within"] < 0.3
    assert after["within"] > 0.6
    assert after["loss"] < 0.6 * before["loss"]
    png = colorization.picture(method, view, test[:3])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"


# ------------------------------------------------------------------ the recipe


@dataclass(frozen=True, kw_only=True)
class Base:
    """As a recipe for images, as far as colorization asks for it."""

    folder: Path
    size: int = 16

    def kept(self, name, samples):
        return self.folder / f"{name}.safetensors"

    def build(self, folder=None, watch=None):
        samples, encoder = images(4), vit()
        method = self.method(encoder, Given(things=4, batch=2))  # type: ignore[attr-defined]
        return Run(method=method, stream=Stream(samples, self.view(encoder), batch=2))  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Both(Colorization, Base):
    pass


def test_a_recipe_measures_how_rare_colours_are_once(tmp_path, monkeypatch):
    run = Both(folder=tmp_path, scale=2, uniform=0.4).build()
    assert run.stream.view == Greyed(16, 8)  # type: ignore[attr-defined]
    expected = rebalancing(prior(images(4), Greyed(16, 8)), uniform=0.4)
    assert torch.equal(run.method.weight, expected)  # type: ignore[arg-type]
    assert [f.name for f in tmp_path.iterdir()] == ["colours-8.safetensors"]
    monkeypatch.setattr(colorization, "prior", None)
    again = Both(folder=tmp_path, scale=2, uniform=0.4).build()
    assert torch.equal(again.method.weight, expected)  # type: ignore[arg-type]
    assert next(iter(run.stream()))["ab"].shape == (2, 2, 8, 8)


def test_the_side_of_the_map_is_found_by_looking():
    assert [colorization.side_of(make(), 16) for make in (vit, cnn, lambda: vit(8, cls=False))] == [4, 4, 2]
    encoder = vit().train()
    colorization.side_of(encoder, 8)
    assert encoder.training
    with pytest.raises(ValueError, match="3 tokens of an image of 16 x 16 are no square map"):
        colorization.side_of(Wrapped(nn.Sequential(nn.Conv2d(3, 16, (16, 5), (16, 5))), 16), 16)
