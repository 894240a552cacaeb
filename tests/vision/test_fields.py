"""No option is dead: each field of each task changes what is trained, is refused, or is told to change nothing."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from partwhole.core import checkpoint
from partwhole.core.batches import equal
from partwhole.core.encoder import fresh
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.vision import care
from partwhole.vision.network import Network
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS, Pretext

OTHER = {
    "size": 56, "policy": "infomin", "batch": 3, "temperature": 0.5, "queue": 4, "momentum": 0.5, "prototypes": 6,
    "words": 4, "redundancy": 0.5, "weight": 0.5, "crops": 3, "chance": 0.1, "vocabulary": 6, "threshold": 0.01,
    "permutations": 50, "gap": 0.2, "scale": 2, "uniform": 1.0, "labels_per_class": 2,
}  # fmt: skip
NETWORK = {
    "name": "vit",
    "width": 0.25,
    "stem": "small",
    "dim": 64,
    "depth": 2,
    "patch": 6,
    "cls": False,
    "registers": 2,
}
SOURCE = {"shorter": 20, "largest": 26 * 31, "limit": 5, "generate": 5, "seed": 3}


@pytest.fixture(scope="module")
def folder(coloured, tmp_path_factory) -> Path:
    where, counts = tmp_path_factory.mktemp("images"), {"blue": 6, "red": 6}
    return coloured(where, counts, lambda i: (26, 30 + i), noise=255, colour=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def tiny(task, folder, cache):
    kind = TASKS[task]
    recipe = kind(
        data=(folder,), source=Source(cache=cache, workers=1), size=48 if issubclass(kind, Pretext) else 24, batch=4,
        network=Network(name=kind().network.name, width=0.125, dim=32, depth=1, patch=8),
        **({"vocabulary": 8} if task == "beit" else {}),
    )  # fmt: skip
    return replace(recipe, fit=replace(recipe.fit, steps=3, device="cpu", schedule="constant", warmup=0.0))


def outcome(recipe):
    """The first batch and the weights after three steps, one after the other."""
    run = recipe.build(watch=Quiet())
    yield next(run.stream())
    yield {name: value.clone() for name, value in run.method.state_dict().items()}  # training changes them in place
    yield dict(fit(run, recipe.fit, watch=Quiet()).state_dict())


def alike(a, b):
    """Whether recipe b gives what a gives, a recipe or its outcome."""
    try:
        return all(equal(x, y) for x, y in zip(a if isinstance(a, list) else outcome(a), outcome(b), strict=True))
    except RuntimeError:  # of tensors that cannot be compared
        return False


def own(task):
    kind, shared = TASKS[task], {"data", "labelled", "source", "network", "fit"}
    return [f.name for f in fields(kind) if f.name not in shared | kind.incidental]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_field_changes_what_is_trained(task, folder, cache, tmp_path):
    recipe, dead = tiny(task, folder, cache), []
    if task == "data2vec":  # whose momentum is where it ends after a third
        recipe = replace(recipe, fit=replace(recipe.fit, steps=6))
    seen = list(outcome(recipe))
    for name in own(task):
        value = OTHER.get(name, None)
        if name == "ratio":
            value = (0.4, 0.6) if isinstance(recipe.ratio, tuple) else 0.4
        if name == "init":
            checkpoint.save_encoder(fresh(recipe.encoder(), seed=9), value := tmp_path)
        assert value is not None, f"say another value of {name}"
        if alike(seen, replace(recipe, **{name: value})):
            dead.append(name)
    assert dead == []


def test_a_dead_field_would_be_found(folder, cache):
    recipe = tiny("simclr", folder, cache)
    assert alike(recipe, replace(recipe, network=replace(recipe.network, registers=2)))


@pytest.mark.parametrize("name", ["vit", "resnet18"])
@pytest.mark.parametrize("field", [f.name for f in fields(Network) if f.name != "weights"])  # see test_exchange.py
def test_every_field_of_the_network_does_or_is_told(name, field, folder, cache):
    recipe = tiny("simclr", folder, cache)
    plain = replace(recipe, network=Network(name=name))
    value = "resnet10t" if (field, name) == ("name", "vit") else NETWORK[field]
    changed = replace(plain, network=replace(plain.network, **{field: value}))
    told = [line for line in care.odd(changed, changed.prepare()) if f"--network.{field} changes nothing" in line]
    assert bool(told) == alike(plain, changed)


@pytest.mark.parametrize("field", [f.name for f in fields(Source) if f.name not in Source.incidental])
def test_every_field_of_the_source_does(field, folder, cache):
    recipe = tiny("simclr", folder, cache)
    data = () if field in ("generate", "seed") else recipe.data
    recipe = replace(recipe, data=data, source=replace(recipe.source, generate=8, generate_labelled=2))
    other = replace(recipe, source=replace(recipe.source, **{field: SOURCE[field]}))
    assert not alike(recipe, other)
