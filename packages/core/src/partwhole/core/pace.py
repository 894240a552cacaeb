"""How much of its time a loop waits for data: told, never part of what decides the result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHORT = 5.0  # seconds of steps, of which nothing is said
MUCH = 0.2  # of the time: worth doing something about


class Pace:
    """Sums of seconds in steps, and of those in them that went by waiting for a batch.

        with pace.step():
            with pace.waiting():
                batch = next(batches)
            ...

    What lies between two steps (evaluations, checkpoints) does not count: batches are prepared meanwhile.
    """

    def __init__(self) -> None:
        self.steps, self.waited, self.whole = 0, 0.0, 0.0
        self.first, self.last = (0.0, 0.0), (0.0, 0.0)

    @contextmanager
    def step(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.steps, self.whole = self.steps + 1, self.whole + time.monotonic() - began
        if self.steps == 1:
            self.first = (self.waited, self.whole)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def latest(self) -> float:
        """The share of waiting since this was asked before."""
        share, self.last = self._since(self.last), (self.waited, self.whole)
        return share

    def told(self, advice: str) -> str:
        """The share of all steps but the first, in which processes start, as a sentence, with ``advice`` where it is
        much; "" for a short run."""
        if self.whole - self.first[1] < SHORT:
            return ""
        share = self._since(self.first)
        text = f"waited for data in {100 * share:.1f} % of the time of a step"
        return text if share <= MUCH else f"careful: {text}. {advice}"

    def _since(self, before: tuple[float, float]) -> float:
        waited, whole = self.waited - before[0], self.whole - before[1]
        return waited / whole if whole > 0 else 0.0
