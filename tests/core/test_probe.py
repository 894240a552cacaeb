"""What features are worth: readouts against plain ways to compute them, and the measurement as a whole."""

import json

import pytest
import torch
from torch import nn

from partwhole.core.encoder import Encoder, Vectors
from partwhole.core.evaluate import PENALTIES, accuracy, linear, ridge
from partwhole.core.probe import Classes, Probe, probe
from partwhole.core.transformer import TransformerEncoder


def blobs(count, dim=6, classes=4, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)) * 2
    label = torch.arange(count) % classes
    return centre[label] + spread * torch.randn(count, dim, generator=generator), label


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_ridge_is_the_plain_solution(shape):
    n, d = shape
    x, label = blobs(n, d)
    query, _ = blobs(50, d, seed=1)
    z = (x.double() - x.double().mean(0)) / (x.double().std(0, correction=0) + 1e-5)
    q = (query.double() - x.double().mean(0)) / (x.double().std(0, correction=0) + 1e-5)
    y = nn.functional.one_hot(label).double()
    weight = torch.linalg.solve(z.mT @ z + 3.0 * torch.eye(d), z.mT @ (y - y.mean(0)))
    assert torch.equal(ridge(x, label, query, penalty=3.0), (q @ weight + y.mean(0)).argmax(1))


def test_the_penalty_is_the_best_when_each_row_is_left_out():
    """The same as fitting anew without each row, up to the scaling and the intercept, which stay those of all rows."""
    x, label = blobs(24, 10, spread=4.0)
    z = (x.double() - x.double().mean(0)) / (x.double().std(0, correction=0) + 1e-5)
    y = nn.functional.one_hot(label).double()
    ones = torch.cat([z, torch.ones(24, 1)], 1)

    def error(penalty):
        total = 0.0
        for n in range(24):
            rest = torch.arange(24) != n
            free = penalty * torch.eye(11, dtype=torch.float64)
            free[-1, -1] = 0
            weight = torch.linalg.solve(ones[rest].mT @ ones[rest] + free, ones[rest].mT @ y[rest])
            total += (y[n] - ones[n] @ weight).square().sum().item()
        return total

    best = min(PENALTIES, key=error)
    assert PENALTIES[0] < best < PENALTIES[-1]
    query, _ = blobs(200, 10, seed=1, spread=4.0)
    assert torch.equal(ridge(x, label, query, penalty=PENALTIES), ridge(x, label, query, penalty=best))
    assert not torch.equal(ridge(x, label, query, penalty=best), ridge(x, label, query, penalty=PENALTIES[0]))


def test_the_sweep_is_plain_sgd_with_the_rate_that_is_best_on_the_rows_held_out():
    x, label = blobs(120)
    query, truth = blobs(100, seed=1)
    assert accuracy(linear(x, label, query), truth) > 0.85
    chosen, alone = (linear(x, label, query, rates=rates, batch=120) for rates in ((0.0, 0.3), [0.3]))
    assert torch.equal(chosen, alone)  # and not the rate that learns nothing

    z, q = ((v - x.mean(0)) / (x.std(0, correction=0) + 1e-5) for v in (x, query))
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(10):  # one batch of all rows, in whatever order
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(z), label).backward()
        optimizer.step()
        schedule.step()
    assert torch.equal(linear(x, label, query, rates=[0.3], epochs=10, batch=120), layer(q).argmax(1))


class Pairs:
    """Two vectors a thing; the label is known by the first of them after a turn that a linear layer can undo."""

    def __init__(self, count, seed):
        x, self.label = blobs(count, 8, seed=seed)
        self.x = x.unflatten(1, (2, 4))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i]}


def encoder() -> Encoder:
    torch.manual_seed(0)
    return TransformerEncoder(Vectors(4, 16, length=2), dim=16, depth=1, heads=2)


def classes(train=60, test=40):
    a, b = Pairs(train, 0), Pairs(test, 1)
    return Classes(a, a.label, b, b.label, ["a", "b", "c", "d"])


def measured(options=None, of=None, **rest):
    options = options or Probe(
        arms=("input", "random", "scratch", "frozen", "finetune"),
        shots=(1, 5, 99),
        draws=2,
        steps=20,
        lr=1e-2,
        batch=16,
    )
    see = lambda thing: thing["x"]  # noqa: E731
    return probe(of or encoder(), classes(), plain=see, look=see, options=options, **rest)


def test_every_arm_is_measured_at_every_number_of_labels():
    said, of = [], encoder()
    before = {k: v.clone() for k, v in of.state_dict().items()}
    result = measured(of=of, keep=lambda r: said.append(json.dumps(r)))
    assert result["shots"] == ["1", "5", "all"]  # no class has 99
    rows = ("input linear", "random knn", "random linear", "scratch", "frozen knn", "frozen linear", "finetune")
    assert set(result["arms"]) == set(rows)
    for row, cells in result["arms"].items():
        assert {k: len(v) for k, v in cells.items()} == {"1": 2, "5": 2, "all": 2 if row.startswith("random") else 1}
    assert result["arms"]["input linear"]["all"][0] > 0.9
    assert result["arms"]["finetune"]["all"][0] > 0.6
    assert json.loads(said[-1]) == json.loads(json.dumps(result))
    assert all(torch.equal(v, before[k]) for k, v in of.state_dict().items())


def test_an_interrupted_measurement_goes_on_and_another_encoder_begins_anew():
    kept = []
    whole = measured(keep=lambda r: kept.append(json.dumps(r)))
    for one in (kept[3], kept[len(kept) // 2], kept[-2]):
        again = []
        assert measured(begun=json.loads(one), keep=lambda r: again.append(0)) == whole  # noqa: B023
        assert len(again) == len(kept) - kept.index(one) - 1
    other = encoder()
    with torch.no_grad():
        other.embed.project.weight.add_(1.0)  # type: ignore[union-attr,operator]
    assert measured(of=other, begun=json.loads(kept[-1]))["of"] != whole["of"]


def test_labels_are_drawn_for_every_class_and_anew_for_every_draw():
    some = classes()
    first, second = some.drawn(3, 0), some.drawn(3, 1)
    assert some.train_label[first].bincount().tolist() == [3, 3, 3, 3]
    assert sorted(first) != sorted(second)
    assert first == some.drawn(3, 0)
    assert set(some.drawn(1, 0)) <= set(first)  # more labels are more of the same


def test_what_cannot_be_told_apart_is_refused_and_what_was_never_seen_is_told():
    x = Pairs(8, 0)
    one = Classes(x, torch.zeros(8, dtype=torch.long), x, x.label, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"needs two in the training half.*got a and a, b, c, d"):
        one.problems()
    fewer = Classes(x, x.label % 2, x, x.label, ["a", "b", "c", "d"])
    assert fewer.problems() == ["in the test half but not in the training half, so always missed: c, d"]
    with pytest.raises(ValueError, match="shots: labels of each class are a whole number, or a share below 1; got 0"):
        Probe(shots=(0,))
