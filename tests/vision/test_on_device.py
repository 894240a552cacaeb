"""Views made on the device of what the workers drew are those that the workers would have made."""

from dataclasses import dataclass
from itertools import islice

import pytest
import torch

from partwhole.core import distributed
from partwhole.core.batches import equal
from partwhole.core.data import BadSample, Stream, describe, together
from partwhole.core.sees import Hidden, Hiding, Numbered, Only, WeakAndStrong, WithIndex, WithLabel
from partwhole.vision import policies
from partwhole.vision.on_device import Deferred, OnDevice
from partwhole.vision.views import Augment, Looks

A = Augment(size=16, jitter=0.8, grey=0.2, blur=0.5)
LOCAL = Augment(size=8, scale=(0.1, 0.4))


def label(sample):
    return sample["label"]


@dataclass(frozen=True)
class Pictures:
    ragged: bool = False
    names = [f"{i}.png" for i in range(10)]

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if not 0 <= i < 10:
            raise IndexError(i)
        g = torch.Generator().manual_seed(i)
        shape = (3, 20 + i, 30 - i) if self.ragged else (3, 20, 30)
        return {"image": torch.randint(0, 256, shape, generator=g, dtype=torch.uint8), "label": i % 3}


VIEWS = {
    "one": A,
    "looks": Looks(A, policies.strong(16), 2, LOCAL),
    "only": Only(A),
    "label": WithLabel(A, label),
    "weak and strong": WeakAndStrong(policies.weak(16), policies.strong(16)),
    "hiding": Hiding(Looks(A, A, 1, LOCAL), Hidden(9, 0.4)),
}


def both(view, samples=None, *, batch=4, workers=0, seed=5):
    samples = Pictures() if samples is None else samples
    made = Stream(samples, view, batch=batch, seed=seed, workers=workers)
    return made, OnDevice(Stream(samples, Deferred(view), batch=batch, seed=seed, workers=workers), "cpu")


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_batches_are_those_of_the_view_alone(view, ragged):
    for a, b in islice(zip(*(s() for s in both(view, Pictures(ragged))), strict=True), 4):
        assert equal(a, b)


def test_numbered_samples_too():
    view = WithIndex(VIEWS["looks"])
    made, later = both(view, Numbered(Pictures()))
    a, b = next(made()), next(later())
    assert equal(a, b)
    assert len(a["index"]) == 4


def test_in_workers_and_from_any_step_on():
    made, later = both(VIEWS["looks"], workers=1)
    want = list(islice(made(), 5))
    for start in (0, 3):
        for a, b in zip(want[start:], islice(later(start), 5 - start), strict=True):
            assert equal(a, b)


def test_one_process_is_several(monkeypatch):
    _, later = both(VIEWS["looks"], Pictures(True), batch=5)
    whole = next(later(2))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world", lambda: 3)
        parts.append(next(later(2)))
    for i in range(2):
        assert torch.equal(whole["views"][i], torch.cat([part["views"][i] for part in parts]))


def test_an_image_travels_once_as_bytes():
    batch = next(Stream(Pictures(), Deferred(VIEWS["looks"]), batch=4)())
    assert batch["pixels"].dtype == torch.uint8
    assert batch["pixels"].shape == (4, 3 * 20 * 30)

    def numbers(x):
        if isinstance(x, torch.Tensor):
            return x.numel()
        return sum(map(numbers, x.values() if isinstance(x, dict) else x)) if isinstance(x, dict | list) else 0

    assert numbers(batch["seen"]) < 4 * 100


def test_it_is_a_stream_beside_others():
    _, later = both(A)
    assert describe(later, 0) == describe(later.stream, 0)
    assert ".png" in describe(later, 0)
    batch = next(together(a=later, b=both(Only(A))[1])())
    assert batch["a"].shape == batch["b"]["x"].shape == (4, 3, 16, 16)


def test_what_cannot_be_made_later_is_said():
    with pytest.raises(ValueError, match="not ``Deferred``"):
        next(OnDevice(Stream(Pictures(), Only(A), batch=2), "cpu")())
    with pytest.raises(BadSample, match="0 images"):
        next(OnDevice(Stream([{"x": 1}], Deferred(lambda sample: sample), batch=1), "cpu")())
    with pytest.raises(BadSample, match="expected a uint8 tensor"):
        next(OnDevice(Stream([{"image": torch.zeros(3, 4, 4)}], Deferred(A), batch=1), "cpu")())
