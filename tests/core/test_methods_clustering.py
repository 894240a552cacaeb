"""SwAV, DeepCluster-v2 and OBoW: the contract, their options, and what their papers say."""

import itertools
import math

import pytest
import torch
from common import check_options, most
from common import single as draw
from torch import Tensor

from partwhole.core.encoder import Max, Vectors
from partwhole.core.losses import distill, sinkhorn
from partwhole.core.method import Batch
from partwhole.core.methods.deepcluster import DeepCluster
from partwhole.core.methods.obow import OBoW, one_of_each
from partwhole.core.methods.swav import SwAV
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder

D = 12


def encoder() -> TransformerEncoder:
    return TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2)


def crops(small: tuple[int, ...] = (4, 4, 6), seed: int = 0) -> Batch:
    """Five things in two large views and some small ones, with padding."""
    batch = {
        "index": torch.tensor([3, 0, 6, 5, 2]),
        "views": [draw(5, 9, 3, seed=seed + i) for i in range(2)],
        "valid": [most(5, 9, seed=10 + i) for i in range(2)],
    }
    if small:
        batch["crops"] = [draw(5, n, 3, seed=seed + 20 + i) for i, n in enumerate(small)]
        batch["crops_valid"] = [most(5, n, seed=30 + i) for i, n in enumerate(small)]
    return batch


def swav(**options) -> SwAV:
    return SwAV(encoder(), **{"prototypes": 7, "hidden": D, "dim": 5, "norm": "layer", **options})


def swav_with_queue(**options) -> SwAV:
    """Its queue is part full and in use."""
    method = swav(**{"queue": 24, "frozen": 0.0, "queue_from": 0.0, **options})
    method(crops(seed=50))
    method.after_step(0.1)
    return method


def deepcluster(**options) -> DeepCluster:
    """One that has clustered before: seven things of eight have a cluster."""
    method = DeepCluster(
        encoder(),
        **{"things": 8, "every": 1, "prototypes": 3, "hidden": D, "dim": 5, "norm": "layer", **options},
    )
    every, method.every = method.every, 1
    other = crops(seed=50)
    for index in (torch.arange(5), torch.arange(2, 7)):
        method({**other, "index": index})
    method.after_step(0.1)
    method.every = every
    return method


def obow(**options) -> OBoW:
    return OBoW(encoder(), **{"words": 24, **options})


CASES = {
    "deepcluster": (deepcluster, crops()),
    "deepcluster, no crops": (lambda: deepcluster(every=2), crops(())),
    "obow": (obow, crops()),
    "obow, no crops": (obow, crops(())),
    "obow, fewer words than views": (lambda: obow(words=7), crops()),
    "swav": (swav, crops()),
    "swav, no crops, batch norm": (lambda: swav(norm="batch", frozen=0.0), crops(())),
    "swav, queue": (swav_with_queue, crops()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_contract(case):
    """P1, P3, P4 over ranks as threads, P14 in half precision, S1, S3, S4, padding: see ``check_method``."""
    make, batch = CASES[case]
    check_method(make, batch)


OPTIONS = {
    "swav": (
        swav,
        crops(),
        [
            {},
            {"prototypes": 8},
            {"hidden": 7},
            {"dim": 4},
            {"temperature": 0.2},
            {"assignment_temperature": 0.1},
            {"queue": 20},
            {"queue": 10},
            {"queue": 20, "queue_from": 0.5},
            {"frozen": 0.5},
            {"frozen": 0.0},
            {"norm": "batch"},
            {"norm": None},
            {"pool": Max()},
        ],
    ),
    "deepcluster": (
        deepcluster,
        crops(),
        [
            {},
            {"things": 9, "every": 2},  # the number of things alone changes nothing
            {"every": 3},
            {"prototypes": 4},
            {"heads": 2},
            {"hidden": 7},
            {"dim": 4},
            {"temperature": 0.2},
            {"norm": "batch"},
            {"pool": Max()},
        ],
    ),
    "obow": (
        obow,
        crops(),
        [{}, {"words": 25}, {"temperature": 0.2}, {"sharpness": 5.0}, {"momentum": 0.5}, {"pool": Max()}],
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_P11_every_option_changes_the_loss(case):
    check_options(*OPTIONS[case])


# ------------------------------------------------------------------ SwAV


def embeddings(method: SwAV, batch: Batch) -> Tensor:
    """Of every view and crop, one by one: (S, B, D)."""
    inputs = [
        *zip(batch["views"], batch["valid"], strict=True),
        *zip(batch["crops"], batch["crops_valid"], strict=True),
    ]
    z = torch.stack([method.head(method.encoder(x, valid=v), v) for x, v in inputs])
    return z / z.norm(dim=-1, keepdim=True)


def official_swav(scores: Tensor, bank: Tensor, T: int, temperature: float, epsilon: float) -> Tensor:
    """The authors' loops over the views to assign and the views that predict them."""
    loss = torch.zeros(())
    for i in range(T):
        q = sinkhorn(torch.cat([bank, scores[i]]), temperature=epsilon)[len(bank) :]
        part = torch.zeros(())
        for v in set(range(len(scores))) - {i}:
            part = part - (q * (scores[v] / temperature).log_softmax(1)).sum(1).mean()
        loss = loss + part / (len(scores) - 1)
    return loss / T


def test_swav_is_the_authors_loss_with_and_without_the_queue():
    torch.manual_seed(0)
    method, batch = swav(queue=8, queue_from=0.5), crops()
    z = embeddings(method, batch)
    scores = z @ method.prototypes.T
    expected = official_swav(scores, scores[0, :0], 2, 0.1, 0.05)
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    method.after_step(0.4)
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4), "not yet"
    method.after_step(0.5)
    assert method.queue is not None
    assert method.queue.filled.all()
    last = torch.cat([z[:2].transpose(0, 1).flatten(0, 1)])[-8:]
    expected = official_swav(scores, last @ method.prototypes.T, 2, 0.1, 0.05)
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_swavs_prototypes_keep_length_1_and_rest_at_first():
    torch.manual_seed(0)
    method, batch = swav(frozen=0.5), crops()
    start = method.prototypes.detach().clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(7))
    method(batch)["loss"].backward()
    assert method.prototypes.grad is not None
    assert not method.prototypes.grad.any()
    with torch.no_grad():
        method.prototypes.mul_(0.9)  # weight decay
    method.after_step(0.5)
    assert torch.allclose(method.prototypes, start, atol=1e-6)
    method(batch)["loss"].backward()
    assert method.prototypes.grad.any()


def test_E3_swavs_usage_tells_a_collapse():
    torch.manual_seed(0)
    method, batch = swav(temperature=0.01), crops()
    out = method(batch)
    assert 1 / 7 < out["usage"] <= 1
    assert 0 < out["entropy"] < math.log(7)
    with torch.no_grad():
        for p in method.head.parameters():
            p.zero_()
        method.head.net[-1].bias.copy_(method.prototypes[2])  # type: ignore[index,union-attr,operator]
    assert method(batch)["usage"].item() == pytest.approx(1 / 7, rel=1e-2)


# ------------------------------------------------------------------ DeepCluster-v2


def test_deepcluster_predicts_the_cluster_of_the_thing_from_every_crop():
    torch.manual_seed(0)
    method, batch = deepcluster(), crops()
    z = embeddings(method, batch)
    terms = []
    for h, s, b in itertools.product(range(3), range(5), range(5)):
        k = method.cluster[h, batch["index"][b]]
        terms.append(-(z[s, b] @ method.prototypes[h].T / 0.1).log_softmax(0)[k])
    out = method(batch)
    assert out["loss"].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)
    assert out["items"] == 5
    assert out["assigned"] == 1


def test_deepcluster_clusters_what_it_remembers_every_so_many_steps():
    torch.manual_seed(0)
    method = DeepCluster(encoder(), things=8, every=2, prototypes=3, heads=3, hidden=D, dim=5, norm="layer")
    first, second = crops(seed=50), {**crops(seed=60), "index": torch.tensor([3, 1, 1, 4, 6])}
    out = method(first)
    out["loss"].backward()
    assert out["loss"] == out["items"] == 0, "nothing is clustered yet"
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())
    method.after_step(0.1)
    assert (method.cluster == -1).all()
    method(second)
    assert (method.cluster == -1).all(), "not before the step is done"
    method.after_step(0.2)
    known = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    assert (method.cluster[:, known] >= 0).all()
    assert (method.cluster[:, 7] == -1).all(), "never seen"
    late, early = embeddings(method, second), embeddings(method, first)
    for row, (z, b) in {0: (early, 1), 1: (late, 2), 3: (late, 0), 5: (early, 3)}.items():
        assert torch.allclose(method.memory.rows[row], z[:2, b], atol=1e-6), "the latest, and the later of two"
    for h in range(3):
        nearest = (method.memory.rows[known, h % 2] @ method.prototypes[h].T).argmax(1)
        assert torch.equal(method.cluster[h, known], nearest)
        assert torch.allclose(method.prototypes[h].norm(dim=1), torch.ones(3))
    assert not torch.equal(method.prototypes[0], method.prototypes[2]), "the same views from other rows"
    third = {**first, "index": torch.tensor([3, 7, 6, 5, 2])}
    assert method(third)["items"] == 4, "one of them has no cluster"


def test_deepcluster_says_what_it_lacks():
    method = deepcluster()
    with pytest.raises(ValueError, match="'index', and 2 views"):
        method({k: v for k, v in crops().items() if k != "index"})
    with pytest.raises(ValueError, match="2 things cannot make 3 clusters"):
        deepcluster(things=2)
    fresh = DeepCluster(encoder(), things=20, every=1, prototypes=6, norm="layer")
    fresh(crops())
    with pytest.raises(ValueError, match="1 steps have shown 5 things, and 6 clusters are wanted: raise every"):
        fresh.after_step(0.1)


# ------------------------------------------------------------------ OBoW


def test_obow_predicts_bags_of_the_teachers_words():
    torch.manual_seed(0)
    method, batch = obow(), crops()
    method.distance.value.fill_(2.0)
    inputs = [
        *zip(batch["views"], batch["valid"], strict=True),
        *zip(batch["crops"], batch["crops_valid"], strict=True),
    ]
    weight = method.weigh(torch.nn.functional.normalize(method.words.rows, dim=1))
    weight = weight / weight.norm(dim=1, keepdim=True)
    bags = []
    for x, real in inputs[:2]:
        for tokens, there in zip(method.teacher(x, real), real, strict=True):
            d = torch.cdist(tokens[there], method.words.rows).square()
            bag = (-d * 15 / 2.0).softmax(1).amax(0)
            bags.append(bag / bag.sum())
    target = torch.stack(bags).view(2, 5, 24)
    student = torch.stack([method.pool(method.encoder(x, valid=real), real) for x, real in inputs])
    expected = distill(student @ weight.T * 8, target, temperature=1.0)
    out = method(batch)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert out["entropy"].item() == pytest.approx(torch.special.entr(target).sum(-1).mean().item(), rel=1e-3)


def test_obows_vocabulary_and_distance_follow_the_teacher():
    torch.manual_seed(0)
    method, batch = obow(), crops()
    words, tokens = method.words.rows.clone(), torch.stack([method.teacher(x) for x in batch["views"]])
    whole = {**batch, "valid": None}
    nearest = torch.stack([torch.cdist(x, words).square().amin(-1).mean(1) for x in tokens])
    method(whole)
    assert torch.equal(method.words.rows, words), "not before the step is done"
    method.after_step(0.5)
    new = method.words.rows[:10]
    assert torch.equal(method.words.rows[10:], words[10:])
    for i, word in enumerate(new):
        gap = (tokens[i % 2, i // 2] - word).abs().amax(1)
        assert gap.min() < 1e-5, "a token of that view"
    assert method.distance.value.item() == pytest.approx(0.99 * 0.5 + 0.01 * nearest.mean().item(), rel=1e-4)


def test_words_are_taken_from_all_places_alike():
    tokens = torch.arange(10.0).expand(990, 10)[..., None]
    number = torch.arange(5000, 5990)
    counts = one_of_each(tokens, None, number).flatten().long().bincount(minlength=10)
    assert counts.min() > 95
    assert counts.max() < 104
    valid = torch.arange(10).expand(990, 10) % 3 == 1  # 1, 4 and 7
    counts = one_of_each(tokens, valid, number).flatten().long().bincount(minlength=10)
    assert set(counts.nonzero().flatten().tolist()) == {1, 4, 7}
    assert counts[[1, 4, 7]].min() > 320
    assert not one_of_each(tokens, torch.zeros_like(valid), number).any(), "nothing real: zeros"
