"""Few-shot protocol: supports, coverage of every point, what is restricted, and a linear layer that can be trusted."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from partwhole.core.encoder import Encoder
from partwhole.shape3d.classify import svm_accuracy
from partwhole.shape3d.fewshot import FewShot, draw, few_shot, test_iou
from partwhole.shape3d.labelled import generated
from partwhole.shape3d.pointnet2 import PointNet2
from partwhole.shape3d.segment import SegmentParts, linear_probe, predict, rows
from partwhole.shape3d.views import Augment

test_iou.__test__ = False  # a function under test, not a test
AUGMENT = Augment(points=32, rotate="none", scale=(1.0, 1.0), shift=0.0)


class Place(Encoder):
    """The place of a point is its feature: halves of space are linearly separable."""

    def __init__(self, dim: int = 3):
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(3, dim)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return self.mix(x[..., :3])


@dataclasses.dataclass
class Halves:
    """Labelled-like: category 0 is cut along x, category 1 along y; shapes differ in their number of points."""

    count: int = 6
    categories: tuple = ("along-x", "along-y")
    official: bool = False
    note: str = "halves"

    def __post_init__(self):
        self.category = [i % 2 for i in range(self.count)]
        self.names = [f"shape-{i}" for i in range(self.count)]
        self.split = [
            ("test" if i >= self.count - 4 else "train") if self.official else None for i in range(self.count)
        ]
        self.part_mask = torch.tensor([[True, True, False, False], [False, False, True, True]])

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        points = torch.rand(40 + 7 * i, 3, generator=torch.Generator().manual_seed(i)) * 2 - 1
        c = self.category[i]
        return {
            "points": points,
            "normals": torch.zeros_like(points),
            "part": (points[:, c] > 0).long() + 2 * c,
            "category": torch.tensor(c),
        }


def test_supports_are_nested_seeded_and_apart_from_the_tests():
    options = FewShot(shots=(1, 2), draws=3, test=2)
    labelled = Halves(12)
    for d in range(3):
        one, again = draw(labelled, options, d), draw(labelled, options, d)
        assert one == again
        assert set(one.support[1]) <= set(one.support[2])
        assert not set(one.support[2]) & set(one.test)
        assert [sum(labelled.category[i] == c for i in one.support[2]) for c in (0, 1)] == [2, 2]
    assert draw(labelled, options, 0) != draw(labelled, options, 1)


def test_the_official_test_shapes_are_the_ones_that_are_tested():
    labelled = Halves(12, official=True)
    one = draw(labelled, FewShot(shots=(1, 2)), 0)
    assert sorted(one.test) == [8, 9, 10, 11]
    assert all(i < 8 for i in one.support[2])


def test_a_k_larger_than_the_shapes_there_are_is_told_and_the_rest_goes_on():
    one = draw(Halves(6), FewShot(shots=(1, 10), test=1), 0)
    assert list(one.support) == [1]
    assert any("k = 10 is not measured" in problem for problem in one.problems)


def test_a_category_with_one_shape_is_told_and_left_out():
    labelled = Halves(5)
    labelled.category = [0, 0, 0, 0, 1]
    one = draw(labelled, FewShot(shots=(1,), test=2), 0)
    assert any(problem.startswith("along-y: 1 shape(s)") for problem in one.problems)
    assert 4 not in one.test
    assert 4 not in one.support[1]


def test_nothing_to_measure_is_an_error_that_says_why():
    labelled = Halves(2)
    with pytest.raises(ValueError, match="too few to label one and test on another"):
        few_shot(Place(), labelled, AUGMENT, FewShot(shots=(1,), draws=1))  # type: ignore[arg-type]


def test_categories_that_a_set_knows_of_and_does_not_have_are_not_problems():
    labelled = Halves(8, categories=("along-x", "along-y", "along-z"))
    assert draw(labelled, FewShot(shots=(1,), test=2), 0).problems == []


@pytest.mark.parametrize("wrong", [{"shots": ()}, {"shots": (0, 1)}, {"draws": 0}, {"test": 0}, {"arms": ()}])
def test_options_that_measure_nothing_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FewShot(**wrong)


def test_classification_needs_two_categories_in_a_support_and_takes_the_largest_that_has_them():
    labelled = Halves(12)
    labelled.category = [0] * 8 + [1] * 4
    one = draw(labelled, FewShot(shots=(1, 2, 3, 5), test=1), 0)  # only along-x has five to label
    assert {labelled.category[i] for i in one.support[5]} == {0}
    accuracy = svm_accuracy(Place(), labelled, [one], AUGMENT, seed=0)  # type: ignore[arg-type]
    assert [len(values) for values in accuracy.values()] == [1, 1]
    labelled.category = [0] * 11 + [1]  # and now along-y has none
    alone = draw(labelled, FewShot(shots=(1, 3), test=1), 0)
    assert svm_accuracy(Place(), labelled, [alone], AUGMENT, seed=0) == {}  # type: ignore[arg-type]


def test_rows_cover_every_point_of_every_shape():
    labelled = Halves(5)
    covered = [set() for _ in range(5)]
    for which, indices, x in rows(labelled, AUGMENT, torch.device("cpu"), batch=3):
        assert x.shape[1:] == (32, 3)
        for i, index, row in zip(which, indices, x, strict=True):
            covered[i] |= set(index.tolist())
            assert torch.equal(row, labelled[i]["points"][index])
    assert [len(c) for c in covered] == [len(labelled[i]["points"]) for i in range(5)]


def test_linear_probe_separates_what_is_linear_and_keeps_the_encoder():
    labelled = Halves(8)
    encoder = Place()
    before = encoder.mix.weight.clone()
    method = linear_probe(encoder, [labelled[i] for i in range(4)], labelled.part_mask, AUGMENT)
    predictions = dict(enumerate(predict(method, [labelled[i] for i in range(8)], AUGMENT)))
    assert test_iou(predictions, labelled)["category_iou"] > 0.85
    assert torch.equal(before, encoder.mix.weight)
    assert torch.equal(before, method.encoder.mix.weight)


def test_a_category_is_never_given_another_categorys_part():
    labelled = Halves(4)
    method = SegmentParts(Place(), labelled.part_mask)
    nn.init.constant_(method.head.bias, 0)
    method.head.bias.data[3] = 1e6
    for i, part in enumerate(predict(method, [labelled[i] for i in range(4)], AUGMENT)):
        assert set(part.tolist()) <= ({0, 1} if labelled.category[i] == 0 else {2, 3})


def test_unlabelled_points_do_not_count():
    labelled = Halves(2)
    sample = labelled[0]
    right = sample["part"].clone()
    half = Halves(2)
    half.__class__ = type(
        "Partly",
        (Halves,),
        {"__getitem__": lambda self, i: {**sample, "part": torch.where(torch.arange(len(right)) < 20, right, -1)}},
    )
    wrong_where_unlabelled = torch.where(torch.arange(len(right)) < 20, right, 1 - right)
    assert test_iou({0: wrong_where_unlabelled}, half)["shape_iou"] == 1.0


def test_few_shot_measures_every_arm_and_beats_chance_where_the_task_is_easy():
    labelled = Halves(12)
    seen, kept = [], []
    options = FewShot(
        shots=(1, 2), draws=2, arms=("random", "scratch", "linear", "finetune"), steps=30, test=2, lr=0.05
    )
    result = few_shot(Place(), labelled, AUGMENT, options, look=seen.append, keep=lambda r: kept.append(r["complete"]))
    assert set(result["arms"]) == {"random", "scratch", "linear", "finetune"}
    for cells in result["arms"].values():
        assert [len(cells[k]["category_iou"]) for k in ("1", "2")] == [2, 2]
        assert all(v > 0.6 for v in cells["2"]["category_iou"])
    assert len(seen) == 2 * 2 * 4
    assert kept == [False] * 16 + [True]  # after every network, so that an interruption loses little
    assert result["supports"][0]["1"][0].startswith("shape-")


def test_few_shot_with_one_seed_is_one_result():
    options = FewShot(shots=(1,), draws=1, arms=("scratch",), steps=5, test=2)
    a, b = (few_shot(Place(), Halves(8), AUGMENT, options)["arms"] for _ in range(2))
    assert a == b


def test_joint_without_its_method_says_what_to_do():
    with pytest.raises(ValueError, match="pass joint="):
        few_shot(Place(), Halves(8), AUGMENT, FewShot(arms=("joint",)))


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_measurement_goes_on_and_ends_the_same(after):
    options = FewShot(shots=(1, 2), draws=2, arms=("random", "scratch"), steps=3, test=2)
    torch.manual_seed(0)
    encoder, labelled = Place(), Halves(8)
    whole = few_shot(encoder, labelled, AUGMENT, options)
    kept, seen = [], []

    def keep(results):
        kept.append(json.loads(json.dumps(results)))
        if len(kept) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        few_shot(encoder, labelled, AUGMENT, options, keep=keep)
    assert all(cell["category_iou"] for cells in kept[-1]["arms"].values() for cell in cells.values())
    again = few_shot(encoder, labelled, AUGMENT, options, begun=kept[-1], look=seen.append)
    assert again == whole
    assert len(seen) == 8 - after


@pytest.mark.parametrize("change", ["weights", "options", "complete"])
def test_a_measurement_of_something_else_is_not_gone_on_with(change):
    options = FewShot(shots=(1,), draws=1, arms=("random",), test=2)
    encoder, labelled = Place(), Halves(8)
    begun = few_shot(encoder, labelled, AUGMENT, options)
    begun["complete"] = change == "complete"
    if change == "weights":
        encoder.mix.weight.data += 1
    if change == "options":
        options = dataclasses.replace(options, penalty=0.1)
    seen = []
    few_shot(encoder, labelled, AUGMENT, options, begun=begun, look=seen.append)
    assert len(seen) == 1


def test_two_processes_measure_what_one_does():
    """In order, though cells end in another order: training from scratch takes longer than a linear layer."""
    labelled = generated(10, points=64, categories=("lamp", "chair"))
    torch.manual_seed(0)
    encoder = PointNet2(width=0.05, samples=(16, 4), neighbours=0.1, dim=8).eval()
    options = FewShot(shots=(1, 2), draws=2, arms=("scratch", "linear"), steps=3, test=2)
    one, two = [], []
    alone = few_shot(encoder, labelled, AUGMENT, options, look=one.append)
    side = few_shot(encoder, labelled, AUGMENT, options, look=two.append, processes=2)
    assert side["arms"] == alone["arms"]
    assert [(s.arm, s.k, s.draw) for s in two] == [(s.arm, s.k, s.draw) for s in one]
