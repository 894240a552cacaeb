"""The class of every pixel: planted masks are learned, tables by hand, layouts of files read."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch import Tensor, nn

from partwhole.core.encoder import Wrapped
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.annotated import VOC, Annotated, coco, pennfudan, voc
from partwhole.vision.backbone import Backbone
from partwhole.vision.embed import Patches
from partwhole.vision.segmentation import Crop, Segment, Segmentation, confusion, iou, predict, segmentation

quick = settings(max_examples=20, deadline=None, derandomize=True)


def vit(size: int = 32) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(Patches(16, size=size, patch=4), dim=16, depth=1, heads=2, cls=True)


def scene(seed: int, H: int = 32, W: int = 40) -> dict[str, Tensor]:
    """A red and a green box on blue; each is a class."""
    random = np.random.default_rng(seed)
    mask = torch.zeros(H, W, dtype=torch.int64)
    for label in (1, 2):
        y, x = random.integers(0, H - 12), random.integers(0, W - 12)
        mask[y : y + 12, x : x + 12] = label
    colours = torch.tensor([[20, 20, 200], [220, 30, 30], [30, 220, 30]], dtype=torch.uint8)
    return {"image": colours[mask].permute(2, 0, 1).contiguous(), "mask": mask}


# ------------------------------------------------------------------ measures


@quick
@given(st.integers(1, 4), st.integers(0, 99))
def test_tables_and_iou_against_loops(classes, seed):
    random = torch.Generator().manual_seed(seed)
    truth, found = (torch.randint(0, classes, (7, 5), generator=random) for _ in range(2))
    truth[torch.rand(7, 5, generator=random) < 0.2] = 255
    table = confusion(found, truth, classes)
    for i in range(classes):
        for j in range(classes):
            assert table[i, j] == sum(
                int(truth[y, x]) == i and int(found[y, x]) == j for y in range(7) for x in range(5)
            )
        both = ((truth == i) & (found == i)).sum()
        either = ((truth != 255) & ((truth == i) | (found == i))).sum()
        got = iou(table)[i]
        assert got.isnan() if either == 0 else got.item() == pytest.approx((both / either).item())


def test_iou_by_hand():
    assert iou(torch.tensor([[3, 1], [2, 2]])).tolist() == [0.5, 0.4]


# ------------------------------------------------------------------ the method


def test_segment_keeps_the_contract_of_methods():
    batch = {"x": torch.randn(4, 3, 16, 24), "mask": torch.randint(0, 3, (4, 16, 24))}
    check_method(lambda: Segment(vit(), classes=3), batch)


def test_what_does_not_count_changes_nothing_and_other_classes_are_told():
    torch.manual_seed(0)
    method = Segment(vit(), classes=3).eval()
    x, mask = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    mask[:, :8] = 255
    logits = method.logits(method.features(x), (16, 16))
    expected = nn.functional.cross_entropy(logits[:, :, 8:], mask[:, 8:])
    torch.testing.assert_close(method({"x": x, "mask": mask})["loss"], expected)
    assert method({"x": x, "mask": torch.full_like(mask, 255)})["loss"] == 0
    with pytest.raises(ValueError, match="3 classes"):
        method({"x": x, "mask": torch.full_like(mask, 3)})


def test_frozen_means_no_gradient_and_no_statistics():
    torch.manual_seed(0)
    method = Segment(Backbone("resnet10t", size=32), classes=2, frozen=True)
    before = {k: v.clone() for k, v in method.encoder.state_dict().items()}
    method({"x": torch.randn(2, 3, 32, 48), "mask": torch.zeros(2, 32, 48, dtype=torch.int64)})["loss"].backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in method.encoder.state_dict().items())
    assert method.head.weight.grad is not None
    assert not method.train().encoder.training


def test_logits_are_those_of_enlarged_features():
    """The layer before enlarging is the layer after it."""
    method = Segment(vit(), classes=3).eval()
    nn.init.normal_(method.norm.running_mean)
    features = method.features(torch.randn(1, 3, 16, 24))
    after = nn.functional.interpolate(features, (16, 24), mode="bilinear", align_corners=False)
    after = method.head(method.norm(after.movedim(1, -1))).movedim(-1, 1)
    torch.testing.assert_close(method.logits(features, (16, 24)), after, rtol=1e-4, atol=1e-5)
    assert predict(method, torch.randn(3, 16, 24), (31, 50)).shape == (31, 50)


def test_a_crop_moves_the_mask_with_the_image():
    look, sample = Crop(24, (0.3, 1.0), mean=(0, 0, 0), std=(1, 1, 1)), scene(0, 48, 60)
    torch.manual_seed(0)
    seen = [look(sample) for _ in range(20)]
    for view in seen:
        assert view["x"].shape == (3, 24, 24)
        assert view["mask"].shape == (24, 24)
        by_colour = torch.tensor([2, 0, 1])[view["mask"]]  # the brightest channel of each class
        assert (view["x"].argmax(0) == by_colour).double().mean() > 0.88  # borders are mixed
    assert len({view["mask"].sum().item() for view in seen}) > 10
    torch.manual_seed(0)
    assert torch.equal(look(sample)["x"], seen[0]["x"])


OPTIONS = Segmentation(size=32, steps=40, batch=8, draws=2, lr_linear=0.05, arms=("commonest", "random"), views=2)
NAMES = ["background", "red", "green"]


def test_colours_are_learned_by_a_linear_layer():
    train, test = [scene(i) for i in range(12)], [scene(100 + i) for i in range(4)]
    encoder = vit()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    found = segmentation(encoder, train, test, classes=NAMES, options=OPTIONS)
    table = sum(confusion(torch.zeros_like(s["mask"]), s["mask"], 3) for s in test)
    assert found["arms"]["commonest"] == [pytest.approx(iou(table).mean().item())]
    assert len(found["arms"]["random"]) == 2
    assert min(found["arms"]["random"]) > 0.6 > found["arms"]["commonest"][0]
    assert [len(each) for each in found["iou"]["random"]] == [3, 3]
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    json.dumps(found)
    again = segmentation(encoder, train, test, classes=NAMES, options=OPTIONS)
    assert again == found


@pytest.mark.slow
def test_every_arm_learns():
    train, test = [scene(i) for i in range(12)], [scene(100 + i) for i in range(4)]
    options = Segmentation(size=32, steps=80, batch=8, draws=1, lr=5e-3, arms=("scratch", "frozen", "finetune"))
    found = segmentation(vit(), train, test, classes=NAMES, options=options)
    assert found["arms"].keys() == {"scratch", "frozen", "finetune"}
    assert min(value for (value,) in found["arms"].values()) > 0.6


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    found = segmentation(
        Wrapped(nn.Conv2d(3, 8, 4, stride=4), 8),
        [scene(0)],
        [scene(1)],
        classes=[*NAMES, "yellow"],
        options=Segmentation(size=32, arms=("commonest",)),
    )
    assert found["iou"]["commonest"][0][3] is None
    assert found["arms"]["commonest"][0] == pytest.approx(sum(found["iou"]["commonest"][0][:3]) / 3)


def test_options_are_checked():
    with pytest.raises(ValueError, match="views"):
        Segmentation(views=0)


# ------------------------------------------------------------------ layouts


def save(path, array, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)


def test_masks_of_voc(tmp_path, photo):
    mask = np.zeros((12, 16), np.uint8)
    mask[3:6, 4:9], mask[2, 4:9] = 15, 255
    for name in ("a", "b", "broken", "small"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", photo)
        save(tmp_path / "SegmentationClass" / f"{name}.png", mask[:5] if name == "small" else mask, palette=True)
    (tmp_path / "JPEGImages" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\nb\nbroken\nmissing\nsmall\n")
    found = voc(tmp_path, "val")
    assert found.names == ["a", "b"]
    assert [name for name, _ in found.problems] == ["broken", "missing", "small"]
    assert "mask (5, 16)" in found.problems[2][1]
    assert found.classes == ["background", *VOC]
    assert found[1]["image"].shape == (3, 12, 16)
    assert found[1]["image"].dtype == torch.uint8
    assert torch.equal(found[1]["mask"], torch.from_numpy(mask).long())
    assert found.subset([1]).names == ["b"]
    with pytest.raises(ValueError, match=r"train\.txt is not there"):
        voc(tmp_path)


def test_boxes_of_voc(tmp_path, photo):
    save(tmp_path / "JPEGImages" / "a.jpg", photo)
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>16</xmax><ymax>5</ymax></bndbox>"
    thing = "<object><name>{}</name><difficult>{}</difficult>" + box + "</object>"
    (tmp_path / "Annotations" / "a.xml").write_text(f"<a>{thing.format('cat', 0)}{thing.format('person', 1)}</a>")
    (tmp_path / "Annotations" / "b.xml").write_text(f"<a>{thing.format('dragon', 0)}</a>")
    save(tmp_path / "JPEGImages" / "b.jpg", photo)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    found = voc(tmp_path, what="boxes")
    assert found.names == ["a"]
    assert "dragon" in found.problems[0][1]
    assert found[0]["boxes"].tolist() == [[0, 1, 16, 5]] * 2
    assert [found.classes[i] for i in found[0]["labels"]] == ["cat", "person"]
    assert found[0]["ignored"].tolist() == [False, True]


def test_boxes_of_coco(tmp_path, photo):
    save(tmp_path / "images" / "a.png", photo)
    save(tmp_path / "images" / "b.png", photo)
    told = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}, {"id": 9, "file_name": "c.png"}],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5.5, 4], "iscrowd": 1},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(told))
    found = coco(tmp_path / "instances.json", tmp_path / "images")
    assert found.names == ["a.png", "b.png"]
    assert found.classes == ["background", "cat", "zebra"]
    assert found.problems[0][0] == "c.png"
    assert found[0]["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 5.5, 4]]
    assert found[0]["labels"].tolist() == [2, 1]
    assert found[0]["ignored"].tolist() == [False, True]
    assert found[1]["boxes"].shape == (0, 4)
    (tmp_path / "instances.json").write_text("[]")
    with pytest.raises(ValueError, match="instances_"):
        coco(tmp_path / "instances.json", tmp_path / "images")


def test_instances_of_pennfudan(tmp_path, photo):
    mask = np.zeros((12, 16), np.uint8)
    mask[2:5, 3:7], mask[6:, 15:] = 1, 2
    for name, end in (("a", ""), ("b", "_mask")):
        save(tmp_path / "images" / f"{name}.jpg", photo)
        save(tmp_path / "masks" / f"{name}{end}.png", mask)
    found = pennfudan(tmp_path)
    assert found.names == ["a.jpg", "b.jpg"]
    for sample in found:
        assert sample["boxes"].tolist() == [[3, 2, 7, 5], [15, 6, 16, 12]]
        assert sample["mask"].unique().tolist() == [0, 1]
        assert "masks" not in sample
        assert sample["labels"].tolist() == [1, 1]


def test_nothing_usable_is_told(tmp_path):
    with pytest.raises(ValueError, match="no image can be used"):
        Annotated([], ["background"])
    with pytest.raises(ValueError, match="is not there"):
        pennfudan(tmp_path)
