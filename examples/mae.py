"""Masked autoencoding (He et al., 2022) in a loop of one's own: slopes in small images, three quarters hidden.

python examples/mae.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.encoder import Vectors
from partwhole.core.evaluate import accuracy, ridge
from partwhole.core.methods.mae import MAE
from partwhole.core.transformer import TransformerEncoder

SIDE, PATCH, DIRECTIONS = 16, 4, 8
TOKENS = (SIDE // PATCH) ** 2


def hills(count: int) -> tuple[Tensor, Tensor]:
    """Noisy images of a slope, as patches (count, TOKENS, PATCH^2), and which way it falls (count,)."""
    label = torch.randint(DIRECTIONS, (count,))
    angle = 2 * torch.pi * (label + torch.rand(count)) / DIRECTIONS
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    image = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y + torch.randn(count, 1, 1)
    image = image + 0.2 * torch.randn(count, SIDE, SIDE)
    return F.unfold(image[:, None], PATCH, stride=PATCH).mT, label


def shown(count: int) -> Tensor:
    """The indices of a quarter of the tokens, drawn for each image."""
    return torch.rand(count, TOKENS).argsort(1)[:, : TOKENS // 4]


def probe(encoder: TransformerEncoder) -> float:
    """How often a linear layer tells the direction of new slopes from the mean token."""
    with torch.no_grad():
        (x, label), (new, answer) = hills(1000), hills(1000)
        return accuracy(ridge(encoder(x).mean(1), label, encoder(new).mean(1)), answer)


torch.manual_seed(0)
encoder = TransformerEncoder(Vectors(PATCH**2, 64, length=TOKENS), dim=64, depth=2, heads=4)
method = MAE(encoder, dim=32, depth=1, heads=2, normalise=False)
before = probe(encoder)

optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.05)
steps = 400
for step in range(steps):
    for group in optimizer.param_groups:
        group["lr"] = 3e-3 * min((step + 1) / 30, 2 * (1 - step / steps), 1)
    loss = method({"x": hills(64)[0], "keep": shown(64)})["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:4}: squared error of hidden patches {loss.item():.3f}")

x, _ = hills(1000)
with torch.no_grad():
    error = method({"x": x, "keep": shown(1000)})["loss"].item()
print(f"hidden patches of new slopes: squared error {error:.3f}; {x.var().item():.3f} if the mean is predicted")
print(f"direction told by a linear layer: {before:.0%} before, {probe(encoder):.0%} after")
