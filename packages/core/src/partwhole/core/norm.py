"""Normalisation whose statistics are those of the whole batch, over all processes and over real positions only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed


class BatchNorm(nn.Module):
    """Batch normalisation of the last axis (Ioffe and Szegedy, 2015), exact whatever the number of processes.

    ``forward(x, valid)`` takes x (..., dim) and an optional valid (...), true where a position is real: the others take
    no part in the statistics. In training the mean and the variance are those of all real positions of all processes
    (torch's own synchronised layer needs a GPU); running statistics keep ``1 - momentum`` of their past, the variance
    unbiased, as torch's do. A batch with fewer than two real positions is normalised by the running statistics, which
    then stay as they are. ``track_running_stats = False`` normalises by the batch in training and leaves them alone.
    """

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.dim, self.momentum, self.eps = dim, momentum, eps
        self.track_running_stats = True
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def extra_repr(self) -> str:
        return f"{self.dim}, momentum={self.momentum}, eps={self.eps}"

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.dim:
            raise ValueError(f"BatchNorm({self.dim}) got an input {tuple(x.shape)}: its last axis must be {self.dim}")
        rows = x.reshape(-1, self.dim)
        if not self.training:
            y = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return y.view_as(x)
        if valid is None and distributed.world() == 1 and len(rows) > 1:
            kept = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
            y = F.batch_norm(rows, *kept, self.weight, self.bias, True, self.momentum, self.eps)
            return y if x.ndim == 2 else y.view_as(x)  # relu in place on a view would cost autograd a copy
        with torch.autocast(x.device.type, enabled=False):
            y = self._normalise(rows.to(torch.promote_types(rows.dtype, torch.float32)), valid)
        return y.view_as(x).to(x.dtype)

    def _normalise(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        real = torch.ones_like(rows[:, :1], dtype=torch.bool) if valid is None else valid.reshape(-1, 1)
        rows = rows.masked_fill(~real, 0)
        sums = distributed.total(torch.cat([rows.sum(0), real.sum(0).to(rows.dtype)]))
        mean, count = sums[:-1] / sums[-1].clamp(min=1), sums[-1]
        centred = (rows - mean).masked_fill(~real, 0)
        var = distributed.total(centred.square().sum(0)) / count.clamp(min=1)
        enough = count > 1
        if self.track_running_stats:
            with torch.no_grad():
                step = self.momentum * enough.to(mean.dtype)  # where() would make the momentum float32
                unbiased = var * (count / (count - 1).clamp(min=1))
                # torch's own layer, which a call before this one may have been, holds them for a backward pass that
                # does not read them: told of a change, it would refuse
                self.running_mean.data += step * (mean - self.running_mean)
                self.running_var.data += step * (unbiased - self.running_var)
        mean, var = torch.where(enough, mean, self.running_mean), torch.where(enough, var, self.running_var)
        return (rows - mean) * (var + self.eps).rsqrt() * self.weight + self.bias
