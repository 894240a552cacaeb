"""No option is dead: each field of each task changes what is trained, is refused, or is told to change nothing."""

from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from partwhole.core import checkpoint
from partwhole.core.batches import equal
from partwhole.core.encoder import fresh
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.video import care
from partwhole.video.generator import clips
from partwhole.video.measure import Following
from partwhole.video.protocol import Protocol
from partwhole.video.sources import Source
from partwhole.video.tasks import TASKS
from partwhole.video.views import Walk
from partwhole.vision.network import Network

OTHER = {
    "size": 40, "policy": "infomin", "batch": 3, "temperature": 0.5, "queue": 4, "momentum": 0.5, "prototypes": 5,
    "words": 4, "redundancy": 0.5, "weight": 0.5, "crops": 3, "chance": 0.1, "vocabulary": 6, "dense": None,
    "shortest": 2, "both": False, "dim": 16, "apart": 0.1, "frames": 2, "stride": 1, "tube": 1, "blocks": 4, "steps": 1,
    "slots": 8, "positions": "kept",
}  # fmt: skip
WALK = {"frames": 4, "rate": 12.0, "patch": 12, "grid": 2, "crop": (0.5, 0.6), "jitter": (0.5, 0.6), "dropout": 0.3,
        "again": True}  # fmt: skip
NETWORK = {
    "name": "vit", "width": 0.25, "stem": "small", "dim": 96, "depth": 2, "patch": 4, "cls": False, "registers": 2
}  # fmt: skip
SOURCE = {"fps": 5.0, "limit": 3, "generate": 5, "frames": 15, "seed": 3}
QUICK = ("crw", "simsiam", "mae", "dpc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five clips as folders of images."""
    root = tmp_path_factory.mktemp("clips")
    for k in range(5):
        (root / str(k)).mkdir()
        for t, frame in enumerate(clips(5, frames=14, size=40, seed=1)[k]["video"].frames(range(14))):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(root / str(k) / f"{t:02d}.png")
    return root


def tiny(task, cache, **rest):
    kind = TASKS[task]
    options = {
        "network": Network(name=kind().network.name, width=0.125, dim=48, depth=1, patch=8), "size": 32, "batch": 4,
        "source": Source(cache=cache, workers=1, generate=6, frames=20, generate_annotated=1),
        "fit": replace(kind().fit, steps=3, device="cpu", schedule="constant", warmup=0.0),
        **({"walk": Walk(frames=3, patch=16, grid=3)} if task == "crw" else {}),
        **({"blocks": 3, "steps": 2} if task in ("dpc", "memdpc") else {}),
        **({"frames": 4} if hasattr(kind(), "tube") else {}),
        **({"vocabulary": 8} if task == "beit" else {}),
    }  # fmt: skip
    return kind(**{**options, **rest})


def outcome(recipe):
    """The first batch and the weights after the last step, one after the other."""
    run = recipe.build(watch=Quiet())
    yield next(run.stream())
    yield {name: value.clone() for name, value in run.method.state_dict().items()}  # training changes them in place
    yield dict(fit(replace(run, evaluate=lambda method: {}), recipe.fit, watch=Quiet()).state_dict())


def alike(a, b):
    """Whether recipe b gives what a gives, a recipe or its outcome."""
    try:
        return all(equal(x, y) for x, y in zip(a if isinstance(a, list) else outcome(a), outcome(b), strict=True))
    except RuntimeError:  # of tensors that cannot be compared
        return False


def told(recipe, field):
    """Whether it is said of a field that it changes nothing."""
    return any(f"--{field} changes nothing" in line for line in care.odd(recipe, recipe.prepare()))


def own(task):
    kind, shared = TASKS[task], {"data", "source", "network", "walk", "fit"}
    return [f.name for f in fields(kind) if f.name not in shared | kind.incidental]


@pytest.mark.parametrize("task", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in TASKS])
def test_every_field_changes_what_is_trained_or_is_told_to_change_nothing(task, tmp_path):
    recipe, wrong = tiny(task, tmp_path / "cache"), []
    if task == "data2vec":  # whose momentum is where it ends after a third
        recipe = replace(recipe, fit=replace(recipe.fit, steps=6))
    seen = list(outcome(recipe))
    for name in own(task):
        value = OTHER.get(name)
        if name == "dense":
            value = not recipe.dense
        if name == "ratio":
            value = (0.4, 0.6) if isinstance(recipe.ratio, tuple) else 0.4
        if name == "init":
            checkpoint.save_encoder(fresh(recipe.encoder(), seed=9), value := tmp_path / "init")
        assert value is not None, f"say another value of {name}"
        changed = replace(recipe, **{name: value})
        if alike(seen, changed) != told(changed, name):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("patch", [16, 0])
@pytest.mark.parametrize("field", [f.name for f in fields(Walk)])
def test_every_field_of_the_walk_does_or_is_told(field, patch, tmp_path):
    value = 16 if (field, patch) == ("patch", 0) else WALK[field]
    plain = tiny("crw", tmp_path, walk=Walk(frames=3, patch=patch, grid=3))
    changed = replace(plain, walk=replace(plain.walk, **{field: value}))
    assert told(changed, f"walk.{field}") == alike(plain, changed)


def test_edges_are_dropped_again_only_where_some_are(tmp_path):
    plain = tiny("crw", tmp_path, walk=Walk(frames=3, patch=16, grid=3, dropout=0.0))
    changed = replace(plain, walk=replace(plain.walk, again=True))
    assert told(changed, "walk.again")
    assert alike(plain, changed)


@pytest.mark.parametrize("patch", [16, 0])
@pytest.mark.parametrize("name", ["vit", "resnet18"])
@pytest.mark.parametrize("field", ["positions", "dense"])
def test_what_is_for_some_networks_alone_is_told_of_others(field, name, patch, tmp_path):
    network = Network(name=name, width=0.125, dim=48, depth=1, patch=8)
    plain = tiny("crw", tmp_path, walk=Walk(frames=3, patch=patch, grid=3), network=network)
    changed = replace(plain, **{field: {"positions": "kept", "dense": False}[field]})
    assert told(changed, field) == alike(plain, changed)


@pytest.mark.parametrize(("task", "name"), [("simsiam", "resnet18"), ("simsiam", "vit"), ("mae", "vit")])
@pytest.mark.parametrize("field", [f.name for f in fields(Network) if f.name != "weights"])
def test_every_field_of_the_network_does_or_is_told_or_refused(task, name, field, tmp_path):
    plain = tiny(task, tmp_path, network=Network(name=name, patch=8))
    small = {"width": 0.125} if name != "vit" else {"dim": 48, "depth": 1}
    plain = replace(plain, network=replace(TASKS[task]().network, name=name, **small))
    value = "resnet10t" if (field, name) == ("name", "vit") else NETWORK[field]
    changed = replace(plain, network=replace(plain.network, **{field: value}))
    if (task, field) == ("mae", "name"):
        with pytest.raises(ValueError, match=r"leave --network\.name at vit"):
            changed.build()
        return
    assert told(changed, f"network.{field}") == alike(plain, changed)


@pytest.mark.parametrize("field", [f.name for f in fields(Source) if f.name not in {*Source.incidental, "reader"}])
def test_every_field_of_the_source_does(field, folders, tmp_path):
    recipe = tiny("simsiam", tmp_path, data=() if field in ("generate", "frames", "seed") else (folders,))
    other = replace(recipe, source=replace(recipe.source, **{field: SOURCE[field]}))
    assert not alike(recipe, other)


def test_a_protocol_of_ones_own_is_refused_beside_a_published_one():
    with pytest.raises(ValueError, match="the preset is crw: set the preset to own"):
        Following(own=Protocol(topk=3))


@pytest.mark.parametrize(("task", "frames"), [("dpc", 9), ("mae", 4)])
def test_clips_too_short_for_their_stride_are_told(task, frames, tmp_path):
    """A clip of them is nearer together, down to every frame."""
    long = 2 * (frames - 1) + 1
    for length, said in ((long, False), (long - 1, True)):
        recipe = tiny(task, tmp_path, source=Source(cache=tmp_path, generate=6, frames=length))
        lines = [line for line in care.odd(recipe, recipe.prepare()) if "--stride" in line]
        assert bool(lines) == said
        assert all(f"6 of 6 clips that were looked at are shorter than the {long} frames" in line for line in lines)


def test_a_dead_field_would_be_found(tmp_path):
    recipe = tiny("simsiam", tmp_path)
    assert alike(recipe, replace(recipe, network=replace(recipe.network, registers=2)))
    torch.manual_seed(1)
    assert alike(recipe, recipe)
