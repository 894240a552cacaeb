"""The engines that cut a shape into nearly convex components, their options, and what follows when one fails.

CoACD (Wei et al. 2022) by default, V-HACD (Mamou 2016) as the cheap choice, and the direct decomposition of points.
The first two can abort, crash or hang the process: only the killable children of `pool` call `run`.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from partwhole.shape3d.decompose import hulls
from partwhole.shape3d.files import Geometry, join, normalise, proper

FORMAT = 1  # of the cached entries; part of every key: a change of this code that changes results raises it
ENGINES = ("auto", "coacd", "vhacd", "points", "none")
LIMITS = ("cpu_seconds", "wall_seconds", "memory_mb")  # not part of the key: they bound the work, they do not define it


@dataclass(frozen=True)
class Decompose:
    """How shapes are cut into nearly convex components."""

    engine: str = "auto"
    """auto (CoACD for meshes, points for clouds), coacd, vhacd, points, none (points are sampled, and the shape is one
    component), or your own function as "package.module:name", called as name(vertices, faces, threshold, options) ->
    list of hull vertices (n, 3)."""
    thresholds: tuple[float, ...] = (0.1,)
    """Concavity at which cutting stops; every threshold gives a level of components, and all are stored."""
    mcts_iterations: int = 60
    """CoACD: iterations of its tree search. Its own default of 150 costs 3 to 7 times more for as many components."""
    mcts_max_depth: int = 2
    """CoACD: depth of its tree search."""
    mcts_nodes: int = 10
    """CoACD: cuts tried per node of its tree search."""
    resolution: int = 1000
    """CoACD: samples that measure concavity."""
    preprocess_resolution: int = 30
    """CoACD: voxels across, where a mesh that is not closed is made closed."""
    vhacd_hulls: int = 16
    """V-HACD: how many components it makes; it nearly always makes that many."""
    vhacd_resolution: int = 100_000
    """V-HACD: voxels."""
    max_faces: int = 2500
    """Larger meshes are simplified for the engine; points are sampled from the whole surface all the same."""
    points: int = 4096
    """Points sampled per shape."""
    min_points: int = 10
    """A component with fewer points goes to its neighbours."""
    seed: int = 0
    """Of the sampling and of the engines."""
    cpu_seconds: float = 60.0
    """CPU time for one attempt of one engine at one shape."""
    wall_seconds: float = 300.0
    """Time for the same, in case it hangs."""
    memory_mb: int = 2048
    """Memory for the same."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES and ":" not in self.engine:
            raise ValueError(
                f"engine {self.engine!r} is unknown: one of {', '.join(ENGINES)}, or 'package.module:name'"
            )
        if not self.thresholds or not all(0.01 <= t <= 1 for t in self.thresholds):
            raise ValueError(f"thresholds are {self.thresholds}: give one or more, each from 0.01 to 1")
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        if self.preprocess_resolution < 5:
            raise ValueError(f"preprocess_resolution is {self.preprocess_resolution}: CoACD needs 5 or more")
        for name in ("points", "max_faces", "cpu_seconds", "wall_seconds", "memory_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")

    def settings(self) -> dict[str, object]:
        """All that decides the result, for the key of the cache: the options, the format and the engines' versions."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in LIMITS}
        versions = {name: importlib.metadata.version(name) for name in ("coacd", "vhacdx")}
        return {"format": FORMAT, **values, "thresholds": list(self.thresholds), "versions": versions}


def stages(engine: str, is_mesh: bool) -> list[str]:
    """The engines to try, in order. A cloud can only be decomposed as points."""
    if engine == "none":
        return ["none"]
    if not is_mesh:
        return ["points"]
    if engine in ("auto", "coacd"):
        return ["coacd", "coacd with preprocessing", "vhacd", "points"]
    return {"vhacd": ["vhacd", "points"], "points": ["points"]}.get(engine, [engine, "points"])


def run(stage: str, geometry: Geometry, points: np.ndarray, options: Decompose) -> np.ndarray:
    """Components (levels, P) int64 of `points` (P, 3), normalised as in `files.normalise`, by one engine.

    `geometry` must be in the same frame as the points. Raises RuntimeError or ValueError where the engine returns
    nothing usable; the engine itself may do worse, so call it in a process that may die.
    """
    if stage == "none":
        return np.zeros((len(options.thresholds), len(points)), np.int64)
    if stage == "points":
        from partwhole.shape3d.decompose.points import decompose_points_levels

        # Both measure concavity, but not alike: this share of the threshold gives about as many components as CoACD.
        tolerances = tuple(0.3 * threshold for threshold in options.thresholds)
        cut = list(decompose_points_levels(points.astype(float), tolerances=tolerances, seed=options.seed))
    else:
        vertices, faces = clean(geometry, options.max_faces)
        cut = [
            hulls.label(points, hulls.planes(corners(stage, vertices, faces, threshold, options)))
            for threshold in options.thresholds
        ]
    return np.stack([hulls.merge_small(points, labels, options.min_points) for labels in cut])


def corners(
    stage: str, vertices: np.ndarray, faces: np.ndarray, threshold: float, options: Decompose
) -> list[np.ndarray]:
    """Vertices (n, 3) of each convex component of a clean mesh; RuntimeError where the engine finds none."""
    found = _engine(stage)(vertices, faces, threshold, options)
    found = [np.asarray(c, float) for c in found if len(c) and np.isfinite(c).all()]
    if not found:
        raise RuntimeError("it returned no component")
    return found


def _engine(stage: str) -> Callable[..., list[np.ndarray]]:
    if ":" in stage:
        module, _, name = stage.partition(":")
        return getattr(importlib.import_module(module), name)
    return {"coacd": _coacd, "coacd with preprocessing": _coacd_preprocessed, "vhacd": _vhacd}[stage]


def _coacd(
    vertices: np.ndarray, faces: np.ndarray, threshold: float, options: Decompose, preprocess: str = "auto"
) -> list[np.ndarray]:
    import coacd

    coacd.set_log_level("error")
    parts = coacd.run_coacd(
        coacd.Mesh(vertices, faces),
        threshold=threshold,
        preprocess_mode=preprocess,
        preprocess_resolution=options.preprocess_resolution,
        resolution=options.resolution,
        mcts_nodes=options.mcts_nodes,
        mcts_iterations=options.mcts_iterations,
        mcts_max_depth=options.mcts_max_depth,
        seed=options.seed,
    )
    return [part[0] for part in parts]


def _coacd_preprocessed(
    vertices: np.ndarray, faces: np.ndarray, threshold: float, options: Decompose
) -> list[np.ndarray]:
    return _coacd(vertices, faces, threshold, options, preprocess="on")


def _vhacd(vertices: np.ndarray, faces: np.ndarray, threshold: float, options: Decompose) -> list[np.ndarray]:
    # V-HACD 4 has no concavity threshold: it makes as many components as it may, so every level is the same.
    import vhacdx

    parts = vhacdx.compute_vhacd(
        vertices,
        faces.astype(np.uint32),
        maxConvexHulls=options.vhacd_hulls,
        resolution=options.vhacd_resolution,
        asyncACD=False,
    )
    return [part[0] for part in parts]


def clean(geometry: Geometry, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces for an engine: equal vertices joined, unused ones dropped, at most about `max_faces` faces."""
    vertices, index = join(geometry.vertices)
    faces = proper(index[geometry.faces])
    if len(faces) > max_faces:
        import fast_simplification

        fewer = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_reduction=1 - max_faces / len(faces)
        )
        simpler, kept = np.asarray(fewer[0], float), proper(np.asarray(fewer[1], np.int64))
        if len(kept) >= 4 and np.isfinite(simpler).all():
            vertices, faces = simpler, kept
    used, index = np.unique(faces, return_inverse=True)
    return np.ascontiguousarray(vertices[used]), index.reshape(-1, 3).astype(np.int32)


def to_frame(geometry: Geometry, sampled: np.ndarray) -> tuple[Geometry, np.ndarray]:
    """`geometry` and its `sampled` points (P, 3) in the frame of `files.normalise`."""
    points, centre, radius = normalise(sampled)
    return Geometry((geometry.vertices - centre) / radius, geometry.faces, geometry.normals, geometry.component), points
