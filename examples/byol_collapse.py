"""What keeps BYOL from collapse? Eight variants on toy data, in a plain loop: python examples/byol_collapse.py

A thing is a point near one of ten centres in 8 dimensions; a view shows it among 24 dimensions of noise, new in every
view. Seen here, with four seeds: BatchNorm and predictor together hold, with and without EMA. BatchNorm and EMA without
predictor keep less than half of the spread, and all of the accuracy. The others collapse, at losses near the least, -1;
so does LayerNorm in BatchNorm's place. At a tenth of the rate, for three times as long, they fall less far in the same
order. Another rate or network may end otherwise: Richemond et al. (2020) train BYOL without batch statistics.
"""

import itertools

import torch
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, Norm
from partwhole.core.evaluate import accuracy, knn, spread
from partwhole.core.methods.byol import BYOL


class Net(Encoder):
    def __init__(self):
        super().__init__()
        self.dim, self.net = 64, nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.net(x)[:, None]  # one token; no norm in this network, so that BYOL's is the only one


def rank(z: Tensor) -> float:
    """Effective number of dimensions, as RankMe (Garrido et al., 2023)."""
    s = torch.linalg.svdvals(z / z.norm(dim=1, keepdim=True))
    return torch.special.entr(s / s.sum()).sum().exp().item()


def train(*, norm: Norm, predictor: bool, ema: bool, steps: int = 200, seed: int = 0) -> dict[str, float]:
    g = torch.Generator().manual_seed(seed)
    turn, centres = torch.linalg.qr(torch.randn(32, 32, generator=g))[0], 1.5 * torch.randn(10, 8, generator=g)
    label = torch.randint(10, (3000,), generator=g)
    thing = centres[label] + torch.randn(3000, 8, generator=g)

    def views(x: Tensor) -> dict[str, list[Tensor]]:
        return {"views": [torch.cat([x, 2 * torch.randn(len(x), 24, generator=g)], 1) @ turn for _ in range(2)]}

    torch.manual_seed(seed)
    method = BYOL(Net(), hidden=128, dim=32, norm=norm, predictor=predictor, momentum=0.98 if ema else None)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(steps):
        loss = method(views(thing[torch.randint(2000, (64,), generator=g)]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
    method.eval()
    with torch.no_grad():
        loss, tokens = method(views(thing))["loss"].item(), method.encoder(views(thing)["views"][0])
        z, features = method.head(tokens, None), tokens[:, 0]
    right = accuracy(knn(features[:2000], label[:2000], features[2000:]), label[2000:])
    return {"loss": loss, "std": spread(z).item(), "rank": rank(z), "knn": right}


if __name__ == "__main__":
    print("BatchNorm  predictor  EMA     loss    std   rank    kNN")
    line = "{loss:7.3f} {std:6.3f} {rank:6.1f} {knn:6.3f}"
    print(" " * 25, line.format(**train(norm=None, predictor=True, ema=True, steps=0)), "untrained", sep="  ")
    for norm, predictor, ema in itertools.product(("batch", None), (True, False), (True, False)):
        out = train(norm=norm, predictor=predictor, ema=ema)
        words = (f"{'yes' if flag else '-':{width}}" for flag, width in ((norm, 9), (predictor, 9), (ema, 3)))
        verdict = "collapsed" if out["std"] < 0.1 else "half collapsed" if out["std"] < 0.6 else "no collapse"
        print(*words, line.format(**out), verdict, sep="  ")
