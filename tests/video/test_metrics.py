"""J, F, PCK and mIoU against the formulas as they are published."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from partwhole.video.metrics import davis, decay, j_and_f, mean_iou, outline, pck


def official_outline(seg):
    """The construction of the challenge's code: shifts to the east, the south and the south-east, and its edges."""
    e, s, se = (np.zeros_like(seg) for _ in range(3))
    e[:, :-1], s[:-1], se[:-1, :-1] = seg[:, 1:], seg[1:], seg[1:, 1:]
    b = (seg ^ e) | (seg ^ s) | (seg ^ se)
    b[-1], b[:, -1] = seg[-1] ^ e[-1], seg[:, -1] ^ s[:, -1]
    b[-1, -1] = False
    return b


def official(pred, truth):
    """(J, F) of whole frames, with dilated boundaries."""
    union = (pred | truth).sum()
    region = (pred & truth).sum() / union if union else 1.0
    radius = math.ceil(0.008 * np.linalg.norm(pred.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x * x + y * y <= radius * radius
    a, b = official_outline(pred), official_outline(truth)
    wide_a, wide_b = binary_dilation(a, disk), binary_dilation(b, disk)
    if not a.sum() and b.sum():
        precision, recall = 1, 0
    elif a.sum() and not b.sum():
        precision, recall = 0, 1
    elif not a.sum():
        precision = recall = 1
    else:
        precision, recall = (a & wide_b).sum() / a.sum(), (b & wide_a).sum() / b.sum()
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0


def blobs(rng, h, w, kind):
    """Noise, smooth forms, bars at an edge, a few pixels, or nothing."""
    if kind == "noise":
        return rng.random((h, w)) < rng.random()
    if kind == "few":
        return rng.random((h, w)) < 3 / (h * w)
    if kind == "edge":
        out = np.zeros((h, w), bool)
        out[rng.integers(h) :, : 1 + rng.integers(w)] = True
        return out[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])].copy()
    y, x = np.mgrid[:h, :w]
    middle = rng.random(2) * (h, w)
    return ((y - middle[0]) ** 2 + (x - middle[1]) ** 2) < (rng.random() * max(h, w) / 2) ** 2


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.integers(2, 80),
    st.sampled_from(["noise", "few", "edge", "disc"]),
    st.sampled_from(["noise", "few", "edge", "disc"]),
)
def test_j_and_f_equal_the_official_formulas(seed, h, w, first, second):
    rng = np.random.default_rng(seed)
    a, b = blobs(rng, h, w, first), blobs(rng, h, w, second)
    assert np.array_equal(outline(a), official_outline(a))
    assert j_and_f(a, b) == pytest.approx(official(a, b), abs=1e-12)


def test_j_and_f_of_large_frames():
    """Where the radius is 4, and where rows are long."""
    rng = np.random.default_rng(0)
    for h, w in ((240, 427), (3, 900)):
        for first in ("disc", "edge", "few"):
            a, b = blobs(rng, h, w, first), blobs(rng, h, w, "disc")
            assert j_and_f(a, b) == pytest.approx(official(a, b), abs=1e-12)


def test_masks_of_nothing():
    none, some = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    some[3:5, 3:5] = True
    assert j_and_f(none, none) == (1, 1)
    assert j_and_f(none, some) == (0, 0)
    assert j_and_f(some, none) == (0, 0)
    assert j_and_f(np.ones((9, 9), bool), np.ones((9, 9), bool)) == (1, 1)


def test_what_does_not_count_changes_nothing():
    rng = np.random.default_rng(1)
    a, b = blobs(rng, 40, 50, "disc"), blobs(rng, 40, 50, "disc")
    void = np.zeros((40, 50), bool)
    void[10:20] = True
    other = a ^ void
    assert j_and_f(a, b, void) == j_and_f(other, b, void) == j_and_f(a & ~void, b & ~void)
    truth = torch.randint(0, 3, (5, 20, 30))
    truth[:, 4:9] = 255
    pred = torch.randint(0, 3, (5, 20, 30))
    changed = pred.clone()
    changed[:, 4:9] = 1
    assert davis(pred, truth).numbers == davis(changed, truth).numbers


def test_the_protocol_of_the_challenge():
    """First and last frame out; all objects weigh alike; recall and decay by its own formulas."""
    g = torch.Generator().manual_seed(0)
    truth, pred = (torch.randint(0, n, (11, 24, 30), generator=g) for n in (4, 5))
    found = davis(pred, truth)
    assert found.objects == ("1", "2", "3")
    for o, i in enumerate((1, 2, 3)):
        rows = [official((p == i).numpy(), (t == i).numpy()) for p, t in zip(pred[1:-1], truth[1:-1], strict=True)]
        np.testing.assert_allclose(np.stack([found.region[o], found.boundary[o]], 1), rows, atol=1e-12)
    spoilt = pred.clone()
    spoilt[0], spoilt[-1] = 0, 0
    assert davis(spoilt, truth).numbers == found.numbers
    assert found.numbers["J"] == pytest.approx(np.mean(found.region))
    assert found.numbers["F recall"] == pytest.approx(np.mean(found.boundary > 0.5))
    assert found.numbers["J decay"] == pytest.approx(np.mean([decay(row) for row in found.region]))
    assert found.numbers["J&F"] == pytest.approx((found.numbers["J"] + found.numbers["F"]) / 2)
    assert [len(values) for values in found.each.values()] == [3] * 7
    perfect = davis(truth, truth).numbers
    assert [perfect[k] for k in ("J&F", "J recall", "F recall", "J decay")] == [1, 1, 1, 0]


@given(st.integers(1, 300))
def test_decay_compares_the_first_and_the_last_quarter(n):
    values = np.linspace(1, 0, n)
    ids = np.round(np.linspace(1, n, 5) + 1e-10).astype(int) - 1
    wanted = values[ids[0] : ids[1] + 1].mean() - values[ids[3] : ids[4] + 1].mean()
    assert decay(values) == pytest.approx(wanted)
    assert n < 4 or decay(values) > 0.6


def test_objects_never_exchange_identity():
    truth = torch.zeros(5, 20, 20, dtype=torch.int64)
    truth[:, 2:8, 2:8], truth[:, 12:18, 12:18] = 1, 2
    exchanged = torch.where(truth == 1, 2, torch.where(truth == 2, 1, 0))
    assert davis(exchanged, truth).numbers["J&F"] == 0
    order = torch.tensor([0, 2, 1])
    assert davis(order[exchanged], order[truth]).numbers == davis(exchanged, truth).numbers
    assert davis(order[truth], order[truth]).numbers["J&F"] == 1


def test_joints_lost_are_dropped_as_published_and_wrong_when_strict():
    true = torch.tensor([[[0.0, 0.0], [60.0, 80.0], [30.0, 40.0]]]).expand(3, -1, -1).clone()
    found = true.clone()
    found[1, 0] = torch.nan  # lost
    found[2, 1] += torch.tensor([0.0, 7.0])  # of 60: not within .1, within .2
    strict, lenient = (pck([(found, true)], strict=s) for s in (True, False))
    assert strict == pytest.approx({"PCK@0.1": (0.5 + 0.5 + 1) / 3, "PCK@0.2": (0.5 + 1 + 1) / 3})
    assert lenient == pytest.approx({"PCK@0.1": (1 + 0.5 + 1) / 3, "PCK@0.2": 1})


def test_pck_is_that_of_the_published_loops():
    g = torch.Generator().manual_seed(0)
    videos = []
    for T in (4, 6):
        true = torch.rand(T, 5, 2, generator=g) * 100
        found = true + 6 * torch.randn(T, 5, 2, generator=g)
        found[torch.rand(T, 5, generator=g) < 0.2] = torch.nan
        videos.append((found, true))
    right, count = np.zeros(5), np.zeros(5)
    for found, true in videos:
        for k in range(1, len(true)):
            there = [j for j in range(5) if not found[k, j].isnan().any()]
            box = 0.6 * np.linalg.norm(true[k, there].amax(0) - true[k, there].amin(0))
            for j in there:
                right[j] += np.linalg.norm(found[k, j] - true[k, j]) / box <= 0.1
                count[j] += 1
    assert pck(videos, strict=False)["PCK@0.1"] == pytest.approx((right / count).mean())


def test_joints_that_are_not_known_do_not_count():
    true = torch.rand(3, 4, 2)
    found = true.clone()
    true[:, 1] = torch.nan
    assert pck([(found, true)]) == {"PCK@0.1": 1, "PCK@0.2": 1}
    with pytest.raises(ValueError, match="no joint"):
        pck([(found, torch.full((3, 4, 2), torch.nan))])


def test_mean_iou_is_over_all_pixels_of_all_videos():
    g = torch.Generator().manual_seed(0)
    videos = [tuple(torch.randint(0, 4, (2, 7, n), generator=g) for _ in range(2)) for n in (5, 30)]
    videos[0][1][:, 0] = 255
    found, true = (torch.cat([v[i].flatten() for v in videos]) for i in (0, 1))
    found, true = found[true != 255], true[true != 255]
    each = [((found == c) & (true == c)).sum() / ((found == c) | (true == c)).sum() for c in range(4)]
    assert mean_iou(videos, 20) == pytest.approx(torch.stack(each).mean().item())  # parts that are nowhere are left out
    with pytest.raises(ValueError, match="id 3, and there are 3 classes"):
        mean_iou(videos, 3)


def test_bad_input_is_told():
    ids = torch.ones(4, 5, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="of one size"):
        davis(ids, ids[:, :4])
    with pytest.raises(ValueError, match="no object"):
        davis(ids, 0 * ids)
    with pytest.raises(ValueError, match="2 frames"):
        davis(ids[:2], ids[:2])
    with pytest.raises(ValueError, match=r"\(T, J, 2\)"):
        pck([(torch.rand(3, 4), torch.rand(3, 4))])
