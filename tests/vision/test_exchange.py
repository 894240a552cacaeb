"""Encoders out to timm and to the hub's layout, and weights from there in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from partwhole.core.encoder import Encoder, Vectors, build, describe
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.backbone import Backbone
from partwhole.vision.embed import Patches
from partwhole.vision.exchange import Unlike, architecture, export_hub, export_timm, read_weights
from partwhole.vision.network import Network


def shaken(encoder: Encoder) -> Encoder:
    """With weights and statistics that are nobody's beginning."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in encoder.state_dict().values():
            x.add_(torch.rand(x.shape, generator=generator) * 0.1)
    return encoder.eval()


def vit(size=32, **rest) -> Encoder:
    torch.manual_seed(0)
    positions = rest.pop("positions", "sincos")
    embed = Patches(32, size=size, patch=8, positions=positions)
    return shaken(TransformerEncoder(embed, dim=32, depth=2, heads=4, **{"cls": True, **rest}))


ENCODERS = {
    "resnet": lambda: shaken(Backbone("resnet10t", size=32)),
    "narrow resnet": lambda: shaken(Backbone("resnet18", size=32, width=0.125)),
    "convnext": lambda: shaken(Backbone("convnext_atto", size=32)),
    "timm's vit": lambda: shaken(Backbone("vit_tiny_patch16_224", size=32)),
    "swin": lambda: shaken(Backbone("swin_tiny_patch4_window7_224", size=64)),
    "vit": vit,
    "vit with registers": lambda: vit(registers=2),
    "vit without class token": lambda: vit(cls=False),
    "vit with learned positions, odd size": lambda: vit(35, positions="learned"),
}


def alike(mine: torch.Tensor, theirs: torch.Tensor, encoder: Encoder) -> None:
    """Tokens of ours and what timm's forward_features gives."""
    if theirs.ndim == 4:
        theirs = theirs.flatten(1, 2) if theirs.shape[-1] == encoder.dim else theirs.flatten(2).mT
    patches = mine.shape[1] - encoder.special
    assert theirs.shape[1] >= mine.shape[1]
    torch.testing.assert_close(mine[:, encoder.special :], theirs[:, -patches:])
    if encoder.special:
        torch.testing.assert_close(mine[:, 0], theirs[:, 0])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "swin" else n for n in ENCODERS])
@torch.no_grad()
def test_what_goes_out_to_timm_computes_the_same_and_comes_back_the_same(name, tmp_path):
    import timm

    encoder = ENCODERS[name]()
    side = 64 if name == "swin" else 32
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    mine = encoder(x)
    assert mine.std() > 1e-3

    line = export_timm(encoder, tmp_path / "encoder.safetensors")
    assert line.startswith(f'timm.create_model("{architecture(encoder)[0]}", num_classes=0')
    arguments = architecture(encoder)[1]
    theirs = timm.create_model(architecture(encoder)[0], num_classes=7, **arguments).eval()
    missing, unknown = theirs.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=False)
    assert not unknown
    assert {k.rpartition(".")[0] for k in missing} == {theirs.default_cfg["classifier"]}
    alike(mine, theirs.forward_features(x), encoder)

    export_hub(encoder, tmp_path / "hub", size=side)
    hub = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    alike(mine, hub.forward_features(x), encoder)
    assert hub.pretrained_cfg["mean"] == pytest.approx((0.485, 0.456, 0.406))
    assert hub.pretrained_cfg["std"] == pytest.approx((0.229, 0.224, 0.225))
    assert tuple(hub.pretrained_cfg["input_size"]) == (3, side, side)
    about = json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "origin_url", "paper_ids", "tag"} & about.keys()  # of other weights

    back = Network(name=f"local-dir:{tmp_path / 'hub'}").build(side).eval()
    assert back.dim == encoder.dim
    torch.testing.assert_close(back(x), mine)
    again = build(describe(back)).eval()  # the folder is not asked again
    again.load_state_dict(back.state_dict())
    assert torch.equal(again(x), back(x))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@torch.no_grad()
def test_what_was_trained_on_at_another_size_goes_out_for_that(positions, tmp_path):
    """As it is with ``--init``: the encoder is of the first run's size of images."""
    import timm

    encoder, x = vit(32, positions=positions), torch.randn(2, 3, 51, 51, generator=torch.Generator().manual_seed(1))
    export_timm(encoder, tmp_path / "net.safetensors", size=51)
    name, arguments = architecture(encoder, 51)
    net = timm.create_model(name, num_classes=0, **arguments).eval()
    net.load_state_dict(load_file(tmp_path / "net.safetensors"))
    export_hub(encoder, tmp_path / "hub", size=51)
    hub = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    for theirs in (net, hub):
        alike(encoder(x), theirs.forward_features(x[..., :48, :48]), encoder)  # whole patches
    assert tuple(hub.pretrained_cfg["input_size"]) == (3, 48, 48)


def test_the_line_that_is_printed_runs(tmp_path):
    import safetensors.torch
    import timm

    for encoder in (vit(), ENCODERS["narrow resnet"]()):
        line = export_timm(encoder, tmp_path / "e.safetensors")
        assert str(eval(line, {"timm": timm, "safetensors": safetensors})) == "<All keys matched successfully>"
    net = eval(export_hub(encoder, tmp_path / "hub", size=32), {"timm": timm})
    assert net.num_features == encoder.dim


def test_weights_of_a_file_come_in_but_for_the_classifier_and_positions_are_fitted(tmp_path):
    import timm

    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        encoder = Network(name="vit_tiny_patch16_224", weights=tmp_path / file).build(32)
        mine, theirs = encoder.net.state_dict(), net.state_dict()
        assert mine["pos_embed"].shape == (1, 5, 192)
        assert theirs["pos_embed"].shape == (1, 17, 192)
        same = [k for k in mine if k != "pos_embed"]
        assert len(same) > 100
        assert all(torch.equal(mine[k], theirs[k]) for k in same)
        assert torch.equal(mine["pos_embed"][:, 0], theirs["pos_embed"][:, 0])


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "other.safetensors",
            r"not fit resnet10t \(width 0\.5, stem usual\): of another shape: .* 8 x 64 x 3 x 3 there",
        ),
        ("few.safetensors", r"missing: conv1\.0\.weight, .* and \d+ more; unknown: strange\. Name the network"),
        ("ours/encoder.safetensors", r"is an encoder of partwhole: give --init .*ours instead"),
        ("cut.safetensors", r"cut\.safetensors \(100 bytes\) cannot be read as weights"),
        ("evil.pth", r"evil\.pth .*hold more than tensors, which would run code"),
        ("nothing.pth", r"no weights at .*nothing\.pth: no such file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_words(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import timm

    save_file(timm.create_model("resnet10t", channels=(8, 16, 32, 64)).state_dict(), "other.safetensors")
    save_file({"strange": torch.ones(3)}, "few.safetensors")
    Path("ours").mkdir()
    save_file(Backbone("resnet10t", size=32).state_dict(), "ours/encoder.safetensors")
    Path("cut.safetensors").write_bytes(Path("other.safetensors").read_bytes()[:100])
    torch.save({"x": Evil()}, "evil.pth")
    with pytest.raises(Unlike, match=words):
        Network(name="resnet10t", weights=tmp_path / name).build(32)
    assert not Path("was-run").exists()


def test_a_folder_that_is_no_model_of_timm_is_told(tmp_path):
    folder = tmp_path / "m"
    network = Network(name=f"local-dir:{folder}")
    with pytest.raises(Unlike, match="there is no such folder: give a folder with"):
        network.build(32)
    folder.mkdir()
    with pytest.raises(Unlike, match=r"needs .*config\.json, and it is not there"):
        network.build(32)
    for text in ("{", "[]", json.dumps({"architectures": ["BertModel"]})):
        (folder / "config.json").write_text(text)
        with pytest.raises(Unlike, match=r"is no config of timm .*models of other libraries cannot be read"):
            network.build(32)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "model_args": {"in_chans": 1}}))
    with pytest.raises(Unlike, match="for images of 1 channels: 3 are needed"):
        network.build(32)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "model_args": {"colour": 1}}))
    with pytest.raises(ValueError, match=r"timm cannot make resnet10t with \{'colour': 1\}"):
        network.build(32)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t"}))
    with pytest.raises(Unlike, match=r"has no weights: model\.safetensors or pytorch_model\.bin must lie in it"):
        network.build(32)
    with pytest.raises(ValueError, match="for vit give --init"):
        Network(name="vit", weights=folder).build(32)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (
            lambda: Backbone("resnet18", size=32, width=0.125, stem="small"),
            "timm has no resnet18 with a stem",
        ),
        (lambda: vit(rope=100.0), r"positions by turning \(rope\), which timm's VisionTransformer has not"),
        (lambda: vit(cls=False, causal=True), "causal attention"),
        (lambda: TransformerEncoder(Vectors(3, 16), dim=16, depth=1, heads=2), "TransformerEncoder over Vectors is no"),
    ],
)
def test_what_timm_has_not_is_refused_with_the_reason(encoder, words, tmp_path):
    with pytest.raises(Unlike, match=words):
        export_timm(encoder(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_objects_in_a_file_of_tensors_are_left_out(tmp_path):
    torch.save({"model": {"a": torch.ones(2), "epoch": 3}}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt").keys() == {"a"}


@pytest.mark.slow
def test_the_tool_exports_a_run(tools, capsys, tmp_path):
    import timm

    words = ["--source.generate", "8", "--source.generate-labelled", "2", "--source.cache", "cache", "--network.width",
             "0.125", "--batch", "4", "--fit.steps", "1", "--size", "16", "--measure.arms", "frozen", "--measure.shots",
             "1", "--fit.device", "cpu"]  # fmt: skip
    assert tools("run", "--modality", "vision", "--task", "simclr", "--folder", "r", *words) == 0
    capsys.readouterr()
    assert tools("export", "--folder", "r", "--to", "hf", "hub") == 0
    assert 'timm.create_model("local-dir:hub", pretrained=True)' in capsys.readouterr().out
    net = timm.create_model("local-dir:hub", pretrained=True)
    assert isinstance(net, nn.Module)
    assert tools("export", "--folder", "r", "--to", "timm", "hub") == 2
    assert "hub is a folder: timm's layout is one file" in capsys.readouterr().err
    assert tools("export", "--folder", "nowhere", "--to", "timm", "x") == 2
    assert "no run in nowhere" in capsys.readouterr().err
    again = ["--modality", "vision", "--task", "byol", "--folder", "s", *words, "--network.name", "local-dir:hub"]
    assert tools("run", *again) == 0
    assert "network.weights" in json.loads(Path("s/run.json").read_text())["identity"]["contents"]
