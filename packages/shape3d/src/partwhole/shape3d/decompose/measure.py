"""How well the components of a shape could serve as its parts: pure functions of two labellings of its points."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def table(component: ArrayLike, part: ArrayLike) -> Ints:
    """Points per component and part: (components, parts), over the labels that occur, in increasing order."""
    component, part = np.asarray(component).ravel(), np.asarray(part).ravel()
    if component.shape != part.shape or not component.size:
        raise ValueError(f"{component.size} component labels and {part.size} part labels: expected one of each a point")
    rows, row = np.unique(component, return_inverse=True)
    columns, column = np.unique(part, return_inverse=True)
    flat = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    return flat.reshape(len(rows), len(columns)).astype(np.int64)


def oracle_part_iou(component: ArrayLike, part: ArrayLike) -> float:
    """Mean IoU over the parts of a shape, if every component took the part most of its points have.

    An upper bound for a classifier of components, 1 when no component crosses a border of parts. It grows with the
    number of components (1 when each point is one), so compare at equal counts. A part that wins no component counts
    as 0; of two parts equally common in a component the smaller label wins.
    """
    counts = table(component, part)
    winner = counts.argmax(1)
    predicted = np.zeros_like(counts)
    predicted[np.arange(len(counts)), winner] = counts.sum(1)
    right = np.zeros_like(counts)
    right[np.arange(len(counts)), winner] = counts[np.arange(len(counts)), winner]
    intersection, union = right.sum(0), predicted.sum(0) + counts.sum(0) - right.sum(0)
    return float(np.mean(intersection / union))


def _pairs(counts: NDArray[np.int64]) -> int:
    return sum(n * (n - 1) // 2 for n in counts.ravel().tolist())  # Python's integers do not overflow


def rand_index(component: ArrayLike, part: ArrayLike) -> float:
    """Fraction of the pairs of points on which two labellings agree: together in both or apart in both (Rand, 1971)."""
    counts = table(component, part)
    total = _pairs(counts.sum())
    if not total:
        return 1.0
    together, rows, columns = _pairs(counts), _pairs(counts.sum(1)), _pairs(counts.sum(0))
    return (total - rows - columns + 2 * together) / total


def adjusted_rand_index(component: ArrayLike, part: ArrayLike) -> float:
    """The Rand index, 0 for labellings that agree as chance does and 1 for equal ones (Hubert and Arabie, 1985).

    Two labellings that are both one group, or both all single points, are equal: 1.
    """
    counts = table(component, part)
    total = _pairs(counts.sum())
    together, rows, columns = _pairs(counts), _pairs(counts.sum(1)), _pairs(counts.sum(0))
    if rows == columns == together:
        return 1.0
    expected = rows * columns / total
    return (together - expected) / ((rows + columns) / 2 - expected)
