"""What carried labels are worth: J and F as the DAVIS challenge has them, PCK of joints, mIoU of parts.

Axes: T frames, H W pixels, O objects, J joints.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partwhole.vision.maps import IGNORED

SHARE = 0.008  # of the diagonal: how far a boundary may be off (Perazzi et al., 2016)


@dataclass(frozen=True)
class Davis:
    """J and F of every object at every counted frame, (O, T - 2) float64, and whose they are."""

    objects: tuple[str, ...]
    region: np.ndarray
    boundary: np.ndarray

    @property
    def each(self) -> dict[str, list[float]]:
        """For each object J and F, their means over frames; the share of frames above .5 (recall); how much the last
        quarter of the frames is below the first (decay); and J&F, the mean of both."""
        out: dict[str, list[float]] = {}
        for name, rows in (("J", self.region), ("F", self.boundary)):
            out[name] = [float(row.mean()) for row in rows]
            out[f"{name} recall"] = [float((row > 0.5).mean()) for row in rows]
            out[f"{name} decay"] = [decay(row) for row in rows]
        return {"J&F": [(j + f) / 2 for j, f in zip(out["J"], out["F"], strict=True)], **out}

    @property
    def numbers(self) -> dict[str, float]:
        """The means of ``each`` over objects. Those of several videos are over the objects of all, not over videos."""
        return {name: sum(values) / len(values) for name, values in self.each.items()}


def davis(pred: Tensor, truth: Tensor) -> Davis:
    """J and F of masks pred (T, H, W) against truth, both ids, as the DAVIS challenge measures them (Perazzi et al.,
    2016; Pont-Tuset et al., 2017).

    Objects are the ids of the first true frame; which is which is told by the id, never found out. The first frame,
    which was given, and the last do not count. A pixel that is 255 in truth does not count in it.
    """
    if pred.shape != truth.shape or pred.ndim != 3:
        raise ValueError(f"masks (T, H, W) of one size are needed; got {tuple(pred.shape)} and {tuple(truth.shape)}")
    if len(truth) < 3:
        raise ValueError(f"a video of {len(truth)} frames: the first and the last do not count, and none is left")
    found = [i for i in truth[0].unique().tolist() if i not in (0, IGNORED)]
    if not found:
        raise ValueError("the first true frame has no object: ids from 1 are needed, 0 is the background")
    # Of few values, so that frames are compared byte by byte.
    ids = [(x[1:-1] if x.dtype == torch.uint8 else x[1:-1].to(torch.int16)).cpu().numpy() for x in (pred, truth)]
    region, boundary = np.empty((2, len(found), len(truth) - 2))
    for t, (p, g) in enumerate(zip(*ids, strict=True)):
        void = g == IGNORED
        whole = void if void.any() else None
        for o, i in enumerate(found):
            region[o, t], boundary[o, t] = j_and_f(p == i, g == i, whole)
    return Davis(tuple(str(i) for i in found), region, boundary)


def j_and_f(pred: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> tuple[float, float]:
    """Region similarity and boundary accuracy of two masks (H, W) bool; pixels that are void are in neither.

    J is the intersection over the union, 1 of nothing. F is 2 P R / (P + R) of the pixels of one boundary that are no
    farther from the other than ``SHARE`` of the diagonal, rounded up. Both look at the box around the masks alone: what
    is outside holds neither a mask nor a boundary.
    """
    if void is not None:
        pred, truth = pred & ~void, truth & ~void
    H, W = pred.shape
    box = _box(pred, truth)
    if box is None:
        return 1.0, 1.0
    top, bottom, left, right = box
    a, b = pred[top:bottom, left:right], truth[top:bottom, left:right]
    either = np.count_nonzero(a | b)
    region = np.count_nonzero(a & b) / either
    radius = math.ceil(SHARE * math.hypot(H, W))
    # A boundary lies half a pixel above and to the left of a mask, so that one more row and column are looked at.
    top, left = max(0, top - 1), max(0, left - 1)
    edges = [outline(x[top:bottom, left:right], bottom == H, right == W) for x in (pred, truth)]
    return region, _f(edges[0], edges[1], radius)


def outline(mask: np.ndarray, below: bool = True, beside: bool = True) -> np.ndarray:
    """The boundary of a mask (h, w) bool, one pixel wide: where a pixel is not as the one to its right, below it or
    right below it.

    ``below`` and ``beside``: whether the picture ends there. Its last row and column are compared along themselves
    alone; of a part that does not reach them, what is beyond is no mask.
    """
    h, w = mask.shape
    if below and beside:
        wide = mask
    else:
        wide = np.zeros((h + (not below), w + (not beside)), bool)
        wide[:h, :w] = mask
    edge = np.zeros(wide.shape, bool)
    here = wide[:-1, :-1]
    edge[:-1, :-1] = (here ^ wide[:-1, 1:]) | (here ^ wide[1:, :-1]) | (here ^ wide[1:, 1:])
    edge[-1, :-1] = wide[-1, :-1] ^ wide[-1, 1:]
    edge[:-1, -1] = wide[:-1, -1] ^ wide[1:, -1]
    return edge[:h, :w]


def _f(a: np.ndarray, b: np.ndarray, radius: int) -> float:
    count = np.count_nonzero(a), np.count_nonzero(b)
    if not all(count):
        return float(count == (0, 0))
    precision, recall = _near(a, b, radius) / count[0], _near(b, a, radius) / count[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(a: np.ndarray, b: np.ndarray, radius: int) -> int:
    """How many places of a (h, w) have one of b no farther than ``radius``: those of a in b dilated by a disc.

    A disc is rows: each row of b is widened by what the disc has so far above or below, by sums along it.
    """
    h, w = b.shape
    sums = np.zeros((h, w + 2 * radius + 1), np.int16)  # it may overflow: only differences of a few are asked for
    np.cumsum(b, axis=1, dtype=np.int16, out=sums[:, radius + 1 : radius + 1 + w])
    sums[:, radius + 1 + w :] = sums[:, [radius + w]]
    wide = np.zeros((h, w), bool)
    rows: dict[int, list[int]] = {}
    for up in range(min(radius, h - 1) + 1):
        rows.setdefault(math.isqrt(radius * radius - up * up), []).append(up)
    for half, ups in rows.items():
        row = sums[:, radius + half + 1 : radius + half + 1 + w] != sums[:, radius - half : radius - half + w]
        for up in ups:
            wide[up:] |= row[: h - up]
            wide[: h - up] |= row[up:]
    return int(np.count_nonzero(wide & a))


def _box(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int, int] | None:
    """Rows and columns from and to that hold both masks; None where there is nothing."""
    rows = np.flatnonzero(a.any(1) | b.any(1))
    if not len(rows):
        return None
    part = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero(a[part].any(0) | b[part].any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def decay(values: np.ndarray) -> float:
    """Mean of the first quarter less that of the last; quarters share the frame between them, as in the challenge."""
    n = len(values)
    ends = (np.round(np.linspace(1, n, 5) + 1e-10) - 1).astype(int)
    quarters = [values[ends[i] : ends[i + 1] + 1] for i in (0, 3)]
    return float(quarters[0].mean() - quarters[1].mean())


# ------------------------------------------------------------------ joints and parts

Points = tuple[Tensor, Tensor]  # found and true (T, J, 2), x and y in pixels; NaN where lost, or not known


def pck(videos: Iterable[Points], *, thresholds: Sequence[float] = (0.1, 0.2), strict: bool = True) -> dict[str, float]:
    """Joints found no farther off than ``thresholds`` of a person's size, the mean over joints: {"PCK@0.1": share}.

    A person's size is .6 of the diagonal of the box around its joints, in each frame. The first frame, which was given,
    does not count, and neither does what is not known in truth.

    strict: a joint that is lost is wrong. Not strict is as published (Jabri et al., 2020; Li et al., 2019): it is left
    out of the count and of the box, so that a method that loses what is difficult looks better.
    """
    hits = total = torch.zeros((), dtype=torch.float64)
    for found, true in videos:
        if found.shape != true.shape or found.ndim != 3 or found.shape[-1] != 2:
            raise ValueError(f"joints (T, J, 2) twice are needed; got {tuple(found.shape)} and {tuple(true.shape)}")
        p, t = found[1:].double(), true[1:].double()
        known, seen = t.isfinite().all(-1), p.isfinite().all(-1)
        counts = known if strict else known & seen
        low, high = (t.masked_fill(~counts[..., None], end) for end in (math.inf, -math.inf))
        size = 0.6 * (high.amax(1) - low.amin(1)).clamp(min=0).norm(dim=-1, keepdim=True)
        far = (p - t).norm(dim=-1).masked_fill(~(known & seen), math.inf)
        hits = hits + torch.stack([((far <= share * size) & counts).sum(0) for share in thresholds])
        total = total + counts.sum(0)
    some = total > 0
    if not some.any():
        raise ValueError("no joint of any video counts: one that is known after the first frame is needed")
    means = (hits[:, some] / total[some]).mean(1).tolist()
    return {f"PCK@{share:g}": value for share, value in zip(thresholds, means, strict=True)}


def mean_iou(videos: Iterable[tuple[Tensor, Tensor]], classes: int = 20) -> float:
    """Intersection over union of each part over all pixels of all videos together, the mean over parts, as VIP is
    measured (Zhou et al., 2018): found and true ids (T, H, W) below ``classes``, 0 the background, which counts too.

    A part that is nowhere in truth or found does not count; nor does a pixel that is 255 in truth.
    """
    both = torch.zeros(classes * classes, dtype=torch.int64)
    for found, true in videos:
        if found.shape != true.shape:
            raise ValueError(f"masks of one size are needed; got {tuple(found.shape)} and {tuple(true.shape)}")
        valid = true != IGNORED
        p, t = found[valid].long(), true[valid].long()
        most = int(torch.cat((p, t)).max()) if len(t) else 0
        if most >= classes:
            raise ValueError(f"a mask has the id {most}, and there are {classes} classes: give as many as there are")
        both += torch.bincount(t * classes + p, minlength=classes * classes)
    table = both.view(classes, classes).double()
    either = table.sum(0) + table.sum(1) - table.diagonal()
    if not (either > 0).any():
        raise ValueError("no pixel of any video counts")
    return float((table.diagonal() / either)[either > 0].mean())
