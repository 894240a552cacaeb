"""Patches of points: how many there are, and what repeated ones say."""

import torch

from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.transformer import PerPoint, PointPatches


def over(patches: int, per: int | None = None) -> TransformerEncoder:
    torch.manual_seed(0)
    embed = PointPatches(3, 16, patches=patches, size=6, per=per)
    return TransformerEncoder(embed, dim=16, depth=1, heads=2)


def test_a_crop_has_fewer_patches_than_the_whole():
    encoder = over(10, per=5)
    assert [encoder(torch.randn(1, P, 3)).shape[1] for P in (3, 12, 50, 90)] == [1, 2, 10, 10]


def test_patches_that_repeat_a_point_say_nothing():
    few, many = (PerPoint(over(n)) for n in (4, 10))
    many.load_state_dict(few.state_dict())
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many(x), few(x), atol=1e-5, rtol=1e-4)
