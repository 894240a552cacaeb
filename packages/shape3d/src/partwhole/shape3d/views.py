"""Views of a shape: what a method hides or changes before the network sees it, by torch's generator alone.

Letters: P points of a sample, N points of a view, L levels of components.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Sample = dict[str, Any]
AXES = {"x": 0, "y": 1, "z": 2}


def rotation(up: str | None = "y") -> Tensor:
    """A random rotation matrix (3, 3): about the axis ``up`` ("x", "y", "z"), or uniform over all of SO(3) for None."""
    if up is None:
        w, x, y, z = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0).tolist()
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]  # of a unit quaternion
        return torch.tensor(rows, dtype=torch.float32)
    if up not in AXES:
        raise ValueError(f"up is {up!r}; expected 'x', 'y', 'z', or None for a rotation about any axis")
    angle = torch.rand((), dtype=torch.float64) * 2 * torch.pi
    i, j = (k for k in range(3) if k != AXES[up])
    matrix = torch.eye(3)
    matrix[i, i] = matrix[j, j] = torch.cos(angle)
    matrix[i, j], matrix[j, i] = -torch.sin(angle), torch.sin(angle)
    return matrix


def stretch(low: float, high: float) -> Tensor:
    """A diagonal matrix (3, 3): every axis scaled by its own factor, uniform in [low, high]."""
    return torch.diag(torch.empty(3).uniform_(low, high))


def transform(points: Tensor, normals: Tensor | None, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Points (P, 3) and unit normals (P, 3) under a linear map (3, 3).

    Normals go with the inverse transpose, so that they stay at right angles to the surface, and get length 1 again;
    zeros (an unknown normal) stay zeros.
    """
    moved = points @ matrix.T
    if normals is None:
        return moved, None
    turned = normals @ torch.linalg.inv(matrix)
    return moved, torch.nn.functional.normalize(turned, dim=-1)


def choose(size: int, count: int, *, dropout: float = 0.0) -> Tensor:
    """``count`` positions (N,) below ``size``: without repetition while there are enough, then again from the start.

    ``dropout``: first lose a random share of the points, uniform between none and this, as a scanner would.
    """
    if size < 1:
        raise ValueError("a view of a shape without points; leave empty shapes out")
    left = size if dropout == 0 else max(1, size - int(size * dropout * torch.rand(())))
    order = torch.randperm(size)[:left]
    if left < count:  # the rest drawn evenly: nobody comes twice more often than another
        rounds = -(-count // left)
        order = torch.cat([order, *(order[torch.randperm(left)] for _ in range(rounds - 1))])
    return order[:count]


@dataclass(frozen=True)
class Augment:
    """A random view of a sample: {"x": (N, 3 or, with normals, 6), and what the points have}.

    All N points are real, so there is no mask: one that is true everywhere costs a network half its speed.

    points: how many; drawn without repetition from the sample's, or with it where there are fewer.
    rotate: "axis" turns about ``up``, "so3" about any axis, "none" not at all.
    unturned: share of the views that is left as it stands all the same.
    scale: an own factor from this range for every axis, after the rotation.
    shift: every coordinate moves by up to this. jitter: standard deviation of noise per point (cut at three of them).
    dropout: the greatest share of points lost before ``points`` are drawn.
    normals: also give normals; a sample without them is an error.
    """

    points: int = 1024
    rotate: Literal["axis", "so3", "none"] = "axis"
    up: Literal["x", "y", "z"] = "y"
    unturned: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.1
    jitter: float = 0.0
    dropout: float = 0.0
    normals: bool = False

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points is {self.points}; expected 1 or more")
        if self.rotate not in ("axis", "so3", "none"):
            raise ValueError(f"rotate is {self.rotate!r}; expected 'axis', 'so3' or 'none'")
        if self.up not in AXES:
            raise ValueError(f"up is {self.up!r}; expected 'x', 'y' or 'z'")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; expected (low, high) with 0 < low <= high")
        if not (0 <= self.dropout < 1 and 0 <= self.unturned <= 1 and self.jitter >= 0 and self.shift >= 0):
            raise ValueError("expected 0 <= dropout < 1, 0 <= unturned <= 1, jitter >= 0 and shift >= 0")

    def __call__(self, sample: Sample) -> Sample:
        """Draws from torch's default generator only: the same seed gives the same view."""
        return self.on(sample, choose(len(sample["points"]), self.points, dropout=self.dropout))

    def on(self, sample: Sample, index: Tensor) -> Sample:
        """The view of the points at the positions ``index`` (N,)."""
        known = take(sample, index)
        points, normals = known.pop("points"), known.pop("normals", None)
        if self.normals and normals is None:
            raise ValueError("normals were asked for, and this sample has none; use normals=False")
        matrix = stretch(*self.scale)
        if self.rotate != "none" and not (self.unturned and torch.rand(()) < self.unturned):
            matrix = matrix @ rotation(self.up if self.rotate == "axis" else None)
        points, normals = transform(points, normals if self.normals else None, matrix)
        if self.shift:
            points = points + torch.empty(3).uniform_(-self.shift, self.shift)
        if self.jitter:
            points = points + self.jitter * torch.randn_like(points).clamp(-3, 3)
        x = points if normals is None else torch.cat([points, normals], -1)
        return {"x": x, **known}


def plain(sample: Sample, *, normals: bool = False) -> Sample:
    """All points of a sample, unchanged, in the form of a view: what an evaluation reads."""
    same = Augment(points=1, rotate="none", scale=(1.0, 1.0), shift=0.0, normals=normals)
    return same.on(sample, torch.arange(len(sample["points"])))


def take(sample: Sample, index: Tensor) -> Sample:
    """The points at ``index`` (N,) with their normals, parts (P,) and components (L, P); the category as it is."""
    taken = {}
    for key in ("points", "normals", "part", "component", "category"):
        if key in sample:
            value = torch.as_tensor(sample[key])
            value = value.float() if key in ("points", "normals") else value.long()
            taken[key] = value if key == "category" else value[..., index] if key == "component" else value[index]
    return taken


@dataclass(frozen=True)
class Look:
    """The points of one view: x."""

    augment: Augment

    def __call__(self, sample: Sample) -> Tensor:
        return self.augment(sample)["x"]


@dataclass(frozen=True)
class Views:
    """``count`` independent views for SimCLR and BYOL: {"views": [x, ...]}."""

    augment: Augment = Augment()
    count: int = 2

    def __call__(self, sample: Sample) -> Sample:
        return {"views": [self.augment(sample)["x"] for _ in range(self.count)]}


def neighbourhood(points: Tensor, centre: int, count: int) -> Tensor:
    """Positions (count,) of the points (P, 3) nearest to the one at ``centre``; all of them where there are fewer."""
    distance = (points - points[centre]).square().sum(-1)
    return distance.topk(min(count, len(points)), largest=False, sorted=False).indices


def component_of(component: Tensor, centre: int) -> Tensor:
    """Positions of the points in the same component (L, P) as ``centre``, at a random level."""
    level = component[int(torch.randint(len(component), ()))]
    return torch.nonzero(level == level[centre]).flatten()


@dataclass(frozen=True)
class Crops:
    """Views of the whole and crops of it for DINO: {"views": [x, ...], "crops": [x, ...]}.

    A crop is the neighbourhood of a random point, with a share of the shape's points drawn from ``share``; with
    probability ``by_component``, where the sample has components, it is the component of that point instead, together
    with the points around it up to the smallest share. Crops are centred and scaled to radius 1 before they are
    augmented if ``recentre`` (what remains to be told apart is form, not place), and have ``points`` points each.
    """

    whole: Augment = Augment()
    views: int = 2
    crops: int = 4
    points: int = 256
    share: tuple[float, float] = (0.1, 0.4)
    by_component: float = 0.5
    recentre: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"share is {self.share}; expected (low, high) with 0 < low <= high <= 1")
        if not 0 <= self.by_component <= 1:
            raise ValueError(f"by_component is {self.by_component}; expected a probability")

    def __call__(self, sample: Sample) -> Sample:
        local = replace(self.whole, points=self.points, dropout=0.0)
        crops = []
        for _ in range(self.crops):
            inside = self.crop(sample)
            part = take(sample, inside[choose(len(inside), self.points)])
            if self.recentre:
                centred = part["points"] - part["points"].mean(0)
                part["points"] = centred / centred.norm(dim=-1).max().clamp_min(1e-6)
            crops.append(local.on(part, torch.arange(self.points))["x"])
        return {"views": [self.whole(sample)["x"] for _ in range(self.views)], "crops": crops}

    def crop(self, sample: Sample) -> Tensor:
        """Positions of the points of one crop."""
        points = torch.as_tensor(sample["points"]).float()
        size, centre = len(points), int(torch.randint(len(points), ()))
        low, high = self.share
        if "component" in sample and torch.rand(()) < self.by_component:
            inside = component_of(torch.as_tensor(sample["component"]), centre)
            around = neighbourhood(points, centre, max(1, int(low * size)))
            if len(inside) < size:  # the whole is no crop
                return inside if len(inside) >= len(around) else torch.cat([inside, around]).unique()
        return neighbourhood(points, centre, max(1, int(size * float(torch.empty(()).uniform_(low, high)))))
