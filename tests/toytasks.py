"""Toys to try the tools on."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from partwhole.core.data import Stream
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Fit, Run
from partwhole.core.method import Method


class Wide(Encoder):
    def __init__(self, dim: int = 4):
        super().__init__()
        self.dim, self.net = dim, nn.Linear(3, dim)

    def forward(self, x, *, valid=None):
        return self.net(x)


class Small(Method):
    def forward(self, batch):
        return {"loss": self.encoder(batch["x"]).square().mean()}


def same(x):
    return {"x": x}


@dataclass(frozen=True)
class Net:
    """The network."""

    dim: int = 4
    """Its width."""
    kind: Literal["flat", "deep"] = "flat"


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Make outputs small.

    A toy.
    """

    data: tuple[Path, ...] = ()
    """Folders to read."""
    other: Path | None = None
    """A file of weights, which are not read."""
    net: Net = Net()
    pair: tuple[int, float] = (1, 2.0)
    names: dict[str, int] | None = None
    batch: int = 4
    """Samples in a step."""
    shots: int = 3
    dead: bool = False
    """Give zeros, whatever comes in."""
    fit: Fit = Fit(steps=12, save_every=3, log_every=4)
    incidental: ClassVar[frozenset[str]] = frozenset({"shots"})

    def origins(self):
        return {} if self.other is None else {"other": self.other}

    def prepare(self, watch: Any = None):
        Path("prepared").write_text("yes")
        if watch is not None:
            watch.step(1, {"total": 2})
            watch.step(2, {"total": 2})
            watch.say("two prepared")

    def build(self, folder: Path | None = None) -> Run:
        if self.batch == 13:
            from partwhole.core.masks import hide

            hide(1, 0.5)
        if self.batch == 14:
            raise KeyError("a defect")
        samples = list(torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(0)))
        method = Small(Wide(self.net.dim))
        if getattr(self, "dead", False):
            nn.init.zeros_(method.encoder.net.weight), nn.init.zeros_(method.encoder.net.bias)
        return Run(method=method, stream=Stream(samples, same, batch=self.batch))

    def finish(self, encoder: Encoder, folder: Path, say=print):
        say("evaluating")
        if self.batch in (15, 16):
            os.kill(os.getpid(), signal.SIGTERM if self.batch == 15 else signal.SIGINT)
        size = sum(p.double().sum().item() for p in encoder.parameters())
        return {"table": [["arm", "size"], ["x", size], ["shots", self.shots]], "report": folder / "report.html"}


@dataclass(frozen=True)
class Bare:
    """Neither prepares nor evaluates."""

    fit: Fit = Fit(steps=2)
    build = Shrink.build
    net: Net = Net()
    batch: int = 4


TASKS = {"shrink": Shrink, "bare": Bare}
RECIPES = {"shrink": {"paper": Shrink(net=Net(dim=2)), "best": Shrink(net=Net(dim=8))}}
