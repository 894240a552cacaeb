"""Decompose many shapes into nearly convex components: what is done is remembered, what fails is told, the rest goes
on."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partwhole.core.signals import terminates_like_ctrl_c
from partwhole.shape3d import files
from partwhole.shape3d.decompose import packed, pool
from partwhole.shape3d.decompose.cache import Cache, CacheError, digest
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.decompose.worker import Job

Paths = str | Path | Iterable[str | Path]


def prepare(
    paths: Paths,
    cache: str | Path,
    options: Decompose | None = None,
    *,
    workers: int | None = None,
    backend: str = "local",
    address: str | None = None,
    retry_failed: bool = False,
    seconds: float | None = None,
    watch: Any = None,
) -> Prepared:
    """The shapes of `paths` (files, folders) with their components, from `cache` as far as they are there.

    Only what is missing is done, in `workers` processes (all cores by default) that may die without harm. Interrupted
    at any moment (Ctrl-C, SIGTERM, SIGKILL), it goes on from there when called again; after `seconds` it stops by
    itself and returns what it has. `backend` "dask" or "ray" sends the shapes through joblib to the cluster at
    `address`, whose machines must see `paths` and `cache`. `watch` gets step(done, {"total": n, "failed": n, "cached":
    n}) and say(text); without one, plain lines are printed every five seconds.

    Raises files.BadShape if there is no file, or none that could be decomposed; CacheError if the cache cannot be
    written; TimeoutError if not one was finished in `seconds`. Failures are remembered and not tried again, unless the
    file changes or `retry_failed`.
    """
    options = Decompose() if options is None else options
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    watch = _lines() if watch is None else watch
    store = Cache(cache)
    found = _outside(files.find(paths), paths, store)
    names = dict(zip(found, files.names(found, paths), strict=True))
    settings = digest(options.settings())
    known, others = _known(store, settings)
    if others and not known:
        watch.say(
            f"{store.folder} holds {others} shapes made with other options or by another version: made again here"
        )

    records: dict[Path, dict[str, Any]] = {}
    jobs: dict[str, Path] = {}
    todo = []
    damaged: set[str] = set()
    for _ in range(2):  # a second time for the entries that turn out to be damaged
        todo = []
        for path in found:
            job = _job(path, settings, options, store)
            record = known.get(_identity(job))
            if record is not None and _usable(record, store, retry_failed, damaged, watch):
                records[path] = {**record, "cached": True}
            elif path not in records or records[path].get("key") in damaged:
                job["anew"] = record is not None and record.get("key") in damaged
                records.pop(path, None)
                jobs[job["path"]] = path
                todo.append(job)
        _run(todo, jobs, records, store, workers or os.cpu_count() or 1, backend, address, seconds, len(found), watch)
        done = [path for path in found if records.get(path, {}).get("status") == "done"]
        keys = [records[path]["key"] for path in done]
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        damaged = set()
        arrays = packed.pack_entries(store, keys, name, damaged.add, watch.say) if keys else None
        if arrays is not None or not keys:
            break
        known = {identity: record for identity, record in known.items() if record.get("key") not in damaged}
    failures = [(str(p), _why(records[p])) for p in found if records.get(p, {}).get("status") == "failed"]
    left = [str(path) for path in found if path not in records]
    if arrays is None:
        if damaged:
            what = f"{len(damaged)} entries cannot be read although they have just been made again"
            raise CacheError(store.folder, what, "check the disk, or name another folder")
        if not failures:
            raise TimeoutError(f"none of {len(left)} shapes was finished in {seconds:g} s: allow more and call again")
        some = "; ".join(f"{Path(path).name}: {why}" for path, why in failures[:3])
        where = ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
        raise files.BadShape(where, f"{len(found)} files, none could be decomposed ({some})", f"see {store.manifest}")
    prepared = Prepared(arrays, [names[path] for path in done], [records[path] for path in done], failures, left)
    watch.say(summary(prepared, store))
    return prepared


def summary(prepared: Prepared, cache: Cache) -> str:
    """The table at the end: done, cached, failed (why), and where the list is."""
    s = prepared.statistics()
    c = s["components"]
    engines = ", ".join(f"{name} {count}" for name, count in sorted(s["engines"].items()))
    lines = [
        f"shapes {s['shapes']}   done {s['done']}   cached {s['cached']}   failed {len(s['failed'])}"
        + (f"   not reached {s['left']}" if s["left"] else ""),
        f"components {c['min']} to {c['max']}, mean {c['mean']:.1f}   engine {engines}   fallbacks {s['fallbacks']}",
        f"CPU seconds {s['seconds']:.0f}   list {cache.manifest}",
    ]
    lines += [f"  failed {path}: {why}" for path, why in prepared.failures[:10]]
    if len(prepared.failures) > 10:
        lines.append(f"  and {len(prepared.failures) - 10} more: see the list")
    return "\n".join(lines)


def _outside(found: list[Path], paths: list[Any], cache: Cache) -> list[Path]:
    """The files without the cache's own, where it lies below one of `paths`."""
    here = Path(cache.folder).resolve()
    if not any(here.is_relative_to(Path(path).resolve()) and here != Path(path).resolve() for path in paths):
        return found
    others = [path for path in found if not path.resolve().is_relative_to(here)]
    if not others:
        raise files.BadShape(here.parent, "no shape but those of the cache", "name the folder of the shapes")
    return others


def _job(path: Path, settings: str, options: Decompose, cache: Cache) -> Job:
    stat = path.stat()
    return {
        "path": os.path.abspath(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "settings": settings,
        "options": asdict(options),
        "cache": os.path.abspath(cache.folder),
        "skip": [],
        "reasons": [],
        "spent": 0.0,
        "anew": False,
    }


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("path", "size", "mtime_ns", "settings"))


def _known(cache: Cache, settings: str) -> tuple[dict[tuple[Any, ...], dict[str, Any]], int]:
    """The manifest's last record of every file with these settings, and how many shapes have only other settings."""
    records = [record for record in cache.records() if record.get("status")]
    mine = {_identity(record): record for record in records if record.get("settings") == settings}
    return mine, len({r.get("path") for r in records} - {r["path"] for r in mine.values()})


def _usable(record: dict[str, Any], cache: Cache, retry_failed: bool, damaged: set[str], watch: Any) -> bool:
    if record["status"] != "done":
        return not retry_failed
    if record["key"] in damaged:
        return False
    try:
        size = cache.path(record["key"]).stat().st_size
    except OSError:
        size = -1
    if size != record["bytes"]:
        found = "is gone" if size < 0 else f"has {size} bytes where {record['bytes']} were written"
        watch.say(f"decomposed again: {record['path']}: its entry {cache.path(record['key'])} {found}")
        return False
    return True


def _why(record: dict[str, Any]) -> str:
    return "; ".join(record["reasons"]) or "unknown"


def _run(
    todo: list[Job],
    jobs: dict[str, Path],
    records: dict[Path, dict[str, Any]],
    cache: Cache,
    workers: int,
    backend: str,
    address: str | None,
    seconds: float | None,
    total: int,
    watch: Any,
) -> None:
    """Does `todo` and puts each record into `records` and the manifest as it comes."""
    cached = len(records)
    failed = sum(record["status"] != "done" for record in records.values())
    if not todo:
        return
    watch.say(f"{total} shapes: {cached} known, {len(todo)} to decompose in {workers} processes")
    if backend == "local":
        results = pool.work(todo, min(workers, len(todo)), seconds)
    else:
        from partwhole.shape3d.decompose.cluster import work as on_cluster

        results = on_cluster(todo, workers, backend, address, seconds)
    with terminates_like_ctrl_c(), contextlib.closing(results):
        try:
            watch.step(cached, {"total": total, "failed": failed, "cached": cached})
            for record in results:
                cache.remember({**record, "time": round(time.time(), 3)})
                records[jobs[record["path"]]] = record
                failed += record["status"] != "done"
                watch.step(len(records), {"total": total, "failed": failed, "cached": cached})
                if "remade" in record:
                    watch.say(f"decomposed again: {record['path']}: {record['remade']}")
            if len(records) < total:
                watch.say(f"stopped after {seconds:g} s: {len(records)} of {total} shapes are done and kept")
        except KeyboardInterrupt:
            watch.say(f"stopped: {len(records)} of {total} shapes are done and kept; the same call goes on from there")
            raise


def _lines() -> Any:
    from partwhole.core.watch import Lines  # here: core imports torch, and the children must not

    return Lines(every=5)
