"""Masked methods on clouds of points: blocks drawn in the view are patches that lie together, names are of patches."""

import pytest
import torch

from partwhole.core.data import Stream
from partwhole.core.masks import hide_blocks, target_blocks
from partwhole.core.methods.beit import BEiT
from partwhole.core.methods.data2vec import Data2Vec
from partwhole.core.methods.ijepa import IJEPA
from partwhole.core.tokenizer import Tokenizer
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.transformer import PointPatches

PATCHES = 16


def encoder():
    torch.manual_seed(0)
    return TransformerEncoder(PointPatches(3, 8, patches=PATCHES, size=4), dim=8, depth=2, heads=2)


def clouds(sizes=(40, 40, 50, 60, 12, 40)):
    """The fifth has fewer points than there are patches."""
    g = torch.Generator().manual_seed(1)
    return [torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) for n in sizes]


def test_blocks_are_drawn_around_the_centres_that_the_encoder_will_find():
    embed, (x, *_) = encoder().embed, clouds()
    centre = embed.centres(x[None])[0][0]  # type: ignore[operator]
    where = embed.coordinates(x[None])[0]
    g = torch.Generator().manual_seed(0)
    near, far = [], []
    for _ in range(50):
        drawn = target_blocks(where, targets=2, blocks=4, generator=g)
        for block in drawn["targets"]:
            near.append(torch.pdist(centre[block]).mean() if block.sum() > 1 else centre.new_zeros(()))
            far.append(torch.pdist(centre).mean())
    assert torch.stack(near).mean() < 0.75 * torch.stack(far).mean()


@pytest.mark.parametrize("name", ["beit", "data2vec", "ijepa"])
def test_masked_methods_read_clouds_of_any_size(name):
    net = encoder()
    names = Tokenizer.learn(net.embed, [{"x": x[None]} for x in clouds()], count=5)

    def view(x):
        with torch.no_grad():
            where, ids = net.embed.coordinates(x[None])[0], names.ids(x[None])[0]
        if name == "ijepa":
            return {"x": x, **target_blocks(where, targets=2, blocks=4)}
        return {"x": x, "hidden": hide_blocks(where, 0.5, size=4), "ids": ids}

    method = {
        "beit": lambda: BEiT(net, vocabulary=5),
        "data2vec": lambda: Data2Vec(net, layers=2),
        "ijepa": lambda: IJEPA(net, dim=8, depth=1, heads=2),
    }[name]()
    batch = next(Stream(clouds(), view, batch=6)(0))
    assert not batch["valid"].all()
    out = method(batch)
    alone = [method({k: v[i : i + 1] for k, v in batch.items()}) for i in range(6)]
    total = sum(a["loss"] * a["items"] for a in alone) / sum(a["items"] for a in alone)
    assert out["loss"].item() == pytest.approx(total.item(), rel=1e-4)
    assert out["items"] < 6 * PATCHES
