"""What features are worth for finding objects: torchvision's Faster R-CNN on an encoder's map, and its precision.

Axes: B images, N objects or detections, S side of what the network sees. A box is left, top, right, bottom.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
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
from partwhole.vision.maps import feature_map, resized, resting, step
from partwhole.vision.views import MEAN, STD, Three

Arm = Literal["random", "scratch", "frozen", "finetune"]
COCO_THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How features are measured on boxes."""

    arms: tuple[Arm, ...] = ("random", "scratch", "frozen")
    """random: the detector learns on a random network's features; scratch: with a random network, all of it trained;
    frozen: on the pre-trained features; finetune: with all of the pre-trained network trained."""
    draws: int = 1
    """How often each is measured, with other random networks, heads and orders."""
    size: int = 224
    """Longer side of an image as the network sees it, in pixels; the rest of the square is empty."""
    hidden: int = 256
    """Width of the layers that name a box."""
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


class Found(NamedTuple):
    """The objects that were found in an image: boxes (N, 4), labels (N,), scores (N,)."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Detect(Method):
    """Faster R-CNN (Ren et al., 2015) on the one map of an encoder, by torchvision.

    Anchors are a 16th of the side to all of it, in three shapes. ``frozen``: the encoder is in eval mode, and gets no
    gradient.
    batch: ``x`` (B, 3, S, S), ``boxes`` (B, N, 4) in its pixels, ``labels`` (B, N) from 1, and ``valid`` (B, N), true
    where there is an object, needed where images have different numbers of them.
    """

    def __init__(self, encoder: Encoder, *, classes: int, size: int, hidden: int = 256, frozen: bool = False):
        super().__init__(encoder)
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.rpn import AnchorGenerator
        from torchvision.ops import MultiScaleRoIAlign

        self.frozen = frozen
        encoder.requires_grad_(not frozen)
        self.net = FasterRCNN(
            _Map(encoder, frozen),
            min_size=size,
            max_size=size,
            size_divisible=1,
            image_mean=[0.0] * 3,  # x is normalised already
            image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator((tuple(size // n for n in (16, 8, 4, 2, 1)),), ((0.5, 1.0, 2.0),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(encoder.dim * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes),
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
        losses: dict[str, Tensor] = self.net(list(x), targets)
        parts = {name.removeprefix("loss_"): value.detach() for name, value in losses.items()}
        loss = torch.stack(list(losses.values())).sum()
        return {**parts, "loss": loss * distributed.share(len(x)), "items": torch.tensor(len(x), device=x.device)}

    @torch.no_grad()
    def found(self, x: Tensor) -> list[Found]:
        """The objects in images x (B, 3, S, S), at most 100 of each, the surest first; on the CPU."""
        with resting(self):
            return [Found(*(d[k].cpu() for k in ("boxes", "labels", "scores"))) for d in self.net(list(x))]


class _Map(nn.Module):
    """The map of an encoder, as torchvision's detectors take it."""

    def __init__(self, encoder: Encoder, frozen: bool):
        super().__init__()
        self.encoder, self.frozen, self.out_channels = encoder, frozen, encoder.dim

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return feature_map(self.encoder, x)


@dataclass(frozen=True)
class Whole:
    """A whole image in the upper left of a square, mirrored or not, with its boxes: {"x", "boxes", "labels"}.

    Objects that are ignored are left out. ``flip``: the chance to be mirrored.
    """

    size: int
    flip: float = 0.5
    mean: Three = MEAN
    std: Three = STD

    def __call__(self, sample: Any) -> dict[str, Tensor]:
        kept = ~sample["ignored"]
        image, boxes = sample["image"], sample["boxes"][kept]
        if float(torch.rand(())) < self.flip:
            image, width = image.flip(2), image.shape[2]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        x, scale = placed(image, self.size, self.mean, self.std)
        return {"x": x, "boxes": boxes * scale, "labels": sample["labels"][kept]}


def placed(image: Tensor, size: int, mean: Three = MEAN, std: Three = STD) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) in a square (3, S, S), its longer side as long; and what its boxes are multiplied by, (4,)."""
    H, W = image.shape[1:]
    h, w = (max(1, round(size * side / max(H, W))) for side in (H, W))
    x = torch.zeros(3, size, size)
    x[:, :h, :w] = resized(image, (h, w), mean, std)
    return x, torch.tensor([w / W, h / H]).repeat(2)


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
    train, test: samples with "image", "boxes", "labels" and "ignored"; ``classes`` names the labels, 0 the background.
    keep, begun: is told the results so far, and brings those that an interrupted measurement kept.
    look: is given what an arm learned in a draw: sample -> what is ``Found``, in pixels of its image.
    Returns {"arms": {arm: {"VOC07 AP50": [of each draw], "COCO AP": [...]}}, "classes", "train", "test", "options",
    "of"}.
    """
    watch, device, pixels = watch or Quiet(), device_of(encoder), step(encoder, options.size)
    if not len(train) or not len(test):
        raise ValueError(f"{len(train)} images to learn from and {len(test)} to measure on: one of each is needed")
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
        row = results["arms"].get(arm, {"VOC07 AP50": [], "COCO AP": []})
        for draw in range(len(row["COCO AP"]), options.draws):
            watch.say(f"detection, {arm}: draw {draw + 1} of {options.draws}")
            seed, frozen, look_at = options.seed + draw, arm in ("random", "frozen"), Whole(size)
            start = copied(encoder) if arm in ("frozen", "finetune") else fresh(encoder, seed=seed)
            if arm == "random":
                start = settled(start, torch.stack([look_at(train[i])["x"] for i in range(min(16, len(train)))]))
            torch.manual_seed(seed)
            method = Detect(start, classes=len(classes), size=size, hidden=options.hidden, frozen=frozen).to(device)
            stream = Stream(train, look_at, batch=min(options.batch, len(train)), seed=seed)
            how = Fit(steps=options.steps, lr=options.lr, weight_decay=0.01, clip=10.0, seed=seed, device=str(device))
            fit(Run(method=method, stream=stream), how, watch=Steps(watch))

            def answer(sample: Any, method: Detect = method) -> Found:
                x, scale = placed(sample["image"], size)
                one = method.found(x[None].to(device))[0]
                return one._replace(boxes=one.boxes / scale)

            found, truths = [], []
            for sample in (test[i] for i in range(len(test))):
                found.append(answer(sample))
                truths.append({key: sample[key] for key in ("boxes", "labels", "ignored")})  # thousands fit, no images
            results["arms"][arm] = row
            row["VOC07 AP50"].append(voc07(found, truths))
            row["COCO AP"].append(coco_ap(found, truths))
            look(arm, draw, answer)
            keep(results)
    return results


# ------------------------------------------------------------------ precision


def voc07(found: Sequence[Found], samples: Sequence[Any], *, threshold: float = 0.5) -> float:
    """VOC2007's mean average precision (Everingham et al., 2010): over classes, at 11 recalls; NaN without an object.

        AP = mean over r in {0, .1, ..., 1} of the highest precision at a recall of r or more

    The surest detections come first; each is right where the object it covers most, by an IoU of ``threshold`` or more,
    is of its class and not taken yet. One that covers an ignored object most counts neither way.
    """
    return _mean([_precision(found, samples, c, threshold, 11, again=False) for c in _classes(samples)])


def coco_ap(found: Sequence[Found], samples: Sequence[Any], *, thresholds: Sequence[float] = COCO_THRESHOLDS) -> float:
    """COCO's AP (Lin et al., 2014): the mean over classes and IoU thresholds .5 to .95, at 101 recalls.

    A detection takes the object that it covers most among those that are not taken yet. What lies in an ignored object
    (a crowd), by its own area, counts neither way. Objects of all sizes; masks do not count.
    """
    each = [_precision(found, samples, c, t, 101, again=True) for c in _classes(samples) for t in thresholds]
    return _mean(each)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _classes(samples: Sequence[Any]) -> list[int]:
    return sorted({int(n) for s in samples for n in s["labels"][~s["ignored"]]})


def _precision(
    found: Sequence[Found], samples: Sequence[Any], label: int, threshold: float, points: int, *, again: bool
) -> float:
    """Average precision of one class; ``again``: an object that is taken leaves a detection to the next best."""
    judged: list[tuple[float, bool]] = []
    objects = 0
    for one, sample in zip(found, samples, strict=True):
        mine, there = one.labels == label, sample["labels"] == label
        boxes, truth, ignored = one.boxes[mine], sample["boxes"][there], sample["ignored"][there]
        objects += int((~ignored).sum())
        order = one.scores[mine].argsort(descending=True, stable=True)
        right = _right(overlap(boxes[order], truth, ignored if again else None), ignored, threshold, again)
        scores = one.scores[mine][order].tolist()
        judged += [(score, r) for score, r in zip(scores, right, strict=True) if r is not None]
    judged.sort(key=lambda pair: -pair[0])
    best, hits = [0.0] * points, 0
    for count, (_, right) in enumerate(judged, 1):
        hits += right
        for k in range(hits * (points - 1) // objects + 1 if right else 0):  # recalls k / (points - 1) that are reached
            best[k] = max(best[k], hits / count)
    return sum(best) / points


def _right(iou: Tensor, ignored: Tensor, threshold: float, again: bool) -> list[bool | None]:
    """Whether each detection (row), the surest first, is right; None where it does not count."""
    taken, out = torch.zeros_like(ignored), []
    for row in iou:
        free = row.masked_fill(taken | ignored, -1.0) if again else row
        if free.numel() == 0 or free.max() < threshold:
            out.append(None if again and bool((row[ignored] >= threshold).any()) else False)
            continue
        best = int(free.argmax())
        out.append(None if ignored[best] else not bool(taken[best]))
        taken[best] = True
    return out


def overlap(a: Tensor, b: Tensor, crowd: Tensor | None = None) -> Tensor:
    """IoU of boxes a (N, 4) with boxes b (M, 4): (N, M); where b is a ``crowd`` (M,), the share of a that lies in b."""
    from torchvision.ops import box_area, box_iou

    iou = box_iou(a, b)
    if crowd is None or not crowd.any():
        return iou
    both = iou / (1 + iou) * (box_area(a)[:, None] + box_area(b))  # iou = both / (sum - both)
    return torch.where(crowd, both / box_area(a)[:, None].clamp(min=1e-9), iou)
