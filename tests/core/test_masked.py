"""BEiT, data2vec, I-JEPA and MAE: the contract, options, and what the papers say."""

import pytest
import torch
import torch.nn.functional as F
from common import check_options, coin
from common import single as draw
from torch import Tensor

from partwhole.core.encoder import Vectors
from partwhole.core.masks import indices
from partwhole.core.method import Batch, Method
from partwhole.core.methods.beit import BEiT
from partwhole.core.methods.data2vec import Data2Vec
from partwhole.core.methods.ijepa import IJEPA
from partwhole.core.methods.mae import MAE
from partwhole.core.testing import check_method
from partwhole.core.transformer import Transformer, TransformerEncoder

B, L, D, V = 5, 9, 12, 7


def encoder(**options) -> TransformerEncoder:
    return TransformerEncoder(Vectors(3, D, length=L), **{"dim": D, "depth": 2, "heads": 2, **options})


def beit(**options) -> BEiT:
    return BEiT(encoder(), **{"vocabulary": V, **options})


def data2vec(**options) -> Data2Vec:
    return Data2Vec(encoder(), **{"layers": 2, **options})


def ijepa(**options) -> IJEPA:
    return IJEPA(encoder(), **{"dim": 8, "depth": 1, "heads": 2, **options})


def mae(**options) -> MAE:
    return MAE(encoder(), **{"dim": 8, "depth": 1, "heads": 2, **options})


def plain() -> Batch:
    """Rows that hide unequal numbers of tokens; one hides nothing, one nearly all; three blocks, some of them empty."""
    hidden = coin(B, L, seed=1)
    hidden[1], hidden[2] = torch.arange(L) > 0, False
    part = torch.randint(6, (B, 1, L), generator=torch.Generator().manual_seed(2))
    part[3] = 1
    targets = part == torch.arange(3)[:, None]
    ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(3))
    return {"x": draw(B, L, 3), "hidden": hidden, "ids": ids, "targets": targets, "keep": ~targets.any(1)}


def padded() -> Batch:
    valid = coin(B, L, chance=0.8, seed=4)
    valid[0] = True
    return {**plain(), "valid": valid}


def batch_of(name: str, batch: Batch) -> Batch:
    """What a method reads; ``keep`` is I-JEPA's here."""
    return {k: batch[k] for k in (*READS[name], "valid") if k in batch}


READS = {
    "beit": ("x", "hidden", "ids"),
    "data2vec": ("x", "hidden"),
    "ijepa": ("x", "keep", "targets"),
    "mae": ("x", "hidden"),
}
MAKE = {"beit": beit, "data2vec": data2vec, "ijepa": ijepa, "mae": mae}
SPECIAL = {"cls": True, "registers": 2, "rope": 100.0}
SMALL = {"beit": {"vocabulary": V}, "data2vec": {"layers": 1}}
SMALL |= {name: {"dim": 8, "depth": 1, "heads": 2} for name in ("ijepa", "mae")}


@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_the_contract(name, with_cls):
    def make() -> Method:
        return type(MAKE[name]())(encoder(**SPECIAL), **SMALL[name]) if with_cls else MAKE[name]()

    check_method(make, batch_of(name, padded()))
    check_method(make, batch_of(name, plain()), ranks=(), dtypes=())


# ------------------------------------------------------------------ masks and indices


def as_indices(name: str, batch: Batch) -> Batch:
    """The same with indices, and room to spare, in place of masks."""
    if name == "mae":
        batch = {**batch, "keep": ~batch["hidden"]}
        batch.pop("hidden")
    return {k: indices(v, L) if k in ("keep", "hidden", "targets") else v for k, v in batch.items()}


@pytest.mark.parametrize("options", [{}, SPECIAL])
@pytest.mark.parametrize("name", MAKE)
def test_masks_and_indices_say_the_same(name, options):
    torch.manual_seed(0)
    method = type(MAKE[name]())(encoder(**options), **SMALL[name]).double()
    for batch in (plain(), padded()):
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of(name, batch).items()}
        a, b = method(batch), method(as_indices(name, batch))
        assert a["items"] == b["items"]
        assert b["loss"].item() == pytest.approx(a["loss"].item(), rel=1e-12)


def trained(method: Method) -> list[Tensor]:
    return [p for p in method.parameters() if p.requires_grad]


# ------------------------------------------------------------------ P11


OPTIONS = {
    "beit": [{}, {"vocabulary": V + 1}],
    "data2vec": [
        {},
        {"layers": 1},
        {"beta": 0.1},
        {"beta": None},
        {"momentum": (0.5, 0.9998, 0.1)},
        {"momentum": (0.999, 0.5, 0.1)},
        {"momentum": (0.5, 0.9998, 0.9)},
    ],
    "ijepa": [
        {},
        {"dim": 16},
        {"depth": 2},
        {"heads": 4},
        {"beta": 0.1},
        {"beta": None},
        {"momentum": 0.5},
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_P11_every_option_changes_the_loss(name):
    check_options(MAKE[name], batch_of(name, padded()), OPTIONS[name], steps=12)


# ------------------------------------------------------------------ by other means, in float64


def norm(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def attend(block, x: Tensor) -> Tensor:
    """x (L, D), all real."""
    heads, out = block.attention.heads, []
    q, k, v = (block.attention.qkv(x)).chunk(3, -1)
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        weight = (a @ b.T / a.shape[-1] ** 0.5).exp()
        out.append(weight / weight.sum(-1, keepdim=True) @ c)
    return block.attention.out(torch.cat(out, -1))


def walk(trunk: Transformer, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Tokens (L, D) through a trunk: the result, and what each block gave."""
    layers = []
    for block in trunk.blocks:
        x = x + attend(block, norm(x, block.norm1.weight, block.norm1.bias))  # type: ignore[arg-type]
        x = x + block.mlp(norm(x, block.norm2.weight, block.norm2.bias))  # type: ignore[operator, arg-type]
        layers.append(x)
    return norm(x, trunk.norm.weight, trunk.norm.bias), layers


def rows(batch: Batch) -> list[dict]:
    """The real tokens of each row, and where they were."""
    out = []
    for i in range(B):
        real = batch["valid"][i].nonzero()[:, 0]
        out.append({"at": real, **{k: v[i][..., real] for k, v in batch.items() if k not in ("x", "valid")}})
        out[-1]["x"] = batch["x"][i][real].double()
    return out


def entering(net: TransformerEncoder, row: dict) -> tuple[Tensor, Tensor]:
    place = net.embed.table[row["at"]]  # type: ignore[index]
    return row["x"] @ net.embed.project.weight.T + net.embed.project.bias + place, place  # type: ignore[union-attr, operator]


def huber(d: Tensor, beta: float) -> Tensor:
    return torch.where(d.abs() < beta, d.square() / (2 * beta), d.abs() - beta / 2).mean(-1)


def encoded(net: TransformerEncoder, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    return walk(net.trunk, tokens if net.first is None else torch.cat([net.first, tokens]))


def naive_beit(m: BEiT, row: dict, n: int) -> list[Tensor]:
    tokens, place = entering(m.encoder, row)
    y, _ = encoded(m.encoder, torch.where(row["hidden"][:, None], m.mask_token + place, tokens))
    p = m.head(y[n:]).softmax(-1)
    return [-p[i, row["ids"][i]].log() for i in range(len(p)) if row["hidden"][i]]


def naive_data2vec(m: Data2Vec, row: dict, n: int) -> list[Tensor]:
    tokens, place = entering(m.encoder, row)
    y, _ = encoded(m.encoder, torch.where(row["hidden"][:, None], m.mask_token + place, tokens))
    slow = m.teacher.chain[0].encoder
    _, layers = encoded(slow, entering(slow, row)[0])  # type: ignore[arg-type]
    target = norm(sum(map(norm, layers[-m.count :])) / m.count)  # type: ignore[arg-type]
    return list(huber(m.predict(y) - target, 2.0)[n:][row["hidden"]])


def naive_ijepa(m: IJEPA, row: dict, n: int) -> list[Tensor]:
    tokens, place = entering(m.encoder, row)
    context = m.narrow(encoded(m.encoder, tokens[row["keep"]])[0])
    context[n:] += m.narrow_position(place[row["keep"]])
    slow = m.teacher.chain[0]
    target = norm(encoded(slow, entering(slow, row)[0])[0][n:])  # type: ignore[arg-type]
    losses = []
    for block in row["targets"]:
        both = torch.cat([context, m.mask_token + m.narrow_position(place[block])])
        prediction = m.predict(walk(m.predictor, both)[0][len(context) :])
        losses += list(huber(prediction - target[block], 1.0))
    return losses


def naive_mae(m: MAE, row: dict, n: int) -> list[Tensor]:
    tokens, place = entering(m.encoder, row)
    hidden, decoded = row["hidden"], m.mask_token.expand(len(place), -1).clone()
    shown = m.narrow(encoded(m.encoder, tokens[~hidden])[0])
    decoded[~hidden] = shown[n:]
    decoded = torch.cat([shown[:n], decoded + m.narrow_position(place)])  # the CLS token has no place
    prediction = m.rebuild(walk(m.decoder, decoded)[0])[n:]
    t = row["x"]
    t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True) + 1e-6).sqrt()  # unbiased, as the code has it
    return list((prediction - t).square().mean(-1)[hidden])


NAIVE = {"beit": naive_beit, "data2vec": naive_data2vec, "ijepa": naive_ijepa, "mae": naive_mae}
PINNED = {"beit": 2.043398, "data2vec": 0.325285, "ijepa": 0.593486, "mae": 1.105589}


@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("name", NAIVE)
def test_the_loss_is_that_of_the_paper_row_by_row_without_padding(name, with_cls):
    torch.manual_seed(0)
    method = type(MAKE[name]())(encoder(cls=True), **SMALL[name]).double() if with_cls else MAKE[name]().double()
    if hasattr(method, "teacher"):
        with torch.no_grad():
            for p in method.teacher.parameters():  # or it would equal the student
                p.add_(0.1 * draw(*p.shape, seed=p.numel()).double())
    batch = padded()
    with torch.no_grad():
        terms = [loss for row in rows(batch) for loss in NAIVE[name](method, row, int(with_cls))]
        out = method({**batch_of(name, batch), "x": batch["x"].double()})
    assert out["items"] == len(terms)
    assert out["loss"].item() == pytest.approx((sum(terms) / len(terms)).item(), rel=1e-9)  # type: ignore[union-attr]
    if not with_cls:
        assert out["loss"].item() == pytest.approx(PINNED[name], abs=1e-5)


# ------------------------------------------------------------------ what is hidden, what moves


@pytest.mark.parametrize("name", MAKE)
def test_what_is_hidden_from_the_student_is_seen_by_the_teacher_alone(name):
    """Junk in hidden tokens moves no prediction; it moves the targets of those who take them from a teacher."""
    torch.manual_seed(0)
    method, batch = MAKE[name](), batch_of(name, padded())
    hidden = ~batch["keep"] if name == "ijepa" else batch["hidden"]
    junk = {**batch, "x": torch.where((hidden & batch["valid"])[..., None], draw(B, L, 3, seed=9), batch["x"])}
    head, outs = method.get_submodule({"beit": "head", "mae": "rebuild"}.get(name, "predict")), []
    head.register_forward_hook(lambda module, inputs, y: outs.append(y))
    first, second = method(batch)["loss"], method(junk)["loss"]
    assert torch.equal(*outs)
    assert torch.equal(first, second) == (name == "beit"), "its targets come with the batch"


def test_ijepa_predicts_each_block_by_itself():
    torch.manual_seed(0)
    method, batch = ijepa().double(), batch_of("ijepa", padded())
    batch["x"] = batch["x"].double()
    alone = [method({**batch, "targets": batch["targets"][:, i : i + 1]}) for i in range(3)]
    total = sum(a["loss"] * a["items"] for a in alone) / sum(a["items"] for a in alone)
    assert method(batch)["loss"].item() == pytest.approx(total.item(), rel=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MAKE)
def test_P14_a_batch_that_hides_nothing_has_no_loss(name):
    method, batch = MAKE[name](), batch_of(name, padded())
    nothing = {**batch, "hidden": torch.zeros(B, L, dtype=torch.bool)}
    if name == "ijepa":
        nothing = {**batch, "targets": torch.zeros(B, 3, L, dtype=torch.bool)}
    loss = method(nothing)["loss"]
    assert loss == 0
    assert all(not g.any() for g in torch.autograd.grad(loss, trained(method)))


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("ijepa", [0.996, 1 - 0.004 / 100, 1.0]), ("data2vec", [0.999, 0.9998, 0.9998])],
)
def test_S2_the_teachers_momentum_at_0_at_the_last_step_and_at_the_end(name, momentum):
    method = MAKE[name]()
    for p in trained(method):
        torch.nn.init.ones_(p)
    for progress, expected in zip((0, 99 / 100, 1), momentum, strict=True):
        for p in method.teacher.parameters():
            torch.nn.init.zeros_(p)
        method.after_step(progress)
        for p in method.teacher.parameters():
            assert torch.allclose(p, torch.full_like(p, 1 - expected), atol=1e-7)
    if name == "data2vec":
        torch.nn.init.zeros_(p)
        method.after_step(0.05)  # half of the rise
        assert torch.allclose(p, torch.full_like(p, 1 - 0.9994), atol=1e-7)


def test_data2vecs_targets_are_normalised_and_come_from_the_layers_asked_for():
    torch.manual_seed(0)
    method, x = data2vec(layers=1), draw(B, L, 3)
    target = method.teacher(x)
    assert torch.allclose(target.mean(-1), torch.zeros(B, L), atol=1e-5)
    assert torch.allclose(target.var(-1, correction=0), torch.ones(B, L), atol=1e-2)
    assert torch.allclose(target, F.layer_norm(method.encoder.layers(x, 1)[0], (D,)), atol=1e-4)
    with pytest.raises(ValueError, match="last 3 layers of 2"):
        data2vec(layers=3)(batch_of("data2vec", plain()))


def test_layers_end_with_what_the_norm_at_the_end_is_given():
    net, x, valid = encoder(**SPECIAL), draw(B, L, 3), coin(B, L, chance=0.8)
    one, two = net.layers(x, 1, valid=valid), net.layers(x, 2, valid=valid)
    assert (len(one), len(two)) == (1, 2)
    assert torch.equal(one[0], two[1])
    assert not torch.allclose(*two)
    assert torch.allclose(net.trunk.norm(one[0]), net(x, valid=valid), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("beit", {"hidden": coin(B, L - 1)}, "hidden is"),
        ("beit", {"hidden": torch.ones(B, L)}, "float32: a mask is bool"),
        ("data2vec", {"hidden": torch.zeros(B + 1, 2, dtype=torch.int64)}, "hidden is"),
        ("ijepa", {"keep": coin(B, L + 1)}, "keep is"),
    ],
)
def test_a_wrong_batch_is_told_so(name, change, message):
    with pytest.raises(ValueError, match=message):
        MAKE[name]()({**batch_of(name, plain()), **change})
