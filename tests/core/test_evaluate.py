"""Evaluations against independent references: scikit-learn, and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.core.encoder import Max, Vectors
from partwhole.core.evaluate import (
    accuracy,
    embed,
    knn,
    knn_votes,
    mean_iou,
    part_iou,
    rand_index,
    ridge,
    spread,
    top_k,
)
from partwhole.core.transformer import TransformerEncoder

quick = settings(max_examples=40, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(n: int, q: int, classes: int, seed: int):
    draw = generator(seed)
    names = torch.tensor([-5, 0, 3, 4, 90, 1000])[:classes]  # gaps, and one below zero
    bank, query = (torch.randn(m, 6, generator=draw, dtype=torch.float64) for m in (n, q))
    return bank, names[torch.randint(classes, (n,), generator=draw)], query


@quick
@given(
    n=st.integers(1, 40),
    classes=st.integers(1, 6),
    k=st.sampled_from([1, 2, 5, 20, 100]),
    temperature=st.sampled_from([None, 0.07, 1.0]),
    seed=st.integers(0, 99),
)
def test_E1_knn_equals_scikit_learns(n, classes, k, temperature, seed):
    """Random labels, k above n, gaps in the labels, uniform and weighted votes."""
    from sklearn.neighbors import KNeighborsClassifier

    bank, label, query = data(n, 30, classes, seed)
    weights = "uniform" if temperature is None else lambda d: np.exp((1 - d) / temperature)
    theirs = KNeighborsClassifier(min(k, n), metric="cosine", algorithm="brute", weights=weights)
    theirs.fit(bank.numpy(), label.numpy())
    votes, names = knn_votes(bank, label, query, k=k, temperature=temperature, rows=7)
    assert names.tolist() == theirs.classes_.tolist()
    assert np.allclose(votes.numpy(), theirs.predict_proba(query.numpy()), atol=1e-9)
    tied = (votes.topk(min(2, len(names))).values.diff().abs() < 1e-9).any(1)
    ours = knn(bank, label, query, k=k, temperature=temperature)
    assert (ours.numpy() == theirs.predict(query.numpy()))[~tied.numpy()].all()
    if temperature is None:
        assert (ours.numpy() == theirs.predict(query.numpy())).all(), "ties go to the smallest label in both"


def test_E1_top_5_with_fewer_neighbours_counts_no_class_without_a_vote():
    bank, label, query = data(40, 200, 6, 0)
    truth = torch.tensor([-5, 0, 3, 4, 90, 1000])[torch.randint(6, (200,), generator=generator(1))]
    votes, names = knn_votes(bank, label, query, k=3)
    top = {k: top_k(votes, names, truth, k=k) for k in (1, 2, 3, 5, 50)}
    assert top[1] == accuracy(knn(bank, label, query, k=3), truth)
    assert top[1] <= top[2] <= top[3] == top[5] == top[50] < 1, "three neighbours name three classes at most"
    with pytest.raises(ValueError, match="at least one neighbour"):
        knn_votes(bank[:0], label[:0], query)


@quick
@given(n=st.integers(2, 40), d=st.integers(1, 12), penalty=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 99))
def test_ridge_equals_scikit_learns(n, d, penalty, seed):
    from sklearn.linear_model import Ridge

    draw = generator(seed)
    x, query = torch.randn(n, d, generator=draw) * 3 + 2, torch.randn(20, d, generator=draw)
    label = torch.tensor([-1, 4, 9])[torch.randint(3, (n,), generator=draw)]
    mean, std = x.double().mean(0), x.double().std(0, correction=0) + 1e-5
    names = label.unique()
    target = (label[:, None] == names).double()
    model = Ridge(alpha=penalty).fit(((x - mean) / std).numpy(), target.numpy())
    scores = model.predict(((query - mean) / std).numpy()).reshape(20, -1)
    top = np.sort(scores, 1)
    clear = top[:, -1] - top[:, -2] > 1e-9 if len(names) > 1 else np.ones(20, bool)
    ours = ridge(x, label, query, penalty=penalty).numpy()
    assert (ours == names.numpy()[scores.argmax(1)])[clear].all()


def test_ridge_of_one_row_or_constant_features_is_finite():
    assert ridge(torch.ones(1, 3), torch.tensor([7]), torch.randn(2, 3)).tolist() == [7, 7]
    assert ridge(torch.ones(4, 3), torch.tensor([2, 2, 2, 5]), torch.ones(2, 3)).tolist() == [2, 2]


def loop_part_iou(prediction, label, parts):
    """The official protocol, shape by shape: absent and not predicted counts 1."""
    ious = []
    for part in parts:
        p, t = prediction == part, label == part
        ious.append(1.0 if not t.any() and not p.any() else (p & t).sum().item() / (p | t).sum().item())
    return sum(ious) / len(ious)


@quick
@given(b=st.integers(1, 4), points=st.integers(1, 30), seed=st.integers(0, 99))
def test_E5_part_iou_is_the_official_protocol(b, points, seed):
    draw = generator(seed)
    parts = [[0, 1], [2, 3, 4], [5]]  # of three categories
    allowed = torch.zeros(3, 6, dtype=torch.bool)
    for c, of in enumerate(parts):
        allowed[c, of] = True
    category = torch.randint(3, (b,), generator=draw)
    label = torch.stack(
        [torch.tensor(parts[c])[torch.randint(len(parts[c]), (points,), generator=draw)] for c in category]
    )
    scores = torch.randn(b, points, 6, generator=draw)
    prediction = scores.masked_fill(~allowed[category][:, None], -torch.inf).argmax(-1)
    valid = torch.rand(b, points, generator=draw) < 0.7
    got = part_iou(prediction, label, allowed[category])
    padded = part_iou(prediction, label.masked_fill(~valid, 99), allowed[category], valid=valid)
    for i, c in enumerate(category.tolist()):
        assert got[i].item() == pytest.approx(loop_part_iou(prediction[i], label[i], parts[c]))
        real = valid[i]
        assert padded[i].item() == pytest.approx(loop_part_iou(prediction[i][real], label[i][real], parts[c]))
    assert part_iou(prediction[0], label[0], allowed[category[0]]).item() == pytest.approx(got[0].item()), (
        "no batch axis"
    )
    means = mean_iou(got, category)
    assert means["shape_iou"] == pytest.approx(got.mean().item())
    by_hand = [np.mean([got[i].item() for i in range(b) if category[i] == c]) for c in set(category.tolist())]
    assert means["category_iou"] == pytest.approx(np.mean(by_hand))


def test_E5_part_iou_by_hand():
    allowed = torch.tensor([True, True, True, False])
    label = torch.tensor([0, 0, 1, 1])
    assert part_iou(label, label, allowed).item() == 1, "part 2 is absent and not predicted"
    assert part_iou(torch.tensor([0, 0, 1, 2]), label, allowed).item() == pytest.approx((1 + 0.5 + 0) / 3)
    assert part_iou(torch.tensor([3, 3, 1, 1]), label, allowed).item() == pytest.approx((0 + 1 + 1) / 3)
    with pytest.raises(ValueError, match="not among the parts"):
        part_iou(label, torch.tensor([0, 0, 1, 3]), allowed)
    with pytest.raises(ValueError, match="not among the parts"):
        part_iou(label, torch.tensor([0, 0, 1, -1]), allowed)


@quick
@given(n=st.integers(2, 60), a=st.integers(1, 6), b=st.integers(1, 6), seed=st.integers(0, 99))
def test_rand_index_equals_scikit_learns(n, a, b, seed):
    from sklearn.metrics import adjusted_rand_score, rand_score

    one, two = (torch.randint(k, (n,), generator=generator(seed + k)) * 7 - 3 for k in (a, b))
    assert rand_index(one, two) == pytest.approx(rand_score(one, two))
    assert rand_index(one, two, adjusted=True) == pytest.approx(adjusted_rand_score(one, two), abs=1e-9)
    assert rand_index(one, one) == rand_index(one, one, adjusted=True) == 1


def test_rand_index_of_one_point_or_of_unequal_lengths():
    assert rand_index(torch.tensor([3]), torch.tensor([1])) == 1
    with pytest.raises(ValueError, match="cannot be compared"):
        rand_index(torch.tensor([3, 1]), torch.tensor([1]))


def test_spread_is_one_on_the_sphere_and_zero_in_a_point():
    full = torch.randn(4000, 32, generator=generator(0))
    assert spread(full).item() == pytest.approx(1, abs=0.01)
    assert spread(full * 100).item() == pytest.approx(spread(full).item(), rel=1e-5)
    assert spread(torch.ones(10, 32)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.zeros(10, 32)).item() == 0
    assert spread(full[:1]).item() == 0


def test_embed_is_one_row_a_thing_in_eval_mode():
    torch.manual_seed(0)
    encoder = TransformerEncoder(Vectors(3, 8), dim=8, depth=1, heads=2, drop_path=0.5).train()
    x, valid = torch.randn(5, 7, 3), torch.rand(5, 7) < 0.6
    rows = embed(encoder, [{"x": x[:2], "valid": valid[:2]}, {"x": x[2:], "valid": valid[2:]}], pool=Max())
    assert encoder.training
    encoder.eval()
    assert torch.allclose(rows, Max()(encoder(x, valid=valid), valid), atol=1e-6)
    assert not rows.requires_grad
    assert torch.allclose(embed(encoder, [{"x": x}]), encoder(x).mean(1), atol=1e-6)
