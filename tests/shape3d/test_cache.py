"""The cache: content decides, entries are whole or absent, damage is noticed, nothing computed is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from partwhole.core.watch import Quiet
from partwhole.shape3d import decompose, files
from partwhole.shape3d.decompose import cache as caches
from partwhole.shape3d.decompose import packed
from partwhole.shape3d.decompose.cache import Cache, CacheError, Damaged, key_of
from partwhole.shape3d.decompose.packed import Packed, Prepared
from partwhole.shape3d.files import Geometry

BOX = trimesh.creation.box()
SMALL = decompose.Decompose(points=200)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for i, extents in enumerate([(1, 1, 1), (1, 2, 3), (3, 1, 1)]):
        trimesh.creation.box(extents=extents).export(folder / f"{i}.off")
    return folder


def arrays(count: int = 20, levels: int = 2, most: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    normals = random.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return random.uniform(-0.5, 0.5, (count, 3)), normals, random.integers(0, most, (levels, count))


def quickly(shapes: Any, cache: Path, watch: Any = None, **more: Any) -> Prepared:
    return decompose.prepare(shapes, cache, more.pop("options", SMALL), workers=1, watch=watch or Quiet(), **more)


def test_the_key_follows_content_and_settings_and_nothing_else() -> None:
    box = Geometry(BOX.vertices, BOX.faces)
    key = key_of(box, SMALL.settings())
    assert key == key_of(Geometry(BOX.vertices.copy(), BOX.faces.copy()), SMALL.settings())
    moved = BOX.vertices.copy()
    moved[0, 0] += 1e-12
    others = [
        key_of(Geometry(moved, BOX.faces), SMALL.settings()),
        key_of(Geometry(BOX.vertices, BOX.faces[::-1]), SMALL.settings()),
        key_of(Geometry(BOX.vertices, BOX.faces, np.zeros((8, 3))), SMALL.settings()),
        *(
            key_of(box, decompose.Decompose(**{"points": 200, **change}).settings())
            for change in (
                {"points": 201},
                {"seed": 1},
                {"engine": "vhacd"},
                {"thresholds": (0.05,)},
                {"thresholds": (0.1, 0.05)},
                {"mcts_iterations": 61},
                {"max_faces": 2499},
            )
        ),
        key_of(box, {**SMALL.settings(), "versions": {"coacd": "0.0.1"}}),
    ]
    assert len({key, *others}) == 1 + len(others)
    # limits bound the work and do not define it
    assert key == key_of(box, decompose.Decompose(points=200, cpu_seconds=5, memory_mb=99).settings())


def test_an_entry_comes_back_as_it_was_within_the_stored_precision(tmp_path: Path) -> None:
    points, normals, labels = arrays(most=300)
    store = Cache(tmp_path)
    key = "ab" + "0" * 62
    size = store.write(key, points, normals, labels, {"engine": "x"})
    assert store.path(key) == tmp_path / "ab" / f"{key}.npz"
    assert store.path(key).stat().st_size == size
    entry = store.read(key)
    np.testing.assert_allclose(entry["points"].astype(float), points, atol=3e-4)
    np.testing.assert_allclose(entry["normals"] / 127, normals, atol=0.005)
    assert (entry["labels"] == labels).all()
    assert entry["meta"]["engine"] == "x"
    assert [p.name for p in (tmp_path / "ab").iterdir()] == [f"{key}.npz"]
    with pytest.raises(KeyError):
        store.read("cd" + "0" * 62)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_entry_is_noticed(tmp_path: Path, share: float) -> None:
    store, key = Cache(tmp_path), "ab" + "0" * 62
    store.write(key, *arrays(), {})
    whole = store.path(key).read_bytes()
    store.path(key).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Damaged, match="not whole"):
        store.read(key)


def test_an_entry_under_a_wrong_name_is_noticed(tmp_path: Path) -> None:
    store, key, other = Cache(tmp_path), "ab" + "0" * 62, "ab" + "1" * 62
    store.write(key, *arrays(), {})
    os.rename(store.path(key), store.path(other))
    with pytest.raises(Damaged, match="does not hold"):
        store.read(other)


WRITE_OFTEN = """
import sys, numpy as np
from partwhole.shape3d.decompose.cache import Cache
store = Cache(sys.argv[1])
for i in range(20):
    store.write(f"{i % 5:02d}" + "0" * 62, np.zeros((200, 3)), np.zeros((200, 3)), np.zeros((1, 200), int), {})
    store.remember({"i": i, "text": "x" * 500})
"""


def test_several_processes_may_write_the_same_entries_at_once(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", WRITE_OFTEN, str(tmp_path)]) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        for entry in tmp_path.glob("*/[0-9]*.npz"):
            Cache(tmp_path).read(entry.stem)  # whole at any moment
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("0*/*"))) == 5
    assert len(list(Cache(tmp_path).records())) == 40


def test_a_line_cut_off_by_a_kill_costs_that_line_alone(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.remember({"a": 1})
    with open(store.manifest, "a") as file:
        file.write('{"a": 2, "pa')
    store.remember({"a": 3})
    assert [record["a"] for record in store.records()] == [1, 3]


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (errno.ENOSPC, "no space left; free some"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "no permission to write; name a folder that you own"),
        (errno.EROFS, "no permission to write"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_no_space_and_no_permission_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, found: str
) -> None:
    store = Cache(tmp_path)
    store.write("aa" + "0" * 62, *arrays(), {})

    def no(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(caches.os, "fsync", no)
    with pytest.raises(CacheError, match=found) as caught:
        store.write("bb" + "0" * 62, *arrays(), {})
    assert str(tmp_path) in str(caught.value)
    assert not list((tmp_path / "bb").iterdir())  # nothing half-written is left
    assert store.read("aa" + "0" * 62)["meta"]["key"].startswith("aa")


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path, shapes: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(CacheError, match="a file is where the folder should be"):
        quickly(shapes, tmp_path / "cache")


def test_a_child_that_cannot_write_stops_the_run_and_what_was_done_is_kept(tmp_path: Path, shapes: Path) -> None:
    quickly(shapes / "0.off", tmp_path / "cache")
    blocked = [tmp_path / "cache" / f"{i:02x}" for i in range(256)]
    for folder in blocked:
        if not folder.exists():
            folder.write_text("a file in the way")  # as no permission would, which does not bind root
    with pytest.raises(CacheError, match="a file is where the folder should be"):
        quickly(shapes, tmp_path / "cache")
    for folder in blocked:
        if folder.is_file():
            folder.unlink()
    statistics = quickly(shapes, tmp_path / "cache").statistics()
    assert (statistics["cached"], statistics["done"]) == (1, 2)


def test_only_what_is_missing_is_done(tmp_path: Path, shapes: Path, heard: Any) -> None:
    first = quickly(shapes, tmp_path / "cache", heard)
    assert [done for done, _ in heard.steps] == [0, 1, 2, 3]
    assert heard.steps[-1][1]["total"] == 3
    heard.steps.clear()
    second = quickly(shapes, tmp_path / "cache", heard)
    assert heard.steps == []
    assert (second.statistics()["cached"], second.statistics()["done"]) == (3, 0)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)
    trimesh.creation.box(extents=(5, 1, 1)).export(shapes / "1.off")  # changed
    os.utime(shapes / "2.off")  # touched: read again, and found by its content
    third = quickly(shapes, tmp_path / "cache").statistics()
    assert (third["cached"], third["done"]) == (2, 1)


def test_other_options_are_another_entry(tmp_path: Path, shapes: Path) -> None:
    quickly(shapes, tmp_path / "cache")
    other = quickly(shapes, tmp_path / "cache", options=decompose.Decompose(points=100))
    assert other.statistics()["done"] == 3
    assert other[0]["points"].shape == (100, 3)
    assert quickly(shapes, tmp_path / "cache").statistics()["cached"] == 3


def test_a_truncated_entry_is_told_and_made_again(tmp_path: Path, shapes: Path, heard: Any) -> None:
    first = quickly(shapes, tmp_path / "cache")
    entry = Cache(tmp_path / "cache").path(first.records[1]["key"])
    entry.write_bytes(entry.read_bytes()[:-100])
    again = quickly(shapes, tmp_path / "cache", heard)
    assert any("1.off" in text and "bytes where" in text for text in heard.said)
    assert (again.statistics()["cached"], again.statistics()["done"]) == (2, 1)
    assert torch.equal(again[1]["component"], first[1]["component"])


def test_packed_arrays_that_are_damaged_are_made_again_and_old_ones_are_removed(tmp_path: Path, shapes: Path) -> None:
    first = quickly(shapes, tmp_path / "cache")
    [folder] = (tmp_path / "cache/packed").iterdir()
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:-50])
    again = quickly(shapes, tmp_path / "cache")
    assert torch.equal(again[2]["component"], first[2]["component"])
    for i in range(20):
        (tmp_path / f"cache/packed/{i}").mkdir()
        os.utime(tmp_path / f"cache/packed/{i}", (i, i))
    quickly(shapes / "0.off", tmp_path / "cache")
    assert len(list((tmp_path / "cache/packed").iterdir())) == packed.KEPT
    assert folder.is_dir()


def test_a_disk_that_damages_what_is_made_again_is_told(tmp_path: Path, shapes: Path, monkeypatch: Any) -> None:
    def lose(self: Cache, key: str) -> Any:
        raise Damaged(f"{self.path(key)} is not whole")

    monkeypatch.setattr(Cache, "read", lose)
    with pytest.raises(CacheError, match="entries cannot be read although they have just been made again"):
        quickly(shapes, tmp_path / "cache")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("packed", [True, False])
def test_a_whole_cache_that_can_only_be_read_is_used(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, number: int, heard: Any
) -> None:
    first = quickly(shapes, tmp_path / "cache")
    if not packed:
        shutil.rmtree(tmp_path / "cache" / "packed")

    def no(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("utime", "rename", "mkdir"):
        monkeypatch.setattr(os, name, no)
    again = quickly(shapes, tmp_path / "cache", heard)
    assert all(torch.equal(a["points"], b["points"]) for a, b in zip(first, again, strict=True))
    assert any("held in memory" in text for text in heard.said) == (not packed)
    assert (tmp_path / "cache" / "packed").exists() == packed


def test_a_cache_among_the_shapes_is_not_taken_for_shapes(shapes: Path) -> None:
    first = quickly(shapes, shapes / "cache")
    (shapes / "cache" / "points.npy").write_bytes((shapes / "0.off").read_bytes())
    assert quickly(shapes, shapes / "cache").names == first.names
    for path in shapes.glob("*.off"):
        path.unlink()
    with pytest.raises(files.BadShape, match="no shape but those of the cache"):
        quickly(shapes, shapes / "cache")


def test_an_entry_damaged_without_a_change_of_size_is_told_and_made_again(
    tmp_path: Path, shapes: Path, heard: Any
) -> None:
    first = quickly(shapes, tmp_path / "cache")
    entry = Cache(tmp_path / "cache").path(first.records[1]["key"])
    size = entry.stat().st_size
    entry.write_bytes(b"\0" * size)
    again = quickly([shapes / "1.off", shapes / "2.off"], tmp_path / "cache", heard)  # another set: packed anew
    assert any("not whole" in text for text in heard.said)
    assert (again.statistics()["cached"], again.statistics()["done"]) == (1, 1)
    assert torch.equal(again[0]["component"], first[1]["component"])


def test_entries_of_another_version_are_not_used(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, heard: Any
) -> None:
    quickly(shapes, tmp_path / "cache")
    manifest = tmp_path / "cache/manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({**line, "settings": "0" * 16}) + "\n" for line in lines))
    for path in sorted((tmp_path / "cache").glob("??/*.npz")):  # what another version would have called them
        os.rename(path, path.with_name("0" * 64 + ".npz"))
    again = quickly(shapes, tmp_path / "cache", heard)
    assert again.statistics()["done"] == 3
    assert any("other options or by another version" in text for text in heard.said)


def test_failures_are_remembered_until_asked_or_changed(tmp_path: Path, shapes: Path, heard: Any) -> None:
    (shapes / "bad.off").write_text("OFF\n3 1 0\n")
    assert len(quickly(shapes, tmp_path / "cache").failures) == 1
    again = quickly(shapes, tmp_path / "cache", heard)
    assert heard.steps == []
    assert [Path(path).name for path, _ in again.failures] == ["bad.off"]
    quickly(shapes, tmp_path / "cache", heard, retry_failed=True)
    assert [done for done, _ in heard.steps] == [3, 4]
    BOX.export(shapes / "bad.off")
    assert quickly(shapes, tmp_path / "cache").failures == []


def prepared(shapes: int, count: int) -> Prepared:
    random = np.random.default_rng(0)
    points = random.uniform(-0.5, 0.5, (shapes * count, 3)).astype(np.float16)
    normals = random.integers(-127, 128, (shapes * count, 3)).astype(np.int8)
    labels = np.sort(random.integers(0, 20, (1, shapes * count)), axis=1).astype(np.uint8)
    arrays = Packed(points, normals, labels, np.arange(shapes + 1) * count)
    meta = {"engine": "x", "reasons": [], "seconds": 1.0, "components": [3], "thresholds": [0.1], "status": "done"}
    records = [{**meta, "key": f"{i:064x}"} for i in range(shapes)]
    return Prepared(arrays, [f"shape {i}" for i in range(shapes)], records, [("bad.off", "why")], ["later.off"])


def test_packs_are_small_and_come_back_the_same(tmp_path: Path) -> None:
    all_of_them = prepared(50, 500)
    paths = all_of_them.pack(tmp_path / "pack", max_bytes=100_000)
    assert len(paths) > 1
    assert all(path.stat().st_size <= 100_000 for path in paths)
    assert sum(path.stat().st_size for path in paths) < 50 * 500 * 10
    back = decompose.load(tmp_path / "pack")
    assert (back.names, back.records, back.failures) == (all_of_them.names, all_of_them.records, all_of_them.failures)
    assert back.left == ["later.off"]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(back, all_of_them, strict=True) for k in a)
    with pytest.raises(FileNotFoundError, match="no shapes-"):
        decompose.load(tmp_path)


def test_a_pack_restores_a_cache_elsewhere(tmp_path: Path, shapes: Path) -> None:
    quickly(shapes, tmp_path / "cache").pack(tmp_path / "pack")
    assert decompose.restore(tmp_path / "pack", tmp_path / "other") == 3
    statistics = quickly(shapes, tmp_path / "other").statistics()
    assert (statistics["cached"], statistics["done"]) == (3, 0)


def test_a_sample_is_float32_points_and_normals_and_int64_components(tmp_path: Path) -> None:
    some = prepared(4, 30)
    sample = some[-1]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in sample.items()} == {
        "points": (torch.float32, (30, 3)),
        "normals": (torch.float32, (30, 3)),
        "component": (torch.int64, (1, 30)),
    }
    assert torch.equal(some[3]["points"], sample["points"])
    assert len(some[1:3]) == 2
    with pytest.raises(IndexError):
        some[4]
    chosen = some.subset([2, 0])
    assert chosen.names == ["shape 2", "shape 0"]
    assert torch.equal(chosen[0]["points"], some[2]["points"])
    assert torch.equal(chosen.subset([1])[0]["points"], some[0]["points"])
    chosen.pack(tmp_path)
    assert torch.equal(packed.load(tmp_path)[1]["points"], some[0]["points"])
    assert np.shares_memory(chosen.packed.points, some.packed.points)  # thousands of shapes are not read for a choice
    json.dumps(some.statistics())


def test_the_surface_that_is_stored_is_the_one_that_is_sampled(tmp_path: Path, shapes: Path) -> None:
    points = quickly(shapes / "1.off", tmp_path / "cache")[0]["points"].numpy()
    sampled = files.normalise(files.sample(files.read(shapes / "1.off"), 200, 0)[0])[0]
    np.testing.assert_allclose(points, sampled, atol=5e-4)
