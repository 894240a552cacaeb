"""Barlow Twins, VICReg, LeJEPA and SimSiam: the contract, the options, and what their papers say."""

import copy
from functools import partial

import pytest
import torch
from common import check_options, most
from common import single as draw
from torch import Tensor, nn

from partwhole.core.encoder import First, Max, Vectors
from partwhole.core.losses import barlow, negative_cosine, sigreg, vicreg
from partwhole.core.method import Batch, Method
from partwhole.core.methods.barlow_twins import BarlowTwins
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.lejepa import LeJEPA
from partwhole.core.methods.simsiam import SimSiam
from partwhole.core.methods.vicreg import VICReg
from partwhole.core.testing import check_method
from partwhole.core.threads import ranks
from partwhole.core.transformer import TransformerEncoder

D = 12


def views(count: int = 2, batch: int = 5) -> Batch:
    """Views of unequal lengths, with padding."""
    lengths = [9, 7, 9][:count]
    return {
        "views": [draw(batch, n, 3, seed=i) for i, n in enumerate(lengths)],
        "valid": [most(batch, n, seed=10 + i) for i, n in enumerate(lengths)],
    }


def crops() -> Batch:
    small = {"crops": [draw(5, n, 3, seed=20 + n) for n in (4, 6)], "crops_valid": [most(5, n) for n in (4, 6)]}
    return {**views(), **small}


def small(kind: type[Method], **options) -> Method:
    encoder = TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2)
    return kind(encoder, **{"hidden": D, "dim": 6, **options})


def embeddings(method: Method, batch: Batch, name: str = "views", mask: str = "valid") -> list[Tensor]:
    head = method.get_submodule("head")
    return [head(method.encoder(x, valid=v), v) for x, v in zip(batch[name], batch[mask], strict=True)]


CASES = {
    "barlow": (BarlowTwins, {}, views),
    "barlow, no batch norm": (BarlowTwins, {"norm": "layer", "dim": 3}, views),
    "vicreg": (VICReg, {}, views),
    "vicreg, no batch norm": (VICReg, {"norm": None, "dim": 3}, views),
    "lejepa": (LeJEPA, {"slices": 7}, crops),
    "lejepa without crops": (LeJEPA, {"slices": 7, "norm": "layer"}, lambda: views(3)),
    "simsiam": (SimSiam, {"bottleneck": 4}, views),
    "simsiam, no batch norm": (SimSiam, {"bottleneck": 5, "norm": "layer"}, views),
}


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case):
    """P1, P3, P4 over ranks as threads, P14 in half precision, S1, S3, S4, padding: see ``check_method``."""
    kind, options, batch = CASES[case]
    check_method(lambda: small(kind, **options), batch(), ranks=(2, 3, 4))


COMMON = [{}, {"hidden": 7}, {"dim": 5}, {"norm": None}, {"norm": "layer"}, {"pool": First()}, {"pool": Max()}]
OPTIONS = {
    "barlow": (BarlowTwins, views, [*COMMON, {"redundancy": 0.1}]),
    "vicreg": (VICReg, views, [*COMMON, {"invariance": 1.0}, {"variance": 1.0}, {"covariance": 9.0}]),
    "lejepa": (LeJEPA, crops, [*COMMON, {"weight": 0.1}, {"slices": 9}]),
    "simsiam": (SimSiam, views, [*COMMON, {"bottleneck": 3}]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_P11_every_option_changes_the_loss(case):
    kind, batch, options = OPTIONS[case]
    check_options(partial(small, kind), batch(), options, rate=0.01)


# ------------------------------------------------------------------ what the papers say


def test_barlow_twins_is_its_loss_on_the_embeddings():
    method, batch = small(BarlowTwins, norm="layer", redundancy=0.1), views()
    first, second = embeddings(method, batch)
    assert method(batch)["loss"].item() == pytest.approx(barlow(first, second, redundancy=0.1).item(), rel=1e-5)


def test_P12_vicreg_weighs_its_terms_and_tells_them_by_name():
    method, batch = small(VICReg, norm="layer", invariance=2.0, variance=3.0, covariance=5.0), views()
    terms, out = vicreg(*embeddings(method, batch)), method(batch)
    assert {"loss", "invariance", "variance", "covariance", "std"} == set(out)
    for name, term in terms.items():
        assert out[name].item() == pytest.approx(term.item(), rel=1e-4)
    expected = 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lejepa_draws_all_views_to_the_large_ones_and_tests_each_for_normality():
    method, batch = small(LeJEPA, norm="layer", slices=7, weight=0.2), crops()
    large, every = (
        embeddings(method, batch),
        embeddings(method, batch) + embeddings(method, batch, "crops", "crops_valid"),
    )
    center = torch.stack(large).mean(0)
    invariance = torch.stack([(z - center).square().mean() for z in every]).mean()
    directions = method.get_buffer("directions")
    gaussian = torch.stack([sigreg(z, directions) for z in every]).mean()
    out = method(batch)
    assert out["invariance"].item() == pytest.approx(invariance.item(), rel=1e-4)
    assert out["gaussian"].item() == pytest.approx(gaussian.item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx((0.8 * invariance + 0.2 * gaussian).item(), rel=1e-4)


def test_S3_lejepas_directions_follow_from_the_number_of_steps_alone():
    seen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        method = small(LeJEPA, slices=7)
        walk = []
        for progress in (0.3, 0.6):
            walk.append(method.get_buffer("directions").clone())
            method.after_step(progress)
        seen.append(walk)
        state = torch.get_rng_state()
        method.after_step(0.9)
        assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    assert not torch.equal(seen[0][0], seen[0][1]), "new ones in every step"
    assert all(map(torch.equal, *seen)), "whatever the seed of the weights"
    again = small(LeJEPA, slices=7)
    again.load_state_dict(method.state_dict())
    again.after_step(1.0)
    method.after_step(1.0)
    assert torch.equal(again.get_buffer("directions"), method.get_buffer("directions")), "a resumed run has them too"


def test_simsiam_is_byol_without_a_teacher_but_for_the_networks():
    torch.manual_seed(0)
    method, batch = small(SimSiam, bottleneck=4, norm="layer"), views()
    first, second = embeddings(method, batch)
    predict = method.get_submodule("predict")
    expected = (negative_cosine(predict(first), second) + negative_cosine(predict(second), first)) / 2
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    byol = small(BYOL, momentum=None)
    byol.encoder, byol.head, byol.predict = method.encoder, method.head, method.predict  # type: ignore[assignment]
    a, b = (torch.autograd.grad(m(batch)["loss"], list(method.parameters())[:4]) for m in (method, byol))
    assert all(map(torch.equal, a, b))


def test_simsiams_projector_ends_in_a_norm_without_weights():
    method = small(SimSiam, bottleneck=4).train()
    z = torch.cat(embeddings(method, views(1)))
    assert torch.allclose(z.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0), torch.ones(6), atol=1e-2)
    learned = [name for name, p in method.head.named_parameters() if p.requires_grad]  # type: ignore[union-attr]
    assert not any(name.startswith("net.7") for name in learned)
    assert isinstance(small(SimSiam, norm=None).get_submodule("head.net")[-1], nn.Linear)  # type: ignore[index]


@pytest.mark.parametrize("kind", [BarlowTwins, VICReg, LeJEPA])
def test_P3_the_statistics_are_those_of_all_processes(kind):
    """Every rank has the whole loss, and it changes with another rank's data."""
    torch.manual_seed(0)
    copies = [small(kind, norm="layer").double()]
    copies.append(copy.deepcopy(copies[0]))
    one, two, other = (
        {"views": [draw(n, 9, 3, seed=s + i).double() for i in (0, 1)]} for n, s in ((4, 0), (1, 5), (1, 9))
    )
    whole = {"views": [torch.cat(pair) for pair in zip(one["views"], two["views"], strict=True)]}
    expected = copies[0](whole)["loss"].item()
    with ranks(2) as run:
        first = run(lambda r: copies[r]((one, two)[r])["loss"].item())
        second = run(lambda r: copies[r]((one, other)[r])["loss"].item())
    assert first == pytest.approx([expected, expected], rel=1e-12)
    assert first[0] != pytest.approx(second[0], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "count", "batch", "message"),
    [
        (BarlowTwins, 3, 5, "two are needed, got 3"),
        (VICReg, 1, 5, "two are needed, got 1"),
        (SimSiam, 3, 5, "two are needed, got 3"),
        (LeJEPA, 1, 5, "two or more are needed, got 1"),
        (BarlowTwins, 2, 1, "a batch of 1 has no variance"),
        (VICReg, 2, 1, "a batch of 1 has no variance"),
    ],
)
def test_P14_a_wrong_batch_is_told_so(kind, count, batch, message):
    with pytest.raises(ValueError, match=message):
        small(kind)(views(count, batch))


@pytest.mark.parametrize("kind", [BarlowTwins, VICReg, LeJEPA, SimSiam])
def test_methods_train_without_collapse(kind):
    """On noisy views of sixteen things the embeddings of a thing come nearer to each other than to others'."""
    torch.manual_seed(0)
    method, things = small(kind, dim=8), draw(16, 9, 3, seed=3)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    values, std = [], 0.0
    for step in range(40):
        out = method({"views": [things + 0.1 * torch.randn_like(things) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 40)
        values.append(out["loss"].item())
        std = out["std"].item()
    assert sum(values[-5:]) < sum(values[:5])
    assert std > 0.5
