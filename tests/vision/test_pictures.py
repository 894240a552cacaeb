"""Features in pictures: their numbers against numpy and loops, and that the pictures are what they say."""

import io

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch import Tensor

from partwhole.core.encoder import Vectors, Wrapped
from partwhole.core.methods import MAE
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.draw import covered, heat, marked, png
from partwhole.vision.embed import Patches
from partwhole.vision.pictures import (
    attention_picture,
    foreground,
    pca,
    pca_picture,
    pca_rgb,
    reconstruction_picture,
    reconstructions,
    similarity,
    similarity_picture,
)
from partwhole.vision.views import MEAN, STD

quick = settings(max_examples=20, deadline=None, derandomize=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit() -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(Patches(16, size=32, patch=8), dim=16, depth=1, heads=2, cls=True)


def sample(H: int, W: int, seed: int = 0) -> dict[str, Tensor]:
    mask = torch.zeros(H, W, dtype=torch.int64)
    mask[H // 4 : H // 2, W // 4 : W // 2] = 1
    image = torch.randint(0, 256, (3, H, W), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "mask": mask}


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ------------------------------------------------------------------ numbers


@quick
@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 99))
def test_pca_is_that_of_numpy(N, D, seed):
    x = random(N, D, seed=seed).numpy().astype(float)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    expected = np.zeros((N, 3))
    for c in range(min(3, N - 1, D)):
        axis = axes[c] * np.sign(axes[c][np.abs(axes[c]).argmax()])
        expected[:, c] = centred @ axis
    found = pca(torch.from_numpy(x), 3)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_pca_of_what_does_not_vary_is_nothing():
    assert (pca(torch.full((5, 4), 0.1), 3) == 0).all()
    assert pca(torch.zeros(0, 4), 3).shape == (0, 3)
    line = torch.arange(6.0)[:, None] * torch.tensor([1.0, 2.0])
    assert (pca(line, 2)[:, 1] == 0).all()


def planted(h: int, w: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of a thing in the middle, unlike those around it; and where it is."""
    inside = torch.zeros(h, w, dtype=torch.bool)
    inside[h // 4 : -h // 4, w // 4 : -w // 4] = True
    return random(6, h, w, seed=seed) * 0.1 + inside * torch.tensor([3.0, 0, 0, -3, 0, 0])[:, None, None], inside


@pytest.mark.parametrize("turn", [1, -1])
def test_the_foreground_is_the_side_of_the_middle_whatever_the_sign(turn):
    (a, inside), (b, there) = planted(8, 12, 0), planted(10, 8, 1)
    found = foreground([turn * a, turn * b])
    assert torch.equal(found[0], inside)
    assert torch.equal(found[1], there)


def test_colours_are_of_the_foreground_alone_and_over_all_images():
    (a, inside), (b, there) = planted(8, 12, 0), planted(10, 8, 1)
    first, second = pca_rgb([a, b])
    assert first.shape == (3, 8, 12)
    assert second.shape == (3, 10, 8)
    assert (first[:, ~inside] == 0).all()
    rows = torch.cat([a[:, inside].mT, b[:, there].mT]).double()
    score = pca(rows, 3)
    expected = 1 / (1 + torch.exp(-2 * score / score.std(0, correction=0)))
    torch.testing.assert_close(
        torch.cat([first[:, inside], second[:, there]], 1).mT.double(), expected, rtol=1e-5, atol=1e-6
    )
    everything = pca_rgb([a, b], masked=False)[0]
    assert ((everything > 0) & (everything < 1)).all()


def test_colours_of_collapsed_features_are_black_and_no_error():
    assert (pca_rgb([torch.full((4, 3, 5), 0.1)])[0] == 0).all()
    assert torch.isfinite(pca_rgb([torch.ones(4, 1, 1)])[0]).all()
    for wrong in ([], [torch.zeros(3, 4)]):
        with pytest.raises(ValueError, match="features"):
            pca_rgb(wrong)


@pytest.mark.parametrize(("place", "at"), [((0.0, 0.0), (0, 0)), ((0.5, 0.99), (1, 4)), ((0.99, 0.4), (2, 2))])
def test_similarity_against_loops(place, at):
    x = random(4, 3, 5)
    found = similarity(x, place)
    for i in range(3):
        for j in range(5):
            a, b = x[:, i, j], x[:, at[0], at[1]]
            assert found[i, j].item() == pytest.approx(float((a @ b) / (a.norm() * b.norm())), abs=1e-6)
    assert found[at].item() == pytest.approx(1)


@pytest.mark.parametrize("place", [(1.0, 0.5), (0.5, -0.1)])
def test_places_outside_are_told(place):
    with pytest.raises(ValueError, match="shares"):
        similarity(random(4, 3, 5), place)


class Perfect(torch.nn.Module):
    """A decoder's last layer that knows the answer."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(self.answer[:, :1]), self.answer], 1)  # the class token's first


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_perfect_predictions_rebuild_the_image(normalise, listed):
    encoder, x = vit(), random(2, 3, 32, 43)
    method = MAE(encoder, dim=16, depth=1, heads=2, normalise=normalise)
    target = encoder.embed.target(x)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    method.rebuild = Perfect(target)
    keep = torch.zeros(2, 20, dtype=torch.bool)
    keep[:, ::4] = True
    original, visible, rebuilt = reconstructions(method, x, keep.nonzero()[:, 1].view(2, 5) if listed else keep)
    assert torch.equal(original, x[..., :40])
    torch.testing.assert_close(rebuilt, original, rtol=1e-4, atol=1e-4)
    for patch in range(20):
        row, column = patch // 5 * 8, patch % 5 * 8
        box = (slice(None), slice(None), slice(row, row + 8), slice(column, column + 8))
        assert torch.equal(visible[box], original[box] if patch % 4 == 0 else torch.zeros(2, 3, 8, 8))
    assert method.training


def test_predictions_stand_where_patches_were_hidden():
    encoder, x = vit(), random(1, 3, 32, 32)
    method = MAE(encoder, dim=16, depth=1, heads=2)
    keep = torch.zeros(1, 16, dtype=torch.bool)
    keep[:, 3] = True
    original, _, rebuilt = reconstructions(method, x, keep)
    same = (original == rebuilt).all(1)[0]
    assert same[:8, 24:].all()
    assert not same[8:].any()


def test_only_pixels_are_rebuilt_as_pictures():
    method = MAE(TransformerEncoder(Vectors(3, 16), dim=16, depth=1, heads=2), dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="Patches"):
        reconstructions(method, random(1, 4, 3), torch.ones(1, 4, dtype=torch.bool))


# ------------------------------------------------------------------ drawings


def test_rows_lie_where_they_should():
    red, green = (torch.tensor(c)[:, None, None].expand(3, 10, 12) for c in ((1.0, 0, 0), (0, 1.0, 0)))
    found = opened(png([[red, green], [green]], gap=2))
    assert found.shape == (22, 26, 3)
    assert (found[:10, :12] == (255, 0, 0)).all()
    assert (found[:10, 14:] == (0, 255, 0)).all()
    assert (found[12:, :12] == (0, 255, 0)).all()
    assert (found[10:12] == 255).all()
    assert (found[12:, 14:] == 255).all()


def test_a_large_picture_becomes_small_enough():
    noise = list(torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    whole, small = png([noise], limit=10**9), png([noise], limit=30_000)
    assert opened(whole).shape == (128, 3 * 128 + 8, 3)
    assert len(small) <= 30_000 < len(whole)


def test_heat_goes_from_dark_to_bright():
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    grey = heat(x, (4, 64)).mean(0)[0]
    assert (grey.diff() >= -1e-6).all()
    torch.testing.assert_close(heat(x, (1, 4))[:, 0, 0] * 255, torch.tensor([0.0, 0, 4]))
    torch.testing.assert_close(heat(x, (1, 4))[:, 0, 3] * 255, torch.tensor([252.0, 255, 164]))
    assert torch.isfinite(heat(torch.ones(2, 2), (4, 4))).all()


def test_the_cross_is_where_it_should_be():
    grey = torch.full((3, 40, 60), 0.5)
    for place in ((0.25, 0.5), (0.0, 0.0), (0.999, 0.999)):
        found = marked(grey, place)
        red = ((found[0] == 1) & (found[1] == 0)).nonzero().double()
        y, x = (min(int(p * n), n - 1) for p, n in zip(place, (40, 60), strict=True))
        assert found[:, y, x].tolist() == [1, 0, 0]
        assert (red - torch.tensor([y, x])).abs().max() <= 4
    assert (grey == 0.5).all()
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[:, :30] = True
    assert (covered(grey, mask)[0, :, :30] > covered(grey, mask)[1, :, :30]).all()


def test_pictures_show_each_sample_as_the_encoder_saw_it():
    encoder, samples = vit(), [sample(32, 48), sample(40, 40, 1)]
    made = {
        "pca": (pca_picture(encoder, samples, size=32, side=64), (3 * 64 + 8, 96 + 4 + 64)),
        "similarity": (similarity_picture(encoder, samples, size=32, side=64), (132, 3 * 96 + 8)),
        "attention": (attention_picture(encoder, samples, size=32, side=64), (132, 5 * 96 + 16)),
    }
    for name, (picture, size) in made.items():
        assert opened(picture.png).shape == (*size, 3), name
        assert picture.caption
        assert len(picture.png) < 60_000
    without = [{"image": s["image"]} for s in samples]
    assert opened(attention_picture(encoder, without, size=32, side=64).png).shape == (132, 3 * 96 + 8, 3)
    with pytest.raises(ValueError, match="at least one"):
        pca_picture(encoder, [])


def test_pictures_of_a_cnn():
    conv = Wrapped(torch.nn.Conv2d(3, 8, 16, stride=16), 8)
    picture = similarity_picture(conv, [sample(32, 64)], size=32, side=64, places=[(0.1, 0.1)])
    assert opened(picture.png).shape == (64, 2 * 128 + 4, 3)


def test_the_original_of_a_reconstruction_is_the_image():
    image = torch.full((1, 3, 32, 32), 0.0)
    image[:, 0] = 1.0  # red
    x = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    method = MAE(vit(), dim=16, depth=1, heads=2)
    found = opened(reconstruction_picture(method, x, torch.arange(4)[None], side=32).png)
    assert found.shape == (32, 3 * 32 + 8, 3)
    assert (np.abs(found[:, :32].astype(int) - (255, 0, 0)) <= 2).all()
    assert (np.abs(found[8:, 36:68].astype(int) - np.round(np.array(MEAN) * 255)) <= 2).all()
