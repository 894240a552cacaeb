"""Measure decompositions against labelled parts: points, CoACD on meshes, k-means, at equal numbers of components.

    python tools/bench/decompositions.py --data .data/lpsb/LabeledDB_new --cache runs/components --shapes 3

CoACD's components come from the cache of `tools/prepare.py` (same options, same key) where they are there, and are made
otherwise. All methods label the same points; parts come from the nearest labelled point. "<= CoACD" takes, for each
shape, the finest level of the point decomposition that has no more components than CoACD has, so the comparison never
favours it. CPU seconds are per shape.
"""

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from partwhole.shape3d.decompose import Decompose, prepare
from partwhole.shape3d.decompose.measure import adjusted_rand_index, oracle_part_iou, rand_index
from partwhole.shape3d.decompose.points import decompose_points_levels
from partwhole.shape3d.labelled import Labelled, read_labelled

LADDER = (0.4, 0.3, 0.2, 0.15, 0.12, 0.1, 0.085, 0.07, 0.06, 0.05, 0.042, 0.035, 0.03, 0.025)

Row = tuple[float, float, float, float, float]  # components, oracle part IoU, adjusted Rand index, Rand index, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(".data/lpsb/LabeledDB_new"), help="labelled shapes, any layout"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/components"), help="folder of decomposed shapes")
    parser.add_argument("--shapes", type=int, default=3, help="shapes per category")
    parser.add_argument("--points", type=int, default=2048, help="points per shape")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.05], help="of CoACD; none: no CoACD")
    parser.add_argument(
        "--tolerances", type=float, nargs="+", default=[0.1, 0.05, 0.03], help="of the point decomposition"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that decompose meshes")
    parser.add_argument("--categories", action="store_true", help="print a table by category as well")
    options = parser.parse_args()

    labelled = read_labelled(options.data, points=4 * options.points)
    chosen = [i for c in labelled.categories for i in _spread(labelled.of(c), options.shapes)]
    components = _coacd(labelled, chosen, options.cache, tuple(options.thresholds), options.workers)
    rows: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for i in chosen:
        if _path(labelled, i) not in components:
            print(f"{labelled.names[i]} left out: CoACD did not decompose it", flush=True)
            continue
        points, levels, seconds = components[_path(labelled, i)]
        points, levels = points[: options.points], levels[:, : options.points]
        part = labelled[i]["part"].numpy()[_nearest(labelled[i]["points"].numpy(), points)]
        category = labelled.categories[labelled.category[i]]
        for method, row in _methods(points, part, levels, seconds, options.thresholds, options.tolerances):
            rows[method][category].append(row)
        print(f"{labelled.names[i]} done", flush=True)
    for category in labelled.categories if options.categories else []:
        _table(f"{category}", {method: values[category] for method, values in rows.items()})
    _table("all shapes", {method: [row for v in values.values() for row in v] for method, values in rows.items()})


def _methods(
    points: np.ndarray,
    part: np.ndarray,
    levels: np.ndarray,
    seconds: float,
    thresholds: list[float],
    tolerances: list[float],
) -> list[tuple[str, Row]]:
    """One row a method: how its labels of points (P, 3) compare with their parts (P,)."""
    found = []
    for tolerance in tolerances:
        start = time.process_time()
        labels = decompose_points_levels(points, tolerances=(tolerance,))[0]
        found.append((f"points {tolerance:g}", _row(labels, part, time.process_time() - start)))
    start = time.process_time()
    ladder = decompose_points_levels(points, tolerances=LADDER)
    ladder_seconds = time.process_time() - start
    for level, threshold in zip(levels, thresholds, strict=True):
        count = len(np.unique(level))
        found.append((f"CoACD {threshold:g}", _row(level, part, seconds)))
        fitting = [labels for labels in ladder if labels.max() < count]
        labels = max(fitting, key=lambda labels: labels.max()) if fitting else np.zeros_like(ladder[0])
        found.append((f"points <= CoACD {threshold:g}", _row(labels, part, ladder_seconds)))
        start = time.process_time()
        labels = _kmeans(points, count)
        found.append((f"k-means as CoACD {threshold:g}", _row(labels, part, time.process_time() - start)))
    return found


def _row(labels: np.ndarray, part: np.ndarray, seconds: float) -> Row:
    count = float(len(np.unique(labels)))
    return (
        count,
        oracle_part_iou(labels, part),
        adjusted_rand_index(labels, part),
        rand_index(labels, part),
        seconds,
    )


def _table(title: str, rows: dict[str, list[Row]]) -> None:
    print(f"\n{title:28s} shapes  components  oracle part IoU  adjusted Rand   Rand  CPU s")
    for method, values in rows.items():
        if values:
            count, oracle, adjusted, rand, seconds = np.mean(values, axis=0)
            print(
                f"{method:28s} {len(values):6d} {count:11.1f} {oracle:16.3f} {adjusted:14.3f} {rand:6.3f}"
                f" {seconds:6.2f}"
            )


def _spread(indices: list[int], count: int) -> list[int]:
    """`count` of the indices, evenly spaced."""
    return [indices[j] for j in np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))]


def _coacd(
    labelled: Labelled, chosen: list[int], cache: Path, thresholds: tuple[float, ...], workers: int
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Points (P, 3), components (levels, P) and CPU seconds by path; without thresholds, points alone."""
    if not thresholds:
        return {
            _path(labelled, i): (labelled[i]["points"].numpy(), np.empty((0, len(labelled[i]["points"])), int), 0.0)
            for i in chosen
        }
    paths = [_path(labelled, i) for i in chosen]
    prepared = prepare(paths, cache, Decompose(engine="coacd", thresholds=thresholds), workers=workers)
    return {
        record["path"]: (
            sample["points"].numpy(),
            sample["component"].numpy(),
            record["seconds"] / len(thresholds),
        )
        for record, sample in zip(prepared.records, prepared, strict=True)
        if record["engine"] == "coacd"
    }


def _path(labelled: Labelled, i: int) -> str:
    return os.path.abspath(str(labelled.paths[i]))


def _nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from scipy.spatial import KDTree

    return np.asarray(KDTree(points).query(queries)[1])


def _kmeans(points: np.ndarray, count: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(count, n_init="auto", random_state=0).fit_predict(points)


if __name__ == "__main__":
    main()
