"""What HuBERT and wav2vec 2.0 see of sounds, and their halves of recipes: spans of tokens are hidden.

Axes: N samples, L tokens.
"""

import hashlib
import json
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwhole.audio.hubert import HuBERT as HuBERTMethod
from partwhole.audio.units import MFCC, Features, Layer, Units, lasting, prepare
from partwhole.audio.wav2vec import Wav2Vec2 as Wav2Vec2Method
from partwhole.audio.waveform import PAPER, Waveform
from partwhole.core import checkpoint, distributed, files
from partwhole.core.catalog import Given, tokens_of
from partwhole.core.data import Batches, View
from partwhole.core.encoder import Encoder
from partwhole.core.method import Method
from partwhole.core.sees import Seeing
from partwhole.core.transformer import TransformerEncoder


def hide_spans(length: int, start: float, span: int, generator: torch.Generator | None = None) -> Tensor:
    """Hide spans of neighbouring tokens, which may overlap: (length,) bool, true if hidden.

    So many spans begin that a token is the first of one with chance ``start``: the number is rounded up or down at
    random, and at least one. A span is of ``span`` tokens, and of at most half of the sound. It may begin before the
    sound and end after it, so that each token is as likely to be hidden as any other (in the official code the first
    and the last are rarely). One token at least stays to be seen, and of a single one nothing is hidden.
    """
    if not 0 < start < 1 or span < 1:
        raise ValueError(f"start is a chance between 0 and 1 and span a number of tokens; got {start} and {span}")
    hidden = torch.zeros(length, dtype=torch.bool)
    if length < 2:
        return hidden
    span = min(span, length // 2)
    places = length + span - 1
    count = max(int(start * places + float(torch.rand((), generator=generator))), 1)
    first = torch.randperm(places, generator=generator)[:count] - (span - 1)
    at = (first[:, None] + torch.arange(span)).flatten()
    hidden[at[(at >= 0) & (at < length)]] = True
    if hidden.all():
        hidden[torch.randint(length, (), generator=generator)] = False
    return hidden


@dataclass(frozen=True)
class Spans:
    """A sound, cut at random to ``most`` tokens, and which are hidden: {"x" (N,), "valid" (N,), "hidden" (L,)}.

    Also "ids" (L,), where the sample has units, and "seed", a number from which noise may follow.
    A cut begins where a token does: the tokens of a cut are those of the whole, and so are their units.
    """

    hop: int
    window: int
    most: int
    start: float
    span: int

    def __post_init__(self) -> None:
        hide_spans(self.most, self.start, self.span, torch.Generator())  # told here, and not first in a data worker
        if self.most < 2:
            raise ValueError(f"a view of {self.most} tokens has nothing to be told from: 2 are needed")

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        sound = lasting(sample["sound"], self.hop, self.window)
        length = (len(sound) - self.window) // self.hop + 1
        count = min(length, self.most)
        first = int(torch.randint(length - count + 1, ()))
        x = sound[first * self.hop : (first + count - 1) * self.hop + self.window]
        out = {
            "x": x,
            "valid": torch.ones(len(x), dtype=torch.bool),
            "hidden": hide_spans(count, self.start, self.span),
        }
        if "units" in sample:
            if len(sample["units"]) != length:
                raise ValueError(f"{len(sample['units'])} units of a sound of {length} tokens: they are of another one")
            out["ids"] = sample["units"][first : first + count]
        return {**out, "seed": torch.randint(2**62, ())}


@dataclass(frozen=True)
class WithUnits(Sequence):
    """The samples, each with its units."""

    samples: Sequence[Any]
    units: Units

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.units):
            raise ValueError(f"units of {len(self.units)} sounds, and {len(self.samples)} sounds: they are of others")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: Any) -> Any:
        return {**self.samples[i], "units": self.units[i]}

    @property
    def names(self) -> list[str]:
        return self.samples.names  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Piece:
    """A sound as it is, x (N,), a random piece of it where it is longer than ``longest`` samples, or the ``middle``."""

    longest: int
    least: int
    """Shorter ones are followed by silence."""
    middle: bool = False

    def __call__(self, sample: Mapping[str, Any]) -> Tensor:
        x = sample["sound"]
        spare = max(0, len(x) - self.longest)
        first = spare // 2 if self.middle else int(torch.randint(spare + 1, ()))
        return lasting(x[first : first + self.longest], 0, self.least)


@dataclass(frozen=True, kw_only=True)
class WaveNetwork:
    """The encoder of sounds as they are. Defaults for a second of speech at 16 kHz on two CPU cores."""

    name: ClassVar[str] = "wave"
    unused: ClassVar[Sequence[str]] = ()
    dim: int = 128
    """Features of the transformer."""
    depth: int = 4
    """Blocks of the transformer."""
    channels: int = 64
    """Channels of the convolutions."""
    hop: Literal[160, 320] = 320
    """Samples from one token to the next, of 400 or 225 samples each: 320 for sounds of 16 kHz, 160 for 8 kHz."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"network.{name} is {getattr(self, name)}; expected 1 or more")

    @property
    def least(self) -> int:
        """Samples of two tokens, of which one can be hidden."""
        return self.hop + (225 if self.hop == 160 else 400)

    def build(self) -> TransformerEncoder:
        """With fresh weights."""
        layers: dict[str, Any] = {} if self.hop == 160 else {k: PAPER[k] for k in ("kernels", "strides")}
        embed = Waveform(self.dim, channels=self.channels, **layers)
        return TransformerEncoder(embed, dim=self.dim, depth=self.depth, heads=max(1, self.dim // 64))


@dataclass(frozen=True, kw_only=True)
class SeesSpans(Seeing, ABC):
    """Sounds as they are, of which spans of tokens are hidden. The recipe that this is a half of says how many samples
    of a sound are seen at once, ``longest``: of longer ones a piece is, another one each time."""

    network: WaveNetwork = WaveNetwork()
    start: float = 0.08
    """Chance of a token to be the first of a hidden span: the higher, the less is left to tell them from."""
    span: int = 10
    """Tokens in a hidden span, at most half of a sound: the longer, the less neighbours give it away."""

    def encoder(self) -> Encoder:
        """What is trained, with fresh weights."""
        return self.network.build()

    def look(self) -> View:
        return self.piece(middle=False)

    def plain(self) -> View:
        """What an evaluation sees."""
        return self.piece(middle=True)

    def piece(self, *, middle: bool) -> View:
        return Piece(self.longest, self.network.least, middle)  # type: ignore[attr-defined]  # of the recipe

    def tokens(self, encoder: Encoder) -> int:
        return wave_of(encoder, self)[1].count(self.longest)  # type: ignore[attr-defined]

    def view(self, encoder: Encoder) -> View:
        _, embed = wave_of(encoder, self)
        most = embed.count(self.longest)  # type: ignore[attr-defined]
        return Spans(embed.hop, embed.window, most, self.start, self.span)


@dataclass(frozen=True, kw_only=True)
class HuBERT(SeesSpans, ABC):
    """Name the units of hidden frames, found by clustering beforehand (Hsu et al., 2021)."""

    units: int = 50
    """Clusters of frames, found before training (in the paper 100, then 500): more ask for finer differences."""
    teacher: Path | None = None
    """Folder of a finished run, whose features are clustered: round two; default: MFCCs, round one."""
    layer: int | None = None
    """Which layer of the teacher, the first is 1; default: the middle one."""
    unmasked: float = 0.0
    """Weight of naming the frames that are seen: useful only where units are good."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return HuBERTMethod(wave_of(encoder, self)[0], units=self.units, unmasked=self.unmasked)

    def origins(self) -> Mapping[str, Path]:
        teacher = {} if self.teacher is None else {"teacher": self.teacher / checkpoint.WEIGHTS}
        return {**super().origins(), **teacher}

    def stream(self, samples: Any, encoder: Encoder) -> Batches:
        found = distributed.first(lambda: self.named(samples, encoder))
        return self.streamed(WithUnits(samples, found), self.view(encoder))

    def ready(self, samples: Any, encoder: Encoder) -> None:
        self.named(samples, encoder)

    def named(self, samples: Sequence[Any], encoder: Encoder) -> Units:
        """The units of these samples, made once and kept."""
        _, embed = wave_of(encoder, self)
        origins = [] if self.teacher is None else [files.digest(self.origins()["teacher"]), self.layer]
        about = [self.units, embed.hop, embed.window, *origins]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
        path = self.kept(f"units-{self.units}-{key}", samples)
        if not path.exists():
            prepare(samples, self.features(samples, embed), count=self.units).save(path)
        return Units.load(path)

    def features(self, samples: Sequence[Any], embed: Waveform) -> Features:
        """What is clustered."""
        if self.teacher is None:
            return MFCC(samples[0]["rate"], hop=embed.hop, window=embed.window)
        try:
            found = Layer(checkpoint.load_encoder(self.teacher), self.layer)
        except ValueError as error:
            raise ValueError(f"--teacher {self.teacher}: {error}. Give a run of hubert or wav2vec2") from error
        if (found.hop, found.window) != (embed.hop, embed.window):
            raise ValueError(
                f"the teacher {self.teacher} has a token of {found.window} samples every {found.hop}, and this network "
                f"one of {embed.window} every {embed.hop}: choose its network"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2(SeesSpans, ABC):
    """Tell the quantised features of a hidden frame from those of others of its sound (Baevski et al., 2020)."""

    start: float = 0.065
    """Chance of a token to be the first of a hidden span: the higher, the less is left to tell them from."""
    groups: int = 2
    """Codebooks, of each of which an entry is chosen."""
    entries: int = 64
    """Entries of each (320 in the paper): more tell finer differences apart."""
    distractors: int = 50
    """Other hidden frames to tell one from (100 in the paper), drawn anew each time."""
    weight: float = 0.1
    """Weight of using all entries evenly: the higher, the less codes follow the sounds alone."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        width = self.groups * max(1, encoder.dim // self.groups)
        return Wav2Vec2Method(
            wave_of(encoder, self)[0],
            codebook=(self.groups, self.entries, width),
            distractors=self.distractors,
            weight=self.weight,
        )


def wave_of(encoder: Encoder, recipe: object) -> tuple[TransformerEncoder, Waveform]:
    """The encoder and its embedding, if it is one of waveforms; TypeError if not."""
    found = tokens_of(encoder, recipe)
    if not isinstance(found.embed, Waveform):
        raise TypeError(
            f"{type(recipe).__name__} hides frames of a sound as it is: choose a network over waveforms, and not over "
            f"{type(found.embed).__name__}"
        )
    return found, found.embed
