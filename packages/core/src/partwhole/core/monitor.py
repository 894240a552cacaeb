"""Is the encoder alive? Measures of its features, taken while training, of every method without its doing.

In ``metrics.jsonl`` and the charts, of at most ``ROWS`` things of the batch, over all processes:

features/std               spread over the sphere: near 1 where they fill it, 0 where all are one (``evaluate.spread``)
features/rankme            how many directions they use (``rankme``); features/rankme_centred: less their mean
features/uniformity        how evenly they lie on the sphere (``uniformity``): 0 where all are one, lower is better
features/alignment         how near two views of a thing are (``alignment``), where the batch has ``views``
prototypes/used            share of the prototypes that are some row's nearest (``used``), where a method has them

Axes: N rows, D features, K prototypes, B batch, L tokens, V views.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Mean, Prototypes
from partwhole.core.evaluate import spread
from partwhole.core.teacher import Teacher

ROWS = 256


@torch.no_grad()
def rankme(feature: Tensor, *, centred: bool = False) -> Tensor:
    """The effective rank of feature (N, D), in [1, min(N, D)] (Roy and Vetterli, 2007; Garrido et al., 2023), a scalar.

        exp(- sum over k: p[k] log p[k]),   p = singular values / their sum

    Scaling and rotating changes nothing. ``centred`` takes the mean row away first: what features have in common is one
    direction that says nothing. All zeros have rank 1; NaN stays NaN. From the eigenvalues of the smaller Gram matrix
    in float64, those below rounding taken as 0; the second paper adds 1e-7 to each p instead.
    """
    if feature.ndim != 2 or 0 in feature.shape:
        raise ValueError(f"rankme is of rows (N, D), at least one; got {tuple(feature.shape)}")
    x = feature.double()
    x = x - x.mean(0) if centred else x
    x = x / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    if not x.isfinite().all():
        return x.new_full((), torch.nan)
    square = torch.linalg.eigvalsh(x.mT @ x if len(x) > x.shape[1] else x @ x.mT)
    square = torch.where(square > square[-1] * len(square) * torch.finfo(x.dtype).eps, square, 0)
    p = square.sqrt()
    return torch.special.entr(p / p.sum().clamp(min=torch.finfo(x.dtype).tiny)).sum().exp()


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance on the sphere of paired rows a, b (N, D) (Wang and Isola, 2020): 0 is best, 4 worst."""
    if a.shape != b.shape:
        raise ValueError(f"alignment is of pairs; got {tuple(a.shape)} and {tuple(b.shape)}")
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1).mean()


@torch.no_grad()
def uniformity(feature: Tensor, *, t: float = 2.0) -> Tensor:
    """log of the mean over pairs of rows of exp(-t |x - y|^2), x, y on the sphere (Wang and Isola, 2020), a scalar.

    feature (N, D), N >= 2. 0 where all rows are one, at best near -4 for t = 2 (two opposite directions: -t * 4 each).
    """
    if len(feature) < 2:
        raise ValueError(f"uniformity is of pairs: 2 rows or more are needed, got {len(feature)}")
    z = F.normalize(feature.float(), dim=-1)
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    size = z.square().sum(-1)  # 1, but for zeros, which are all in one place
    square = (size[:, None] + size - 2 * z @ z.mT)[i, j].clamp(min=0)
    return (-t * square).logsumexp(0) - torch.tensor(float(len(i)), device=z.device).log()


@torch.no_grad()
def used(choice: Tensor, count: int) -> Tensor:
    """How many of ``count`` prototypes the rows choose, as a share of how many they could: choice (N,) -> a scalar."""
    return choice.new_tensor(len(choice.unique()) / max(min(len(choice), count), 1), dtype=torch.float64)


class Monitor:
    """Hooks on ``method`` that keep what its encoder gave in the last pass ``watching``; ``close`` takes them off.

    ``always``: keep that of every pass. A compiled method should not be traced twice, with and without.
    """

    def __init__(self, method: nn.Module, *, always: bool = False):
        self.on, self.always, self.count = False, always, 0
        self.views: Sequence[Tensor] | None = None
        self.pooled: list[Tensor] = []
        self.chosen: list[Tensor] = []
        teachers = (t for t in method.modules() if isinstance(t, Teacher))
        theirs = {id(m) for t in teachers for m in t.modules()}
        encoder: Any = method.encoder
        self.handles = [encoder.register_forward_hook(self._encoded, with_kwargs=True)]
        for module in method.modules():
            if isinstance(module, Prototypes) and id(module) not in theirs:
                self.handles.append(module.register_forward_hook(partial(self._compared, self.count)))
                self.count += len(module.weight)

    @contextmanager
    def watching(self, batch: Any, now: bool = True) -> Iterator[None]:
        """Within: the method reads ``batch``, and is watched if ``now`` or always."""
        self.pooled, self.chosen = [], []
        self.views = batch.get("views") if isinstance(batch, dict) else None
        self.on = now or self.always
        try:
            yield
        finally:
            self.on = False

    def values(self) -> dict[str, float]:
        """What the last pass showed, if it was watched. All ranks call it."""
        out: dict[str, Tensor] = {}
        if self.pooled:
            rows, other = _things(torch.cat(self.pooled), self.views)
            if len(rows) > 1:
                out["features/std"] = spread(rows)
                out["features/rankme"], out["features/rankme_centred"] = rankme(rows), rankme(rows, centred=True)
                out["features/uniformity"] = uniformity(rows)
            if other is not None:
                out["features/alignment"] = alignment(rows, other)
        if self.chosen:
            out["prototypes/used"] = used(distributed.gather(torch.cat(self.chosen)), self.count)
        self.pooled, self.chosen, self.views = [], [], None
        return dict(zip(out, torch.stack([v.double() for v in out.values()]).tolist(), strict=True)) if out else {}

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _encoded(self, module: nn.Module, args: Any, kwargs: dict[str, Any], tokens: Any) -> None:
        if self.on and isinstance(tokens, Tensor) and tokens.ndim == 3:
            assert isinstance(module, Encoder)
            picked = kwargs.get("keep") is not None  # then they stand in another order
            self.pooled.append(_pool(tokens, None if picked else module.real(args[0], kwargs.get("valid"))))

    def _compared(self, first: int, module: nn.Module, args: Any, scores: Tensor) -> None:
        """``first``: how many prototypes the heads before this one have."""
        if self.on:
            self.chosen.append(scores.detach().flatten(0, -2).argmax(-1) + first)


def _pool(tokens: Tensor, real: Tensor | None) -> Tensor:
    """Mean of the real tokens: (B, D). A mask of another length than the tokens is of the input, and left aside."""
    fits = real is not None and real.shape == tokens.shape[:2]
    return Mean()(tokens.detach().float(), real if fits else None)


def _things(rows: Tensor, views: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Rows (N, D) of different things, from all ranks, and of another view of each where the rows are views.

    Methods pass the views of a batch in their order, before whatever else they pass.
    """
    most = -(-ROWS // distributed.world())
    if isinstance(views, list | tuple) and len(views) > 1 and len(rows) >= sum(map(len, views)):
        pair = rows[: 2 * len(views[0])].unflatten(0, (2, -1))[:, :most]
        both = distributed.gather(pair.transpose(0, 1))
        return both[:, 0], both[:, 1]
    return distributed.gather(rows[:most]), None
