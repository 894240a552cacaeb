"""The latest row of every thing of a data set, and the clusters that they fall into.

Axes: N rows, K clusters, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.teacher import Float32


class Memory(Float32):
    """``rows`` (things, ...): the latest that ``write`` was given for each thing by any process, zeros before.

    For what is read after the step, and never while training: so micro-batches need no care. Every process holds all.
    """

    def __init__(self, things: int, *shape: int):
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(things, *shape))

    @property
    def known(self) -> Tensor:
        """(things,), true where a row was written that is not zero."""
        return self.rows.flatten(1).any(1)

    @torch.no_grad()
    def write(self, index: Tensor, rows: Tensor) -> None:
        """rows (N, ...) of the things index (N,); where one comes twice, the later row counts."""
        index, rows = distributed.gather(index), distributed.gather(rows.detach().to(self.rows.dtype))
        order = torch.arange(len(index), device=index.device)
        last = torch.zeros(len(self.rows), dtype=order.dtype, device=index.device)
        last = last.scatter_reduce(0, index, order, "amax")  # plain assignment would leave the winner to the device
        self.rows[index] = rows[last[index]]


@torch.no_grad()
def spherical_kmeans(
    rows: Tensor, centroids: Tensor, *, iterations: int = 10, tile: int = 8192
) -> tuple[Tensor, Tensor]:
    """Clusters of directions (Dhillon and Modha, 2001): centroids (K, D) of length 1 and each row's nearest (N,).

    Each round assigns every row to the centroid of the highest inner product, and moves each centroid to the mean of
    its rows, scaled to length 1; one without rows stays. rows (N, D) of length 1, centroids (K, D) to begin with.
    Deterministic; (tile, K) of memory.
    """
    if rows.ndim != 2 or centroids.ndim != 2 or rows.shape[1] != centroids.shape[1]:
        raise ValueError(f"rows (N, D), centroids (K, D) are needed; got {tuple(rows.shape)}, {tuple(centroids.shape)}")
    centroids = F.normalize(centroids, dim=1)
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
        for part in rows.split(tile):
            member = F.one_hot((part @ centroids.mT).argmax(1), len(centroids)).to(part.dtype)
            sums += member.mT @ part  # unlike index_add, in one order on every device
            counts += member.sum(0)
        centroids = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centroids)
    return centroids, torch.cat([(part @ centroids.mT).argmax(1) for part in rows.split(tile)])
