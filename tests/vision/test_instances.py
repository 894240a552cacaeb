"""Masks of objects: readers give them where asked, they move with images, are measured exactly, and are learned."""

import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image, ImageDraw
from torch import Tensor

from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.vision.annotated import coco, parts, pennfudan, voc
from partwhole.vision.detection import Detect, Detection, Whole, detection, placed, placed_masks, returned
from partwhole.vision.draw import colour_of, stacked
from partwhole.vision.embed import Patches
from partwhole.vision.outlines import outline
from partwhole.vision.precision import COCO_THRESHOLDS, Found, coco_ap, mask_overlap
from partwhole.vision.transfer import Transfer, transfer
from partwhole.vision.transfer_report import tables

quick = settings(max_examples=40, deadline=None, derandomize=True)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def vit() -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(Patches(32, size=64, patch=8), dim=32, depth=1, heads=2, cls=True)


def around(mask: Tensor) -> list[int]:
    y, x = mask.nonzero().unbind(1)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


# ------------------------------------------------------------------ readers


def test_masks_of_pennfudan_lie_in_their_boxes(tmp_path):
    numbers = np.zeros((12, 16), np.uint8)
    numbers[2:5, 3:7], numbers[4:9, 5:12], numbers[6:, 15:] = 1, 2, 255  # the second hides a part of the first
    save(tmp_path / "images" / "a.png", np.zeros((12, 16, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", numbers)
    found = pennfudan(tmp_path, instances=True)[0]
    assert found["masks"].dtype == torch.bool
    assert [around(m) for m in found["masks"]] == found["boxes"].tolist()
    for mask, number in zip(found["masks"], (1, 2, 255), strict=True):
        assert torch.equal(mask, torch.from_numpy(numbers == number))
    for with_masks in (False, True):
        got = parts(tmp_path, instances=with_masks)
        assert got.boxes
        assert ("masks" in got.boxes.test[0]) == with_masks


def voc_set(root: Path) -> Path:
    """Two objects, one of them upon the other, with borders; their boxes in the annotation are larger."""
    numbers, classes = np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.uint8)
    for number, label, rows, columns in ((1, 15, (1, 8), (1, 9)), (2, 12, (4, 11), (6, 14))):
        for image, value in ((numbers, number), (classes, label)):
            image[slice(*rows), slice(*columns)] = 255
            image[rows[0] + 1 : rows[1] - 1, columns[0] + 1 : columns[1] - 1] = value
    save(root / "JPEGImages" / "a.jpg", np.zeros((12, 16, 3), np.uint8))
    save(root / "SegmentationObject" / "a.png", numbers)
    save(root / "SegmentationClass" / "a.png", classes)
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    for path, text in (
        ("Annotations/a.xml", f"<annotation><object><name>person</name>{box}</object></annotation>"),
        *((f"ImageSets/{kind}/{part}.txt", "a\n") for kind in ("Main", "Segmentation") for part in ("train", "val")),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_masks_of_voc_have_classes_and_boxes(tmp_path):
    root = voc_set(tmp_path)
    found = voc(root, what="instances")[0]
    assert found["labels"].tolist() == [15, 12]
    assert [around(m) for m in found["masks"]] == found["boxes"].tolist()
    assert found["boxes"].tolist()[1] == [7, 5, 13, 10]
    assert not found["ignored"].any()
    asked, plain = parts(root, instances=True).boxes, parts(root).boxes
    assert asked
    assert plain
    assert asked.test[0]["masks"].shape == (2, 12, 16)
    assert len(plain.test[0]["boxes"]) == 1
    assert "masks" not in plain.test[0]
    Image.new("L", (16, 12)).save(root / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match=r"classes \[0, 0\]"):
        voc(root, what="instances")
    (root / "SegmentationObject" / "a.png").unlink()
    (root / "SegmentationObject").rmdir()
    plain = parts(root, instances=True).boxes  # there are none: the boxes still are
    assert plain
    assert "masks" not in plain.test[0]


@quick
@given(st.integers(0, 9999))
def test_polygons_of_coco_hold_the_pixels_whose_middle_is_inside(seed):
    """Against a triangle's three half planes; pixels within a quarter of one from the border may be either."""
    random = np.random.default_rng(seed)
    at = random.uniform(-3, 20, (3, 2))
    got = outline([at.flatten().tolist()], 12, 16).numpy()
    x, y = np.meshgrid(np.arange(16) + 0.5, np.arange(12) + 0.5)
    distance = []
    for i in range(3):
        (ax, ay), (bx, by), (cx, cy) = at[i], at[(i + 1) % 3], at[(i + 2) % 3]
        normal = np.array([ay - by, bx - ax]) / max(np.hypot(bx - ax, by - ay), 1e-9)
        side = np.sign(normal @ [cx - ax, cy - ay])
        distance.append(side * (normal[0] * (x - ax) + normal[1] * (y - ay)))
    inside, sure = np.min(distance, 0) > 0, np.abs(np.min(distance, 0)) > 0.5
    assert (got == inside)[sure].all()
    assert got.dtype == bool


def test_outlines_of_squares_fill_their_boxes(tmp_path):
    things = [
        {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "bbox": [x, y, w, h], "category_id": 5}
        for x, y, w, h in ((2, 3, 5, 4), (8, 0, 8, 12), (0, 11, 1, 1))
    ]
    told = {
        "images": [{"id": 0, "file_name": "a.png", "height": 12, "width": 16}],
        "annotations": [{**t, "image_id": 0} for t in things],
        "categories": [{"id": 5, "name": "cat"}],
    }
    save(tmp_path / "images" / "a.png", np.zeros((12, 16, 3), np.uint8))
    (tmp_path / "annotations.json").write_text(json.dumps(told))
    found = coco(tmp_path / "annotations.json", tmp_path / "images", instances=True)[0]
    assert [around(m) for m in found["masks"]] == found["boxes"].tolist()
    assert found["masks"].sum((1, 2)).tolist() == [20, 96, 1]


# ------------------------------------------------------------------ views


def disc(H: int, W: int, centre: tuple[float, float], radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


@quick
@given(st.integers(40, 150), st.integers(40, 150), st.sampled_from([64, 96]))
def test_masks_survive_the_frame_and_back(H, W, size):
    """A disc in the corner that is not square's, there and back: as it was, but for pixels at its border."""
    image = torch.zeros(3, H, W, dtype=torch.uint8)
    masks = torch.stack([disc(H, W, (0.6 * H, 0.7 * W), 12), disc(H, W, (13, 13), 12)])
    boxes = torch.tensor([around(m) for m in masks]).float()
    inside = placed_masks(masks, size)
    scale = placed(image, size)[1]
    for mask, box in zip(inside, boxes * scale, strict=True):
        torch.testing.assert_close(torch.tensor(around(mask)).float(), box, atol=1.01, rtol=0)
    back = returned(Found(boxes * scale, torch.ones(2), torch.ones(2), inside.float()), image, size)
    torch.testing.assert_close(back.boxes, boxes)
    assert back.masks is not None
    assert back.masks.dtype == torch.bool
    assert mask_overlap(back.masks, masks, torch.zeros(2, dtype=torch.bool)).diag().min() > 0.83


def test_masks_are_mirrored_and_chosen_as_boxes_are():
    masks = torch.stack([disc(20, 40, (8, 9), 6), disc(20, 40, (12, 25), 5)])
    sample = {
        "image": torch.zeros(3, 20, 40, dtype=torch.uint8),
        "boxes": torch.tensor([around(m) for m in masks]).float(),
        "labels": torch.ones(2).long(),
        "ignored": torch.tensor([True, False]),
        "masks": masks,
    }
    for flip in (0.0, 1.0):
        seen = Whole(40, flip, masks=True)(sample)
        assert seen["masks"].shape == (1, 40, 40)
        assert [around(m) for m in seen["masks"]] == seen["boxes"].tolist()
    assert "masks" not in Whole(40)(sample)
    none = Whole(40, masks=True)({**sample, "ignored": torch.ones(2, dtype=torch.bool)})
    assert none["masks"].shape == (0, 40, 40)


# ------------------------------------------------------------------ precision


@quick
@given(st.integers(0, 9999))
def test_mask_precision_against_loops(seed):
    random = np.random.default_rng(seed)

    def masks(n: int) -> np.ndarray:
        out = np.zeros((n, 9, 9), bool)
        for one in out:
            y, x = random.integers(0, 4, 2)
            one[y : y + 5, x : x + 5] = random.random((5, 5)) < 0.9
        return out

    truths, answers = ([masks(random.integers(low, 5)) for _ in range(3)] for low in (1, 0))
    scores = [random.random(len(a)) for a in answers]
    rows = sorted(((s, i, j) for i, each in enumerate(scores) for j, s in enumerate(each)), reverse=True)
    values = []
    for threshold in COCO_THRESHOLDS:
        taken, hits, curve = set(), 0, []
        for n, (_, i, j) in enumerate(rows, 1):
            best, at = -1.0, None
            for k, truth in enumerate(truths[i]):
                iou = (answers[i][j] & truth).sum() / (answers[i][j] | truth).sum()
                if (i, k) not in taken and iou > best:
                    best, at = iou, k
            if best >= threshold:
                taken.add((i, at))
                hits += 1
            curve.append((hits / sum(len(t) for t in truths), hits / n))
        values += [max((p for r, p in curve if r >= k / 100 - 1e-9), default=0) for k in range(101)]
    found = [Found(torch.zeros(len(s), 4), torch.ones(len(s)), torch.from_numpy(s)) for s in scores]
    samples = [
        {"boxes": torch.zeros(len(t), 4), "labels": torch.ones(len(t)), "ignored": torch.zeros(len(t)).bool()}
        for t in truths
    ]
    pairs = zip(answers, truths, samples, strict=True)
    overlaps = [mask_overlap(torch.from_numpy(a), torch.from_numpy(t), s["ignored"]) for a, t, s in pairs]
    assert coco_ap(found, samples, overlaps=overlaps) == pytest.approx(np.mean(values))


def test_the_share_in_a_crowd_is_of_the_detection():
    a, b = torch.zeros(1, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)
    a[0, :2, :2] = True
    assert mask_overlap(a, b, torch.tensor([True, False])).tolist() == [[1.0, 0.25]]
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert mask_overlap(nothing, b, torch.tensor([True, False])).tolist() == [[0.0, 0.0]]
    assert mask_overlap(a[:0], b, torch.tensor([True, False])).shape == (0, 2)


def test_smaller_masks_lie_upon_larger():
    masks = torch.tensor([[[True, False, False]], [[True, True, False]]])
    assert stacked(masks).tolist() == [[1, 2, 0]]
    assert stacked(masks.flip(0)).tolist() == [[2, 1, 0]]
    assert stacked(masks[:0]).tolist() == [[0, 0, 0]]


# ------------------------------------------------------------------ learned


def scene(seed: int, H: int = 48, W: int = 64) -> dict[str, Tensor]:
    """A red diamond in each half of a blue image: half of its box."""
    random = np.random.default_rng(seed)
    drawn = Image.new("RGB", (W, H), (20, 20, 200))
    masks = []
    for half in range(2):
        y, x = random.integers(0, H - 22), random.integers(0, W // 2 - 22) + half * W // 2
        mask = Image.new("1", (W, H))
        corners = [(x + 10, y), (x + 20, y + 10), (x + 10, y + 20), (x, y + 10)]
        ImageDraw.Draw(drawn).polygon([(int(a), int(b)) for a, b in corners], fill=(220, 30, 30))
        ImageDraw.Draw(mask).polygon([(int(a), int(b)) for a, b in corners], fill=1)
        masks.append(torch.from_numpy(np.array(mask)))
    return {
        "image": torch.from_numpy(np.array(drawn)).permute(2, 0, 1),
        "boxes": torch.tensor([around(m) for m in masks]).float(),
        "labels": torch.ones(2, dtype=torch.int64),
        "ignored": torch.zeros(2, dtype=torch.bool),
        "masks": torch.stack(masks),
    }


def test_the_masks_of_padded_objects_change_nothing():
    torch.manual_seed(0)
    method = Detect(vit(), classes=2, size=64, hidden=16, masks=True)
    look, sample = Whole(64, flip=0.0, masks=True), scene(0)
    seen = {k: v[None] for k, v in look(sample).items()}
    padded = {k: torch.cat([torch.zeros_like(v), v], 1) if k != "x" else v for k, v in seen.items()}
    values = []
    for batch in (seen, {**padded, "valid": torch.tensor([[False, False, True, True]])}):
        torch.manual_seed(1)
        values.append(method(batch))
    assert values[0]["loss"] == values[1]["loss"]
    assert "mask" in values[0]
    torch.manual_seed(1)
    other = method({**seen, "masks": ~seen["masks"]})
    assert other["mask"] != values[0]["mask"]
    assert other["box_reg"] == values[0]["box_reg"]


def test_an_image_without_an_object_is_learned_from():
    method = Detect(vit(), classes=2, size=64, hidden=16, masks=True)
    batch = {
        "x": torch.randn(1, 3, 64, 64),
        "boxes": torch.zeros(1, 0, 4),
        "labels": torch.zeros(1, 0, dtype=torch.int64),
        "masks": torch.zeros(1, 0, 64, 64, dtype=torch.bool),
    }
    out = method(batch)
    out["loss"].backward()
    assert out["mask"] == 0


def test_a_set_without_masks_is_told():
    sample = {k: v for k, v in scene(0).items() if k != "masks"}
    for train, test in ((sample, scene(0)), (scene(0), sample)):
        with pytest.raises(ValueError, match="no masks of their own"):
            detection(vit(), [train], [test], classes=["background", "box"], options=Detection(masks=True, size=64))


@pytest.fixture
def people(tmp_path) -> Path:
    for i in range(4):
        sample = scene(i)
        save(tmp_path / "images" / f"{i}.png", sample["image"].permute(1, 2, 0).numpy())
        save(tmp_path / "masks" / f"{i}.png", stacked(sample["masks"]).numpy().astype(np.uint8))
    return tmp_path


def test_the_transfer_measures_and_draws_masks(people, tmp_path):
    options = Transfer(
        what=("detection",), detection=Detection(arms=("frozen",), masks=True, size=64, steps=1, batch=2, hidden=8)
    )
    found = transfer(
        vit(), parts(people, instances=True), options, tmp_path / "run", name="people", watch=Quiet(),
        keep=lambda results: None, begun={},
    )  # fmt: skip
    assert found["notes"] == []
    assert list(found["detection"]["arms"]["frozen"]) == ["VOC07 AP50", "COCO AP", "COCO mask AP"]
    assert tables(found, "DINO")["detection"][0] == ["detection", "VOC07 AP50", "COCO AP", "COCO mask AP"]
    with Image.open(tmp_path / "run" / "transfer" / "detection-truth.png") as picture:
        seen = torch.from_numpy(np.array(picture.convert("RGB"))) / 255
    for number in (1, 2):  # two objects of one class, each in a colour of its own
        tint = 0.45 * torch.tensor([220, 30, 30]) / 255 + 0.55 * colour_of(number)
        assert ((seen - tint).abs().amax(-1) < 0.06).sum() > 100, number
        assert ((seen - colour_of(number)).abs().amax(-1) < 0.06).sum() > 100, number  # its box
    told = transfer(
        vit(), parts(people), options, tmp_path / "run", name="people", watch=Quiet(),
        keep=lambda results: None, begun={},
    )  # fmt: skip
    assert "no masks of their own" in told["notes"][0]


@pytest.mark.slow
def test_two_diamonds_are_found_with_their_masks():
    """A diamond is half of its box: masks that fill their boxes would cover by 1/2 and score next to nothing."""
    train, test = [scene(i) for i in range(16)], [scene(100 + i) for i in range(6)]
    options = Detection(arms=("finetune",), masks=True, size=64, steps=120, lr=1e-3, batch=4, hidden=32)
    results = detection(vit(), train, test, classes=["background", "box"], options=options)
    (voc07,), (box,), (mask,) = results["arms"]["finetune"].values()
    assert voc07 > 0.7, results
    assert box > 0.2
    assert mask > 0.2, results
    whole = [s["masks"].sum((1, 2)) / 441 for s in test]
    assert max(float(w.max()) for w in whole) < 0.55
