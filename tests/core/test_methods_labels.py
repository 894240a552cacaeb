"""Supervised, PseudoLabel and FixMatch: the contract, the options, and what their papers say."""

import copy
from functools import partial

import pytest
import torch
from common import check_options, most
from common import single as draw
from torch import Tensor

from partwhole.core.data import Stream, together
from partwhole.core.encoder import First, Max, Vectors
from partwhole.core.losses import consistency, cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.methods.fixmatch import FixMatch
from partwhole.core.methods.pseudo_label import PseudoLabel
from partwhole.core.methods.supervised import Supervised
from partwhole.core.testing import check_method
from partwhole.core.threads import ranks
from partwhole.core.transformer import TransformerEncoder

D, K = 12, 3


def labelled() -> Batch:
    return {"x": draw(6, 9, 3), "label": torch.tensor([0, 2, -1, 1, -1, 2]), "valid": most(6, 9)}


def both() -> Batch:
    return {"labelled": labelled(), "unlabelled": {"x": draw(5, 7, 3, seed=1), "valid": most(5, 7, seed=1)}}


def pairs() -> Batch:
    views = {
        "views": [draw(5, 9, 3, seed=1), draw(5, 7, 3, seed=2)],
        "valid": [most(5, 9, seed=1), most(5, 7, seed=2)],
    }
    return {"labelled": labelled(), "unlabelled": views}


def small(kind: type[Method], **options) -> Method:
    encoder = TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2)
    return kind(encoder, **{"classes": K, **options})


def logits(method: Method, x: Tensor, valid: Tensor) -> Tensor:
    return method.get_submodule("head")(method.encoder(x, valid=valid), valid)


HALF = {"threshold": 0.4}  # of three classes: about half of the things are sure at first
CASES = {
    "supervised": (Supervised, {}, labelled),
    "supervised, smoothed": (Supervised, {"smoothing": 0.1, "pool": Max()}, labelled),
    "pseudo-labels": (PseudoLabel, HALF, both),
    "pseudo-labels of one's own": (PseudoLabel, {**HALF, "momentum": None}, both),
    "fixmatch": (FixMatch, HALF, pairs),
    "fixmatch without average": (FixMatch, {**HALF, "momentum": None}, pairs),
}


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case):
    """P1, P3, P4 over ranks as threads, P14 in half precision, S1, S3, S4, padding: see ``check_method``."""
    kind, options, batch = CASES[case]
    check_method(lambda: small(kind, **options), batch(), ranks=(2, 3, 4))


COMMON = [{}, {"pool": First()}, {"pool": Max()}, {"classes": 4}]
OPTIONS = {
    "supervised": (Supervised, labelled, [*COMMON, {"smoothing": 0.1}]),
    "pseudo-labels": (
        PseudoLabel,
        both,
        [
            *({**HALF, **o} for o in COMMON),
            {},
            {**HALF, "weight": 2.0},
            {**HALF, "rise": 0.9},
            {**HALF, "momentum": None},
        ],
    ),
    "fixmatch": (FixMatch, pairs, [*({**HALF, **o} for o in COMMON), {}, {**HALF, "weight": 2.0}]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_P11_every_option_changes_the_loss(case):
    kind, batch, options = OPTIONS[case]
    check_options(partial(small, kind), batch(), options, steps=6, rate=0.1)


# ------------------------------------------------------------------ what the papers say


def test_supervised_is_cross_entropy_on_known_labels_and_tells_its_accuracy():
    method, batch = small(Supervised, smoothing=0.1), labelled()
    y, label = logits(method, batch["x"], batch["valid"]), batch["label"]
    out, known = method(batch), label >= 0
    assert out["loss"].item() == pytest.approx(cross_entropy(y[known], label[known], smoothing=0.1).item(), rel=1e-5)
    assert out["items"].item() == 4
    assert out["accuracy"].item() == pytest.approx((y.argmax(1) == label)[known].double().mean().item())
    nothing = method({**batch, "label": torch.full((6,), -1)})
    assert (nothing["loss"].item(), nothing["accuracy"].item(), nothing["items"].item()) == (0, 0, 0)


def test_the_accuracy_over_ranks_is_that_of_one_process():
    torch.manual_seed(0)
    method, batch = small(Supervised).double(), labelled()
    batch["x"] = batch["x"].double()
    copies = [method, copy.deepcopy(method)]
    expected = method(batch)["accuracy"].item()
    pieces = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 5), slice(5, 6))]
    with ranks(2) as run:
        got = run(lambda r: copies[r](pieces[r])["accuracy"].item())
    assert sum(got) / 2 == pytest.approx(expected)


def test_pseudo_labels_are_the_teachers_and_their_weight_rises():
    torch.manual_seed(0)
    method, batch = small(PseudoLabel, **HALF, weight=3.0, rise=0.5, momentum=0.9), both()
    few, many = batch["labelled"], batch["unlabelled"]
    teacher = method.get_submodule("teacher")
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    supervised = cross_entropy(logits(method, few["x"], few["valid"]), few["label"])
    mine, theirs = logits(method, many["x"], many["valid"]), teacher(many["x"], many["valid"])
    taught = consistency(theirs, mine, threshold=0.4)
    assert taught["loss"].item() != pytest.approx(consistency(mine, mine, threshold=0.4)["loss"].item(), rel=1e-3)
    before = [p.clone() for p in teacher.parameters()]
    assert method(batch)["loss"].item() == pytest.approx(supervised.item(), rel=1e-5), "at first labels alone"
    method.after_step(0.25)
    out = method(batch)
    assert out["sure"].item() == pytest.approx(taught["share"].item(), abs=0.21), "the teacher moved a little"
    assert method.get_buffer("reached").item() == 0.5
    student = [*method.encoder.parameters(), *method.get_submodule("head").parameters()]
    for p, old, mine_now in zip(teacher.parameters(), before, student, strict=True):
        assert torch.allclose(p, 0.9 * old + 0.1 * mine_now, atol=1e-6)
    now = consistency(teacher(many["x"], many["valid"]), mine, threshold=0.4)["loss"]
    assert out["loss"].item() == pytest.approx((supervised + 1.5 * now).item(), rel=1e-4)
    method.after_step(0.8)
    assert method.get_buffer("reached").item() == 1


def test_fixmatch_teaches_the_strong_view_by_the_weak_one():
    torch.manual_seed(0)
    method, batch = small(FixMatch, **HALF, weight=2.0), pairs()
    few, many = batch["labelled"], batch["unlabelled"]
    supervised = cross_entropy(logits(method, few["x"], few["valid"]), few["label"])
    weak, strong = (logits(method, x, v) for x, v in zip(many["views"], many["valid"], strict=True))
    guessed = consistency(weak, strong, threshold=0.4)
    out = method(batch)
    assert out["sure"].item() == pytest.approx(guessed["share"].item())
    assert 0 < guessed["share"] < 1
    assert out["loss"].item() == pytest.approx((supervised + 2 * guessed["loss"]).item(), rel=1e-5)
    expected = torch.autograd.grad(supervised + 2 * guessed["loss"], list(method.encoder.parameters()))
    got = torch.autograd.grad(out["loss"], list(method.encoder.parameters()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True)), "the weak view is constant"


def test_fixmatchs_average_follows_and_gives_logits():
    torch.manual_seed(0)
    method, batch = small(FixMatch, momentum=0.75), labelled()
    average = method.get_submodule("average")
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for p in [*method.encoder.parameters(), *method.get_submodule("head").parameters()]:
            p.add_(1)
    method.after_step(0.5)
    assert all(torch.allclose(p, old + 0.25, atol=1e-5) for p, old in zip(average.parameters(), before, strict=True))
    assert average(batch["x"], batch["valid"]).shape == (6, K)
    assert "average.chain.1.net.weight" in method.state_dict()
    assert small(FixMatch, momentum=None).average is None


def clusters(count: int, seed: int) -> list[dict]:
    """Things about three far points, one in thirty labelled."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        center = 2.0 * torch.eye(3)[i % 3]
        out.append({"x": center + torch.randn(9, 3, generator=g), "label": i % 3})
    return out


@pytest.mark.parametrize("kind", [PseudoLabel, FixMatch])
def test_unlabelled_things_are_learned_from(kind):
    """Streams joined by ``together``; guessed labels come to be sure, and right on things never labelled."""

    def view(sample: dict) -> dict:
        x = sample["x"]
        strong = x + torch.randn_like(x)
        return {"views": [x, strong]} if kind is FixMatch else {"x": strong}

    torch.manual_seed(0)
    method = small(kind, threshold=0.8, momentum=0.9)
    few = Stream(clusters(6, 0), lambda s: s, batch=6)
    stream = together(labelled=few, unlabelled=Stream(clusters(60, 1), view, batch=20))
    optimizer, sure = torch.optim.Adam(method.parameters(), lr=3e-3), []
    for step, batch in zip(range(60), stream(0), strict=False):
        out = method(batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 60)
        sure.append(out["sure"].item())
    assert sum(sure[:5]) / 5 < 0.5 < 0.8 < sum(sure[-5:]) / 5
    fresh = clusters(60, 2)
    x, label = torch.stack([s["x"] for s in fresh]), torch.tensor([s["label"] for s in fresh])
    method.eval()
    right = (logits(method, x, torch.ones(60, 9).bool()).argmax(1) == label).double().mean().item()
    assert right > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(FixMatch)({**both(), "unlabelled": {"views": [draw(2, 9, 3)]}}), "a weak and a strong view"),
        (lambda: small(PseudoLabel, rise=0.0), "above 0 to 1; got 0.0"),
        (lambda: small(Supervised)({**labelled(), "label": torch.zeros(5).long()}), r"label \(...\) are needed"),
    ],
)
def test_what_cannot_be_is_told_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()
