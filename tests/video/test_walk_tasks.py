"""Every recipe of clips trains three steps; what the walk's recipe makes of its options."""

from dataclasses import dataclass, replace

import pytest
import torch
from squares import Squares, together

from partwhole.core import catalog
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.video.recipe import OnFrames
from partwhole.video.sources import Source
from partwhole.video.tasks import CRW, TASKS
from partwhole.video.views import Walk
from partwhole.vision.network import Network

PAIRS = {name: kind for name, kind in TASKS.items() if name in catalog.METHODS and issubclass(kind, OnFrames)}


@dataclass(frozen=True, kw_only=True)
class InMemory(Source):
    """Clips that a test makes: six, of so many frames."""

    lengths: tuple[int, ...] = (18,) * 6

    def unlabelled(self, paths, size, watch=None):
        return together([Squares(frames=length) for length in self.lengths])

    def annotated(self, path, size, watch=None):
        return None


def tiny(recipe, **rest):
    walk = {"walk": Walk(frames=3, patch=16, grid=3)} if isinstance(recipe, CRW) else {}
    network = Network(name=recipe.network.name, width=0.125, dim=48, depth=1, patch=8)
    fit_ = replace(recipe.fit, steps=3, log_every=1, device="cpu")
    return replace(
        recipe,
        **{**walk, "source": InMemory(), "network": network, "size": 32, "batch": 4, "fit": fit_, **rest},
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_three_steps(task):
    recipe = tiny(TASKS[task]())
    run = recipe.build(watch=Quiet())
    before = [p.clone() for p in run.method.encoder.parameters()]
    method = fit(run, recipe.fit, watch=Quiet())
    after = list(method.encoder.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_all_methods_of_whole_frames_are_there_with_the_views_of_their_papers():
    whole = {name for name, kind in catalog.METHODS.items() if kind.sees in ("views", "crops", "numbered")}
    assert set(PAIRS) == whole
    policies = {name: task().policy for name, task in PAIRS.items()}
    assert {policies[t] for t in ("dino", "swav", "deepcluster")} == {"dino"}
    assert [policies[t] for t in ("simclr", "moco", "byol", "simsiam")] == ["simclr", "mocov2", "byol", "mocov2"]
    assert not any(task().dense for task in PAIRS.values())
    assert CRW().dense


WHOLE = Walk(frames=3, patch=0)


@pytest.mark.parametrize(
    ("network", "positions", "nodes", "roll"),
    [
        (Network(width=0.125), "auto", 16, 0),
        (Network(width=0.125), "moved", 16, 8),
        (Network(name="vit", dim=32, depth=1, patch=4), "auto", 64, 4),
        (Network(name="vit", dim=32, depth=1, patch=4), "kept", 64, 0),
    ],
)
def test_a_walk_over_whole_frames_moves_the_positions_of_transformers(network, positions, nodes, roll):
    recipe = tiny(CRW(), walk=WHOLE, network=network, positions=positions)
    view = recipe.view(recipe.encoder())
    assert (view.nodes, view.roll) == (nodes, roll)
    run = recipe.build()
    batch = next(run.stream())
    assert ("shift" in batch) == bool(roll)
    assert run.method(batch)["loss"].isfinite()


def test_a_walk_learns_to_return_in_a_few_steps():
    recipe = tiny(CRW(), size=48, dim=32)
    recipe = replace(recipe, fit=replace(recipe.fit, steps=25, lr=3e-3))
    run = recipe.build()
    batch = next(run.stream(1000))
    first = run.method(batch)
    fit(run, recipe.fit, watch=Quiet())
    last = run.method(batch)
    assert last["loss"] < first["loss"] - 0.2
    assert last["chance"] > first["chance"]


def test_generated_clips_are_the_default():
    recipe = replace(tiny(CRW()), source=Source(generate=4, frames=6))
    assert next(recipe.build().stream())["x"].shape == (4, 3, 9, 3, 16, 16)
    with pytest.raises(ValueError, match="all 4 clips are too short"):
        replace(recipe, walk=Walk(frames=9, patch=16, grid=3)).build()


def test_clips_that_are_too_short_are_skipped_and_told(heard):
    mixed = replace(tiny(CRW()), source=InMemory(lengths=(8, 2, 8, 1)))
    found = mixed.prepare(heard)
    assert [len(s["video"]) for s in found] == [8, 8]
    told = "skipped: squares 0 has 2 frames in 0.12 s, and 3 at 8 per second take 0.25 s"
    assert [reason for _, reason in found.problems] == [told, told.replace("2 frames in 0.12", "1 frames in 0.00")]
    assert heard.said == [f"2 of 4 clips are too short and left out; the first: {told.removeprefix('skipped: ')}"]
    run = mixed.build()
    assert next(run.stream())["x"].shape == (4, 3, 9, 3, 16, 16)
    pairs = replace(tiny(PAIRS["simsiam"]()), source=InMemory(lengths=(8, 2, 8, 1)))
    assert len(pairs.prepare()) == 4
    with pytest.raises(ValueError, match=r"all 2 clips are too short; the first: squares 0 has 1 frames"):
        replace(mixed, source=InMemory(lengths=(1, 2))).build()


@pytest.mark.parametrize("task", ["dpc", "mae"])
def test_so_they_are_for_other_tasks(task):
    recipe = replace(tiny(TASKS[task]()), source=InMemory(lengths=(18, 7)))
    assert len(recipe.prepare()) == 1


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="size is 0; expected 1 or more"):
        CRW(size=0)
    with pytest.raises(ValueError, match=r"source\.generate is 0; expected 1 or more"):
        Source(generate=0)
    with pytest.raises(ValueError, match=r"lower walk\.patch"):
        tiny(CRW(), walk=Walk(patch=64)).build()
    with pytest.raises(ValueError, match=r"in whole frames alone.*--walk\.patch 0"):
        tiny(CRW(), positions="moved").build()
