"""How methods with prototypes assign the rows of all processes to them.

Axes: V views, N rows of this process, R rows of a bank, K prototypes.
"""

import torch
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.losses import sinkhorn


def balanced(
    scores: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    iterations: int = 3,
    valid: Tensor | None = None,
    bank: Tensor | None = None,
    filled: Tensor | None = None,
) -> Tensor:
    """``sinkhorn`` of the rows of all processes, of which each gets its own: constants (V, N, K).

    scores (V, N, K), any N on each process; valid (V, N), true where a row counts. What passes between processes is the
    sums of the columns alone. bank (R, K): scores of further rows, the same on all processes, which count once for
    every view, where filled (R,) is true.
    """
    R = 0 if bank is None else len(bank)
    if bank is not None:
        rows = torch.cat([bank.detach().expand(len(scores), -1, -1), scores.detach()], 1)
        if valid is not None or filled is not None:
            on = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            parts = (on[:, :R] if filled is None else filled.expand(len(on), -1), on[:, R:] if valid is None else valid)
            valid = torch.cat(parts, 1)
    else:
        rows = scores

    def columns(q: Tensor) -> Tensor:
        own = distributed.gather(q[:, R:].logsumexp(1, keepdim=True)[None]).logsumexp(0)
        return torch.logaddexp(own, q[:, :R].logsumexp(1, keepdim=True)) if R else own

    return sinkhorn(rows, temperature=temperature, iterations=iterations, valid=valid, columns=columns)[:, R:]


@torch.no_grad()
def usage(share: Tensor) -> Tensor:
    """How many prototypes are in use, of all: e^entropy / K of the mean of share (..., K), whose rows sum to 1.

    1 where all are equally likely over the batch, 1 / K where one takes all.
    """
    mean = share.flatten(0, -2).mean(0)
    return torch.special.entr(mean).sum().exp() / len(mean)
