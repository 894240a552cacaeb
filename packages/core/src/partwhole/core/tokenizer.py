"""Names for tokens, learned before training: the nearest of so many means of what tokens are rebuilt into.

Axes: N tokens of a data set, B batch, L tokens, T what a token is rebuilt into, V names.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from partwhole.core.checkpoint import BadCheckpoint
from partwhole.core.encoder import Embed, blank, build, describe
from partwhole.core.files import write

CHUNK = 2**24  # distances that are held at once


class Tokenizer(nn.Module):
    """``ids(x)`` (B, L): the number of the mean that is nearest to each token's ``embed.target``.

    Made once, before training (``learn``), kept in one safetensors file, and called in the view or to write a cache.
    Pixels, points or samples as they are stand in for the discrete autoencoder of BEiT's paper.
    """

    means: Tensor

    def __init__(self, embed: Embed, means: Tensor):
        super().__init__()
        if means.ndim != 2 or means.shape[1] != embed.target_dim:
            raise ValueError(f"means (V, {embed.target_dim}) are needed for this embed; got {tuple(means.shape)}")
        self.embed = copy.deepcopy(embed).requires_grad_(False)
        self.register_buffer("means", means)

    @classmethod
    def learn(cls, embed: Embed, batches: Iterable[Mapping[str, Tensor]], *, count: int, seed: int = 0) -> "Tokenizer":
        """By k-means over the real tokens of ``batches`` ({"x", and "valid" if need be}), which must end."""
        with torch.no_grad():
            rows = [_targets(embed, b["x"], b.get("valid")) for b in batches]
        targets = torch.cat([t[real].float().cpu() for t, real in rows])
        return cls(embed, kmeans(targets, count, seed=seed))

    @torch.no_grad()
    def ids(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, L) int64; 0 where a token is not real."""
        targets, real = _targets(self.embed, x, valid)
        return nearest(targets.flatten(0, 1), self.means)[0].view(real.shape).masked_fill(~real, 0)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; how to build ``embed`` again is JSON in its head."""
        from safetensors.torch import save

        about = {"tokenizer": json.dumps({"format": 1, "embed": describe(self.embed)})}
        data = save({k: v.contiguous() for k, v in self.state_dict().items()}, metadata=about)
        write(Path(path), lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path, *, allow: tuple[str, ...] = ()) -> "Tokenizer":
        """What ``save`` wrote; ``allow`` as in ``load_encoder``. BadCheckpoint for a damaged or foreign file."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load

        data = Path(path).read_bytes()
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["tokenizer"])
            if about["format"] != 1:
                raise ValueError(f"format {about['format']!r}, and this version reads 1")
            state, embed = load(data), build(about["embed"], allow=allow)
            tokenizer = cls(embed, torch.zeros_like(state["means"]))  # type: ignore[arg-type]
            tokenizer.load_state_dict(state)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadCheckpoint(f"{path} is no tokenizer, or damaged: {type(error).__name__}: {error}") from error
        return tokenizer


def kmeans(x: Tensor, count: int, *, seed: int = 0, steps: int = 100) -> Tensor:
    """Means (V, T) of ``count`` clusters of x (N, T), by Lloyd's steps until nothing moves, ``steps`` at the most.

    Begun by k-means++ (Arthur and Vassilvitskii, 2007): each next mean is a row drawn with chance proportional to its
    squared distance to the nearest one so far. A cluster that has become empty moves to the row that is farthest from
    its mean. The same seed gives the same means, bit for bit on one machine's CPU; no global generator is touched.
    """
    if x.ndim != 2 or not 1 <= count <= len(x):
        raise ValueError(
            f"{count} clusters of rows {tuple(x.shape)}: at least as many rows (N, T) are needed; ask for a smaller "
            "vocabulary, or give more things"
        )
    if not x.isfinite().all():
        raise ValueError("some rows are not finite: leave them out")
    generator = torch.Generator().manual_seed(seed)
    middle = x.mean(0)
    x = x - middle  # squares of what is far from 0 would cancel
    means = x[torch.randint(len(x), (1,), generator=generator)]
    gap = (x - means).square().sum(1)
    for _ in range(1, count):
        reach = gap.double().cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64).to(reach.device) * reach[-1]
        new = x[torch.searchsorted(reach, drawn, right=True).clamp(max=len(x) - 1)]
        means, gap = torch.cat([means, new]), torch.minimum(gap, (x - new).square().sum(1))

    before = None
    for _ in range(steps):
        cluster, gap = nearest(x, means)
        if before is not None and torch.equal(cluster, before):
            break
        before, means = cluster, means_of(x, cluster, gap, count)
    return means + middle


def means_of(x: Tensor, cluster: Tensor, gap: Tensor, count: int) -> Tensor:
    """Means (V, T) of rows x (N, T) in clusters (N,); an empty one gets the row with the largest gap (N,) left."""
    size = torch.bincount(cluster, minlength=count)
    sums = torch.zeros(count, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, cluster, x.double())
    means = (sums / size.clamp(min=1)[:, None]).to(x.dtype)
    empty = (size == 0).nonzero()[:, 0]
    means[empty] = x[gap.argsort(descending=True, stable=True)[: len(empty)]]
    return means


def nearest(x: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of x (N, T) the nearest mean's number (N,), the first of several, and its squared distance (N,)."""
    half = means.square().sum(1) / 2
    found = [(half - rows.to(means) @ means.mT).min(1) for rows in x.split(max(CHUNK // len(means), 1))]
    index = torch.cat([f.indices for f in found])
    return index, (x.to(means) - means[index]).square().sum(1)


def _targets(embed: Embed, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the tokens of x are rebuilt into (B, L, T), and which of them are real (B, L)."""
    target, real = embed.target(x, **({} if valid is None else {"valid": valid})), embed.tokens_valid(x, valid)
    real = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device) if real is None else real
    return blank(target, real), real
