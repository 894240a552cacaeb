"""DINO in a loop of your own: small pictures of four figures, of which no label is seen.

A picture is 16 tokens: patches of 4 x 4 pixels, each with its place. Figures differ in place, brightness and noise.
"""

import torch
from torch import Tensor

from partwhole.core.encoder import Vectors
from partwhole.core.evaluate import accuracy, knn
from partwhole.core.methods.dino import DINO
from partwhole.core.transformer import TransformerEncoder

STEPS, BATCH = 150, 64


def picture(kind: int) -> Tensor:
    """A plus, a ring, stripes or a slope, 16 x 16."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    y, x = y - 5 - 6 * torch.rand(()), x - 5 - 6 * torch.rand(())
    figure = (
        (x.abs() < 1.5) | (y.abs() < 1.5),
        (x.square() + y.square()).sqrt().sub(5).abs() < 1.5,
        (x + 2 * y) % 6 < 3,
        x + y > 0,
    )[kind]
    return 2 * figure - 1.0


def view(images: Tensor) -> Tensor:
    """Pictures (B, 16, 16) -> tokens (B, 16, 18): lighter or darker, mirrored or not, noisy."""
    light, dark = 0.3 + torch.rand(len(images), 1, 1), torch.randn(len(images), 1, 1)
    images = images * light + 0.5 * dark + 0.3 * torch.randn_like(images)
    images = torch.where(torch.rand(len(images), 1, 1) < 0.5, images.flip(2), images)
    patches = images.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) - 1.5
    return torch.cat([patches, place.expand(len(images), -1, -1)], 2)


def crop(images: Tensor) -> Tensor:
    """A window of 2 x 2 to 3 x 3 tokens of a view, the same one for a batch."""
    side, top, left = torch.randint(2, 4, ()), torch.randint(2, ()), torch.randint(2, ())
    return view(images).unflatten(1, (4, 4))[:, top : top + side, left : left + side].flatten(1, 2)


def right(encoder: TransformerEncoder, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        features, half = encoder.eval()(view(images))[:, 0], len(images) // 2
    return accuracy(knn(features[:half], labels[:half], features[half:]), labels[half:])


torch.manual_seed(0)
labels = torch.arange(800) % 4
images = torch.stack([picture(int(k)) for k in labels])
encoder = TransformerEncoder(Vectors(18, 48), dim=48, depth=2, heads=4, cls=True)
method = DINO(encoder, prototypes=64, hidden=128, bottleneck=32, momentum=0.99, teacher_temperature=(0.03, 0.04))
optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-3)
before = right(encoder, images, labels)
for step in range(STEPS):
    some = images[torch.randint(len(images), (BATCH,))]
    out = method.train()({"views": [view(some) for _ in range(2)], "crops": [crop(some) for _ in range(2)]})
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    method.after_step((step + 1) / STEPS)
    if step % 30 == 29:
        print(f"step {step + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in out.items()))
print(f"kNN accuracy {before:.2f} before, {right(encoder, images, labels):.2f} after")
