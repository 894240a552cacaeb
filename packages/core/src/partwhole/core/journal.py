"""``metrics.jsonl``: one line of numbers a logged step, and one an evaluation."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from partwhole.core import distributed, files

FILE = "metrics.jsonl"


class Journal:
    """Appends lines to ``folder/metrics.jsonl`` on rank 0; lines after ``step``, from before a crash, are dropped."""

    def __init__(self, folder: Path | None, step: int = 0):
        self.path = folder / FILE if folder is not None and distributed.rank() == 0 else None
        self.step = step
        self.file: TextIO | None = None

    def __enter__(self) -> "Journal":
        distributed.attempt(self._open, "opening metrics.jsonl")
        return self

    def _open(self) -> None:
        if self.path is None:
            return
        with files.writing(self.path):
            kept = [json.dumps(line) + "\n" for line in read(self.path, until=self.step)]
            files.write(self.path, lambda file: file.writelines(line.encode() for line in kept))
            self.file = self.path.open("a")

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, values: Mapping[str, Any]) -> None:
        """One line; NaN and infinity, which JSON has no word for, become null."""
        if self.file is not None:
            self.file.write(json.dumps({k: _plain(v) for k, v in values.items()}) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Make what is written survive a crash of the machine."""
        if self.file is not None:
            os.fsync(self.file.fileno())


def read(path: Path, *, until: float = math.inf) -> list[dict[str, Any]]:
    """The lines of a journal up to a step; none where there is no file, and without a last line that a crash cut."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line and line["step"] <= until:
            lines.append(line)
    return lines


def peak_memory(device: torch.device) -> float:
    """Most memory this process ever used, in MB: of its GPU, or of the machine where it computes on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
