"""Where shapes come from: the labelled ones stay out of pre-training unless they are asked for."""

import shutil

import pytest
import trimesh

from partwhole.core.watch import Quiet
from partwhole.shape3d import generator, twins
from partwhole.shape3d.decompose.cache import CacheError
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.files import BadShape
from partwhole.shape3d.sources import Source

OPTIONS = Decompose(engine="points", points=256)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    generator.write(folder / "all" / "labelled", 4, seed=1, categories=("table", "bottle"))
    generator.write(folder / "all" / "other", 2, seed=2, categories=("table",))
    for labels in (folder / "all" / "other").rglob("*_labels.txt"):
        labels.unlink()
    return folder


def test_labelled_shapes_stay_out_of_pre_training(place, heard):
    source = Source(cache=place / "cache", workers=1)
    prepared = source.unlabelled([place / "all"], OPTIONS, labelled=place / "all" / "labelled", watch=heard)
    assert len(prepared) == 2
    assert all("other" in name for name in prepared.names)
    assert any(text.startswith("4 shapes of the labelled set are left out") for text in heard.said)


def test_a_labelled_shape_stays_out_under_another_name_and_in_another_format(place, tmp_path):
    labelled = place / "all" / "labelled"
    made = sorted(labelled.rglob("*.off"))
    turned = trimesh.load_mesh(made[0])
    turned.apply_transform(2 * trimesh.transformations.rotation_matrix(0.7, [1, 2, 3]))
    turned.export(tmp_path / "pool-turned.obj")
    for source, name in ((made[1], "other.off"), (sorted((place / "all" / "other").rglob("*.off"))[0], "new.off")):
        shutil.copy(source, tmp_path / name)
    prepared = Source(cache=tmp_path / "cache", workers=1).unlabelled(
        [tmp_path], OPTIONS, labelled=labelled, watch=Quiet()
    )
    assert [name.rpartition("/")[2] for name in prepared.names] == ["new.off"]


def test_a_labelled_shape_stays_out_by_its_catalogue_number(tmp_path):
    number = "1a04e3eab45ca15dd86060f189eb133"
    known = [f"/set/02691156/{number}.txt", "/set/02691156/12.txt"]
    paths = [f"/core/02691156/{number}/models/model_normalized.obj", "/core/02691156/12/model.obj", "/core/12.obj"]
    assert twins.twins(paths, known, tmp_path) == [0]


def test_boxes_of_other_proportions_are_no_twins(tmp_path):
    for name, size in (("cube", (1, 1, 1)), ("plank", (1, 2, 9)), ("small", (0.5, 0.5, 0.5))):
        trimesh.creation.box(size).export(tmp_path / f"{name}.off")
    paths = [str(tmp_path / f"{name}.off") for name in ("plank", "small")]
    assert twins.twins(paths, [str(tmp_path / "cube.off")], tmp_path / "cache") == [1]
    assert twins.twins(paths, [str(tmp_path / "cube.off")], tmp_path / "cache") == [1]


def test_labelled_shapes_are_kept_when_asked_for(place):
    source = Source(cache=place / "cache", workers=1, retain_labelled=True)
    labelled = place / "all" / "labelled"
    assert len(source.unlabelled([place / "all"], OPTIONS, labelled=labelled, watch=Quiet())) == 6


def test_nothing_left_says_what_to_do(place):
    source, labelled = Source(cache=place / "cache", workers=1), place / "all" / "labelled"
    with pytest.raises(ValueError, match="retain-labelled"):
        source.unlabelled([labelled], OPTIONS, labelled=labelled, watch=Quiet())


def test_a_limit_is_a_seeded_choice(place):
    chosen = [
        Source(cache=place / "cache", workers=1, limit=3, seed=seed).unlabelled([place / "all"], OPTIONS, watch=Quiet())
        for seed in (0, 0, 1, 2, 3)
    ]
    assert all(len(one) == 3 for one in chosen)
    assert chosen[0].names == chosen[1].names
    assert len({tuple(one.names) for one in chosen}) > 1


def test_generated_shapes_go_the_way_of_all_meshes(tmp_path):
    source = Source(cache=tmp_path, generate=2, workers=1)
    prepared = source.unlabelled([], OPTIONS, watch=Quiet())
    assert len(prepared) == 2
    again = source.unlabelled([], OPTIONS, watch=Quiet())
    assert again.statistics()["cached"] == 2
    assert not set(prepared.names) & set(Source(cache=tmp_path, generate_labelled=1).labelled(None).names)


def test_a_labelled_set_that_is_not_there_is_told_before_the_decomposition(place, tmp_path, heard):
    with pytest.raises(BadShape, match="no such folder"):
        Source(cache=tmp_path / "new", workers=1).unlabelled(
            [place / "all"], OPTIONS, labelled=place / "nowhere", watch=heard
        )
    assert heard.said == []


def test_generated_shapes_need_a_cache_that_can_be_written(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(CacheError, match="a file is where the folder should be"):
        Source(cache=tmp_path / "cache", generate=2, workers=1).unlabelled([], OPTIONS, watch=Quiet())


def test_forms_that_cannot_be_kept_cost_nothing_but_time(place, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    made = [str(path) for path in sorted((place / "all" / "labelled").rglob("*.off"))]
    assert twins.twins(made, made[:1], tmp_path / "cache") == [0]
