"""Labelled shapes that were read before: the same shapes, from the cache, unless something changed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from partwhole.shape3d import generator
from partwhole.shape3d.labelled import read_labelled


def same(a, b) -> bool:
    return a.names == b.names and a.parts == b.parts and all(
        torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x
    )  # fmt: skip


def test_the_second_reading_comes_from_the_cache_and_is_the_same(tmp_path, monkeypatch):
    generator.write(tmp_path / "set", 4)
    (tmp_path / "set" / "chair" / "lost_labels.txt").write_text("a\n1\n")
    plain = read_labelled(tmp_path / "set")
    first = read_labelled(tmp_path / "set", cache=tmp_path / "cache")
    monkeypatch.setattr("partwhole.shape3d.layouts.lpsb", None)  # it must not be asked again
    second = read_labelled(tmp_path / "set", cache=tmp_path / "cache")
    assert same(plain, first)
    assert same(plain, second)
    assert second.problems == plain.problems
    assert len(plain.problems) > 0


def test_what_is_kept_says_where_the_files_are_wherever_it_is_read_from(tmp_path, monkeypatch):
    (tmp_path / "set" / "pot").mkdir(parents=True)
    np.savez(
        tmp_path / "set" / "pot" / "0.npz", points=np.random.default_rng(0).random((30, 3)), labels=np.arange(30) % 3
    )
    monkeypatch.chdir(tmp_path)
    read_labelled("set", cache=tmp_path / "cache")
    monkeypatch.chdir(tmp_path / "set")
    kept = read_labelled(tmp_path / "set", cache=tmp_path / "cache")
    assert all(path is not None and Path(path).is_file() for path in kept.paths)


def test_a_changed_file_or_another_count_is_read_again(tmp_path):
    (path, *_) = generator.write(tmp_path / "set", 4, categories=["mug"])
    cache = tmp_path / "cache"
    first = read_labelled(tmp_path / "set", cache=cache)
    assert len(read_labelled(tmp_path / "set", cache=cache, points=64)[0]["points"]) == 64
    path.write_text(path.read_text()[:200])
    changed = read_labelled(tmp_path / "set", cache=cache)
    assert len(changed) == len(first) - 1


@pytest.mark.parametrize("name", ["points.npy", "starts.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_a_damaged_cache_is_made_anew(tmp_path, name, damage):
    generator.write(tmp_path / "set", 3, categories=["mug"])
    cache = tmp_path / "cache"
    first = read_labelled(tmp_path / "set", cache=cache)
    whole = [torch.clone(s["points"]) for s in first]
    (kept,) = cache.glob("labelled-*")
    target = kept / name
    if damage == "remove":
        target.unlink()
    else:
        content = target.read_bytes()
        target.unlink()
        target.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"garbage")
    again = read_labelled(tmp_path / "set", cache=cache)
    assert all(torch.equal(a, s["points"]) for a, s in zip(whole, again, strict=True))
    assert len(list(cache.iterdir())) == 1, "scratch folders are left behind"


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path):
    generator.write(tmp_path / "set", 2, categories=["mug"])
    (tmp_path / "file").write_text("not a folder")
    data = read_labelled(tmp_path / "set", cache=tmp_path / "file" / "cache")
    assert len(data) == 2
    assert "the cache cannot be written" in "; ".join(reason for _, reason in data.problems)
