"""Every method passes ``check_method``; every option does something; each does what its paper says."""

import copy

import pytest
import torch
from common import check_options, coin, most, train
from common import single as draw
from torch import Tensor

from partwhole.core import distributed
from partwhole.core.encoder import First, Max, Vectors
from partwhole.core.losses import info_nce, masked_mse, negative_cosine
from partwhole.core.method import Batch, Joint
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.dino import DINO
from partwhole.core.methods.mae import MAE
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.schedules import cosine
from partwhole.core.testing import check_method
from partwhole.core.threads import ranks
from partwhole.core.transformer import TransformerEncoder

D = 12


def encoder(channels: int = 3) -> TransformerEncoder:
    return TransformerEncoder(Vectors(channels, D, length=9), dim=D, depth=1, heads=2)


def views(count: int = 2, batch: int = 5) -> Batch:
    """Views of unequal lengths, with padding."""
    lengths = [9, 9, 7, 9][:count]
    return {
        "views": [draw(batch, n, 3, seed=i) for i, n in enumerate(lengths)],
        "valid": [most(batch, n, seed=10 + i) for i, n in enumerate(lengths)],
    }


def crops() -> Batch:
    small = {
        "crops": [draw(5, n, 3, seed=20 + n) for n in (4, 4, 6)],
        "crops_valid": [most(5, n) for n in (4, 4, 6)],
    }
    return {**views(), **small}


def masked() -> Batch:
    valid = coin(5, 9, chance=0.8)
    valid[0] = True
    hidden = coin(5, 9, chance=0.6, seed=1)
    hidden[1] = True  # a row that shows nothing, and one that hides nothing
    hidden[2] = False
    return {"x": draw(5, 9, 3), "hidden": hidden, "valid": valid}


def simclr(**options) -> SimCLR:
    return SimCLR(encoder(), **{"hidden": D, "dim": 6, **options})


def byol(**options) -> BYOL:
    return BYOL(encoder(), **{"hidden": D, "dim": 6, **options})


def dino(**options) -> DINO:
    return DINO(encoder(), **{"prototypes": 10, "hidden": D, "bottleneck": 5, **options})


def mae(**options) -> MAE:
    return MAE(encoder(), **{"dim": 8, "depth": 1, "heads": 2, **options})


def joint(**options) -> Joint:
    one = simclr()
    return Joint(
        {"views": one, "tokens": MAE(one.encoder, dim=8, depth=1, heads=2)},  # type: ignore[arg-type]
        options.get("weights", {"views": 10.0, "tokens": 0.5}),
    )


CASES = {
    "simclr": (simclr, views()),
    "simclr, three views, batch norm": (lambda: simclr(norm="batch"), views(3)),
    "byol": (byol, views()),
    "byol, averaged buffers": (lambda: byol(buffers="average"), views()),
    "byol, no batch norm": (lambda: byol(norm="layer"), views()),
    "simsiam": (lambda: byol(momentum=None), views()),
    "dino": (dino, crops()),
    "dino without crops": (dino, views()),
    "mae": (mae, masked()),
    "mae without padding": (mae, {k: v for k, v in masked().items() if k != "valid"}),
    "joint": (joint, {"views": views(), "tokens": masked()}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case):
    """P1, P3, P4 over ranks as threads, P14 in half precision, S1, S3, S4, padding: see ``check_method``."""
    make, batch = CASES[case]
    check_method(make, batch)


OPTIONS = {
    "simclr": (
        simclr,
        views(),
        [{}, {"hidden": 7}, {"dim": 5}, {"temperature": 0.2}, {"norm": "batch"}, {"norm": "layer"}, {"pool": Max()}],
    ),
    "byol": (
        byol,
        views(),
        [
            {},
            {"hidden": 7},
            {"dim": 5},
            {"momentum": 0.5},
            {"momentum": None},
            {"predictor": False},
            {"norm": None},
            {"norm": "layer"},
            {"pool": First()},
        ],
    ),
    "dino": (
        dino,
        crops(),
        [
            {},
            {"hidden": 7},
            {"bottleneck": 6},
            {"prototypes": 11},
            {"student_temperature": 0.2},
            {"teacher_temperature": (0.05, 0.07)},
            {"teacher_temperature": (0.04, 0.5)},
            {"momentum": 0.5},
            {"frozen": 0.0},
            {"frozen": 0.5},
            {"norm_last_layer": False},
            {"norm": "batch"},
            {"pool": Max()},
        ],
    ),
    "mae": (mae, masked(), [{}, {"dim": 16}, {"depth": 2}, {"heads": 4}, {"normalise": False}]),
    "joint": (joint, {"views": views(), "tokens": masked()}, [{}, {"weights": None}]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_P11_every_option_changes_the_loss(case):
    check_options(*OPTIONS[case])


def test_P11_buffers_of_the_teacher_are_an_option_of_byol():
    states = []
    for buffers in ("copy", "average", "keep"):
        torch.manual_seed(0)
        method = byol(buffers=buffers, momentum=0.5)
        train(method, views(), steps=2)
        assert method.teacher is not None
        states.append({k: v for k, v in method.teacher.state_dict().items() if "running_mean" in k})
    (name,) = states[0]
    a, b, c = (s[name] for s in states)
    assert not torch.allclose(a, b)
    assert not torch.allclose(b, c)
    assert not torch.allclose(a, c)


# ------------------------------------------------------------------ what the papers say


def test_simclr_is_nt_xent_over_all_views():
    method, batch = simclr(), views(3)
    z = [method.head(method.encoder(x, valid=v), v) for x, v in zip(batch["views"], batch["valid"], strict=True)]
    flat = torch.cat(z)
    positive = torch.eye(5).repeat(3, 3).bool() & ~torch.eye(15).bool()
    expected = info_nce(flat, flat, positive, exclude=torch.eye(15).bool(), temperature=method.temperature)
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_P3_simclr_sees_what_other_ranks_have():
    """The gathered keys are those of all ranks: the loss of one changes with the data of another."""
    torch.manual_seed(0)
    copies = [simclr().double()]
    copies.append(copy.deepcopy(copies[0]))
    one, two, other = ({"views": [draw(3, 9, 3, seed=s + i).double() for i in (0, 1)]} for s in (0, 5, 9))
    seen = []

    def spy(x: Tensor) -> Tensor:
        seen.append(original(x))
        return seen[-1]

    with ranks(2) as run:
        original, distributed.gather = distributed.gather, spy
        first = run(lambda r: copies[r]((one, two)[r])["loss"].item())
        second = run(lambda r: copies[r]((one, other)[r])["loss"].item())
    assert {x.shape for x in seen} == {(12, 6)}, "two ranks of two views of three things"
    assert first[0] != second[0]


def test_byol_predicts_the_teachers_other_view():
    method, batch = byol(norm="layer"), views()
    assert method.teacher is not None
    z = [method.head(method.encoder(x, valid=v), v) for x, v in zip(batch["views"], batch["valid"], strict=True)]
    t = [method.teacher(x, v) for x, v in zip(batch["views"], batch["valid"], strict=True)]
    expected = (negative_cosine(method.predict(z[0]), t[1]) + negative_cosine(method.predict(z[1]), t[0])) / 2
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_byols_teacher_follows_by_the_schedule():
    torch.manual_seed(0)
    method = byol(momentum=0.9)
    assert method.teacher is not None
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in [*method.encoder.parameters(), *method.head.parameters()]:
            p.add_(1)
    method.after_step(0.25)
    for p, start in zip(method.teacher.parameters(), before, strict=True):
        assert torch.allclose(p, start + 1 - cosine(0.25, 0.9, 1.0), atol=1e-5)
    done = [p.clone() for p in method.teacher.parameters()]
    method.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.parameters(), done, strict=True)), "at the end it rests"


def test_mae_encodes_what_is_shown_and_rebuilds_what_is_hidden():
    torch.manual_seed(0)
    method, batch = mae(), masked()
    x, hidden, valid = batch["x"], batch["hidden"], batch["valid"]
    start = method(batch)["loss"].item()
    changed = {**batch, "x": torch.where((hidden & valid)[..., None], 3 * x + 1, x)}
    shown = method.encoder(x, keep=~hidden, valid=valid)
    assert torch.equal(shown, method.encoder(changed["x"], keep=~hidden, valid=valid)), "hidden tokens are not seen"
    assert method(changed)["loss"].item() == pytest.approx(start, rel=1e-4), "targets are normalised"
    assert mae(normalise=False)(changed)["loss"].item() > 2 * start
    hides_nothing = {k: v[2:3] for k, v in batch.items()}
    assert method(hides_nothing)["loss"].item() == 0


def test_mae_rows_do_not_depend_on_each_other():
    torch.manual_seed(0)
    method, batch = mae().double(), masked()
    batch["x"] = batch["x"].double()
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(5)]
    counts = [(r["hidden"] & r["valid"]).sum().item() for r in rows]
    alone = sum(method(r)["loss"].item() * n for r, n in zip(rows, counts, strict=True)) / sum(counts)
    assert method(batch)["loss"].item() == pytest.approx(alone, rel=1e-9)


def test_mae_knows_where_hidden_tokens_are():
    """Without positions all hidden tokens of a row would be rebuilt alike."""
    torch.manual_seed(0)
    method, x = mae(normalise=False), draw(1, 9, 3)
    hidden = torch.arange(9)[None] >= 4
    losses = []
    for order in (torch.arange(9), torch.tensor([0, 1, 2, 3, 8, 7, 6, 5, 4])):
        losses.append(method({"x": x[:, order], "hidden": hidden})["loss"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def test_mae_is_a_mean_over_hidden_tokens():
    torch.manual_seed(0)
    method, batch = mae(), masked()
    seen = {}
    method.rebuild.register_forward_hook(lambda m, i, out: seen.update(prediction=out))
    loss = method(batch)["loss"]
    expected = masked_mse(seen["prediction"], batch["x"], batch["hidden"], valid=batch["valid"], normalise=True)
    assert loss.item() == pytest.approx(expected.item())


# ------------------------------------------------------------------ errors, training, tracing


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (simclr, {"views": [draw(2, 9, 3)]}, "two or more are needed, got 1"),
        (byol, views(3), "two are needed, got 3"),
        (dino, {"views": [draw(2, 9, 3)]}, "no pair of different views"),
        (simclr, {**views(), "valid": [most(5, 9)]}, "2 views came with 1 masks"),
        (simclr, {**views(), "valid": [most(5, 8)] * 2}, "valid is"),
        (mae, {"x": draw(2, 9, 3), "hidden": most(2, 8)}, "keep is"),
    ],
)
def test_a_wrong_batch_is_told_so(make, batch, message):
    with pytest.raises(ValueError, match=message):
        make()(batch)


def test_methods_train_on_something_learnable():
    """SimCLR tells six noisy things apart after forty steps, by more than a fifth of its first loss."""
    torch.manual_seed(0)
    method, things = simclr(temperature=0.2), draw(6, 9, 3, seed=3)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        batch = {"views": [things + 0.1 * torch.randn_like(things) for _ in range(2)]}
        loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
