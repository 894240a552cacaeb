"""DPC and MemDPC as recipes of the least kind: a few steps, what they are asked, and one process equals several."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from partwhole.core.catalog import Given
from partwhole.core.data import Stream
from partwhole.core.sees import Seeing
from partwhole.video import foretell
from partwhole.video.generator import clips
from partwhole.vision.network import Network


@dataclass(frozen=True, kw_only=True)
class Recipe(Seeing):
    batch: int = 3
    network: Network = Network(name="vit", dim=24, depth=1)  # quicker to import than the usual one

    def encoder(self):
        return self.network.build(32)

    def streamed(self, samples, view):
        return Stream(samples, view, batch=self.batch)

    def look(self): ...
    def looks(self, crops): ...
    def strong(self): ...
    def tokens(self, encoder): ...
    def kept(self, name, samples) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class DPC(foretell.DPC, Recipe): ...


@dataclass(frozen=True, kw_only=True)
class MemDPC(foretell.MemDPC, Recipe): ...


@pytest.mark.parametrize("kind", [DPC, MemDPC])
def test_it_runs_and_is_asked(kind):
    recipe = kind(size=32, blocks=4, frames=2, stride=1)
    data, encoder = clips(6, frames=9, size=32), recipe.encoder()
    method = recipe.method(encoder, Given(things=6, batch=3))
    batch = next(recipe.stream(data, encoder)(0))
    assert batch["x"].shape == (3, 4, 3, 2, 32, 32)
    method(batch)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    own = recipe.own(method.eval(), data)
    assert {"loss", "accuracy", "block"} == set(own.numbers)
    assert own.picture.png[:4] == b"\x89PNG"
    again = recipe.own(method, data)
    assert own.numbers == again.numbers
    short = replace(recipe, blocks=5)
    with pytest.raises(ValueError, match="has 9 frames, and a clip 10"):
        short.view(encoder)(data[0])


def test_the_same_step_from_the_same_seed():
    recipe, losses = DPC(size=32, blocks=3, frames=2, stride=1), []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = recipe.encoder()
        method = recipe.method(encoder, Given(things=6, batch=3))
        losses.append(method(next(recipe.stream(clips(6, size=32), encoder)(2)))["loss"])
    assert torch.equal(*losses)
