"""Small networks, methods and data for the tests of the loop and of several ranks."""

import torch
from torch import nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Head, Mean, Vectors
from partwhole.core.losses import group_info_nce
from partwhole.core.method import Method
from partwhole.core.norm import BatchNorm
from partwhole.core.transformer import TransformerEncoder

D, BATCH = 8, 7  # 7 over 4 ranks: slices of 1, 2, 2 and 2; over 3: 2, 2 and 3


class Groups(Method):
    """Tokens of one group look alike."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = nn.Linear(encoder.dim, 4)

    def forward(self, batch):
        valid = batch.get("valid", torch.ones_like(batch["group"], dtype=torch.bool))
        feature = self.head(self.encoder(batch["x"], valid=valid))
        loss = group_info_nce(feature, batch["group"], valid=valid)
        return {"loss": loss * distributed.share(valid.sum())}


class Rows(Method):
    """A mean over all rows of a batch, however few a rank has; every row of ``y`` is predicted from its ``x``."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = Head(Mean(), nn.Linear(encoder.dim, 3))

    def forward(self, batch):
        error = (self.head(self.encoder(batch["x"]), None) - batch["y"]).square().sum(-1)
        return {"loss": error.mean() * distributed.share(len(error))}


class Counted(Groups):
    """The same; it says how many items its mean is over, so that micro-batches can be weighed."""

    def forward(self, batch):
        valid = batch.get("valid", torch.ones_like(batch["group"], dtype=torch.bool))
        return {**super().forward(batch), "items": valid.sum()}


def encoder():
    return TransformerEncoder(Vectors(3, D, length=6), dim=D, depth=1, heads=2)


class Layers(Encoder):
    """Single layers in lists, what they return changed in place."""

    def __init__(self):
        super().__init__()
        self.dim = D
        self.linears = nn.ModuleList([nn.Linear(3, D), nn.Linear(D, D)])
        self.norms = nn.ModuleList([BatchNorm(D), BatchNorm(D)])

    def forward(self, x, *, valid=None):
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(linear(x), valid).relu_()
        return x


def clouds(ragged):
    """24 clouds of 3 to 6 points (or 6), the first two coordinates of which say their group."""
    g = torch.Generator().manual_seed(1)
    out = []
    for i in range(24):
        x = torch.randn(3 + i % 4 if ragged else 6, 3, generator=g, dtype=torch.float64)
        out.append({"x": x, "group": (x[:, 0] > 0).long(), "y": x.mean(0), "index": torch.tensor(i)})
    return out


def same(sample):
    return sample
