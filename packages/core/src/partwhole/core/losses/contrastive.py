"""Contrastive losses: pull together what belongs together, push the rest apart.

Axes: N queries, M keys, D features, B batch, L tokens, K prototypes, S/T student/teacher views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    exclude: Tensor | None = None,
) -> Tensor:
    """Pick each query's positive key among all keys (van den Oord et al., 2018).

    query (N, D), key (M, D), positive (N,) index into key, by default query n matches key n.
    exclude (N, M) marks pairs that are neither positive nor negative, such as a view and itself.
    """
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / temperature
    if exclude is not None:
        logits = logits.masked_fill(exclude, -torch.inf)
    if positive is None:
        positive = torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, positive)


def group_contrast(feature: Tensor, group: Tensor, *, margin: float = 0.5) -> Tensor:
    """Pull together tokens of one group, push apart the rest (Gadelha et al., 2020).

    feature (B, L, D), group (B, L). Positives and negatives weigh the same.
    """
    feature = F.normalize(feature, dim=-1)
    cosine = feature @ feature.mT  # (B, L, L)
    same = group[:, :, None] == group[:, None, :]
    pull = same & ~torch.eye(group.shape[1], dtype=torch.bool, device=group.device)
    return _where_mean(1 - cosine, pull) + _where_mean(F.relu(cosine - margin), ~same)


def _where_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp(min=1)

