"""What every recipe on clips with sound shares: data, both encoders, views, evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from partwhole.audio.mel import Mel, moments
from partwhole.audio.network import Network as Hearing
from partwhole.core import checkpoint, distributed
from partwhole.core.data import Stream, View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method
from partwhole.core.sees import Numbered, WithIndex
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.multimodal.measure import Pairs, measure
from partwhole.multimodal.network import ClipCNN
from partwhole.multimodal.samples import Source
from partwhole.multimodal.towers import Towers
from partwhole.multimodal.views import Paired, Seconds
from partwhole.video import network
from partwhole.video.clips import Clips
from partwhole.video.tubes import Tubes
from partwhole.vision.network import Network
from partwhole.vision.views import Augment

GLANCE = 32  # clips that are looked at while training
HELD = 5  # of so many videos one is measured on, where none are given for it


@dataclass(frozen=True, kw_only=True)
class Listening(ABC):
    """What every recipe on clips with sound shares; a recipe adds its method and what it sees."""

    init: Path | None = None
    """Folder of a finished run, whose encoder of pictures, of the same network, is trained on; default: fresh
    weights."""
    data: tuple[Path, ...] = ()
    """Video files with sound, and folders of them; default: generated clips."""
    test: tuple[Path, ...] = ()
    """The same, to measure on; default: generated clips, where the data is generated, else one of five of the videos,
    which is then not trained on."""
    source: Source = Source()
    mel: Mel = Mel()
    network: Network = Network()
    """Of single frames, and of clips with --clips vit."""
    clips: Literal["cnn", "vit"] = "cnn"
    """Of clips of several frames. cnn: convolutions over space and time; vit: our transformer over tubes."""
    width: int = 16
    """Channels of the first block of the cnn."""
    hearing: Hearing = Hearing(width=16, segments=8, dim=256)
    """Of sounds."""
    size: int = 64
    """Side of the frames that the network sees, in pixels."""
    seconds: float = 1.6
    """Of a clip that are seen and heard at once."""
    frames: int = 1
    """Frames of them; 1: the one in the middle."""
    tube: int = 2
    """Frames of a tube, which is one token of the vit."""
    gap: float = 0.5
    """Seconds by which sound is out of time, at the least."""
    crop: tuple[float, float] = (0.6, 1.0)
    """Share of a frame's area that is seen, drawn from this range; the same for all frames of a clip."""
    gain: float = 0.9
    """Sound is louder or quieter by up to so many decibels; 0.9 is the tenth that L3's paper has."""
    batch: int = 32
    """Clips per step, over all processes."""
    fit: Fit = Fit(steps=400, lr=1e-3, weight_decay=0.05, evaluate_every=100)
    measure: Pairs = Pairs()

    incidental: ClassVar[frozenset[str]] = frozenset({"measure"})  # no part of training
    shifted: ClassVar[bool] = False  # whether training needs sound out of time

    def __post_init__(self) -> None:
        for name, least in {"size": 1, "batch": 1, "frames": 1, "tube": 1, "width": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not (self.seconds > 0 and self.gap > 0 and self.gain >= 0):
            raise ValueError(
                f"seconds {self.seconds}, gap {self.gap}, gain {self.gain}: expected numbers above 0, or 0 for the gain"
            )

    @abstractmethod
    def method(self, encoder: Encoder, sound: Encoder) -> Towers: ...

    def origins(self) -> Mapping[str, Path]:
        given = self.network.given()
        began = {} if self.init is None else {"init": self.init / checkpoint.WEIGHTS}
        return {**began, **({} if given is None else {"network.weights": given})}

    # -------------------------------------------------------------- data

    def prepare(self, watch: Any = None) -> Clips:
        """The clips to train on; videos are looked at, and their sounds decoded, once."""
        clips = self.source.train(self.data, self.size, self.mel.rate, watch)
        if self.data and not self.test:
            clips = clips.subset([i for i in range(len(clips)) if i not in self.held(clips)])
        return self.long_enough(clips, self.window(self.shifted), watch)

    def evaluation(self, watch: Any = None) -> tuple[Clips, bool]:
        """The clips to measure on, and whether they were trained on, too."""
        if self.test or not self.data:
            clips = self.source.test(self.test, self.size, self.mel.rate, watch)
            return self.long_enough(clips, self.window(False), watch), False
        clips = self.source.train(self.data, self.size, self.mel.rate)
        held = self.held(clips)
        chosen = clips.subset(held) if held else clips
        return self.long_enough(chosen, self.window(False), watch), not held

    def held(self, clips: Clips) -> list[int]:
        """Which of the given videos are measured on and not trained on: none of fewer than ten."""
        return [] if len(clips) < 2 * HELD else list(range(HELD - 1, len(clips), HELD))

    def long_enough(self, clips: Clips, window: Seconds, watch: Any = None) -> Clips:
        short = {i: why for i in range(len(clips)) if (why := window.short(clips[i])) is not None}
        if not short:
            return clips
        told = [(clips.names[i], f"skipped: {why}") for i, why in short.items()]
        if len(short) == len(clips):
            raise ValueError(f"none of {len(clips)} clips is long enough; the first: {told[0][0]}: {told[0][1]}")
        left = clips.subset([i for i in range(len(clips)) if i not in short])
        left.problems = [*left.problems, *told]
        if watch is not None:
            watch.say(f"{len(short)} of {len(clips)} clips are too short and left out; {told[0][0]}: {told[0][1]}")
        return left

    # -------------------------------------------------------------- views

    def window(self, shifted: bool) -> Seconds:
        return Seconds(seconds=self.seconds, frames=self.frames, gap=self.gap if shifted else 0.0)

    def view(self) -> Paired:
        """What a step sees and hears of a clip."""
        look = Augment(
            size=self.size, scale=self.crop, jitter=1.0, brightness=0.2, contrast=0.0, saturation=0.2, hue=0.0
        )
        return Paired(look=look, mel=self.mel, seconds=self.window(self.shifted), gain=self.gain)

    def plain(self) -> Paired:
        """What an evaluation sees and hears: the square in the middle, and nothing changed."""
        look = Augment(size=self.size, scale=None, flip=0.0)
        return Paired(look=look, mel=self.mel, seconds=self.window(False))

    # -------------------------------------------------------------- networks

    def encoder(self) -> Encoder:
        """Of pictures, with fresh weights."""
        n = self.network
        if self.frames == 1:
            return network.build(n, self.size, dense=False)
        if n.weights is not None:
            raise ValueError("--network.weights are those of a model of timm: for clips give --init, a run's folder")
        if self.clips == "cnn":
            return ClipCNN(width=self.width)
        embed = Tubes(n.dim, size=self.size, frames=self.frames, patch=n.patch, tube=self.tube)
        heads = max(1, n.dim // 64)
        return TransformerEncoder(embed, dim=n.dim, depth=n.depth, heads=heads, cls=n.cls, registers=n.registers)

    def ear(self, clips: Sequence[Any]) -> Encoder:
        """Of sounds, with fresh weights."""
        return self.hearing.build(self.mel.bands, *moments(self.mel, clips))

    def begun(self, encoder: Encoder) -> Encoder:
        return encoder if self.init is None else checkpoint.start(encoder, self.init)

    def fresh(self, clips: Sequence[Any], seed: int) -> Towers:
        """The method with random weights."""
        torch.manual_seed(seed)
        return self.method(self.encoder(), self.ear(clips))

    # -------------------------------------------------------------- training

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        clips, (test, _) = self.prepare(watch), self.evaluation(watch)
        if len(clips) < self.batch and watch is not None:
            watch.say(
                f"careful: a step of {self.batch} clips sees each of the {len(clips)} several times: lower --batch"
            )
        torch.manual_seed(self.fit.seed)
        method = self.method(self.begun(self.encoder()), self.ear(clips))
        view: View = WithIndex(self.view())
        stream = Stream(Numbered(clips), view, batch=self.batch, seed=self.fit.seed, workers=self.source.loaders)
        return Run(
            method=method,
            stream=stream,
            evaluate=Glance(self, test),
            faster="Let more processes read clips (--source.loaders), or learn from smaller frames (--size)",
        )

    def finish(self, encoder: Encoder, folder: Path, watch: Any = None) -> Mapping[str, Any]:
        """Measure, show and report: what ``tools/run.py`` calls after training, and ``tools/evaluate.py`` alone."""
        from partwhole.multimodal.finish import finish

        return finish(self, encoder.to(distributed.setup(self.fit.device)), folder, watch or Quiet())


class Glance:
    """While training: what is measured afterwards, on some of the clips."""

    def __init__(self, recipe: Listening, clips: Clips):
        self.recipe, self.clips = (
            recipe,
            clips.subset([i * len(clips) // min(GLANCE, len(clips)) for i in range(min(GLANCE, len(clips)))]),
        )

    def __call__(self, method: Method) -> Mapping[str, float]:
        assert isinstance(method, Towers)
        found = measure(method, self.clips, self.recipe.plain(), self.recipe.gap, self.recipe.measure)
        return {k: v for k, v in found.items() if k in ("correspondence", "synchrony")}
