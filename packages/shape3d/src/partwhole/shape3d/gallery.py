"""Shapes in the report: pictures of every layer side by side, and coloured .ply files.

Letters: P points of a shape.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np

from partwhole.core import files
from partwhole.core.report import Page, decimal, picture_html
from partwhole.shape3d import render
from partwhole.shape3d.render import write_ply

SAMPLE, EXTREME = 12, 6  # shapes in the grid, and of the worst and the best
ERROR_NAMES = {0: "right", 1: "wrong", -1: "unknown"}
STYLE = """<style>
.layers-of { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 4px; }
.layers-of img { width: 100%; }
.layers-of figcaption { margin: 0; text-align: center; font-size: .8rem; }
.shape .score { float: right; font-weight: 600; color: var(--ink); margin-left: .6em; }
.shape b { margin-right: .5em; }
.shape .part { white-space: nowrap; margin-right: .7em; }
.shape .part i { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: .3em; }
</style>"""


@dataclass(frozen=True)
class Shown:
    """A shape for the report.

    Args:
        name: shown as it is; also the name of the .ply file, without what file systems do not take.
        points: (P, 3).
        layers: labels (P,) by name, usually "component", "truth", "prediction"; a negative label is unknown. Where
            truth and prediction are given, "error" is added.
        score: part IoU, for the worst and the best.
        normals: (P, 3) of the surface, for the shading; estimated where they are missing or zero.
        parts: names of the labels 0, 1, ... of truth and prediction.
        category: put before the name.

    Raises:
        ValueError: the arrays do not go together.
    """

    name: str
    points: np.ndarray
    layers: Mapping[str, np.ndarray]
    score: float | None = None
    normals: np.ndarray | None = None
    parts: Sequence[str] = ()
    category: str = ""

    def __post_init__(self) -> None:
        shape = np.shape(self.points)
        if len(shape) != 2 or shape[1] != 3 or not shape[0]:
            raise ValueError(f"{self.name}: points must be (P, 3) with P > 0, got {shape}")
        if not np.isfinite(self.points).all():
            raise ValueError(f"{self.name}: points hold NaN or infinity; leave them out before showing the shape")
        if not self.layers:
            raise ValueError(f"{self.name}: needs at least one layer of labels, got none")
        for layer, labels in self.layers.items():
            if np.shape(labels) != shape[:1]:
                wanted = f"must have a label for each point, ({shape[0]},), got {np.shape(labels)}"
                raise ValueError(f"{self.name}: layer {layer!r} {wanted}")
        if self.normals is not None and np.shape(self.normals) != shape:
            raise ValueError(f"{self.name}: normals must be like points, {shape}, got {np.shape(self.normals)}")

    @property
    def title(self) -> str:
        return f"{self.category} {self.name}" if self.category and self.category not in self.name else self.name

    def with_error(self) -> "Shown":
        """The same with the layer "error": 0 right, 1 wrong, -1 where the truth is unknown."""
        if render.ERROR in self.layers or not {"truth", "prediction"} <= self.layers.keys():
            return self
        truth, prediction = np.asarray(self.layers["truth"]), np.asarray(self.layers["prediction"])
        error = np.where(truth < 0, -1, (truth != prediction).astype(int))
        return replace(self, layers={**self.layers, render.ERROR: error})

    def upright(self, up: str) -> "Shown":
        """The same with y up."""
        order, sign = {"y": ((0, 1, 2), (1, 1, 1)), "z": ((0, 2, 1), (1, 1, -1)), "x": ((1, 0, 2), (-1, 1, 1))}[up]
        normals = None if self.normals is None else np.asarray(self.normals)[:, order] * sign
        return replace(self, points=np.asarray(self.points)[:, order] * sign, normals=normals)

    def normals_or(self, found: np.ndarray, keep: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The normals of the points ``keep``, or ``found`` where they are unknown."""
        if self.normals is None:
            return found
        own = np.asarray(self.normals, np.float32)[keep]
        length = np.linalg.norm(own, axis=1, keepdims=True)
        return np.where(length > 0.5, own / np.maximum(length, 1e-9), found)

    @property
    def file(self) -> str:
        """The title as a file name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.title).strip("._")[:80] or "shape"


def label_name(shape: Shown, layer: str, value: int) -> str:
    """What the legend calls a label; "" for components, which have only a number."""
    if layer == render.ERROR:
        return ERROR_NAMES[value]
    if value < 0:
        return "unknown"
    names = shape.parts
    if layer == "component" or not names:
        return "" if layer == "component" else str(value)
    return str(names[value]) if value < len(names) else str(value)


def ranked(shapes: Sequence[Shown]) -> list[Shown]:
    """Those with a score, the worst first."""
    scored = [s for s in shapes if s.score is not None and np.isfinite(s.score)]
    return sorted(scored, key=lambda s: float(s.score or 0))


def groups(shapes: Sequence[Shown], sample: int = SAMPLE, extreme: int = EXTREME) -> list[tuple[str, list[Shown]]]:
    """Which shapes the page has pictures of, under which title: a sample, the worst and the best."""
    scored = ranked(shapes)
    extreme = min(extreme, len(scored) // 2)
    unlabelled = [s for s in shapes if s.layers.keys() <= {"component"}]
    labelled = [s for s in shapes if not s.layers.keys() <= {"component"}]
    named = (("Convex components of shapes without labels", unlabelled), ("A sample", labelled))
    chosen = [(title, spaced(some, sample)) for title, some in named if some]
    if extreme:
        chosen += [("The worst", scored[:extreme]), ("The best", scored[::-1][:extreme])]
    return chosen


def gallery(page: Page, shapes: Sequence[Shown], folder: Path, *, sample: int, extreme: int) -> None:
    """Add the pictures of a sample, the worst and the best, and write each picture into ``folder`` as PNG too."""
    page.raw(STYLE)
    layers = ", ".join(dict.fromkeys(layer for s in shapes for layer in s.layers))
    page.text(f"Coloured by {layers}." + (" The number is the part IoU of the shape." if ranked(shapes) else ""))
    cards: dict[int, str] = {}
    names = file_names(shapes)
    chosen = groups(shapes, sample, extreme)
    for title, group in chosen:
        if len(chosen) > 1:
            page.heading(title)
        for s in group:
            if id(s) not in cards:
                cards[id(s)] = _card(s, folder / f"{names[id(s)]}.png")
        # Pictures keep one size, however many of them a shape has.
        page.grid([cards[id(s)] for s in group], width=max(110 * max(len(s.layers) for s in group) - 10, 150))


def write_plys(shapes: Sequence[Shown], folder: Path) -> None:
    """Write every shape, coloured by its prediction (its first layer where it has none), as a .ply in ``folder``."""
    names = file_names(shapes)
    for s in shapes:
        layer = "prediction" if "prediction" in s.layers else next(iter(s.layers))
        labels = np.asarray(s.layers[layer])
        write_ply(folder / f"{names[id(s)]}.ply", s.points, render.colours(labels, layer), labels=labels)


def _card(shape: Shown, path: Path) -> str:
    """The pictures of a shape side by side, with name, score and the names of the colours; also written to ``path``."""
    made = render.pictures(np.asarray(shape.points), dict(shape.layers), normals=shape.normals, size=200)
    sheet = render.png(render.sheet([list(made.values())]))
    files.write(path, lambda file: file.write(sheet))
    body = "".join(picture_html(render.png(picture), layer) for layer, picture in made.items())
    score = f'<span class="score">{decimal(float(shape.score), 3)}</span>' if shape.score is not None else ""
    named = "".join(
        f'<span class="part"><i style="background:rgb({",".join(map(str, rgb))})"></i>{escape(name)}</span>'
        for name, rgb in _legend(shape)
    )
    return (
        f'<figure class="shape"><div class="layers-of" style="--n:{len(made)}">{body}</div>'
        f"<figcaption>{score}<b>{escape(shape.title)}</b> {named}</figcaption></figure>"
    )


def _legend(shape: Shown) -> list[tuple[str, list[int]]]:
    """Names and colours of the parts that the truth or the prediction has."""
    kept = [np.unique(np.asarray(labels)) for layer, labels in shape.layers.items() if layer in ("truth", "prediction")]
    if not kept or not shape.parts:
        return []
    values = np.unique(np.concatenate(kept))
    return [
        (label_name(shape, "truth", int(v)), c) for v, c in zip(values, render.colours(values).tolist(), strict=True)
    ]


def spaced(shapes: Sequence[Shown], count: int) -> list[Shown]:
    """At most ``count`` shapes, from every category in turn, evenly spaced within it."""
    if len(shapes) <= count:
        return list(shapes)
    by: dict[str, list[int]] = {}
    for i, s in enumerate(shapes):
        by.setdefault(s.category, []).append(i)
    ranks = sorted((j, i) for places in by.values() for j, i in enumerate(_strided(places)))
    return [shapes[i] for i in sorted(i for _, i in ranks[:count])]


def _strided(places: list[int]) -> list[int]:
    """The same in an order whose every prefix is spread over the list (bit reversal)."""
    bits = max(len(places) - 1, 1).bit_length()
    return sorted(places, key=lambda p: int(f"{places.index(p):0{bits}b}"[::-1], 2))


def file_names(shapes: Sequence[Shown]) -> dict[int, str]:
    """A file name for each shape, no two alike even where case does not count."""
    taken: set[str] = set()
    names = {}
    for s in shapes:
        name = next(
            n for n in (s.file, *(f"{s.file}-{i}" for i in range(2, len(shapes) + 2))) if n.lower() not in taken
        )
        taken.add(name.lower())
        names[id(s)] = name
    return names
