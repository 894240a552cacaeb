"""What features are worth for finding objects: torchvision's Faster or Mask R-CNN on an encoder's map.

Axes: B images, N objects or detections, S side of what the network sees. A box is left, top, right, bottom.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.checkpoint import copied
from partwhole.core.data import Stream
from partwhole.core.encoder import Encoder, device_of, fresh
from partwhole.core.evaluate import settled
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.method import Batch, Method
from partwhole.core.probe import fingerprint
from partwhole.core.watch import Quiet, Steps, Watch
from partwhole.vision.maps import feature_map, patch, resized, resting, step
from partwhole.vision.precision import Found, coco_ap, mask_overlap, voc07
from partwhole.vision.views import MEAN, STD, Three

Arm = Literal["random", "scratch", "frozen", "finetune"]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How features are measured on boxes, or boxes and masks."""

    arms: tuple[Arm, ...] = ("random", "scratch", "frozen")
    """random: the detector learns on a random network's features; scratch: with a random network, all of it trained;
    frozen: on the pre-trained features; finetune: with all of the pre-trained network trained."""
    draws: int = 1
    """How often each is measured, with other random networks, heads and orders."""
    size: int = 224
    """Longer side of an image as the network sees it, in pixels; the rest of the square is empty."""
    masks: bool = False
    """The detector draws the mask of each object too (Mask R-CNN), learned and measured on the masks of the set."""
    pyramid: bool = False
    """The detector sees maps from fine to coarse, made of the encoder's one (the simple feature pyramid of ViTDet)."""
    hidden: int = 256
    """Width of the layers that name a box, of those that draw a mask, and of a pyramid's maps."""
    steps: int = 500
    """Steps of training."""
    lr: float = 3e-4
    """Highest learning rate."""
    batch: int = 4
    """Images of a step, at most as many as there are."""
    seed: int = 0
    """Of draws: the same for every encoder that is compared."""

    def __post_init__(self) -> None:
        for name in ("draws", "size", "hidden", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")


class Detect(Method):
    """Faster R-CNN (Ren et al., 2015), or with ``masks`` Mask R-CNN (He et al., 2017), on the one map of an encoder, by
    torchvision. ``pyramid``: on four maps that are made of it and learned with the detector.

    Anchors are a 16th of the side to all of it, in three shapes; in a pyramid each belongs to a map.
    ``frozen``: the encoder is in eval mode, and gets no
    gradient.
    batch: ``x`` (B, 3, S, S), ``boxes`` (B, N, 4) in its pixels, ``labels`` (B, N) from 1, with ``masks`` those too
    (B, N, S, S) bool, and ``valid`` (B, N), true where there is an object, needed where images have different numbers.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        size: int,
        hidden: int = 256,
        frozen: bool = False,
        masks: bool = False,
        pyramid: bool = False,
    ):
        super().__init__(encoder)
        from torchvision.models.detection import FasterRCNN, MaskRCNN
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.models.detection.rpn import AnchorGenerator

        self.frozen, self.masks = frozen, masks
        encoder.requires_grad_(not frozen)
        drawing: dict[str, Any] = {}
        stride = patch(encoder) or 2 ** round(math.log2(step(encoder, size)))
        strides, sizes = [stride], [tuple(size // n for n in (16, 8, 4, 2, 1))]
        seen: nn.Module = _Map(encoder, frozen)
        if pyramid:
            strides, sizes = [stride / 4, stride / 2, stride, stride * 2], [(n,) for n in sizes[0]]
            seen = _Pyramid(seen, encoder.dim, hidden)
        width = seen.out_channels
        if masks:
            drawing = {
                "mask_roi_pool": _pool(14, strides),
                "mask_head": MaskRCNNHeads(width, (hidden,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(hidden, hidden, classes),
            }
        self.net = (MaskRCNN if masks else FasterRCNN)(
            seen,
            min_size=size,
            max_size=size,
            size_divisible=1,
            image_mean=[0.0] * 3,  # x is normalised already
            image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator(tuple(sizes), ((0.5, 1.0, 2.0),) * len(sizes)),
            box_roi_pool=_pool(7, strides),
            box_head=TwoMLPHead(width * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes),
            **drawing,
        )
        self.train()

    def train(self, mode: bool = True) -> "Detect":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, boxes, labels = batch["x"], batch["boxes"], batch["labels"]
        valid = batch["valid"] if "valid" in batch else torch.ones_like(labels, dtype=torch.bool)
        targets = [{"boxes": b[v], "labels": n[v]} for b, n, v in zip(boxes, labels, valid, strict=True)]
        if self.masks:
            for target, m, v in zip(targets, batch["masks"], valid, strict=True):
                target["masks"] = m[v]
        losses: dict[str, Tensor] = self.net(list(x), targets)
        parts = {name.removeprefix("loss_"): value.detach() for name, value in losses.items()}
        loss = torch.stack(list(losses.values())).sum()
        return {**parts, "loss": loss * distributed.share(len(x)), "items": torch.tensor(len(x), device=x.device)}

    @torch.no_grad()
    def found(self, x: Tensor) -> list[Found]:
        """The objects in images x (B, 3, S, S), at most 100 of each, the surest first, masks as chances; on the CPU."""
        with resting(self):
            answers: list[dict[str, Tensor]] = self.net(list(x))
        found = [Found(*(d[k].cpu() for k in ("boxes", "labels", "scores"))) for d in answers]
        if not self.masks:
            return found
        return [f._replace(masks=d["masks"][:, 0].cpu()) for f, d in zip(found, answers, strict=True)]


def _pool(output: int, strides: Sequence[float]) -> Any:
    """torchvision's, told how many pixels lie between two places: it takes them for powers of two, which 14 is not."""
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.poolers import initLevelMapper

    pool: Any = MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size=output, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    # of a box the finest map is looked at in which it is up to 28 places wide (Lin et al., 2017: 224 pixels at 16)
    pool.map_levels = initLevelMapper(0, len(strides) - 1, canonical_scale=round(14 * strides[0]), canonical_level=0)
    return pool


class _Map(nn.Module):
    """The map of an encoder, as torchvision's detectors take it."""

    def __init__(self, encoder: Encoder, frozen: bool):
        super().__init__()
        self.encoder, self.frozen, self.out_channels = encoder, frozen, encoder.dim

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return feature_map(self.encoder, x)


class _Pyramid(nn.Module):
    """Maps four times, twice, once and half as fine as the one (Li et al., 2022, ViTDet's simple feature pyramid); and
    every second place of the last, for anchors alone.
    """

    def __init__(self, one: nn.Module, dim: int, width: int):
        super().__init__()
        from torchvision.models.convnext import LayerNorm2d

        self.one, self.out_channels = one, width

        def finer(inside: int, outside: int) -> nn.Module:
            return nn.ConvTranspose2d(inside, outside, 2, stride=2)

        half, quarter = max(1, dim // 2), max(1, dim // 4)
        scales = (
            (quarter, [finer(dim, half), LayerNorm2d(half), nn.GELU(), finer(half, quarter)]),
            (half, [finer(dim, half)]),
            (dim, []),
            (dim, [nn.MaxPool2d(2, ceil_mode=True)]),
        )
        self.scales = nn.ModuleList(
            nn.Sequential(
                *scale,
                nn.Conv2d(channels, width, 1, bias=False),
                LayerNorm2d(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                LayerNorm2d(width),
            )
            for channels, scale in scales
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.one(x)
        maps = {str(i): scale(one) for i, scale in enumerate(self.scales)}
        return {**maps, "coarsest": maps["3"][:, :, ::2, ::2]}


@dataclass(frozen=True)
class Whole:
    """A whole image in the upper left of a square, mirrored or not, with its boxes: {"x", "boxes", "labels"}, and with
    ``masks`` also {"masks"}.

    Objects that are ignored are left out. ``flip``: the chance to be mirrored.
    """

    size: int
    flip: float = 0.5
    mean: Three = MEAN
    std: Three = STD
    masks: bool = False

    def __call__(self, sample: Any) -> dict[str, Tensor]:
        kept = ~sample["ignored"]
        image, boxes = sample["image"], sample["boxes"][kept]
        flipped = float(torch.rand(())) < self.flip
        if flipped:
            image, width = image.flip(2), image.shape[2]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        x, scale = placed(image, self.size, self.mean, self.std)
        seen = {"x": x, "boxes": boxes * scale, "labels": sample["labels"][kept]}
        if self.masks:
            masks = sample["masks"][kept]
            seen["masks"] = placed_masks(masks.flip(2) if flipped else masks, self.size)
        return seen


def placed(image: Tensor, size: int, mean: Three = MEAN, std: Three = STD) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) in a square (3, S, S), its longer side as long; and what its boxes are multiplied by, (4,)."""
    (H, W), (h, w) = image.shape[1:], _sides(image, size)
    x = torch.zeros(3, size, size)
    x[:, :h, :w] = resized(image, (h, w), mean, std)
    return x, torch.tensor([w / W, h / H]).repeat(2)


def placed_masks(masks: Tensor, size: int) -> Tensor:
    """Masks (N, H, W) bool where ``placed`` puts their image: (N, S, S) bool, true where half of a pixel is."""
    h, w = _sides(masks, size)
    out = torch.zeros(len(masks), size, size, dtype=torch.bool)
    small = F.interpolate(masks[:, None].float(), (h, w), mode="bilinear", antialias=True, align_corners=False)
    out[:, :h, :w] = small[:, 0] >= 0.5
    return out


def returned(found: Found, image: Tensor, size: int) -> Found:
    """What was found in an image (3, H, W) as it was ``placed``, in pixels of the image; masks are bool."""
    (H, W), (h, w) = image.shape[1:], _sides(image, size)
    boxes = found.boxes / torch.tensor([w / W, h / H]).repeat(2)
    if found.masks is None:
        return found._replace(boxes=boxes)
    masks = torch.zeros(len(boxes), H, W, dtype=torch.bool)
    for i, chance in enumerate(found.masks[:, :h, :w]):  # one by one, as all of a large image are much memory
        large = F.interpolate(chance[None, None].float(), (H, W), mode="bilinear", align_corners=False)
        masks[i] = large[0, 0] >= 0.5
    return found._replace(boxes=boxes, masks=masks)


def _sides(image: Tensor, size: int) -> tuple[int, int]:
    H, W = image.shape[1:]
    h, w = (max(1, round(size * side / max(H, W))) for side in (H, W))
    return h, w


def detection(
    encoder: Encoder,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    classes: Sequence[str],
    options: Detection,
    watch: Watch | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    begun: Mapping[str, Any] | None = None,
    look: Callable[[str, int, Callable[[Any], Found]], Any] = lambda arm, draw, answer: None,
) -> dict[str, Any]:
    """Average precision on the test images, for every arm.

    encoder: the pre-trained one; it is copied, never changed, and everything runs on its device.
    train, test: samples with "image", "boxes", "labels" and "ignored", and "masks" (N, H, W) bool where ``options``
    ask for them; ``classes`` names the labels, 0 the background.
    keep, begun: is told the results so far, and brings those that an interrupted measurement kept.
    look: is given what an arm learned in a draw: sample -> what is ``Found``, in pixels of its image.
    Returns {"arms": {arm: {"VOC07 AP50": [of each draw], "COCO AP": [...]}}, "classes", "train", "test", "options",
    "of"}, and with masks "COCO mask AP" beside.
    """
    watch, device, pixels = watch or Quiet(), device_of(encoder), step(encoder, options.size)
    if not len(train) or not len(test):
        raise ValueError(f"{len(train)} images to learn from and {len(test)} to measure on: one of each is needed")
    if options.masks and not ("masks" in train[0] and "masks" in test[0]):
        raise ValueError("its objects have boxes, and no masks of their own: measure boxes alone (no masks)")
    columns = ("VOC07 AP50", "COCO AP", *(("COCO mask AP",) if options.masks else ()))
    size = max(1, round(options.size / pixels)) * pixels
    results: dict[str, Any] = {
        "arms": {},
        "classes": list(classes),
        "train": len(train),
        "test": len(test),
        "options": json.loads(json.dumps(asdict(options))),
        "of": fingerprint(encoder),
    }
    if begun and {**begun, "arms": {}} == results:
        results["arms"] = {arm: {name: list(v) for name, v in row.items()} for arm, row in begun["arms"].items()}
    for arm in options.arms:
        row = results["arms"].get(arm, {column: [] for column in columns})
        for draw in range(len(row["COCO AP"]), options.draws):
            watch.say(f"detection, {arm}: draw {draw + 1} of {options.draws}")
            seed, frozen, look_at = options.seed + draw, arm in ("random", "frozen"), Whole(size, masks=options.masks)
            start = copied(encoder) if arm in ("frozen", "finetune") else fresh(encoder, seed=seed)
            if arm == "random":
                start = settled(start, torch.stack([look_at(train[i])["x"] for i in range(min(16, len(train)))]))
            torch.manual_seed(seed)
            method = Detect(
                start, classes=len(classes), size=size, hidden=options.hidden, frozen=frozen,
                masks=options.masks, pyramid=options.pyramid,
            ).to(device)  # fmt: skip
            stream = Stream(train, look_at, batch=min(options.batch, len(train)), seed=seed)
            how = Fit(steps=options.steps, lr=options.lr, weight_decay=0.01, clip=10.0, seed=seed, device=str(device))
            fit(Run(method=method, stream=stream), how, watch=Steps(watch))

            def answer(sample: Any, method: Detect = method) -> Found:
                x, _ = placed(sample["image"], size)
                return returned(method.found(x[None].to(device))[0], sample["image"], size)

            found, truths, overlaps = [], [], []
            for sample in (test[i] for i in range(len(test))):
                one = answer(sample)
                if one.masks is not None:
                    overlaps.append(mask_overlap(one.masks, sample["masks"], sample["ignored"]))
                found.append(one._replace(masks=None))
                truths.append({key: sample[key] for key in ("boxes", "labels", "ignored")})  # thousands fit, no images
            results["arms"][arm] = row
            row["VOC07 AP50"].append(voc07(found, truths))
            row["COCO AP"].append(coco_ap(found, truths))
            if options.masks:
                row["COCO mask AP"].append(coco_ap(found, truths, overlaps=overlaps))
            look(arm, draw, answer)
            keep(results)
    return results
