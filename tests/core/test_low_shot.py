"""Few labels: how they are drawn, how features are read with them, and how that is shown."""

import math
import re

import pytest
import torch
from torch import nn

from partwhole.core import probe_report
from partwhole.core.encoder import Wrapped
from partwhole.core.evaluate import accuracy, linear
from partwhole.core.probe import Classes, Probe, probe
from partwhole.core.report import Page


def blobs(sizes, seed=0):
    """Things of as many classes as there are sizes, told apart by where they lie."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    centre = 2 * torch.randn(len(sizes), 6, generator=torch.Generator().manual_seed(9))
    return centre[label] + torch.randn(len(label), 6, generator=generator), label


def classes(sizes=(40, 200, 4)):
    (x, y), (test, truth) = blobs(sizes), blobs((20, 20, 20), seed=1)
    return Classes(x, y, test, truth, ["a", "b", "c"])


def same(x):
    return x


def measured(encoder=None, options=None, **rest):
    options = options or Probe(arms=("input", "frozen"), shots=(5, 0.1, 1, 0.01), draws=2)
    encoder = encoder or Wrapped(nn.Identity(), 6)
    return probe(encoder, classes(), plain=same, look=same, options=options, **rest)


@pytest.mark.parametrize(("share", "counts"), [(0.01, [1, 2, 1]), (0.1, [4, 20, 1]), (0.5, [20, 100, 2])])
def test_a_share_is_of_each_class_and_at_least_one_thing(share, counts):
    some = classes()
    rows = some.drawn(share, 0)
    assert some.train_label[rows].bincount().tolist() == counts
    assert len(set(rows)) == len(rows)
    assert set(rows) != set(some.drawn(share, 1))
    assert rows == some.drawn(share, 0)
    assert set(some.drawn(1, 0)) <= set(rows)


def test_columns_are_in_the_order_of_their_labels_and_named_as_people_name_them():
    result = measured()
    assert result["labels"] == {"1": 3, "0.01": 4, "5": 14, "0.1": 25, "all": 244}
    assert result["shots"] == list(result["labels"])
    table = probe_report.table(result, "Ours")
    assert re.split(r"  +", table.splitlines()[0].strip()) == [
        "accuracy",
        "k = 1",
        "1 %",
        "k = 5",
        "10 %",
        "all labels",
    ]
    page = Page("x")
    html = probe_report.section(page, result, "Ours").html()
    assert "<th" in html
    assert "10 %" in html
    chart = probe_report.low_shot(result, "Ours")
    x = [float(v) for v in re.findall(r'<path class="dot" d="M([\d.]+) [^>]*><title>', chart)]
    assert len(x) == 2 * 5  # the input, and ours
    assert x[:5] == sorted(x[:5])


def test_every_arm_is_one_line_with_its_spread():
    result = {
        "shots": ["1", "10", "all"], "labels": {"1": 4, "10": 40, "all": 4000}, "classes": list("abcd"), "problems": [],
        "test": 9, "train": 4000,
        "arms": {row: {"1": [0.1, 0.3], "10": [0.4, 0.5], "all": [0.9]} for row in probe_report.ROWS},
    }  # fmt: skip
    chart = probe_report.low_shot(result, "Ours")
    names = re.findall(r'class="key">.*?</svg>(.*?)</span>', chart)
    assert names == [
        "the input itself, linear layer",
        "random network, linear layer",
        "random network, all of it trained",
        "Ours, linear layer",
        "Ours, then all of it trained",
    ]
    assert chart.count('class="band"') == 5
    assert ">1,000<" in chart  # all labels: so many of each class
    del result["arms"]["frozen linear"]
    assert "Ours, linear layer by SGD" in probe_report.low_shot(result, "Ours")


@pytest.mark.parametrize("k", [0, -1, 2.5, 0.0, math.inf, math.nan])
def test_a_number_of_labels_that_is_none_is_refused(k):
    with pytest.raises(ValueError, match=r"shots: labels of each class are a whole number, or a share below 1; got"):
        Probe(shots=(k,))


def test_the_readouts_that_are_asked_for_are_measured_alike_on_every_arm():
    options = Probe(arms=("input", "frozen"), shots=(5,), draws=2, readouts=("sgd", "knn"))
    result = measured(options=options)
    assert list(result["arms"]) == ["input sgd", "frozen sgd", "frozen knn"]
    assert result["arms"]["input sgd"] == result["arms"]["frozen sgd"]  # the identity
    some = classes()
    for d in range(2):
        rows = some.drawn(5, d)
        found = linear(some.train[rows], some.train_label[rows], some.test, seed=d)
        assert result["arms"]["frozen sgd"]["5"][d] == accuracy(found, some.test_label)
    assert "linear layer by SGD: " in probe_report.summary(result, "Ours")
    with pytest.raises(ValueError, match="readouts are knn, ridge or sgd"):
        Probe(readouts=())


def test_things_to_learn_from_can_be_given():
    rows = [0, 1, 50, 51, 241, 242]
    options = Probe(arms=("frozen",), draws=1)
    result = measured(options=options, supports={"2": [rows]})
    assert result["shots"] == ["2"]
    assert result["labels"] == {"2": 6}
    assert result["arms"]["frozen linear"].keys() == {"2"}


def test_any_function_of_x_can_be_measured_but_for_random_networks_like_it():
    arms = measured(Wrapped(lambda x: 2 * x, 6))["arms"]
    assert arms["frozen linear"] == arms["input linear"]
    assert arms["frozen linear"]["all"][0] > 0.6
    with pytest.raises(
        TypeError, match=r"random and scratch need a network like .*Linear is neither.*leave them out of arms"
    ):
        measured(Wrapped(nn.Linear(6, 6), 6), Probe(arms=("scratch", "random", "frozen")))
    with pytest.raises(ValueError, match=r"<lambda> gave \(64, 6\): tokens"):
        measured(Wrapped(lambda x: x, 7))
