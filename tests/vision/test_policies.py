"""Policies, the operators of SimCLR's study, and sheets of what they make."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from partwhole.vision import policies
from partwhole.vision.operators import OPERATORS, Operated, pair
from partwhole.vision.sheet import GAP, contact
from partwhole.vision.views import MEAN, STD, Augment


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return torch.stack([(y * 6 + 0 * x) % 256, (x * 4 + 0 * y) % 256, (y * 3 + x * 2) % 256]).byte()


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("name", [*policies.SINGLE, *policies.PAIRS])
def test_every_policy_makes_views_and_crops(name, size):
    torch.manual_seed(0)
    made = policies.looks(name, size, crops=2)({"image": picture()})
    assert [x.shape for x in made["views"]] == [(3, size, size)] * 2
    assert len(made["crops"]) == 2
    assert made["crops"][0].shape[-1] % 8 == 0
    assert made["crops"][0].shape[-1] < size
    assert all(x.isfinite().all() for xs in made.values() for x in xs)
    assert torch.equal(*made["views"]) == (name == "plain")


def test_small_images_are_not_blurred_and_their_colours_change_less():
    for name in [*policies.SINGLE, *policies.PAIRS]:
        for size, blurred in ((64, False), (224, name in ("simclr", "mocov2", "infomin", "byol", "dino"))):
            looks = policies.looks(name, size, crops=1)
            assert any(x.blur for x in (looks.first, looks.second, looks.local)) == blurred
    assert policies.simclr(224).hue == 2 * policies.simclr(32).hue == 0.2


def test_numbers_of_the_papers():
    first, second = policies.byol(224)
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    local = policies.dino(224)[2]
    assert (local.size, local.scale, local.blur) == (96, (0.05, 0.4), 0.5)
    assert policies.mae(224) == Augment(size=224)
    assert policies.strong(32).operations == 2


def test_plain_is_the_middle_resized_and_the_same_every_time():
    image = picture(32, 48)
    x = policies.plain(32)({"image": image}) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert torch.allclose(x, image[:, :, 8:40] / 255, atol=1e-6)


def test_an_unknown_name_is_said_with_those_there_are():
    with pytest.raises(ValueError, match=r"simclr, mocov2, .* byol, dino"):
        policies.looks("simcrl", 32)
    with pytest.raises(ValueError, match="crop, cutout, colour"):
        Operated(names=("color",))


def test_each_operator_changes_what_it_is_called_by():
    size, plain = 40, replace(policies.plain(40), mean=(0, 0, 0), std=(1, 1, 1))
    x = plain({"image": picture()})
    for name in OPERATORS:
        torch.manual_seed(0)
        one = replace(Operated(names=(name,)), size=size, mean=(0, 0, 0), std=(1, 1, 1))
        ys = [one({"image": picture()}) for _ in range(4)]
        assert any((y - x).abs().mean() > 1e-3 for y in ys), name
        assert len({float(y.sum()) for y in ys}) > 1 or name in ("sobel", "rotate"), name
        same = [((y - x).abs().amax(0) < 1e-5).double().mean() for y in ys]
        if name == "cutout":
            assert all(0.5 < s < 1 for s in same)
        if name == "rotate":
            assert all(any(torch.equal(y, x.rot90(k, (1, 2))) for k in (1, 2, 3)) for y in ys)
        if name == "noise":
            assert all(0.005 < (y - x).std() < 0.25 for y in ys)
    assert Operated(names=("blur", "noise")).effects.keys() == {"0", "1"}
    assert isinstance(Operated(names=("blur", "noise")).effects["0"], type(OPERATORS["blur"][0]))


def test_a_pair_of_the_study_is_the_image_and_the_image_changed():
    looks = pair("colour", "rotate", 24)
    assert torch.equal(looks({"image": picture()})["views"][0], policies.plain(24)({"image": picture()}))
    assert looks.second.names == ("colour", "rotate")
    assert pair("blur", "blur", 24).second.names == ("blur",)
    assert pair("blur", "crop", 24) == pair("crop", "blur", 24)
    assert pair("blur", "noise", 24) != pair("noise", "blur", 24)
    with pytest.raises(ValueError, match=r"'colr'; did you mean colour\?"):
        Operated(names=("colr",))


def test_a_sheet_has_a_row_for_each_sample_and_shows_what_it_is_given():
    from PIL import Image

    images = [picture(), picture(80, 20)]
    columns = [images, *([policies.plain(size)({"image": image}) for image in images] for size in (32, 16))]
    png = contact(columns)
    sheet = torch.tensor(np.asarray(Image.open(io.BytesIO(png))))
    width = round(56 * 32 / 40) + 32 + 16 + 2 * GAP
    sheet = sheet.permute(2, 0, 1)
    assert sheet.shape == (3, 2 * 32 + GAP, width)
    left = GAP + round(56 * 32 / 40)
    x = columns[1][0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert (sheet[:, :32, left : left + 32] - x * 255).abs().max() <= 0.51
    assert (sheet[:, 32 : 32 + GAP] == 255).all()
    for bad in ([], [[]], [images, images[:1]]):
        with pytest.raises(ValueError, match="expected as many"):
            contact(bad)
