"""Units of sound: clusters of what short windows hold, found once before training (HuBERT: Hsu et al., 2021).

Round one clusters ``MFCC``, round two what a layer of the network of round one makes of them (``Layer``). Either has
exactly one row for each token of the encoder that is to learn: of the same window, at the same hop.

Axes: N samples, L tokens, F features, U units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.checkpoint import BadCheckpoint
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.files import write
from partwhole.core.tokenizer import kmeans, nearest
from partwhole.core.transformer import TransformerEncoder

COEFFICIENTS, BANDS, LOWEST = 13, 23, 20.0  # as Kaldi, and so the paper, has them; the last in Hz
PIECE = 750  # tokens whose features are computed at a time: 15 s of 20 ms each
LEAST = 50  # tokens that a sound gives to the clustering, if it has them


class Features(Protocol):
    """A sound (N,) -> (L, F): row l is of the samples [l * hop, l * hop + window); ``margin`` rows at either end know
    that there is no more, and no others do."""

    hop: int
    window: int
    margin: int

    def __call__(self, sound: Tensor, /) -> Tensor: ...


class MFCC:
    """13 mel-frequency cepstral coefficients and their first and second differences, (N,) -> (L, 39), by torchaudio."""

    margin = 4  # two differences, each over two rows to either side

    def __init__(self, rate: int, *, hop: int, window: int):
        from torchaudio.transforms import MFCC as Transform

        self.hop, self.window = hop, window
        mel = {
            "n_fft": window,
            "win_length": window,
            "hop_length": hop,
            "center": False,
            "n_mels": BANDS,
            "f_min": LOWEST,
        }
        self.transform = Transform(rate, COEFFICIENTS, melkwargs=mel, log_mels=True)

    def __call__(self, sound: Tensor, /) -> Tensor:
        from torchaudio.functional import compute_deltas

        still = self.transform(sound.float())
        once = compute_deltas(still)
        return torch.cat([still, once, compute_deltas(once)]).mT


class Layer:
    """What comes out of block ``layer`` (1 is the first, None the middle one) of an encoder over a ``Waveform``,
    (N,) -> (L, dim)."""

    margin = 0

    def __init__(self, encoder: Encoder, layer: int | None = None):
        from partwhole.audio.waveform import Waveform

        if not isinstance(encoder, TransformerEncoder) or not isinstance(encoder.embed, Waveform):
            raise ValueError("units of round two are made of the tokens of a TransformerEncoder over a Waveform")
        layer = max(1, encoder.depth // 2) if layer is None else layer
        if not 1 <= layer <= encoder.depth:
            raise ValueError(f"layer {layer} of an encoder of {encoder.depth}: choose 1 to {encoder.depth}")
        self.encoder, self.count = encoder.eval(), encoder.depth - layer + 1
        self.hop, self.window = encoder.embed.hop, encoder.embed.window

    @torch.no_grad()
    def __call__(self, sound: Tensor, /) -> Tensor:
        x = sound.float()[None].to(device_of(self.encoder))
        return self.encoder.layers(x, self.count)[0][0, self.encoder.special :].cpu()


@dataclass(frozen=True)
class Units(Sequence):
    """The units of each sound: ``units[i]`` (L,) int64. Four bytes a token are kept in memory, and on disk."""

    ids: Tensor
    """Of all sounds, one after the other, int32."""
    ends: Tensor
    """Where each sound begins and the last one ends, (sounds + 1,)."""
    means: Tensor
    """(U, F)."""

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: Any) -> Any:
        return self.ids[int(self.ends[i]) : int(self.ends[i + 1])].long()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save

        data = save({"ids": self.ids, "ends": self.ends, "means": self.means.contiguous()}, metadata={"units": "1"})
        write(Path(path), lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path) -> "Units":
        """What ``save`` wrote; BadCheckpoint for a damaged or foreign file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            units = cls(**load_file(path))
        except (SafetensorError, TypeError) as error:
            raise BadCheckpoint(
                f"{path} holds no units, or is damaged: {error}. Delete it to make them anew"
            ) from error
        if len(units) < 0 or int(units.ends[-1]) != len(units.ids):
            raise BadCheckpoint(f"{path} holds other units than it says. Delete it to make them anew")
        return units


def prepare(
    samples: Sequence[Mapping[str, Any]], features: Features, *, count: int, most: int = 100_000, seed: int = 0
) -> Units:
    """Cluster the tokens of sounds, samples[i]["sound"] (N,), all of one rate, and name them.

    The clusters are found by k-means over ``most`` tokens of sounds in random order, or all where there are fewer. In
    memory are these, one sound, and a name for each token; each sound is read twice at the most. (The paper clusters a
    tenth of its data.) The same samples, features and seed give the same units.
    """
    draw = torch.Generator().manual_seed(seed)
    share = max(most // max(len(samples), 1), LEAST)
    rows, taken = [], 0
    for i in torch.randperm(len(samples), generator=draw).tolist():
        sound = lasting(samples[i]["sound"], features.hop, features.window)
        length = tokens(sound, features)
        first = int(torch.randint(max(length - share, 0) + 1, (), generator=draw))
        last = min(first + share, length)
        rows += of_tokens(features, sound, first, last)
        taken += last - first
        if taken >= most:
            break
    if not rows:
        raise ValueError("units are made of sounds, and there are none")
    means = kmeans(torch.cat(rows), count, seed=seed)
    del rows

    ids: list[Tensor] = []
    ends = [0]
    for i in range(len(samples)):
        sound = lasting(samples[i]["sound"], features.hop, features.window)
        ids += [nearest(part, means)[0].int() for part in of_tokens(features, sound, 0, tokens(sound, features))]
        ends.append(ends[-1] + tokens(sound, features))
    return Units(torch.cat(ids), torch.tensor(ends), means)


def of_tokens(features: Features, sound: Tensor, first: int, last: int, *, piece: int = PIECE) -> Iterator[Tensor]:
    """Features of the tokens from ``first`` until ``last`` of a sound (N,), a piece at a time, (l, F) each."""
    length, hop = tokens(sound, features), features.hop
    for a in range(first, last, piece):
        b = min(a + piece, last)
        low, high = max(a - features.margin, 0), min(b + features.margin, length)
        rows = features(sound[low * hop : (high - 1) * hop + features.window])
        if len(rows) != high - low:
            raise ValueError(f"{type(features).__name__} gave {len(rows)} rows for {high - low} tokens: one for each")
        yield rows[a - low : b - low]


def tokens(sound: Tensor, features: Features) -> int:
    """How many tokens a sound (N,) has."""
    return max(0, (len(sound) - features.window) // features.hop + 1)


def lasting(sound: Tensor, hop: int, window: int) -> Tensor:
    """A sound (N,), followed by silence where it is too short for two tokens, of which one can be hidden."""
    return F.pad(sound, (0, max(0, hop + window - len(sound))))
