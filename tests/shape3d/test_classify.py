"""Classification by a linear SVM on pooled features: what it reads, and that it can tell shapes apart."""

import pytest
import torch
from torch import nn

from partwhole.core.encoder import Encoder
from partwhole.shape3d.classify import descriptors, svm_accuracy
from partwhole.shape3d.fewshot import Draw
from partwhole.shape3d.views import Augment

AUGMENT = Augment(points=32, rotate="none", scale=(1.0, 1.0), shift=0.0)


class Place(Encoder):
    """Products of a point's coordinates with random directions, cut at 0."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(3, dim)

    def forward(self, x, *, valid=None):
        return self.mix(x[..., :3]).relu()


class Rods:
    """Category 0 lies along x, category 1 along y; it notes what is read."""

    def __init__(self, count=40):
        self.category = [i % 2 for i in range(count)]
        self.read = set()

    def __len__(self):
        return len(self.category)

    def __getitem__(self, i):
        self.read.add(i)
        points = torch.rand(50, 3, generator=torch.Generator().manual_seed(i)) - 0.5
        points[:, 1 - self.category[i]] *= 0.1
        return {"points": points, "normals": torch.zeros_like(points), "category": torch.tensor(self.category[i])}


DRAWS = [Draw({1: [0, 1], 3: [0, 2, 4, 1, 3, 5]}, [6, 7, 8, 9], []), Draw({3: [2, 4, 6, 3, 5, 7]}, [10, 11], [])]


def test_rods_are_told_apart_one_accuracy_per_draw():
    torch.manual_seed(0)
    accuracy = svm_accuracy(Place(), Rods(), DRAWS, AUGMENT, seed=0)
    assert accuracy["pretrained"] == [1.0, 1.0]
    assert len(accuracy["random"]) == 2


def test_only_the_shapes_of_the_draws_are_read(monkeypatch):
    from partwhole.shape3d import classify

    monkeypatch.setattr(classify, "settled", lambda encoder, shapes, augment: encoder.eval())
    labelled = Rods()
    svm_accuracy(Place(), labelled, DRAWS, AUGMENT, seed=0)
    assert labelled.read == set(range(12))


def test_a_descriptor_is_of_its_shape_alone():
    torch.manual_seed(0)
    encoder, shapes = Place(), [Rods()[i] for i in range(5)]
    together = descriptors(encoder, shapes, AUGMENT)
    alone = torch.cat([descriptors(encoder, [shape], AUGMENT) for shape in shapes])
    torch.testing.assert_close(together, alone)
    assert together.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
