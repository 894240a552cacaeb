"""Training that begins from the encoder of a finished run."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from partwhole.core.checkpoint import BadCheckpoint, OtherEncoder, save_encoder, start
from partwhole.core.encoder import Vectors
from partwhole.core.files import digest
from partwhole.core.sees import SeesViews
from partwhole.core.transformer import TransformerEncoder


def encoder(*, seed=0, dim=16, length=3, drop_path=0.0, **rest) -> TransformerEncoder:
    torch.manual_seed(seed)
    embed = Vectors(4, dim, length=length)
    return TransformerEncoder(embed, dim=dim, depth=2, heads=2, drop_path=drop_path, **rest)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_encoder(encoder(seed=1), tmp_path)
    return tmp_path


def test_the_weights_are_those_of_the_run_and_no_random_number_is_used_up(folder):
    mine = encoder(seed=0)
    before = torch.get_rng_state()
    got = start(mine, folder)
    assert torch.equal(before, torch.get_rng_state())
    wanted = encoder(seed=1).state_dict()
    assert got.training
    assert got.state_dict().keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) for k, v in got.state_dict().items())
    assert all(p.requires_grad for p in got.parameters())


def test_what_is_incidental_may_differ(folder):
    assert start(encoder(drop_path=0.3), folder).drop_path == 0


def test_arguments_that_came_after_the_run_are_as_usual(folder):
    about = json.loads((folder / "encoder.json").read_text())
    del about["encoder"]["arguments"]["cls"], about["encoder"]["arguments"]["rope"]
    (folder / "encoder.json").write_text(json.dumps(about))
    wanted = encoder(seed=1).state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in start(encoder(), folder).state_dict().items())
    with pytest.raises(OtherEncoder, match="cls: False there, True now"):
        start(encoder(cls=True), folder)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dim": 8}, r"embed\.dim: 16 there, 8 now; dim: 16 there, 8 now"),
        ({"length": 5}, r"embed\.length: 3 there, 5 now"),
        ({"cls": True}, r"cls: False there, True now\. Give this recipe the network of that run"),
    ],
)
def test_another_encoder_is_refused_with_what_differs(folder, other, words):
    with pytest.raises(OtherEncoder, match=words):
        start(encoder(**other), folder)


def test_an_encoder_of_another_kind_is_named_and_its_code_is_not_run(folder):
    about = json.loads((folder / "encoder.json").read_text())
    about["encoder"] = {"class": "elsewhere.clouds:Points", "arguments": {"channels": 3}}
    (folder / "encoder.json").write_text(json.dumps(about))
    now = r"partwhole\.core\.transformer:TransformerEncoder now\. Give"
    with pytest.raises(OtherEncoder, match=rf"holds another encoder.*: elsewhere\.clouds:Points there, {now}"):
        start(encoder(), folder)


def test_a_folder_that_holds_no_run_or_a_damaged_one_is_told(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder in .*nowhere: encoder\.json is missing \(no such f"):
        start(encoder(), tmp_path / "nowhere")
    for text in ("{}", '{"format": 1, "encoder": 3}', '{"format": 1, "encoder": {"class": "x"}}'):
        (folder / "encoder.json").write_text(text)
        with pytest.raises(BadCheckpoint, match=r"encoder\.json is damaged or foreign"):
            start(encoder(), folder)


@dataclass(frozen=True, kw_only=True)
class Recipe(SeesViews):
    """A recipe that has nothing of its own."""

    def look(self): ...
    def looks(self, crops): ...
    def strong(self): ...
    def tokens(self, encoder): ...
    def streamed(self, samples, view): ...
    def kept(self, name, samples): ...


def test_every_recipe_can_start_from_a_run_and_knows_its_files(folder):
    mine = encoder()
    assert Recipe().begun(mine) is mine
    assert Recipe().origins() == {}
    recipe = Recipe(init=folder)
    got, wanted = recipe.begun(mine).state_dict(), encoder(seed=1).state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in got.items())
    [(name, path)] = recipe.origins().items()
    assert (name, path) == ("init", folder / "encoder.safetensors")
    first = digest(path)
    save_encoder(encoder(seed=1), folder)  # the same again
    assert digest(path) == first
    save_encoder(encoder(seed=2), folder)
    assert digest(path) != first
