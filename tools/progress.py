"""What a person sees of long work: a bar on a terminal, plain lines elsewhere, TensorBoard events when asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from partwhole.core.watch import Lines, Quiet, Watch, told


class Bar:
    """A watch that draws one bar, with the values beside it, and prints everything else above."""

    def __init__(self, console: Console):
        self.console = console
        self.bar: Progress | None = None
        self.task: Any = None
        self.done = 0

    def step(self, done: int, values: Mapping[str, float]) -> None:
        total = int(values.get("total", 0)) or None
        if self.bar is None or done < self.done:
            self.close()
            self.bar = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=self.console,
            )
            self.task = self.bar.add_task("", total=total, completed=done, values="")
            self.bar.start()
        text = told(values, hidden=("memory_mb", "lr", "gradient_norm"))
        self.bar.update(self.task, completed=done, total=total, values=text)
        self.done = done
        if done == total:
            self.close()

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None:
        self.say(f"step {done}: {told(metrics)}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was; a later step draws a new bar."""
        if self.bar is not None:
            self.bar.refresh()
            self.bar.stop()
        self.bar = None


class Events:
    """Another watch, and TensorBoard event files in ``folder`` besides."""

    def __init__(self, watch: Watch, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
        self.watch, self.writer = watch, SummaryWriter(str(folder))

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.watch.step(done, values)
        self._write("train", done, {k: v for k, v in values.items() if k != "total"})

    def evaluated(self, done: int, metrics: Mapping[str, float]) -> None:
        self.watch.evaluated(done, metrics)
        self._write("evaluate", done, metrics)

    def say(self, text: str) -> None:
        self.watch.say(text)

    def close(self) -> None:
        """Write what is pending."""
        self.writer.close()
        close(self.watch)

    def _write(self, group: str, done: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, done)


def make(rank: int = 0) -> Watch:
    """The watch that fits where the output goes; the other ranks are quiet."""
    if rank:
        return Quiet()
    console = Console()
    return Bar(console) if console.is_terminal else Lines()


def close(watch: Watch) -> None:
    """End what the watch has open, if it has anything."""
    if isinstance(watch, Bar | Events):
        watch.close()
