"""How well objects are found: the average precision of VOC 2007 and of COCO, by boxes or by masks.

Axes: N detections, M objects, H W pixels. A box is left, top, right, bottom.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

COCO_THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))


class Found(NamedTuple):
    """The objects that were found in an image: boxes (N, 4), labels (N,), scores (N,), and, of a network that draws
    them, masks (N, H, W): bool, or the chance of each pixel in [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


def voc07(found: Sequence[Found], samples: Sequence[Any], *, threshold: float = 0.5) -> float:
    """VOC2007's mean average precision (Everingham et al., 2010): over classes, at 11 recalls; NaN without an object.

        AP = mean over r in {0, .1, ..., 1} of the highest precision at a recall of r or more

    The surest detections come first; each is right where the object it covers most, by an IoU of ``threshold`` or more,
    is of its class and not taken yet. One that covers an ignored object most counts neither way.
    """
    return _mean([_precision(found, samples, c, threshold, 11, again=False) for c in _classes(samples)])


def coco_ap(
    found: Sequence[Found],
    samples: Sequence[Any],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    overlaps: Sequence[Tensor] | None = None,
) -> float:
    """COCO's AP (Lin et al., 2014): the mean over classes and IoU thresholds .5 to .95, at 101 recalls.

    A detection takes the object that it covers most among those that are not taken yet. What lies in an ignored object
    (a crowd), by its own area, counts neither way. Objects of all sizes.

    overlaps: of each image how much its detections (rows) cover its objects (columns), such as ``mask_overlap``; by
    their boxes without.
    """
    return _mean(
        [
            _precision(found, samples, c, t, 101, again=True, overlaps=overlaps)
            for c in _classes(samples)
            for t in thresholds
        ]
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _classes(samples: Sequence[Any]) -> list[int]:
    return sorted({int(n) for s in samples for n in s["labels"][~s["ignored"]]})


def _precision(
    found: Sequence[Found],
    samples: Sequence[Any],
    label: int,
    threshold: float,
    points: int,
    *,
    again: bool,
    overlaps: Sequence[Tensor] | None = None,
) -> float:
    """Average precision of one class; ``again``: an object that is taken leaves a detection to the next best."""
    judged: list[tuple[float, bool]] = []
    objects = 0
    for i, (one, sample) in enumerate(zip(found, samples, strict=True)):
        mine, there = one.labels == label, sample["labels"] == label
        boxes, truth, ignored = one.boxes[mine], sample["boxes"][there], sample["ignored"][there]
        objects += int((~ignored).sum())
        order = one.scores[mine].argsort(descending=True, stable=True)
        if overlaps is None:
            covers = overlap(boxes[order], truth, ignored if again else None)
        else:
            covers = overlaps[i][mine][:, there][order]
        right = _right(covers, ignored, threshold, again)
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


def mask_overlap(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """IoU of masks a (N, H, W) bool with masks b (M, H, W) bool: (N, M) float64; where b is a ``crowd`` (M,) bool, the
    share of a that lies in b.
    """
    areas = b.sum((1, 2))
    out = torch.zeros(len(a), len(b), dtype=torch.float64)
    for i, mask in enumerate(a):  # one by one, as all pairs are much memory
        both, area = (mask & b).sum((1, 2)), mask.sum()
        out[i] = both / torch.where(crowd, area, area + areas - both).clamp(min=1).double()
    return out
