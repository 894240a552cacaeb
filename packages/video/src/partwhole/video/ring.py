"""The frames that labels come from: their features, normalised and laid out once, and their labels.

Axes: D features, h w the grid, N = h * w places, S frames at most, K labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def laid(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features (D, h, w) as rows (N, D) of length 1; a place without any stays 0."""
    return F.normalize(features.flatten(1).mT.to(torch.promote_types(features.dtype, torch.float32)), dim=1).to(dtype)


class Ring:
    """Room for ``size`` frames, where the newest takes the place of the oldest, behind ``kept`` that stay.

    ``features`` (kept + size, N, D) and ``labels`` (kept + size, N, K): the first ``count`` frames are there, in no
    order that means anything.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, kept: int, size: int):
        self.features = features.new_zeros(kept + size, *features.shape)
        self.labels = labels.new_zeros(kept + size, *labels.shape)
        self.kept, self.count, self.next = kept, 0, 0

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Rows (N, D) and (N, K) of a frame; the first ``kept`` that are added stay for ever."""
        if self.next == len(self.features):
            self.next = self.kept
        if self.next < len(self.features):
            self.features[self.next], self.labels[self.next] = features, labels
            self.next += 1
            self.count = max(self.count, self.next)
