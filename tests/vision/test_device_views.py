"""A recipe whose views are made on the device sees the same batches as one whose views are not, and learns the same."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from partwhole.core import distributed
from partwhole.core.batches import equal
from partwhole.core.catalog import METHODS
from partwhole.core.fit import Run, fit
from partwhole.core.probe import Probe
from partwhole.core.watch import Quiet
from partwhole.vision.care import faster
from partwhole.vision.network import Network
from partwhole.vision.on_device import OnDevice
from partwhole.vision.sources import Source
from partwhole.vision.tasks import TASKS, Pretext

PRETEXT = [name for name, kind in TASKS.items() if issubclass(kind, Pretext)]


@pytest.fixture(scope="module")
def folder(coloured, tmp_path_factory) -> Path:
    """Noise of several sizes, red and blue."""
    where, counts = tmp_path_factory.mktemp("images"), {"blue": 6, "red": 6}
    return coloured(where, counts, lambda i: (20 + i, 28 - i), noise=100)


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory):
    """A task's recipe, with views of samples and with views made on the device."""
    cache = tmp_path_factory.mktemp("cache")

    def make(task, loaders=0, steps=3):
        source = Source(cache=cache, workers=1, loaders=loaders)
        network = Network(name=TASKS[task]().network.name, width=0.125, dim=32, depth=1, patch=4)
        words = {"vocabulary": 8} if task == "beit" else {}
        recipe = TASKS[task](
            data=(folder,), source=source, network=network, size=16, batch=5, measure=Probe(arms=("frozen",)), **words
        )
        recipe = replace(recipe, fit=replace(recipe.fit, steps=steps, log_every=1, device="cpu"))
        return recipe, replace(recipe, source=replace(source, views="device"))

    return make


def streams(recipes):
    return [recipe.build(watch=Quiet()).stream for recipe in recipes]


@pytest.mark.parametrize("task", METHODS)
def test_every_generic_method_sees_the_same(both, task):
    samples, device = streams(both(task))
    parts = list(device.streams.values()) if hasattr(device, "streams") else [device]
    assert all(isinstance(part, OnDevice) for part in parts)
    for a, b in islice(zip(samples(2), device(2), strict=True), 3):  # over the end of an epoch
        assert equal(a, b)
    assert samples.describe(4) == device.describe(4)


@pytest.mark.parametrize("task", ["dino", "ibot", "fixmatch", "beit"])
def test_with_workers_too(both, task):
    samples, _ = streams(both(task))
    _, workers = streams(both(task, loaders=1))
    for a, b in islice(zip(samples(1), workers(1), strict=True), 2):
        assert equal(a, b)


@pytest.mark.parametrize("task", ["dino", "mae", "ijepa", "supervised", "deepcluster"])
def test_each_process_makes_its_slice(both, task, monkeypatch):
    samples, device = streams(both(task))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank, count in enumerate((2, 3)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        a, b = next(samples(3)), next(device(3))
        assert equal(a, b)
        assert len(next(_tensors(a))) == count


def _tensors(batch):
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict | list):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(part)


@pytest.mark.parametrize("task", ["simclr", "dino", "mae", "beit", "fixmatch"])
def test_half_a_training_with_each_is_a_whole_one(both, task, tmp_path):
    samples, device = both(task)
    run = samples.build(watch=Quiet())
    whole = fit(run, samples.fit, watch=Quiet()).state_dict()
    run = device.build(watch=Quiet())

    def stopping(start=0):
        for step, batch in enumerate(run.stream(start), start):
            if step == 2:
                raise InterruptedError
            yield batch

    half = replace(device.fit, save_every=1)
    with pytest.raises(InterruptedError):
        fit(Run(method=run.method, stream=stopping), half, tmp_path, watch=Quiet())
    run = samples.build(watch=Quiet())
    rest = fit(run, replace(samples.fit, save_every=1), tmp_path, watch=Quiet()).state_dict()
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize("task", PRETEXT)
def test_pretext_tasks_make_views_of_their_own_and_say_so(both, task, heard):
    recipe = replace(both(task)[1], size=48)
    batch = next(recipe.build(watch=heard).stream())
    assert any("--source.views device changes nothing" in text for text in heard.said)
    assert "x" in batch


def test_where_views_are_made_is_no_part_of_what_is_trained():
    assert "views" in Source.incidental


def test_what_would_help_a_loop_that_waits(both, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    samples, device = both("simclr")
    images = samples.prepare()
    assert faster(samples, images) == (
        "Raise --source.loaders, of which there are 0, to as many as 2, or make views on the device with "
        "--source.views device"
    )
    busy = replace(device, source=replace(device.source, loaders=2))
    assert faster(busy, images) == "The images are read as fast as they can be"
    apart = replace(busy, source=replace(busy.source, memory=0, cache=tmp_path))
    assert faster(apart, apart.prepare()) == "Raise --source.memory, so that images are kept decoded"
