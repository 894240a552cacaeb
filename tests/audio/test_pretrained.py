"""Networks of others from a folder: as transformers itself computes them, each sound alone; and what folders lack."""

import json
import sys

import pytest
import torch
from torch import Tensor

from partwhole.audio import pretrained as module
from partwhole.audio.pretrained import Speech, pretrained
from partwhole.core.encoder import build, describe
from partwhole.core.evaluate import embed


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (partwhole-audio[pretrained])")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}  # fmt: skip


def speech(transformers, folder, kind: str = "Wav2Vec2", **options) -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **options})
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_speech_is_as_transformers_has_it_for_each_sound_alone(transformers, tmp_path, kind, norm):
    options = {"feat_extract_norm": norm, "conv_bias": norm == "layer", "do_stable_layer_norm": norm == "layer"}
    folder = speech(transformers, tmp_path, kind, **options)
    net = pretrained(folder)
    assert isinstance(net, Speech)
    assert net.rate == 16000
    raw = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    hears = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    lengths = [400, 250, 400, 31, 3, 0]
    x = draw(6, 400) * 3 + 1
    valid = torch.arange(400) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        got, real = net(x.masked_fill(~valid, torch.nan), valid=valid), net.real(x, valid)
        assert real is not None
        assert got.isfinite().all()
        for row, length in enumerate(lengths):
            assert real[row].sum() == net.count(length)
            if real[row].any():
                seen = hears(x[row, :length].numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
                assert torch.allclose(got[row, real[row]], raw(seen).last_hidden_state[0], atol=1e-4)
        assert torch.allclose(net(x), net(x, valid=torch.ones_like(valid)), atol=1e-6)
    assert embed(net, [{"x": x, "valid": valid}]).shape == (6, 16)
    with pytest.raises(ValueError, match="hear no gaps"):
        net(x, valid=valid.flip(1))
    with pytest.raises(ValueError, match="too short for a token"):
        net(x[:, :9])


def test_any_layer_may_be_asked_for(transformers, tmp_path):
    folder, x = speech(transformers, tmp_path), draw(2, 300)
    tokens = []
    for layer in (0, 1, 2):
        net = Speech(folder, layer=layer).eval()
        again = build(describe(net)).eval()
        with torch.no_grad():
            tokens.append(net(x))
            assert torch.equal(again(x), tokens[-1])
            each = net.net(module.standardised(x), output_hidden_states=True).hidden_states
            assert torch.equal(tokens[-1], each[layer])
    assert not torch.allclose(tokens[0], tokens[1])
    with torch.no_grad():
        assert torch.equal(tokens[2], pretrained(folder)(x))
    with pytest.raises(ValueError, match="choose 0 to 2"):
        Speech(folder, layer=3)


def test_it_can_be_trained_without_hiding_anything_by_itself(transformers, tmp_path):
    net = pretrained(speech(transformers, tmp_path, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
                            feat_proj_dropout=0.0)).train()  # fmt: skip
    x = draw(2, 400)
    assert torch.equal(net(x), net(x))
    net(x).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def clap(transformers, folder, fusion: bool) -> str:
    torch.manual_seed(0)
    audio = {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "window_size": 2,
             "num_attention_heads": [2, 2], "hidden_size": 16, "projection_dim": 12, "num_hidden_layers": 2,
             "enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None}  # fmt: skip
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": 30, "projection_dim": 12}  # fmt: skip
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=12)
    transformers.ClapModel(config).save_pretrained(folder)
    hears = transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, fft_window_size=256, frequency_max=4000, max_length_s=1,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    hears.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("fusion", [False, True])
def test_clap_is_as_transformers_has_it_a_token_for_every_piece(transformers, tmp_path, fusion):
    folder = clap(transformers, tmp_path, fusion)
    net = pretrained(folder)
    assert net.rate == 8000
    lengths = [8000, 20000, 3000, 0]
    x = draw(4, 20000) * 0.1
    valid = torch.arange(20000) < torch.tensor(lengths)[:, None]
    state = torch.get_rng_state()
    with torch.no_grad():
        got, real = net(x.masked_fill(~valid, torch.nan), valid=valid), net.real(x, valid)
    assert got.shape == (4, 3, 12)
    assert got.isfinite().all()
    assert real is not None
    assert real.sum(1).tolist() == [1, 3, 1, 0]
    raw = transformers.ClapAudioModelWithProjection.from_pretrained(folder).eval()
    hears = transformers.ClapFeatureExtractor.from_pretrained(folder)
    for row, piece, a, b in ((0, 0, 0, 8000), (1, 0, 0, 8000), (1, 2, 16000, 20000), (2, 0, 0, 3000)):
        seen = hears(x[row, a:b].numpy(), sampling_rate=8000, return_tensors="pt")
        seen["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)  # its own is drawn at random where nothing is longer
        with torch.no_grad():
            assert torch.allclose(got[row, piece], raw(**seen).audio_embeds[0], atol=1e-4)
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------------ folders


def test_a_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing: a folder"):
        pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a 'bert'; known are wav2vec2, hubert, clap"):
        pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(ValueError, match=r"preprocessor_config.json is missing"):
        pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        pretrained(tmp_path)


def test_weights_that_are_not_there_are_no_random_ones(transformers, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    folder = speech(transformers, tmp_path)
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "layers.1.attention" not in k}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 8 weights of a Wav2Vec2Model"):
        pretrained(folder)


def test_transformers_is_asked_for_by_name(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"partwhole-audio\[pretrained\]"):
        pretrained(tmp_path)
