"""Networks for sound that others trained, from a folder on this machine: wav2vec 2.0, HuBERT and CLAP, by transformers.

Axes: B sounds, N samples, L tokens, P pieces of a sound, D features.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from partwhole.audio.waveform import standardised
from partwhole.core.encoder import Encoder

SPEECH = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel"}
CLAP_AUDIO = {"clap": "ClapAudioModelWithProjection", "clap_audio_model": "ClapAudioModelWithProjection"}
UNUSED = {"masked_spec_embed"}  # what takes the place of hidden frames: some files lack it, and nothing is hidden here


def pretrained(folder: str | Path) -> Encoder:
    """The network in a folder as ``save_pretrained`` or the Hugging Face hub has it: config.json, model.safetensors and
    preprocessor_config.json. Nothing is fetched and nothing unpickled. ``encoder.rate`` is what it wants to hear, in
    samples a second. ValueError says what the folder lacks."""
    kind = _json(Path(folder), "config.json").get("model_type")
    if kind in SPEECH:
        return Speech(str(folder)).eval()
    if kind in CLAP_AUDIO:
        return CLAP(str(folder)).eval()
    raise ValueError(f"{folder} holds a {kind!r}; known are {', '.join([*SPEECH, *CLAP_AUDIO])}")


class Speech(Encoder):
    """wav2vec 2.0 (Baevski et al., 2020) or HuBERT (Hsu et al., 2021): sounds x (B, N) -> tokens (B, L, dim).

    ``layer``: the tokens after so many blocks, 0 are those that enter the first; default: what the network gives.
    Sounds of one length are computed together and others apart, without padding: the networks whose first convolution
    is normalised over time would take it for sound. ``valid`` (B, N) is true up to a sound's end and false after.
    """

    def __init__(self, folder: str, *, layer: int | None = None):
        super().__init__()
        self.folder, self.layer = folder, layer
        about = _json(Path(folder), "preprocessor_config.json")
        self.rate: int = about.get("sampling_rate", 16000)
        self.normalised: bool = about.get("do_normalize", True)
        self.net: Any = _loaded(folder, SPEECH)
        config = self.net.config
        config.apply_spec_augment, config.layerdrop = (
            False,
            0.0,
        )  # as an encoder it hides nothing and leaves nothing out
        self.dim: int = config.hidden_size
        if layer is not None and not 0 <= layer <= config.num_hidden_layers:
            raise ValueError(f"layer {layer} of {config.num_hidden_layers}: choose 0 to {config.num_hidden_layers}")
        self.strides = list(zip(config.conv_kernel, config.conv_stride, strict=True))

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        length = self.count(x.shape[1])
        if length == 0:
            raise ValueError(
                f"sounds (B, N) of {tuple(x.shape)} are too short for a token: pad them, and say so in valid"
            )
        ends = _ends(x, valid)
        out = x.new_zeros(len(x), length, self.dim)
        for end in ends.unique().tolist():
            rows = (ends == end).nonzero()[:, 0]
            if count := self.count(end):
                out = out.index_put((rows[:, None], torch.arange(count, device=x.device)), self.alone(x[rows, :end]))
        return out

    def alone(self, x: Tensor) -> Tensor:
        """Of sounds of one length, without padding."""
        x = standardised(x) if self.normalised else x
        if self.layer is None:
            return self.net(x).last_hidden_state
        return self.net(x, output_hidden_states=True).hidden_states[self.layer]

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is None:
            return None
        counts = torch.tensor([self.count(end) for end in _ends(x, valid).tolist()], device=x.device)
        return torch.arange(self.count(x.shape[1]), device=x.device) < counts[:, None]

    def count(self, samples: int) -> int:
        """How many tokens so many samples have."""
        for kernel, stride in self.strides:
            samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
        return samples


class CLAP(Encoder):
    """The ear of CLAP (Wu et al., 2023): sounds x (B, N) -> a token for each piece of 10 s, (B, P, dim).

    A token is the vector that CLAP compares with texts. A short last piece is repeated until it is full, as CLAP's own
    ``repeatpad`` does; where CLAP would draw pieces of a long sound at random, all are taken. ``valid`` (B, N) is true
    up to a sound's end and false after.
    """

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder
        about = _json(Path(folder), "preprocessor_config.json")
        self.net: Any = _loaded(folder, CLAP_AUDIO)
        hears = _transformers().ClapFeatureExtractor(**{k: v for k, v in about.items() if not k.endswith("_type")})
        self.hears: Any = hears
        self.rate: int = hears.sampling_rate
        self.longest: int = hears.nb_max_samples
        self.dim: int = self.net.config.projection_dim

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        ends = _ends(x, valid)
        out = x.new_zeros(len(x), self.count(x.shape[1]), self.dim)
        pieces = [x[b, a : min(a + self.longest, end)] for b, end in enumerate(ends.tolist())
                  for a in range(0, end, self.longest)]  # fmt: skip
        if not pieces:
            return out
        heard = torch.cat([self.heard(piece) for piece in pieces]).to(out)
        longer = torch.zeros(len(heard), 1, dtype=torch.bool, device=x.device)
        tokens = self.net(input_features=heard, is_longer=longer).audio_embeds
        real = torch.arange(out.shape[1], device=x.device) < self.counts(ends)[:, None]
        return out.index_put(tuple(real.nonzero().mT), tokens.to(out))

    def heard(self, piece: Tensor) -> Tensor:
        """The log-mel spectrogram of one piece, (1, channels, time, frequency)."""
        seen = self.hears(piece.detach().float().cpu().numpy(), sampling_rate=self.rate)["input_features"][0]
        return torch.as_tensor(seen)[None]

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        if valid is None:
            return None
        return torch.arange(self.count(x.shape[1]), device=x.device) < self.counts(_ends(x, valid))[:, None]

    def count(self, samples: int) -> int:
        """How many pieces so many samples have."""
        return -(-samples // self.longest)

    def counts(self, ends: Tensor) -> Tensor:
        return -(-ends // self.longest)


def _ends(x: Tensor, valid: Tensor | None) -> Tensor:
    """How many samples of each sound are real, (B,)."""
    if x.ndim != 2:
        raise ValueError(f"sounds (B, N) are needed; got {tuple(x.shape)}")
    if valid is None:
        return torch.full((len(x),), x.shape[1], device=x.device)
    ends = valid.sum(1)
    if not torch.equal(valid, torch.arange(x.shape[1], device=x.device) < ends[:, None]):
        raise ValueError("valid must be true up to the end of a sound and false after: these networks hear no gaps")
    return ends


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("pretrained networks need transformers: pip install 'partwhole-audio[pretrained]'") from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"{path} is missing: a folder as save_pretrained writes it has config.json, model.safetensors and "
            "preprocessor_config.json"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): write or fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, and not the names and values of a network")
    return found


def _loaded(folder: str, kinds: dict[str, str]) -> nn.Module:
    """The network in a folder; ValueError where its weights are absent, no safetensors, or not all there."""
    kind = kinds[_json(Path(folder), "config.json")["model_type"]]
    if not any(Path(folder).glob("model*.safetensors")):
        raise ValueError(f"{folder} has no model.safetensors: other files of weights are not read, convert them first")
    found, told = getattr(_transformers(), kind).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    lacking = sorted(set(told["missing_keys"]) - UNUSED)
    if lacking:
        raise ValueError(f"{folder} lacks {len(lacking)} weights of a {kind}, such as {', '.join(lacking[:3])}")
    return found
