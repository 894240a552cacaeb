"""Small methods and data, in float64, for the tests of the loop and of several ranks."""

import torch
from torch import nn

from partwhole.core import distributed
from partwhole.core.data import Stream, hide, together
from partwhole.core.encoder import Encoder, Head, Mean, Vectors
from partwhole.core.losses import group_info_nce
from partwhole.core.method import Joint, Method
from partwhole.core.norm import BatchNorm
from partwhole.core.transformer import TransformerEncoder

GENERIC = ("simclr", "moco", "byol", "dino", "swav", "deepcluster", "obow", "ibot", "dinov2", "dinov3", "mae")

D, BATCH = 8, 8  # 8 over 3 ranks: slices of 2, 3 and 3


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


def two(sample):
    return {"views": [sample["x"] + 0.1 * torch.randn_like(sample["x"]) for _ in range(2)]}


def crops(sample):
    x = sample["x"]
    return {**two(sample), "crops": [x[:2], x[1:3]]}


def numbered(sample):
    return {**crops(sample), "index": sample["index"]}


def parts(sample):
    return {**two(sample), "component": [sample["group"], sample["group"]]}


def hiding(sample):
    """Views of which some tokens are hidden, in most of them."""
    return {**crops(sample), "hidden": [hide(len(sample["x"]), (0.3, 0.7), chance=0.8) for _ in range(2)]}


def masked(sample):
    return {"x": sample["x"], "hidden": hide(len(sample["x"]), 0.6)}


def same(sample):
    return sample


def deepcluster(e):
    """Most things have a cluster from the start, so that there is a loss."""
    from partwhole.core.methods.deepcluster import DeepCluster

    method = DeepCluster(e, things=24, every=2, prototypes=3, heads=3, hidden=D, dim=4, norm="layer")
    method.cluster.copy_(torch.arange(24) % 4 - 1)
    return method


def make(name):
    """(method, stream) of a small case, in float64."""
    from partwhole.core.methods.byol import BYOL
    from partwhole.core.methods.dino import DINO
    from partwhole.core.methods.dinov2 import DINOv2
    from partwhole.core.methods.dinov3 import DINOv3
    from partwhole.core.methods.ibot import IBOT
    from partwhole.core.methods.mae import MAE
    from partwhole.core.methods.moco import MoCo
    from partwhole.core.methods.obow import OBoW
    from partwhole.core.methods.simclr import SimCLR
    from partwhole.core.methods.swav import SwAV
    from partwhole.shape3d.acd import ComponentContrast

    torch.manual_seed(0)
    e = encoder()
    method, view, ragged = {
        "simclr": lambda: (SimCLR(e, hidden=D, dim=4), two, True),
        "moco": lambda: (MoCo(e, queue=13, hidden=D, dim=4), two, True),
        "moco-batch": lambda: (MoCo(e, queue=0, hidden=D, dim=4, norm="batch"), two, True),
        "byol": lambda: (BYOL(e, hidden=D, dim=4, norm="layer"), two, True),
        "byol-batchnorm": lambda: (BYOL(e, hidden=D, dim=4, norm="batch"), two, True),
        "dino": lambda: (DINO(e, prototypes=16, hidden=D, bottleneck=4), crops, True),
        "swav": lambda: (SwAV(e, prototypes=6, hidden=D, dim=4, queue=20, queue_from=0.3, norm="layer"), crops, True),
        "deepcluster": lambda: (deepcluster(e), numbered, True),
        "obow": lambda: (OBoW(e, words=20), crops, True),
        "ibot": lambda: (IBOT(e, prototypes=16, hidden=D, bottleneck=4, frozen=0.5), hiding, True),
        "dinov2": lambda: (DINOv2(e, prototypes=16, hidden=D, bottleneck=4), hiding, True),
        "dinov3": lambda: (
            DINOv3(e, prototypes=16, hidden=D, bottleneck=4, start=0.3, refresh=0.3),
            hiding,
            True,
        ),
        "mae": lambda: (MAE(e, dim=D, depth=1, heads=2), masked, False),
        "acd": lambda: (ComponentContrast(e, dim=8, clusters=3), parts, False),
        "groups": lambda: (Groups(e), same, True),
        "counted": lambda: (Counted(e), same, True),
        "rows": lambda: (Rows(e), same, False),
        "layers": lambda: (Rows(Layers()), same, False),
        "joint": lambda: (Joint({"a": Groups(e), "b": SimCLR(e, hidden=D, dim=4)}, {"a": 10.0, "b": 1.0}), None, True),
    }[name]()
    if view is None:
        stream = together(
            a=Stream(clouds(True), same, batch=BATCH, seed=1), b=Stream(clouds(True), two, batch=BATCH, seed=2)
        )
    else:
        stream = Stream(clouds(ragged), view, batch=BATCH, seed=1)
    return method.double(), stream
