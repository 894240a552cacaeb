"""Reading labelled shapes in their layouts: what is found, what is skipped and told, what is remembered."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwhole.shape3d import generator
from partwhole.shape3d.files import BadShape
from partwhole.shape3d.labelled import generated, read_labelled
from partwhole.shape3d.layouts import SHAPENET_PART, shapenet_parts

CHAIR, MUG = "03001627", "03797390"
LPSB = Path(__file__).parents[2] / ".data" / "lpsb"


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)) * 3 + 5


def shapenet(root: Path, *, normals: bool = True, split: bool = True) -> Path:
    """Two chairs (parts 12 to 15) and two mugs (36, 37) as the published archive has them."""
    root.mkdir(parents=True)
    listed: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder, first, parts in ((CHAIR, 12, 4), (MUG, 36, 2)):
        (root / folder).mkdir()
        for i, kind in enumerate(("train", "test")):
            xyz = cloud(50, i)
            label = first + np.arange(50) % parts
            rows = np.column_stack(
                [xyz, xyz / np.linalg.norm(xyz, axis=1, keepdims=True), label] if normals else [xyz, label]
            )
            np.savetxt(root / folder / f"shape{i}.txt", rows, fmt="%.6f")
            listed["val" if folder == MUG and kind == "train" else kind].append(f"shape_data/{folder}/shape{i}")
    if split:
        (root / "train_test_split").mkdir()
        for kind, names in listed.items():
            (root / "train_test_split" / f"shuffled_{kind}_file_list.json").write_text(json.dumps(names))
    table = "".join(f"{name}\t{folder}\n" for name, (folder, _) in SHAPENET_PART.items())
    (root / "synsetoffset2category.txt").write_text(table)
    return root


def simple(root: Path, category: str = "pot", count: int = 2, **arrays) -> Path:
    (root / category).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = {"points": cloud(30, i), "labels": np.arange(30) % 3, **arrays}
        np.savez(root / category / f"{i}.npz", **values)
    return root


def promises(data) -> None:
    """What every `Labelled` promises, whatever it was read from."""
    assert len(data) == len(data.names) == len(data.split) == len(data.paths) == len(data.category)
    assert len(data.categories) == len(data.parts) == len(data.part_mask)
    assert data.part_mask.shape[1] == sum(map(len, data.parts))
    assert (data.part_mask.sum(0) == 1).all(), "every part belongs to one category"
    for i, sample in enumerate(data):
        assert sample["points"].dtype == sample["normals"].dtype == torch.float32
        assert sample["part"].dtype == sample["category"].dtype == torch.int64
        assert len(sample["points"]) == len(sample["normals"]) == len(sample["part"])
        assert sample["points"].mean(0).abs().max() < 1e-5
        assert abs(float(sample["points"].norm(dim=-1).max()) - 1) < 1e-5
        assert int(sample["category"]) == data.category[i]
        assert data.part_mask[sample["category"], sample["part"]].all(), "a part of another category"


def test_shapenet_ids_are_the_published_fifty():
    parts = shapenet_parts()
    assert list(parts) == sorted(parts)
    assert len(parts) == 16
    assert [int(p) for names in parts.values() for p in names] == list(range(50))
    assert parts["Chair"] == ("12", "13", "14", "15")
    assert parts["Motorbike"] == ("30", "31", "32", "33", "34", "35")
    assert parts["Table"] == ("47", "48", "49")


@pytest.mark.parametrize("normals", [True, False])
def test_shapenet_is_read_with_its_split_and_global_ids(tmp_path, normals):
    data = read_labelled(shapenet(tmp_path / "set", normals=normals))
    promises(data)
    assert len(data.categories) == 16
    assert data.names == ["Chair/shape0", "Chair/shape1", "Mug/shape0", "Mug/shape1"]
    assert data.split == ["train", "test", "train", "test"], "validation counts as training"
    assert torch.equal(data[0]["part"], 12 + torch.arange(50) % 4)
    assert torch.equal(data[3]["part"], 36 + torch.arange(50) % 2)
    assert bool((data[0]["normals"].norm(dim=-1) > 0.99).all()) is normals
    assert data.problems == []
    assert data.of("Mug") == [2, 3]


def test_torch_geometrics_folder_is_read_from_raw_and_never_unpickled(tmp_path):
    shapenet(tmp_path / "raw")
    (tmp_path / "processed").mkdir()
    (tmp_path / "processed" / "cha_train.pt").write_bytes(b"not to be opened")
    assert len(read_labelled(tmp_path)) == 4
    alone = tmp_path / "alone"
    (alone / "processed").mkdir(parents=True)
    (alone / "processed" / "cha_train.pt").write_bytes(b"not to be opened")
    with pytest.raises(BadShape, match="pickles"):
        read_labelled(alone)


class Geometric(list):
    """What torch_geometric's ShapeNet looks like from outside."""

    categories = ("Chair", "Mug")


def test_a_torch_geometric_data_set_is_taken_as_it_is():
    def item(category: int, first: int, **changes):
        xyz = torch.randn(20, 3)
        given = {
            "pos": xyz,
            "x": torch.nn.functional.normalize(xyz),
            "y": first + torch.arange(20) % 2,
            "category": category,
        }
        return SimpleNamespace(**{**given, **changes})

    data = read_labelled(Geometric([item(0, 12), item(1, 36), item(1, 36, x=None), item(1, 12)]))
    promises(data)
    assert data.names == ["Chair/0", "Mug/1", "Mug/2"]
    assert set(data[1]["part"].tolist()) == {36, 37}
    assert (data[2]["normals"] == 0).all()
    assert any("part id 12" in reason and "Mug" in reason for _, reason in data.problems)


@pytest.mark.slow
def test_torch_geometrics_own_class_is_understood(tmp_path):
    datasets = pytest.importorskip("torch_geometric.datasets")
    raw = shapenet(tmp_path / "raw")
    for folder, _ in SHAPENET_PART.values():
        (raw / folder).mkdir(exist_ok=True)
    theirs = datasets.ShapeNet(str(tmp_path), categories=["Chair", "Mug"], split="trainval")
    data, mine = read_labelled(theirs), read_labelled(tmp_path)
    promises(data)
    assert len(data) == 2
    for a, b in zip(data, (mine[0], mine[2]), strict=True):
        assert torch.allclose(a["points"], b["points"], atol=1e-5)
        assert torch.equal(a["part"], b["part"])


def test_meshes_with_face_labels_are_sampled_by_face(tmp_path):
    generator.write(tmp_path, 12, seed=1, categories=["chair", "lamp", "fish"])
    data = read_labelled(tmp_path, points=700)
    promises(data)
    assert data.categories == ["chair", "fish", "lamp"]
    assert data.parts[1] == ["body", "fin", "tail"]
    assert all(len(s["points"]) == 700 for s in data)
    assert (data[0]["normals"].norm(dim=-1) - 1).abs().max() < 1e-5
    again = read_labelled(tmp_path, points=700)
    assert torch.equal(data[5]["points"], again[5]["points"])
    assert not torch.equal(data[5]["points"], read_labelled(tmp_path, points=700, seed=1)[5]["points"])
    # labels follow faces: every part has its share of the area
    fish = data[data.of("fish")[0]]
    made = generator.shape("fish", 0, seed=1)
    share = [(fish["part"] - data.first[1] == p).float().mean().item() for p in range(3)]
    corners = made.geometry.vertices[made.geometry.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    expected = [area[made.part == p].sum() / area.sum() for p in range(3)]
    assert np.allclose(share, expected, atol=0.06)


def test_every_point_has_the_label_of_the_very_face_it_lies_on(tmp_path):
    """A row of single triangles at x = 0, 10, 20, ...: the place of a point says which face it came from."""
    (tmp_path / "row").mkdir()
    corners = [(10 * i + x, y, 0) for i in range(6) for x, y in ((0, 0), (1, 0), (0, 1))]
    faces = [f"3 {3 * i} {3 * i + 1} {3 * i + 2}" for i in range(6)]
    text = ["OFF", "18 6 0", *(f"{x} {y} {z}" for x, y, z in corners), *faces]
    (tmp_path / "row" / "1.off").write_text("\n".join(text))
    (tmp_path / "row" / "1_labels.txt").write_text("odd\n1 5\neven\n2 6\nlast\n4\n")  # face 3 has none
    data = read_labelled(tmp_path, points=400)
    x, part = data[0]["points"][:, 0], data[0]["part"]
    face = 1 + ((x - x.min()) / (x.max() - x.min()) * 5.1).floor().long()
    names = {1: "odd", 2: "even", 4: "last", 5: "odd", 6: "even"}
    assert {int(f) for f in face} == set(names)
    assert [data.parts[0][p] for p in part] == [names[int(f)] for f in face]


def test_ply_meshes_with_face_labels_do_as_well(tmp_path):
    generator.write(tmp_path / "a", 2, categories=["mug"])
    generator.write(tmp_path / "b", 2, categories=["mug"], suffix=".ply")
    a, b = read_labelled(tmp_path / "a"), read_labelled(tmp_path / "b")
    assert torch.allclose(a[1]["points"], b[1]["points"], atol=1e-5)
    assert torch.equal(a[1]["part"], b[1]["part"])


def test_simple_files_infer_parts_and_take_names_from_parts_json(tmp_path):
    simple(tmp_path, "pot", labels=np.arange(30) % 2 * 7 + 3)
    np.savez(tmp_path / "pot" / "own.npz", points=cloud(10), labels=np.zeros(10), category="jar", split="test")
    data = read_labelled(tmp_path)
    promises(data)
    assert data.categories == ["jar", "pot"]
    assert data.parts == [["0"], ["3", "10"]]
    assert dict(zip(data.names, data.split, strict=True))["jar/own"] == "test"
    (tmp_path / "parts.json").write_text(json.dumps({"jar": ["side", "lid"]}))
    named = read_labelled(tmp_path)
    assert named.parts == [["side", "lid"], ["3", "10"]]


def test_folders_called_train_and_test_are_the_split(tmp_path):
    simple(tmp_path / "train")
    simple(tmp_path / "test", count=1)
    data = read_labelled(tmp_path)
    assert data.categories == ["pot"]
    assert sorted(s or "" for s in data.split) == ["test", "train", "train"]


def test_generated_shapes_need_no_file():
    data = generated(24, points=300, seed=5)
    promises(data)
    assert data.categories == list(generator.CATEGORIES)
    assert data.parts == [list(p) for p in generator.PARTS.values()]
    fewer = generated(12, points=300, seed=5)
    assert all(torch.equal(fewer[i]["points"], data[i]["points"]) for i in range(12))
    two = generated(4, points=100, categories=("mug", "car"))
    assert two.categories == ["mug", "car"]


# Bad input: told with its path and reason; the rest goes on


def reasons(data) -> str:
    return "\n".join(f"{path}: {reason}" for path, reason in data.problems)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2 3 0 0 1 12\n1 2 3 0 0 1\n", "cut off"),
        ("", "cut off"),
        ("1 2 3 0 0 1 99\n" * 5, "part id 99"),
        ("1 2 3 0 0 1 36\n" * 5, "part id 36"),
        ("1 2 x 0 0 1 12\n" * 5, "not a number"),
        ("1 2 nan 0 0 1 12\n" * 5, "NaN"),
        ("1 2 3 0 0 1 12.5\n" * 5, "whole numbers"),
    ],
)
def test_a_broken_shapenet_file_is_skipped_and_named(tmp_path, text, told):
    root = shapenet(tmp_path / "set")
    (root / CHAIR / "shape0.txt").write_text(text)
    data = read_labelled(root)
    promises(data)
    assert len(data) == 3
    broken = [reason for path, reason in data.problems if path.endswith("shape0.txt")]
    assert any(reason.startswith("skipped") and told in reason for reason in broken)
    assert "kept: the only shape of category Chair" in reasons(data)


def test_missing_split_files_and_shapes_are_told(tmp_path):
    root = shapenet(tmp_path / "set")
    (root / "train_test_split" / "shuffled_test_file_list.json").unlink()
    (root / MUG / "shape0.txt").unlink()
    data = read_labelled(root)
    assert data.split == ["train", None, None]
    assert "shuffled_test_file_list.json: kept: no usable split file" in reasons(data)
    assert f"1 shapes of the split files are not there, the first is {MUG}/shape0" in reasons(data)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("body\n1 2 3\nhandle\n4 9999\n", "where the mesh has faces 1 to"),
        ("body\n0 1 2\n", "faces 0 to 2"),
        ("body\n1 2 3\nhandle\n", "pairs of lines"),
        ("body\none two\n", "not whole numbers"),
        ("", "pairs of lines"),
    ],
)
def test_labels_that_do_not_fit_their_mesh_are_skipped_and_named(tmp_path, labels, told):
    paths = generator.write(tmp_path, 3, categories=["mug"])
    paths[0].with_name(f"{paths[0].stem}_labels.txt").write_text(labels)
    data = read_labelled(tmp_path)
    assert len(data) == 2
    assert told in reasons(data)
    assert paths[0].stem in reasons(data)


def test_broken_and_missing_meshes_are_skipped_and_named(tmp_path):
    paths = generator.write(tmp_path, 5, categories=["mug"])
    paths[0].write_text(paths[0].read_text()[:300])
    paths[1].write_text(paths[1].read_text().replace("0.", "nan ", 1))
    paths[2].unlink()
    data = read_labelled(tmp_path)
    assert len(data) == 2
    assert sum(reason.startswith("skipped") for _, reason in data.problems) == 3
    assert "labels without a mesh" in reasons(data)


def test_faces_without_a_label_give_no_points_and_are_counted(tmp_path):
    (path,) = generator.write(tmp_path, 1, categories=["mug"])
    labels = path.with_name(f"{path.stem}_labels.txt")
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:2]) + "\n")
    data = read_labelled(tmp_path)
    assert data.parts == [["body"]]
    made = generator.shape("mug", 0)
    assert f"kept: {(made.part != 0).sum()} of {len(made.part)} faces have no label" in reasons(data)
    labels.write_text("\n".join([*lines[:2], "lid", lines[1]]) + "\n")
    assert f"{(made.part == 0).sum()} faces are labelled more than once" in reasons(read_labelled(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": np.arange(29)}, "29 labels for 30 points"),
        ({"labels": np.full(30, 0.5)}, "whole numbers"),
        ({"points": np.full((30, 3), np.nan)}, "NaN"),
        ({"points": np.zeros((30, 2))}, r"expected (P, 3)"),
        ({"normals": np.zeros((4, 3))}, "normals of shape"),
        ({"split": "maybe"}, "expected train, val or test"),
        ({"labels": np.array([None] * 30, dtype=object)}, "not a readable .npz"),
    ],
)
def test_a_broken_simple_file_is_skipped_and_named(tmp_path, arrays, told):
    simple(tmp_path, count=1, **arrays)
    np.savez(tmp_path / "pot" / "good.npz", points=cloud(9), labels=np.arange(9) % 2)
    np.savez(tmp_path / "pot" / "fine.npz", points=cloud(9), labels=np.arange(9) % 2)
    data = read_labelled(tmp_path)
    assert sorted(data.names) == ["pot/fine", "pot/good"]
    assert told in reasons(data)


def test_a_part_beyond_the_named_ones_is_skipped(tmp_path):
    simple(tmp_path, count=1, labels=np.arange(30) % 5)
    simple(tmp_path / "x", "pot", count=2)
    (tmp_path / "parts.json").write_text(json.dumps({"pot": ["side", "lid", "knob"]}))
    data = read_labelled(tmp_path)
    assert len(data) == 2
    assert data.parts == [["side", "lid", "knob"]]
    assert "part id 3" in reasons(data)


def test_nothing_to_read_says_what_is_expected(tmp_path):
    with pytest.raises(BadShape, match="no such folder"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(BadShape, match=r"_labels\.txt"):
        read_labelled(tmp_path)
    (tmp_path / "pot").mkdir()
    (tmp_path / "pot" / "a.npz").write_bytes(b"PK not really")
    with pytest.raises(BadShape, match=r"no shape could be read \(1 problems; the first: .*a\.npz"):
        read_labelled(tmp_path)
    with pytest.raises(TypeError, match="expected a folder"):
        read_labelled(7)


def test_it_is_a_sequence_that_can_be_copied_to_workers(tmp_path):
    data = generated(3, points=50)
    assert len(data[:2]) == 2
    assert torch.equal(data[-1]["points"], data[2]["points"])
    with pytest.raises(IndexError, match="shape 3 of 3"):
        data[3]
    again = deepcopy(data)
    assert again.names == data.names
    assert all(torch.equal(a["points"], b["points"]) for a, b in zip(again, data, strict=True))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=12), min_size=1, max_size=4), st.integers(0, 99))
def test_inferred_parts_lose_no_label(tmp_path_factory, labels, seed):
    root = tmp_path_factory.mktemp("set")
    (root / "pot").mkdir()
    for i, values in enumerate(labels):
        np.savez(root / "pot" / f"{i}.npz", points=cloud(len(values), seed + i), labels=np.array(values))
    data = read_labelled(root)
    for sample, values in zip(data, labels, strict=True):
        assert [int(data.parts[0][p]) for p in sample["part"]] == values


@pytest.mark.slow
@pytest.mark.skipif(not LPSB.is_dir(), reason="the Labeled Princeton Segmentation Benchmark is not in .data/lpsb")
def test_the_princeton_benchmark_is_read_whole(tmp_path):
    data = read_labelled(LPSB, cache=tmp_path)
    assert len(data) == 300
    assert len(data.categories) == 15
    assert data.problems == []
    assert data.parts[data.categories.index("Chair")] == ["arm", "backsupport", "leg", "support"]
    again = read_labelled(LPSB, cache=tmp_path)
    assert torch.equal(data[77]["points"], again[77]["points"])
