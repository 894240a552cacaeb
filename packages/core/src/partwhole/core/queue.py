"""The last rows that all processes have seen, kept from step to step."""

import torch
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.teacher import Float32


class Queue(Float32):
    """The last ``length`` rows that ``add`` was given, of all processes: ``rows`` (length, dim), in no order.

    Only ``update``, once per optimizer step, makes rows of what ``add`` has seen since the last: several micro-batches
    are one batch. Until the queue is full, ``filled`` (length,) is false for the rows that are zeros still.
    The rows are constants, and the same on every process: those of one call stand rank by rank, so give the rows of
    one thing side by side, and they stand in the order of the things, however these are spread.
    """

    def __init__(self, length: int, dim: int):
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue holds one row or more; got length {length}")
        self.length = length
        self.rows: Tensor
        self.fresh: Tensor
        self.seen: Tensor
        self.added: Tensor
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("fresh", torch.zeros(length, dim))  # what rows will be after the step
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # by the last update, in all
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))  # since then

    @property
    def filled(self) -> Tensor:
        """(length,), true where there is a row."""
        return torch.arange(self.length, device=self.seen.device) < self.seen

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """rows (N, dim), any number, also none."""
        rows = distributed.gather(rows.detach().to(self.rows.dtype))
        skipped = max(len(rows) - self.length, 0)  # which would be overwritten at once
        place = torch.arange(skipped, len(rows), device=rows.device) + self.seen + self.added
        self.fresh[place % self.length] = rows[skipped:]
        self.added += len(rows)

    @torch.no_grad()
    def update(self) -> None:
        """Called in ``after_step``."""
        self.rows.copy_(self.fresh)
        self.seen += self.added
        self.added.zero_()
