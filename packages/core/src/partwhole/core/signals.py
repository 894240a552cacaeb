"""Ctrl-C and SIGTERM ask a training to end after the step it is in."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training ended early because a signal asked for it; its state is saved if it has a folder."""

    def __init__(self, number: int | None, step: int, folder: Path | None):
        self.signal, self.step, self.folder = number or signal.SIGTERM, step, folder
        name = signal.Signals(self.signal).name
        if folder is None:
            super().__init__(f"{name}: stopped after step {step}; nothing is saved, since there is no folder")
        else:
            super().__init__(f"{name}: stopped and saved after step {step} in {folder}; run it again to go on")


class Signals:
    """Within: the first SIGINT or SIGTERM is only noted in ``received``; a second SIGINT is what it was before."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            sys.stderr.write(f"\n{signal.Signals(number).name}: finishing this step, then saving\n")
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])


@contextlib.contextmanager
def terminates_like_ctrl_c() -> Iterator[None]:
    """Within: SIGTERM raises KeyboardInterrupt("SIGTERM"), so that what is open is closed; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def is_sigterm(error: BaseException) -> bool:
    """Whether SIGTERM, rather than Ctrl-C, stopped the work."""
    return error.args == ("SIGTERM",) or getattr(error, "signal", None) == signal.SIGTERM
