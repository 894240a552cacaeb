"""Trainings of a few seconds that go well, and others that are made to collapse: for the doctor."""

import torch
from torch import nn

from partwhole.core.data import Stream
from partwhole.core.encoder import Encoder, Head, Mean, Vectors, mlp
from partwhole.core.evaluate import spread
from partwhole.core.fit import Fit, Run
from partwhole.core.masks import hide
from partwhole.core.method import Method
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.dino import DINO
from partwhole.core.methods.mae import MAE
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.transformer import TransformerEncoder

L, C, D = 8, 12, 32


def things():
    """256 sets of 8 vectors, noisy copies of ten."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(10, L, C, generator=draw)
    return [centre[i % 10] + 0.5 * torch.randn(L, C, generator=draw) for i in range(256)]


def noisy(x):
    return x + 0.3 * torch.randn_like(x)


def two(x):
    return {"views": [noisy(x), noisy(x)]}


def crops(x):
    return {**two(x), "crops": [noisy(x)[:4], noisy(x)[4:]]}


def masked(x):
    return {"x": x, "hidden": hide(L, 0.6)}


def encoder():
    return TransformerEncoder(Vectors(C, D, length=L), dim=D, depth=1, heads=2)


class Dead(Encoder):
    """No unit ever fires."""

    def __init__(self):
        super().__init__()
        self.dim, self.net = D, nn.Linear(C, D)

    def forward(self, x, *, valid=None):
        return torch.relu(self.net(x) - 1e4)


class Constant(Encoder):
    """The same for every input, and it can be changed, but for all inputs alike."""

    def __init__(self):
        super().__init__()
        self.dim, self.value = D, nn.Parameter(torch.randn(D))

    def forward(self, x, *, valid=None):
        return self.value.expand(*x.shape[:2], -1) + 0 * x.mean()


class Invariance(Method):
    """The invariance term of VICReg without the other two."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = Head(Mean(), mlp(encoder.dim, 64, 16))

    def forward(self, batch):
        a, b = (self.head(self.encoder(x)) for x in batch["views"])
        return {"loss": (a - b).square().mean(), "std": spread(a)}


def byol(**options):
    return BYOL(encoder(), hidden=64, dim=16, **{"momentum": 0.99, **options})


def dino(temperature=(0.04, 0.07), *, centred=True):
    method = DINO(encoder(), prototypes=64, hidden=64, bottleneck=16, momentum=0.9, teacher_temperature=temperature)
    if not centred:
        method.targets.center.momentum = 1.0  # it stays at 0
    return method


HEALTHY = {
    "simclr": (lambda: SimCLR(encoder(), hidden=64, dim=16), two),
    "byol": (byol, two),
    "byol, layer norm": (lambda: byol(norm="layer"), two),
    "simsiam": (lambda: byol(momentum=None), two),
    "dino": (dino, crops),
    "mae": (lambda: MAE(encoder(), dim=16, depth=1, heads=2), masked),
}
HARD = {"lr": 0.03, "schedule": "constant"}
COLLAPSED = {  # method, view, options, what the doctor must say
    "simclr, dead": (lambda: SimCLR(Dead(), hidden=64, dim=16), two, {}, "gives the same for every input"),
    "simclr, constant": (lambda: SimCLR(Constant(), hidden=64, dim=16), two, {}, "= ln 63"),
    "simclr, too high a rate": (lambda: SimCLR(encoder(), hidden=64, dim=16), two, {"lr": 30.0}, "nearly the same"),
    "byol, dead": (lambda: BYOL(Dead(), hidden=64, dim=16), two, {}, "gives the same for every input"),
    "byol, no predictor": (lambda: byol(predictor=False, norm=None, momentum=None), two, HARD, "needs its predictor"),
    "vicreg, only invariance": (lambda: Invariance(encoder()), two, HARD, "a term for the variance"),
    "dino, not centred": (lambda: dino(centred=False), crops, {}, "on one prototype"),
    "dino, too hot": (lambda: dino((1.0, 1.0)), crops, {}, "= ln 64, and so has that of its mean"),
}


def train(make, view, **options):
    """A run and its options: ``fit(*train(...))``."""
    torch.manual_seed(0)
    fit = Fit(**{"steps": 200, "lr": 1e-3, "log_every": 5, **options})
    return Run(method=make(), stream=Stream(things(), view, batch=32)), fit
