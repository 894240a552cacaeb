"""SimCLR and MoCo in a loop of one's own: short melodies are told apart by shape, in whatever key they are played.

python examples/contrast.py
"""

import math

import torch

from partwhole.core.encoder import Vectors
from partwhole.core.evaluate import accuracy, embed, knn
from partwhole.core.methods import MoCo, SimCLR
from partwhole.core.transformer import TransformerEncoder

KINDS, NOTES, STEPS = 6, 16, 300


def melodies(count):
    """Rising, falling, an arch, a valley, waves of two speeds: pitch, loudness (count, NOTES, 2), and which it is."""
    kind, t = torch.arange(count) % KINDS, torch.linspace(0, 1, NOTES)
    arch = (math.pi * t).sin()
    every = torch.stack([t, 1 - t, arch, 1 - arch, (8 * math.pi * t).sin(), (4 * math.pi * t).sin()])
    return torch.stack([every[kind], torch.ones(count, NOTES)], -1), kind


def play(x):
    """In another key, wider or narrower, with its own loudness, each note a little off."""
    wide, key, loud = torch.rand(3, len(x), 1)
    pitch = x[..., 0] * (0.5 + wide) + 4 * key - 2
    return torch.stack([pitch, x[..., 1] * (0.5 + loud)], -1) + 0.1 * torch.randn_like(x)


def score(encoder):
    """Accuracy of kNN over the first half of the melodies, asked about the second."""
    feature = embed(encoder, [{"x": played}])
    return accuracy(knn(feature[:600], kind[:600], feature[600:], k=5), kind[600:])


torch.manual_seed(0)
x, kind = melodies(1200)
played = play(x)
for name, make in (("SimCLR", SimCLR), ("MoCo", lambda e, **o: MoCo(e, queue=512, momentum=0.99, **o))):
    torch.manual_seed(0)
    encoder = TransformerEncoder(Vectors(2, 48, length=NOTES), dim=48, depth=2, heads=4)
    method = make(encoder, hidden=96, dim=32, temperature=0.2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    before = score(encoder)
    for step in range(STEPS):
        things = x[torch.randint(600, (96,))]
        out = method({"views": [play(things), play(things)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / STEPS)
    print(f"{name}: kNN accuracy {before:.3f} before, {score(encoder):.3f} after (chance {1 / KINDS:.3f})")
