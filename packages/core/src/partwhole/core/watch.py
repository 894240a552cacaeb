"""Who is told how a long piece of work goes: training, label making, reading."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

MONITORED = ("features/", "prototypes/")  # of partwhole.core.monitor


class Watch(Protocol):
    """Three calls, from one thread of rank 0."""

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """``done`` of ``values["total"]`` steps are done; the other values are worth showing."""

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after step ``done`` gave these."""

    def say(self, text: str) -> None:
        """A message."""


class Quiet:
    """Says nothing."""

    def step(self, done: int, values: Mapping[str, float]) -> None: ...

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def say(self, text: str) -> None: ...


class Steps(Quiet):
    """Passes on how far the work is, and no words: for work that another has told about before."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.watch.step(done, values)


class Words(Quiet):
    """Passes on words, and not how far the work is: for a part of work that another counts."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def say(self, text: str) -> None:
        self.watch.say(text)


class Lines:
    """A plain line at most every ``every`` seconds, and for the last step; for logs and pipes."""

    def __init__(self, out: TextIO | None = None, *, every: float = 1.0):
        self.out, self.every = out, every
        self.remaining, self.last = Remaining(), -1e9

    def step(self, done: int, values: Mapping[str, float]) -> None:
        total, now = int(values.get("total", 0)), time.monotonic()
        left = self.remaining(done, total)
        if done != total and now - self.last < self.every:
            return
        self.last = now
        self.say(f"{done}/{total or '?'}  {told(values)}" + (f"  {left} left" if left else ""))

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None:
        self.say(f"{done}  {told(metrics)}")

    def say(self, text: str) -> None:
        out = self.out or sys.stdout
        out.write(text + "\n")
        out.flush()


class Remaining:
    """How long the rest takes, at the pace since the second call: the first step (compiling, caches) tells nothing.

    A count that falls or another total is another piece of work, with a pace of its own.
    """

    def __init__(self) -> None:
        self.origin, self.before = (0, 0.0), (0, -1)

    def __call__(self, done: int, total: int) -> str:
        """Such as "3 min 20 s"; "" while unknown or where nothing is left."""
        now, (before, whole) = time.monotonic(), self.before
        self.before = (done, total)
        if total != whole or done < before:
            self.origin = (done, now)
            return ""
        steps = done - self.origin[0]
        return duration((now - self.origin[1]) / steps * (total - done)) if 0 < steps and done < total else ""


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "3 min 20 s", "2 h 05 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def told(values: Mapping[str, object], *, hidden: Sequence[str] = ()) -> str:
    """Names and numbers on one line, without what is ``hidden`` or only for the journal and its charts."""
    kept = {k: v for k, v in values.items() if k != "total" and k not in hidden and not k.startswith(MONITORED)}
    return "  ".join(f"{k} {number(v)}" for k, v in kept.items())


def number(value: object) -> str:
    """A number short enough for a line: four significant digits, integers whole."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
