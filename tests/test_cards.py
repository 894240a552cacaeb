"""docs/methods.md: a card for every task, with all its parts, and pinned values that are those of our code.

Each value is computed three times: by ``by_hand`` from the paper, by the expression that the card shows, and, where
networks can be left out, by the method itself; a fourth time by other libraries where they are installed.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import losses
from partwhole.core.catalog import METHODS
from partwhole.core.encoder import Encoder, Head, Vectors
from partwhole.core.methods import (
    BYOL,
    DINO,
    BarlowTwins,
    DeepCluster,
    FixMatch,
    LeJEPA,
    MoCo,
    OBoW,
    PseudoLabel,
    SimCLR,
    SimSiam,
    Supervised,
    SwAV,
    VICReg,
)
from partwhole.core.teacher import Teacher
from partwhole.core.tokenizer import Tokenizer
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.acd import ComponentContrast
from partwhole.shape3d.recipe import ShapeRecipe
from partwhole.shape3d.tasks import TASKS

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
CARDS = {found[1]: found[0] for found in re.finditer(r"^## ([\w-]+): .*?(?=^## |\Z)", PAGE, re.M | re.S)}


def wave(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    return function(torch.arange(1, count + 1, dtype=torch.float64).square()).view(shape)


def s(*shape: int) -> Tensor:
    return wave(torch.sin, shape)


def c(*shape: int) -> Tensor:
    return wave(torch.cos, shape)


def pinned(card: str) -> list[tuple[str, float]]:
    """Each ``>>>`` of a card that a number follows, with all lines before it, and that number."""
    lines, found = card.splitlines(), []
    code: list[str] = []
    for line in lines:
        if line.startswith("    >>> "):
            code.append(line[8:])
        elif code and (number := re.fullmatch(r"    (-?\d+\.\d{6,})", line)):
            found.append(("\n".join(code), float(number[1])))
            code.pop()  # what was shown; names stay
    return found


def computed(code: str) -> float:
    """The value of the last line, after the others."""
    names: dict[str, Any] = {"s": s, "c": c, "torch": torch, "F": F, **{n: getattr(losses, n) for n in losses.__all__}}
    *before, last = code.splitlines()
    exec("\n".join(before), names)
    return float(eval(last, names))


def off(card: str) -> list[str]:
    """What of a card's pinned values our code does not give."""
    return [f"{code}: {value}" for code, value in pinned(card) if computed(code) != pytest.approx(value, rel=1e-9)]


# ------------------------------------------------------------------ the page


def test_there_is_a_card_for_every_task_in_their_order():
    assert list(CARDS) == [*METHODS, "acd"]
    assert set(CARDS) == set(TASKS)


@pytest.mark.parametrize("task", CARDS)
def test_a_card_has_all_its_parts(task):
    card = CARDS[task]
    title = card.splitlines()[0]
    assert re.search(r"\b(19|20)\d\d\b", title), "the year"
    assert re.search(r"arXiv:\d{4}\.\d{5}|no arXiv", title), "where the paper is"
    parts = ("Predicted: ", "\n    ", "Deviations: ", "Pinned:", ">>> ", "Run: ", "Measured: ")
    assert [card.index(part) for part in parts] == sorted(card.index(part) for part in parts)
    assert f"`python tools/run.py --modality shape3d --task {task}`" in card
    assert pinned(card)


@pytest.mark.parametrize("task", CARDS)
def test_a_card_says_the_default_of_every_option_of_its_own(task):
    shared = {field.name for field in dataclasses.fields(ShapeRecipe)} | {"crops"}  # said once, before the cards
    card = CARDS[task].replace("\n", " ")
    for field in dataclasses.fields(TASKS[task]):
        assert field.name in shared or f"`{field.name}` {field.default}" in card, field.name


@pytest.mark.parametrize("task", CARDS)
def test_what_was_measured_is_what_the_readme_says(task):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{task}`[^|]*\| ([^|]+) \| ([^|]+) \|$", readme, re.M)
    assert "Measured: on shapes part IoU {}, category {}".format(*row) in CARDS[task].replace("\n", " ")


@pytest.mark.parametrize("task", CARDS)
def test_pinned_values_are_those_of_our_losses(task):
    assert not off(CARDS[task])


@pytest.mark.parametrize("task", CARDS)
def test_pinned_values_are_those_of_plain_arithmetic(task, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    by_hand = importlib.import_module("by_hand")
    expected = getattr(by_hand, task.replace("-", "_"))()
    assert [value for _, value in pinned(CARDS[task])] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", CARDS)
def test_an_altered_value_is_noticed(task):
    for _, value in pinned(CARDS[task]):
        assert off(CARDS[task].replace(f"{value:.10f}", f"{value + 1e-6:.10f}"))


# ------------------------------------------------------------------ methods whose networks change nothing


class AsIs(Encoder):
    """The input is the tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        return x


def bare(method: Any, **state: Tensor) -> Any:
    """The method in float64 and in evaluation, without heads, and with this state."""
    for name in ("head", "predict", "weigh"):
        net = getattr(method, name, None)
        if isinstance(net, Head):
            net.net = nn.Identity()
        elif net is not None:
            setattr(method, name, nn.Identity())
    if getattr(method, "teacher", None) is not None:
        method.teacher = Teacher(method.encoder, *([method.head] if hasattr(method, "head") else []))
    method.double().eval()
    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    for name, value in state.items():
        tensors[name.replace("__", ".")].data.copy_(value)
    return method


def views(x: Tensor, large: int = 2) -> dict[str, Any]:
    """Vectors (S, B, D), or tokens (S, B, L, D), as a batch."""
    rows = list(x if x.ndim == 4 else x[:, :, None])
    return {"views": rows[:large], "crops": rows[large:]}


def some(x: Tensor, **more: Any) -> dict[str, Any]:
    return {"x": x[:, None], **more}


small = {"hidden": 2, "dim": 3}
labelled = some(s(4, 3), label=torch.tensor([0, 2, -1, 1]))
clusters = F.normalize(c(5, 2), dim=-1)
components = {"views": [s(2, 6, 3)], "component": [torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 0, 0, 1]])]}
RUNS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "simclr": lambda: (bare(SimCLR(AsIs(3), **small)), views(s(2, 4, 3))),
    "moco": lambda: (
        bare(MoCo(AsIs(3), queue=5, **small), queue__rows=c(9, 3)[4:]),
        views(torch.stack([s(4, 3), c(9, 3)[:4]])),
    ),
    "byol": lambda: (bare(BYOL(AsIs(3), **small)), views(s(2, 4, 3))),
    "simsiam": lambda: (bare(SimSiam(AsIs(3), **small)), views(c(2, 4, 3))),
    "swav": lambda: (bare(SwAV(AsIs(2), prototypes=5, dim=2, frozen=0.0), prototypes=clusters), views(s(3, 4, 2))),
    "deepcluster": lambda: (
        bare(
            DeepCluster(AsIs(2), things=5, every=1, prototypes=5, heads=1, dim=2),
            prototypes=clusters, cluster=torch.tensor([[0, 2, 2, -1, -1]]),
        ),
        {**views(s(3, 4, 2)), "index": torch.arange(4)},
    ),
    "obow": lambda: (
        bare(OBoW(AsIs(2), words=5), words__rows=s(5, 2), distance__value=torch.tensor([4.5])), views(c(3, 2, 4, 2))
    ),
    "barlow": lambda: (bare(BarlowTwins(AsIs(3), **small)), views(torch.stack([s(6, 3), c(6, 3)]))),
    "vicreg": lambda: (bare(VICReg(AsIs(3), **small)), views(torch.stack([s(6, 3), c(6, 3)]))),
    "lejepa": lambda: (bare(LeJEPA(AsIs(3), slices=4, **small), directions=c(3, 4)), views(s(3, 6, 3))),
    "dino": lambda: (bare(DINO(AsIs(5), prototypes=5), targets__center__value=c(5)), views(s(3, 4, 5))),
    "supervised": lambda: (bare(Supervised(AsIs(3), classes=3)), labelled),
    "pseudo-label": lambda: (
        bare(PseudoLabel(AsIs(3), classes=3, threshold=0.5, momentum=None), reached=torch.tensor(0.5)),
        {"labelled": labelled, "unlabelled": some(c(5, 3))},
    ),
    "fixmatch": lambda: (
        bare(FixMatch(AsIs(3), classes=3, momentum=None)),
        {"labelled": labelled, "unlabelled": views(torch.stack([4 * s(5, 3), c(5, 3)]))},
    ),
    "acd": lambda: (bare(ComponentContrast(AsIs(3), dim=3)), components),
}  # fmt: skip


@pytest.mark.parametrize("task", RUNS)
def test_a_method_whose_networks_change_nothing_gives_the_pinned_value(task):
    method, batch = RUNS[task]()
    (_, value), *_ = pinned(CARDS[task])
    assert method(batch)["loss"].item() == pytest.approx(value, rel=1e-6)  # a temperature is kept in float32


def snippet(card: str) -> str:
    """The code under "Run", for a loop of one's own; nothing where there is none."""
    return "\n".join(re.findall("^    (.*)", card[card.index("\nRun: ") :], re.M))


@pytest.mark.parametrize("task", [task for task, card in CARDS.items() if snippet(card)])
def test_what_a_card_shows_of_a_loop_of_ones_own_runs(task):
    torch.manual_seed(0)
    x, hidden = torch.randn(9, 8, 3), torch.arange(8).expand(9, -1) < 4
    names: dict[str, Any] = {
        **vars(importlib.import_module("partwhole.core.methods")),
        **vars(importlib.import_module("partwhole.core.data")),
        **vars(importlib.import_module("partwhole.core.masks")),
        "torch": torch, "Tokenizer": Tokenizer, "progress": 1.0, "steps_of_an_epoch": 1,
        "x": x, "hidden": hidden, "samples": list(x), "few": list(x[:5]), "batches": x.split(3),
        "encoder": TransformerEncoder(Vectors(3, 8, length=8), dim=8, depth=1, heads=2),
        "seen": lambda one: {"x": one, "label": torch.tensor(1)}, "weak_and_strong": lambda one: {"views": [one, -one]},
    }  # fmt: skip
    exec(snippet(CARDS[task]), names)
    assert names["loss"].isfinite()


# ------------------------------------------------------------------ other libraries, where they are installed


def both_ways(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
    return (loss(z[0], z[1]) + loss(z[1], z[0])) / 2


def with_queue(lightly: Any) -> Tensor:
    loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(5, 3))
    loss.memory_bank.bank = F.normalize(c(9, 3)[4:], dim=-1)
    return loss(s(4, 3), c(9, 3)[:4])


def prototypes(lightly: Any) -> Tensor:
    score = F.normalize(s(3, 4, 2), dim=-1) @ clusters.mT
    return lightly.SwaVLoss(temperature=0.1)(list(score[:2]), list(score[2:]))


def normality(lightly: Any) -> Tensor:
    loss = lightly.LeJEPALoss(lambda_param=0.05)
    loss.sigreg._generate_unit_vectors = lambda *_: F.normalize(c(3, 4), dim=0)
    return loss(local_proj=s(3, 6, 3)[2:], global_proj=s(3, 6, 3)[:2])


def whole(lightly: Any) -> Tensor:
    loss = lightly.DINOLoss(output_dim=5, teacher_temp=0.04).double()
    loss.center = c(1, 1, 5)
    return loss(list(s(3, 4, 5)[:2]), list(s(3, 4, 5)))


def and_hidden(lightly: Any) -> Tensor:
    loss = lightly.IBOTPatchLoss(output_dim=5, teacher_temp=0.04).double()
    loss.center.center = c(1, 5)
    hidden = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    return whole(lightly) + loss(c(6, 5), s(6, 5), hidden[:, None])


OTHERS: list[tuple[str, str, Callable[[Any], Tensor]]] = [
    ("simclr", "lightly", lambda of: of.NTXentLoss(temperature=0.1)(*s(2, 4, 3))),
    ("simclr", "pytorch_metric_learning", lambda of: of.SelfSupervisedLoss(of.NTXentLoss(0.1))(*s(2, 4, 3))),
    ("moco", "lightly", with_queue),
    ("byol", "lightly", lambda of: both_ways(of.NegativeCosineSimilarity(), s(2, 4, 3))),
    ("simsiam", "lightly", lambda of: both_ways(of.NegativeCosineSimilarity(), c(2, 4, 3))),
    ("swav", "lightly", prototypes),
    ("barlow", "lightly", lambda of: of.BarlowTwinsLoss(lambda_param=0.0051)(s(6, 3), c(6, 3))),
    ("vicreg", "lightly", lambda of: of.VICRegLoss()(s(6, 3), c(6, 3))),
    ("lejepa", "lightly", normality),
    ("dino", "lightly", whole),
    ("ibot", "lightly", and_hidden),
]
LOSSES = {"lightly": "lightly.loss", "pytorch_metric_learning": "pytorch_metric_learning.losses"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "library", "loss"), OTHERS, ids=[f"{task}-{library}" for task, library, _ in OTHERS])
def test_other_libraries_give_the_pinned_value(task, library, loss):
    pytest.importorskip(library)
    (_, value), *_ = pinned(CARDS[task])
    assert loss(importlib.import_module(LOSSES[library])).item() == pytest.approx(value, rel=1e-6)


def test_the_page_names_the_libraries_that_give_its_values():
    named = {
        (task, library)
        for task, card in CARDS.items()
        for library in LOSSES
        if re.search(library.replace("_", "-") + r" \d", card)
    }
    assert named == {(task, library) for task, library, _ in OTHERS}
