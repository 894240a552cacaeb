"""Finding objects: precision against loops and by hand, boxes that move with images, planted boxes are found."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.backbone import Backbone
from partwhole.vision.detection import Detect, Detection, Whole, detection, placed
from partwhole.vision.embed import Patches
from partwhole.vision.precision import Found, coco_ap, overlap, voc07

quick = settings(max_examples=40, deadline=None, derandomize=True)


def truth(boxes: list, labels: list | None = None, ignored: list | None = None) -> dict[str, Tensor]:
    n = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([1] * n if labels is None else labels, dtype=torch.int64),
        "ignored": torch.tensor([False] * n if ignored is None else ignored, dtype=torch.bool),
    }


def found(boxes: list, scores: list, labels: list | None = None) -> Found:
    of = truth(boxes, labels)
    return Found(of["boxes"], of["labels"], torch.tensor(scores, dtype=torch.float32))


A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]


# ------------------------------------------------------------------ precision


def test_precision_by_hand():
    one = [truth([A, B])]
    assert voc07([found([A, B], [0.9, 0.8])], one) == 1
    assert coco_ap([found([A, B], [0.9, 0.8])], one) == 1
    assert voc07([found([], [])], one) == 0
    # right, wrong, right: precision 1 up to a recall of 1/2, 2/3 up to 1
    seen = [found([A, C, B], [0.9, 0.8, 0.7])]
    assert voc07(seen, one) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert coco_ap(seen, one) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # the same object twice: the second is wrong
    assert voc07([found([A, A, B], [0.9, 0.8, 0.7])], one) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # the mean over classes of the truth; the other class of a detection is no matter
    two = [truth([A, B], [1, 2])]
    assert voc07([found([A, B], [0.9, 0.8], [1, 3])], two) == 0.5
    assert np.isnan(voc07([found([A], [0.5])], [truth([])]))


def test_an_iou_of_eight_tenths_counts_at_seven_thresholds():
    seen, one = [found([[0, 0, 10, 8]], [0.5])], [truth([A])]
    assert overlap(seen[0].boxes, one[0]["boxes"]).item() == pytest.approx(0.8)
    assert coco_ap([found([[0, 0, 10, 8.2]], [0.5])], one) == pytest.approx(7 / 10)
    assert voc07(seen, one) == 1
    assert voc07(seen, one, threshold=0.9) == 0


def test_ignored_objects_count_neither_way():
    one = [truth([A, B], ignored=[False, True])]
    for measure in (voc07, coco_ap):
        assert measure([found([B, A], [0.9, 0.8])], one) == 1
        assert measure([found([B, B, A], [0.9, 0.85, 0.8])], one) == 1
        assert measure([found([C, A], [0.9, 0.8])], one) == 0.5


def test_what_lies_in_a_crowd_counts_neither_way():
    one = [truth([A, [50, 0, 90, 40]], ignored=[False, True])]
    inside = found([[55, 5, 60, 10], A], [0.9, 0.8])
    assert coco_ap([inside], one) == 1
    assert voc07([inside], one) == 0.5  # VOC knows no crowds
    assert overlap(inside.boxes, one[0]["boxes"], one[0]["ignored"])[0, 1].item() == pytest.approx(1)


def test_a_taken_object_leaves_a_detection_to_the_next_in_coco_alone():
    """Two objects upon another: the second detection covers the taken one most."""
    near = [0, 0, 10, 8]
    one = [truth([A, near])]
    seen = [found([A, [0, 0, 10, 9.5]], [0.9, 0.8])]
    assert voc07(seen, one) == pytest.approx(6 / 11)
    assert coco_ap(seen, one, thresholds=(0.5,)) == 1


def naive_iou(a: list, b: list) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def naive(seen: list[Found], samples: list[dict], threshold: float, points: int, again: bool) -> float:
    """Average precision of class 1, from its definition; no object is ignored."""
    rows = sorted(
        ((s, i, b) for i, f in enumerate(seen) for b, s in zip(f.boxes.tolist(), f.scores.tolist(), strict=True)),
        reverse=True,
    )
    taken, hits, curve = set(), 0, []
    total = sum(len(s["boxes"]) for s in samples)
    for n, (_, i, box) in enumerate(rows, 1):
        overlaps = [naive_iou(box, t) for t in samples[i]["boxes"].tolist()]
        if again:
            overlaps = [-1 if (i, j) in taken else o for j, o in enumerate(overlaps)]
        j = max(range(len(overlaps)), key=lambda j: overlaps[j], default=None)
        if j is not None and overlaps[j] >= threshold and (i, j) not in taken:
            taken.add((i, j))
            hits += 1
        curve.append((hits / total, hits / n))
    at = [k / (points - 1) for k in range(points)]
    return sum(max((p for r, p in curve if r >= level - 1e-9), default=0) for level in at) / points


@quick
@given(st.integers(0, 9999), st.booleans())
def test_precision_against_loops(seed, again):
    random = np.random.default_rng(seed)

    def boxes(n: int) -> list:
        corner = random.integers(0, 12, (n, 2))
        return np.concatenate([corner, corner + random.integers(4, 10, (n, 2))], 1).tolist()

    samples = [truth(boxes(random.integers(1, 5))) for _ in range(3)]
    seen = []
    for _ in samples:
        n = random.integers(0, 7)
        seen.append(found(boxes(n), random.random(n).tolist()))
    got = coco_ap(seen, samples, thresholds=(0.35,)) if again else voc07(seen, samples, threshold=0.35)
    assert got == pytest.approx(naive(seen, samples, 0.35, 101 if again else 11, again))


# ------------------------------------------------------------------ views


def scene(seed: int, H: int = 48, W: int = 64) -> dict[str, Tensor]:
    """A red box or two on blue, with their boxes."""
    random = np.random.default_rng(seed)
    image = torch.tensor([20, 20, 200], dtype=torch.uint8)[:, None, None].repeat(1, H, W)
    boxes = []
    for half in range(1 + seed % 2):
        y, x = random.integers(0, H - 20), random.integers(0, W // 2 - 20) + half * W // 2
        image[:, y : y + 20, x : x + 20] = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
        boxes.append([x, y, x + 20, y + 20])
    return {"image": image, **truth(boxes)}


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("size", [(48, 64), (72, 60)])
def test_boxes_move_with_the_image(flip, size):
    sample = scene(1, *size)
    seen = Whole(32, flip, (0, 0, 0), (1, 1, 1))(sample)
    assert seen["x"].shape == (3, 32, 32)
    red = (seen["x"][0] > seen["x"][2]) & (seen["x"][0] > 0.3)
    inside = torch.zeros_like(red)
    at = torch.arange(32) + 0.5
    for left, top, right, bottom in seen["boxes"].tolist():
        inside |= ((at > top) & (at < bottom))[:, None] & ((at > left) & (at < right))
    assert (red & inside).sum() / (red | inside).sum() > 0.75
    assert not red.all()


def test_ignored_objects_are_not_learned_from():
    sample = {**scene(1), "ignored": torch.tensor([True, False])}
    assert len(Whole(32)(sample)["boxes"]) == 1


@quick
@given(st.integers(8, 90), st.integers(8, 90))
def test_the_longer_side_fills_the_square(H, W):
    x, scale = placed(torch.full((3, H, W), 255, dtype=torch.uint8), 32, (0, 0, 0), (1, 1, 1))
    rows, columns = ((x[0] > 0.99).any(n).sum() for n in (1, 0))
    assert max(rows, columns) == 32
    torch.testing.assert_close(scale, torch.tensor([columns / W, rows / H]).repeat(2))


# ------------------------------------------------------------------ the method


def vit() -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(Patches(32, size=64, patch=8), dim=32, depth=1, heads=2, cls=True)


def test_padded_objects_change_nothing():
    torch.manual_seed(0)
    method = Detect(vit(), classes=2, size=64, hidden=16)
    x, boxes, labels = torch.randn(2, 3, 64, 64), torch.tensor([[[4.0, 4, 30, 30]]] * 2), torch.ones(2, 1).long()
    padded = {
        "x": x,
        "boxes": torch.cat([boxes, torch.zeros(2, 1, 4)], 1),
        "labels": torch.cat([labels, torch.zeros(2, 1).long()], 1),
        "valid": torch.tensor([[True, False]] * 2),
    }
    values = []
    for batch in (padded, {"x": x, "boxes": boxes, "labels": labels}):
        torch.manual_seed(1)  # of the anchors and boxes that are drawn
        values.append(method(batch))
    assert values[0]["loss"] == values[1]["loss"]
    assert {"classifier", "box_reg", "objectness", "rpn_box_reg"} < values[0].keys()
    values[0]["loss"].backward()
    assert all(p.grad is not None for p in method.encoder.trunk.blocks.parameters())


@pytest.mark.parametrize(
    ("encoder", "side"),
    [
        (TransformerEncoder(Patches(16, size=96, patch=12), dim=16, depth=1, heads=2), 8),
        (Backbone("resnet10t", size=96), 3),
        (Backbone("vit_tiny_patch16_224", size=96), 6),
    ],
)
def test_boxes_are_looked_up_where_they_lie(encoder, side):
    """Patches of 12 pixels too, which are no power of two: on a map of places, boxes lie apart as they do in pixels."""
    pool = Detect(encoder, classes=2, size=96, hidden=16).net.roi_heads.box_roi_pool
    places = (torch.arange(side) + 0.5) * 96 / side
    boxes = torch.tensor([[20.0, 20, 52, 52], [30, 20, 62, 52]])
    first, second = pool({"0": places.expand(1, 1, side, side)}, [boxes], [(96, 96)]).mean((1, 2, 3)).tolist()
    assert second - first == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize(
    "encoder",
    [
        TransformerEncoder(Patches(16, size=96, patch=12), dim=16, depth=1, heads=2, cls=True),
        Backbone("resnet10t", size=96),
    ],
)
@pytest.mark.parametrize("masks", [False, True])
def test_the_maps_of_a_pyramid_are_learned(encoder, masks):
    method = Detect(encoder, classes=2, size=96, hidden=16, frozen=True, masks=masks, pyramid=True)
    maps = method.net.backbone(torch.randn(2, 3, 96, 96))
    at = 96 // (12 if isinstance(encoder, TransformerEncoder) else 32)
    assert [m.shape for m in maps.values()] == [
        (2, 16, n, n) for n in (at * 4, at * 2, at, (at + 1) // 2, (at + 3) // 4)
    ]
    boxes = torch.tensor([[[4.0, 4, 12, 12], [10, 10, 90, 90]]])
    planted = {"masks": torch.ones(1, 2, 96, 96, dtype=torch.bool)} if masks else {}
    batch = {"x": torch.randn(1, 3, 96, 96), "boxes": boxes, "labels": torch.ones(1, 2).long(), **planted}
    method(batch)["loss"].backward()
    assert all(p.grad is not None for p in method.net.backbone.scales.parameters())
    assert all(p.grad is None for p in encoder.parameters())
    assert len(method.found(torch.randn(2, 3, 96, 96))) == 2
    pool, finest = method.net.roi_heads.box_roi_pool, (96 / at) / 4
    assert pool.scales == [1 / (finest * 2**i) for i in range(4)]
    wide = torch.tensor([1.0, 13, 27, 29, 57, 113, 900]) * finest  # places of the finest map
    assert pool.map_levels([torch.stack([0 * wide, 0 * wide, wide, wide], 1)]).tolist() == [0, 0, 0, 1, 2, 3, 3]


def test_frozen_means_no_gradient():
    method = Detect(Backbone("resnet10t", size=64), classes=2, size=64, hidden=16, frozen=True)
    before = {k: v.clone() for k, v in method.encoder.state_dict().items()}
    batch = {
        "x": torch.randn(1, 3, 64, 64),
        "boxes": torch.tensor([[[4.0, 4, 30, 30]]]),
        "labels": torch.ones(1, 1).long(),
    }
    method(batch)["loss"].backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in method.encoder.state_dict().items())
    assert len(method.found(torch.randn(2, 3, 64, 64))) == 2
    assert method.training
    assert not method.encoder.training


def test_options_are_checked():
    with pytest.raises(ValueError, match="draws"):
        Detection(draws=0)


@pytest.mark.slow
@pytest.mark.parametrize("pyramid", [False, True])
def test_planted_boxes_are_found(pyramid):
    train, test = [scene(i) for i in range(16)], [scene(100 + i) for i in range(6)]
    options = Detection(arms=("finetune",), size=64, steps=120, lr=1e-3, batch=4, hidden=64, pyramid=pyramid)
    results = detection(vit(), train, test, classes=["background", "box"], options=options)
    (voc,), (coco,) = results["arms"]["finetune"].values()
    assert voc > 0.7, results
    assert 0.2 < coco < voc
