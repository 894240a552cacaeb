"""Methods of core on whole clips: what is hidden, that every one of them runs, and that it learns."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core import catalog
from partwhole.core.catalog import Given
from partwhole.core.data import Stream
from partwhole.core.sees import Seeing
from partwhole.video.clip_sees import BETWEEN, Around, HiddenTubes, on_clips
from partwhole.video.generator import clips
from partwhole.video.pictures import reconstruction_picture
from partwhole.vision.network import Network
from partwhole.vision.pictures import reconstructions

KINDS = [kind for kind in catalog.METHODS.values() if kind.sees in BETWEEN]


@dataclass(frozen=True, kw_only=True)
class Recipe(Seeing):
    """The least that a recipe of clips is."""

    batch: int = 4
    cache: Path = Path(".cache")

    def streamed(self, samples, view):
        return Stream(samples, view, batch=self.batch)

    def kept(self, name, samples):
        return self.cache / f"{name}.safetensors"


SMALL = {"network": Network(name="vit", dim=48, depth=2, patch=8), "size": 32, "frames": 4}


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_method_takes_clips(kind, tmp_path):
    recipe = on_clips(kind, Recipe, module=__name__)(**SMALL, cache=tmp_path)
    torch.manual_seed(0)
    encoder, data = recipe.encoder(), clips(8, frames=10, size=32)
    method = recipe.method(encoder, Given(things=8, batch=4))
    batches = recipe.stream(data, encoder)(0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    for step in range(2):
        out = method(next(batches))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(step / 2)
        assert out["loss"].isfinite()


def test_the_share_and_the_papers():
    mae = on_clips(catalog.MAE, Recipe, module=__name__)(**SMALL)
    assert mae.ratio == 0.9
    encoder = mae.encoder()
    seen = mae.view(encoder)(clips(1, size=32)[0])
    assert seen["x"].shape == (3, 4, 32, 32)
    assert len(seen["keep"]) == 2 * 2  # 14 of 16 places hidden, at both times
    assert torch.equal(seen["keep"][:2] + 16, seen["keep"][2:])
    jepa = on_clips(catalog.IJEPA, Recipe, module=__name__)(**SMALL)
    seen = jepa.view(encoder)(clips(1, size=32)[0])
    assert seen["targets"].shape == (1, 32)
    assert int(seen["keep"].sum()) == 2 * 2
    assert torch.equal(seen["targets"][0], ~seen["keep"])


places = st.tuples(st.integers(1, 5), st.integers(3, 7), st.integers(3, 7))


@settings(max_examples=40, deadline=None)
@given(places, st.floats(0.1, 0.95), st.sampled_from([None, 1, 4, 12]), st.integers(0, 99))
def test_what_is_hidden_is_hidden_at_all_times(shape, ratio, parts, seed):
    torch.manual_seed(seed)
    t, h, w = shape
    hidden = HiddenTubes(shape, ratio, parts=parts)().view(t, h * w)
    assert torch.equal(hidden, hidden[:1].expand_as(hidden))
    assert int(hidden[0].sum()) == min(max(round(ratio * h * w), 1), h * w - 1)


@pytest.mark.parametrize("how", ["tubes", "blocks", "around"])
def test_every_place_is_hidden_as_often(how):
    torch.manual_seed(0)
    shape, n = (2, 5, 6), 1500
    if how == "around":
        view = Around(lambda _: torch.zeros(()), shape, 0.8)
        hidden = torch.stack([view(None)["targets"][0] for _ in range(n)]).double()
    else:
        draw = HiddenTubes(shape, 0.8, parts=None if how == "tubes" else 8)
        hidden = torch.stack([draw() for _ in range(n)]).double()
    share = hidden.mean(0)
    assert abs(float(share.mean()) - 0.8) < 1e-9
    assert ((share - 0.8).abs() < 5 * (0.8 * 0.2 / n) ** 0.5).all()


def test_what_is_seen_lies_in_one_piece_or_in_a_few():
    from scipy.ndimage import label

    torch.manual_seed(0)
    view = Around(lambda _: torch.zeros(()), (1, 12, 12), 0.9)
    counts = torch.tensor([label(view(None)["keep"].view(12, 12).numpy())[1] for _ in range(300)])
    assert (counts <= 2).double().mean() > 0.4
    assert (counts >= 3).double().mean() > 0.4
    assert counts.max() < 9  # of 14 places


def test_a_masked_autoencoder_learns_clips_and_shows_it():
    recipe = on_clips(catalog.MAE, Recipe, module=__name__)(**{**SMALL, "batch": 8, "ratio": 0.75})
    torch.manual_seed(0)
    encoder = recipe.encoder()
    method, data = recipe.method(encoder, Given(things=16, batch=8)), clips(16, frames=8, size=32)
    batches = recipe.stream(data, encoder)(0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    losses = []
    for _ in range(16):
        loss = method(next(batches))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) / 4 < 0.95  # the mean of each tube would be 1
    batch = next(batches)
    x, keep = batch["x"][:3], batch["keep"][:3]
    truth, seen, rebuilt = reconstructions(method, x, keep)
    assert torch.equal(truth, x)
    there = seen != 0
    assert torch.equal(rebuilt[there], x[there])
    assert 0.2 < there.double().mean() < 0.3
    assert not torch.equal(rebuilt, x)
    assert reconstruction_picture(method, x, keep).png[:4] == b"\x89PNG"
    assert recipe.own(method, data).picture is not None


def test_what_does_not_fit_is_told():
    recipe = on_clips(catalog.MAE, Recipe, module=__name__)
    for wrong, words in (
        ({"network": Network()}, "leave --network.name at vit"),
        ({"network": Network(name="vit", weights=Path("x"))}, "give --init"),
        ({"size": 16}, "too few to hide"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(**{**SMALL, **wrong}).encoder()
