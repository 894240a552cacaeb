"""What holds embeddings apart without negatives? VICReg's terms and its kin, in a plain loop: python examples/vicreg.py

A thing is a point near one of ten centres in 8 dimensions; a view shows it among 24 dimensions of noise, new in every
view. Seen here: without its variance term VICReg collapses to a point (scale; the rank is that of the rest of noise),
without its covariance term to two dimensions (rank). VICReg as a whole, Barlow Twins and LeJEPA fill the space.
"""

import torch
from torch import Tensor, nn

from partwhole.core.encoder import Encoder
from partwhole.core.evaluate import accuracy, knn
from partwhole.core.method import Method
from partwhole.core.methods.barlow_twins import BarlowTwins
from partwhole.core.methods.lejepa import LeJEPA
from partwhole.core.methods.vicreg import VICReg


class Net(Encoder):
    def __init__(self):
        super().__init__()
        self.dim, self.net = 64, nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.net(x)[:, None]  # one token


def train(method: Method, steps: int = 200) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    centres, label = 1.5 * torch.randn(10, 8, generator=g), torch.randint(10, (3000,), generator=g)
    thing = centres[label] + torch.randn(3000, 8, generator=g)

    def views(x: Tensor) -> dict[str, list[Tensor]]:
        return {"views": [torch.cat([x, 2 * torch.randn(len(x), 24, generator=g)], 1) for _ in range(2)]}

    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3, weight_decay=1e-4)
    for step in range(steps):
        loss = method(views(thing[torch.randint(2000, (64,), generator=g)]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
    method.eval()
    with torch.no_grad():
        tokens = method.encoder(views(thing)["views"][0])
        z, features = method.get_submodule("head")(tokens), tokens[:, 0]
    s = torch.linalg.svdvals(z - z.mean(0))
    rank = torch.special.entr(s / s.sum()).sum().exp()  # RankMe of centred embeddings
    right = accuracy(knn(features[:2000], label[:2000], features[2000:]), label[2000:])
    return {"scale": z.std(0).mean().item(), "rank": rank.item(), "knn": right}


if __name__ == "__main__":
    print("                         scale   rank    kNN")
    kinds = [(VICReg, {}), (VICReg, {"variance": 0.0}), (VICReg, {"covariance": 0.0}), (BarlowTwins, {}), (LeJEPA, {})]
    for kind, options in kinds:
        torch.manual_seed(0)
        out = train(kind(Net(), hidden=128, dim=32, **options))
        print(f"{' - '.join([kind.__name__, *options]):22}", "{scale:7.3f} {rank:6.1f} {knn:6.3f}".format(**out))
