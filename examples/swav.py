"""SwAV in a loop of one's own: drawings of four kinds, each some points, told apart without a label.

python examples/swav.py
"""

import math

import torch

from partwhole.core.encoder import Vectors
from partwhole.core.evaluate import accuracy, embed, knn
from partwhole.core.methods.swav import SwAV
from partwhole.core.transformer import TransformerEncoder

KINDS, POINTS, STEPS = 4, 24, 120


def drawings(count):
    """Points (count, POINTS, 2) on a ring, two rings, a cross or a triangle, and which of them it is."""
    kind, t, coin = torch.arange(count) % KINDS, torch.rand(count, POINTS), torch.rand(count, POINTS, 1).round()
    ring = torch.stack([(2 * math.pi * t).cos(), (2 * math.pi * t).sin()], -1)
    cross = (2.6 * t - 1.3)[..., None] * torch.cat([coin, 1 - coin], -1)
    corners, side = torch.tensor([[0.0, 1.2], [-1.0, -0.6], [1.0, -0.6]]), (3 * t).long()
    triangle = corners[side].lerp(corners[(side + 1) % 3], (3 * t % 1)[..., None])
    every = torch.stack([ring, ring * (0.4 + 0.6 * coin), cross, triangle])
    return every[kind, torch.arange(count)], kind


def view(x, points):
    """So many of the points, turned, stretched and shaken."""
    angle, scale = 2 * math.pi * torch.rand(len(x)), 0.7 + 0.6 * torch.rand(len(x), 1, 2)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    picked = torch.rand(len(x), POINTS).topk(points, 1).indices[..., None].expand(-1, -1, 2)
    return x.gather(1, picked) * scale @ rotation + 0.05 * torch.randn(len(x), points, 2)


def score(encoder):
    """Accuracy of kNN over the first half of the drawings, asked about the second."""
    feature = embed(encoder, [{"x": x}])
    return accuracy(knn(feature[:500], kind[:500], feature[500:]), kind[500:])


torch.manual_seed(0)
x, kind = drawings(1000)
x = view(x, POINTS)
encoder = TransformerEncoder(Vectors(2, 48), dim=48, depth=2, heads=4)
method = SwAV(encoder, prototypes=40, hidden=128, dim=32, frozen=0.05)
optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
before = score(encoder)
for step in range(STEPS):
    things = x[torch.randint(500, (96,))]
    out = method({"views": [view(things, 20) for _ in range(2)], "crops": [view(things, 10) for _ in range(2)]})
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    method.after_step((step + 1) / STEPS)
    if step % 20 == 0:
        print(f"step {step:3d}  loss {out['loss']:.3f}  prototypes in use {out['usage']:.2f}")
print(f"kNN accuracy: {before:.3f} before, {score(encoder):.3f} after (chance {1 / KINDS:.3f})")
