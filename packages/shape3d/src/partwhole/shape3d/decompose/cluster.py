"""The same decomposition on a cluster, through joblib's Dask and Ray back-ends.

Shapes travel as paths and results are written by the machine that made them: all must see the same files and cache.
What a dead machine had not finished is done by another one, and what it had finished is found in the cache. On each
machine the engines still run in killable children of their own.
"""

import importlib
import time
import warnings
from collections.abc import Generator
from typing import Any

from partwhole.shape3d.decompose import pool
from partwhole.shape3d.decompose.worker import Job

SHAPES_PER_TASK = 4  # children start once per task, and a dead machine loses at most so many shapes


def work(
    jobs: list[Job], workers: int, backend: str, address: str | None, seconds: float | None = None
) -> Generator[dict[str, Any], None, None]:
    """As `pool.work`, on the cluster at `address` (dask: the scheduler's, such as tcp://host:8786; ray: the head's,
    such as host:6379 or auto; None starts one here); `workers` is how many shapes are worked on at a time, at most.

    Raises ValueError for a backend that joblib does not know, RuntimeError where the cluster lost the same shapes again
    and again."""
    try:
        joblib: Any = importlib.import_module("joblib")
        if backend == "ray":
            ray: Any = importlib.import_module("ray")
            importlib.import_module("ray.util.joblib").register_ray()
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False)
        elif backend == "dask":
            importlib.import_module("distributed")
    except ImportError as error:
        needed = "pip install 'partwhole-shape3d[cluster]'" + (" ray" if backend == "ray" else "")
        raise RuntimeError(f"backend {backend!r} needs a package that is not here ({error}): {needed}") from error
    arguments: dict[str, Any] = {"scheduler_host": address} if backend == "dask" and address else {}
    tasks = [jobs[i : i + SHAPES_PER_TASK] for i in range(0, len(jobs), SHAPES_PER_TASK)]
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs.*")  # the cluster's size decides, not this number
        with joblib.parallel_config(backend=backend, n_jobs=workers, **arguments):
            # Ray's back-end gives results only when all are there: it is handed one task for each worker at a time.
            several = workers if backend == "ray" else len(tasks)
            how = {} if backend == "ray" else {"return_as": "generator_unordered", "pre_dispatch": "all"}
            for first in range(0, len(tasks), max(several, 1)):
                parallel: Any = joblib.Parallel(**how)
                for records in parallel(joblib.delayed(_task)(task) for task in tasks[first : first + several]):
                    yield from records
                    if seconds is not None and time.monotonic() - start > seconds:
                        return


def _task(jobs: list[Job]) -> list[dict[str, Any]]:
    return list(pool.work(jobs, 1))
