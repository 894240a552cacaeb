"""DINO, iBOT, DINOv2 and DINOv3: the contract, their options, and the losses of the papers by plain arithmetic."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from common import check_options, coin, cross_entropy, most, softmax
from common import single as draw
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, Prototypes, Vectors, Wrapped
from partwhole.core.method import Batch, Method
from partwhole.core.methods.dino import DINO
from partwhole.core.methods.dinov2 import DINOv2
from partwhole.core.methods.dinov3 import DINOv3
from partwhole.core.methods.ibot import IBOT
from partwhole.core.methods.targets import Targets
from partwhole.core.schedules import cosine
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder

D = 12


def encoder(cls: bool = False) -> TransformerEncoder:
    """Positions are not small beside vectors: a hidden token is then no near-zero vector, of which a norm is steep."""
    net = TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2, cls=cls, registers=2 * cls)
    with torch.no_grad():
        net.embed.position(torch.zeros(1, 9, 3))[0].mul_(50)
    return net


def views(lengths: tuple[int, ...] = (9, 9), padding: bool = True, crops: bool = True) -> Batch:
    batch: Batch = {
        "views": [draw(5, n, 3, seed=i) for i, n in enumerate(lengths)],
        "hidden": [coin(5, n, chance=0.4, seed=30 + i) for i, n in enumerate(lengths)],
    }
    batch["hidden"][0][2] = False
    if padding:
        batch["valid"] = [most(5, n, seed=10 + i) for i, n in enumerate(lengths)]
    if crops:
        batch["crops"] = [draw(5, n, 3, seed=20 + n) for n in (4, 4, 6)]
        if padding:
            batch["crops_valid"] = [most(5, n) for n in (4, 4, 6)]
    return batch


SMALL = {"prototypes": 10, "hidden": D, "bottleneck": 5}
KINDS = {"dino": DINO, "ibot": IBOT, "dinov2": DINOv2, "dinov3": DINOv3}


def make(kind: str, cls: bool = False, **options) -> Method:
    return KINDS[kind](encoder(cls), **{**SMALL, **options})


CASES = {
    "dino": (lambda: make("dino"), views()),
    "dino, learned lengths, a CLS token": (lambda: make("dino", True, norm_last_layer=False, frozen=0.0), views()),
    "dino on a network without tokens": (
        lambda: DINO(Wrapped(nn.Conv2d(3, 6, 4, 4), 6), prototypes=10, hidden=D, bottleneck=5),
        {"views": [draw(5, 3, 8, 8, seed=i) for i in range(2)]},
    ),
    "ibot": (lambda: make("ibot"), views((9, 7))),
    "ibot, a CLS token, two heads": (lambda: make("ibot", True, shared=False), views(crops=False)),
    "dinov2": (lambda: make("dinov2", frozen=0.0), views((9, 7))),
    "dinov2, a CLS token, no padding": (lambda: make("dinov2", True), views(padding=False)),
    "dinov3, before the Gram teacher": (lambda: make("dinov3", start=0.9), views()),
    "dinov3": (lambda: anchored(make("dinov3", True, start=0.2, refresh=0.1)), views((9, 7))),
}


def anchored(method: Method) -> Method:
    """The student then moves away from its Gram teacher, or the loss is 0 and has no gradient."""
    method.after_step(0.2)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case):
    """P1, P3, P4 over ranks as threads, P14 in half precision, S1, S3, S4, padding: see ``check_method``."""
    build, batch = CASES[case]
    check_method(build, batch)


SHARED = [
    {},
    {"prototypes": 11},
    {"hidden": 7},
    {"bottleneck": 6},
    {"teacher_temperature": (0.05, 0.07)},
    {"teacher_temperature": (0.04, 0.5)},
    {"momentum": 0.5},
    {"frozen": 0.5},
    {"norm": "batch"},
]
OPTIONS = {
    "ibot": [*SHARED, {"shared": False}],
    "dinov2": [*SHARED, {"koleo": 0.3}],
    "dinov3": [*SHARED, {"gram": 1.0}, {"start": 0.6}, {"refresh": 0.2}],
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_P11_every_option_changes_the_loss(kind):
    always = {"start": 0.2, "refresh": 0.9} if kind == "dinov3" else {}
    check_options(lambda **option: make(kind, **{**always, **option}), views(), OPTIONS[kind], steps=4, rate=0.02)


# ------------------------------------------------------------------ what the papers say


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_S2_momentum_temperature_and_centre_at_the_first_the_last_and_no_step():
    T = 10
    for kind, momentum in (("dino", 0.9), ("ibot", 0.9), ("dinov2", 0.9), ("dinov3", 0.9)):
        for done in (0, T - 1, T):
            torch.manual_seed(0)
            method = make(kind, momentum=momentum, start=1.0) if kind == "dinov3" else make(kind, momentum=momentum)
            core = method if kind == "dino" else method.distillation
            before = weights(core.teacher)
            with torch.no_grad():
                for p in method.parameters():
                    if p.requires_grad:
                        p.add_(1)
            method.after_step(done / T)
            m = momentum if kind == "dinov3" else cosine(done / T, momentum, 1.0)
            assert torch.allclose(weights(core.teacher), before + 1 - m, atol=1e-5)
            for targets in [core.targets] if kind == "dino" else [core.whole_targets, core.token_targets]:
                assert targets.temperature.item() == pytest.approx(0.04 if done == 0 else 0.07)
    method.after_step(0.15)
    assert method.distillation.whole_targets.temperature.item() == pytest.approx(0.055)


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_rest_until_they_are_free(kind):
    torch.manual_seed(0)
    method, batch = make(kind, frozen=0.5), views()
    last = {n: p for n, p in method.named_parameters() if p.requires_grad and n.endswith(("net.weight", "0.weight"))}
    protos = [m for m in method.modules() if isinstance(m, Prototypes) and m.weight.requires_grad]
    assert last
    assert protos
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    before = [copy.deepcopy(m) for m in protos]
    for step in range(4):
        method(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step((step + 1) / 4)
        for m, was in zip(protos, before, strict=True):
            moved = (F.normalize(m.weight, dim=1) - F.normalize(was.weight, dim=1)).abs().max().item()
            assert (moved > 1e-4) == (step >= 2), step
            assert not torch.equal(m.mlp[0].weight, was.mlp[0].weight), "what lies before them moves"


@pytest.mark.parametrize("free", [True, False])
def test_prototypes_have_the_value_and_the_gradients_of_plain_operations(free):
    torch.manual_seed(0)
    net = Prototypes(4, 4, 4, 6).double()
    net.free.fill_(free)
    with torch.no_grad():
        net.weight[3] = 0  # no direction
    x, slope = draw(5, 4).double(), draw(5, 6, seed=1).double()
    z = F.normalize(net.mlp(x), dim=-1)
    plain = z @ F.normalize(torch.where(net.free, net.weight, net.weight.detach()), dim=-1).mT
    moving = [net.weight, *net.mlp.parameters()]
    wanted = torch.autograd.grad((plain * slope).sum(), moving, allow_unused=True)
    got = torch.autograd.grad((net(x) * slope).sum(), moving)
    assert torch.equal(net(x).isnan(), torch.zeros(5, 6, dtype=torch.bool))
    assert torch.allclose(net(x), plain, atol=1e-14)
    assert bool(got[0].any()) == free
    rows = torch.arange(6) != 3  # there, normalize divides by a small number
    assert torch.allclose(got[0][rows], wanted[0][rows], atol=1e-12)
    assert not got[0][3].any()
    for g, w in zip(got[1:], wanted[1:], strict=True):
        assert torch.allclose(g, w, atol=1e-12)


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_views_and_crops_pass_the_prototypes_of_the_whole_at_once(kind):
    """Which is what a step of few things takes long for: there are more prototypes than things."""
    method, seen = make(kind), []
    head = method.head.net if kind == "dino" else method.distillation.heads[0]
    head.register_forward_hook(lambda module, args, out: seen.append(out))
    method(views((9, 9)))
    assert [x.shape for x in seen] == [(5, 5, 10)]


def test_prototypes_without_norm_last_layer_have_lengths():
    torch.manual_seed(0)
    one = Prototypes(4, 4, 4, 6)
    torch.manual_seed(0)
    other = Prototypes(4, 4, 4, 6, norm_last_layer=False)
    x = draw(3, 4)
    assert torch.equal(one(x), other(x)), "1 at first"
    assert other.length is not None
    with torch.no_grad():
        other.length[2] = 3
    assert torch.allclose(other(x)[:, 2], 3 * one(x)[:, 2])
    other.free.fill_(False)
    other(x).sum().backward()
    assert other.weight.grad is not None
    assert other.length.grad is not None
    assert not other.weight.grad.any()
    assert not other.length.grad.any()
    assert other.mlp[0].weight.grad.any()


def test_dino_centres_sharpens_and_leaves_crops_to_the_student():
    torch.manual_seed(0)
    method, batch = make("dino").double(), views()
    assert isinstance(method, DINO)
    center = method.targets.center
    assert center is not None
    center.value.normal_()
    rows, seen = {}, {"views": method.teacher, "crops": None}
    for name, mask in (("views", "valid"), ("crops", "crops_valid")):
        batch[name] = [x.double() for x in batch[name]]
        pairs = list(zip(batch[name], batch[mask], strict=True))
        rows[name] = [method.head(method.encoder(x, valid=v), v) for x, v in pairs]
        if seen[name] is not None:
            rows["teacher"] = [method.teacher(x, v) for x, v in pairs]
    students = rows["views"] + rows["crops"]
    loss, terms = torch.zeros((), dtype=torch.float64), 0
    for t, teacher in enumerate(rows["teacher"]):
        for s, student in enumerate(students):
            if s != t:
                terms += 1
                for b in range(5):
                    loss = loss + cross_entropy(softmax((teacher[b] - center.value) / 0.04), student[b]) / 5
    out = method(batch)
    assert terms == 2 * (2 + 3 - 1)
    assert out["loss"].item() == pytest.approx((loss / terms).item(), rel=1e-6)  # temperatures are kept in float32
    assert 0 < out["entropy"] < out["entropy_of_mean"] < math.log(10)
    before = center.value.clone()
    method.after_step(0.15)
    assert torch.allclose(center.value, 0.9 * before + 0.1 * torch.cat(rows["teacher"]).mean(0), atol=1e-12)
    assert method.targets.temperature.item() == pytest.approx(0.055)


def test_E3_the_entropies_tell_a_collapse():
    method, batch = make("dino"), views()
    assert isinstance(method, DINO)
    assert method.targets.center is not None
    method.targets.center.value.copy_(100 * torch.eye(10)[0].neg())  # one prototype takes all
    out = method.eval()(batch)
    assert out["entropy"].item() == pytest.approx(0, abs=1e-4)
    assert out["entropy_of_mean"].item() == pytest.approx(0, abs=1e-4)
    method.targets.center.value.zero_()
    method.targets.temperature.fill_(1e6)  # none is told from another
    out = method(batch)
    assert out["entropy"].item() == pytest.approx(math.log(10), rel=1e-4)


# ------------------------------------------------------------------ errors, one graph


@pytest.mark.parametrize("kind", ["ibot", "dinov2", "dinov3"])
def test_only_a_transformer_hides_tokens_and_the_message_says_so(kind):
    class Other(Encoder):
        dim = 4

    with pytest.raises(TypeError, match="must be a TransformerEncoder; got a Other"):
        KINDS[kind](Other())
    method, batch = make(kind), views()
    with pytest.raises(ValueError, match="2 views came with no masks of hidden tokens"):
        method({k: v for k, v in batch.items() if k != "hidden"})
    with pytest.raises(ValueError, match="2 views came with 1 masks of hidden tokens"):
        method({**batch, "hidden": batch["hidden"][:1]})
    with pytest.raises(ValueError, match=r"hidden is \(5, 8\), but the tokens are \(5, 9\)"):
        method({**batch, "hidden": [h[:, 1:] for h in batch["hidden"]]})
    with pytest.raises(ValueError, match='centring is "mean" or "sinkhorn"'):
        Targets(4, temperature=(0.1, 0.1), centring="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["ibot", "dinov2", "dinov3"])
def test_a_batch_that_hides_nothing_and_one_thing_alone_are_fine(kind):
    method, batch = make(kind), views(crops=False)
    none = {**batch, "hidden": [torch.zeros_like(h) for h in batch["hidden"]]}
    out = method(none)
    assert out["hidden"].item() == 0
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    method.after_step(0.9)
    assert all(v.isfinite().all() for v in method.state_dict().values())
    alone = method({k: [x[:1] for x in v] for k, v in batch.items()})
    assert alone["loss"].isfinite()
