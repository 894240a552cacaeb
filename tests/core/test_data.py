"""Streams are a function of (seed, step); collating pads and says so."""

import random
import traceback
import warnings

import numpy as np
import pytest
import torch

from partwhole.core.data import BadSample, Stream, collate, describe, together

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later warn of workers


class Numbers(list):
    """Samples with names."""

    names = tuple(f"n{i}" for i in range(100))


def noisy(x):
    return {"x": x + torch.randn(()), "python": random.random(), "numpy": np.random.rand()}  # noqa: NPY002


def tensors(n=10):
    return [torch.tensor(float(i)) for i in range(n)]


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_t_is_a_function_of_seed_and_t_whatever_the_workers(workers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core is told about two workers
        whole = Stream(tensors(), noisy, batch=4, seed=3)(0)
        batches = [next(whole) for _ in range(8)]
        late = Stream(tensors(), noisy, batch=4, seed=3, workers=workers)(5)
        assert all(equal(next(late), batches[t]) for t in (5, 6, 7))
    assert not equal(next(Stream(tensors(), noisy, batch=4, seed=4)(0)), batches[0])
    assert not any(equal(batches[0], b) for b in batches[1:])


def test_every_epoch_shows_each_sample_once_in_another_order():
    stream = Stream(tensors(12), lambda x: {"x": x}, batch=4, seed=1)(0)
    epochs = [torch.cat([next(stream)["x"] for _ in range(3)]) for _ in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(12.0))
    assert not torch.equal(epochs[0], epochs[1])


def test_views_leave_the_callers_generators_alone():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    stream = Stream(tensors(), noisy, batch=4)(0)
    next(stream), next(stream)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert np.random.rand() == expected[2]  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("label"), Exception),
        (ValueError("no image"), ValueError),
        (FileNotFoundError(2, "No such file", "a.png"), OSError),
        (UnicodeDecodeError("ascii", b"\xe9", 0, 1, "no text"), ValueError),  # which is not made of a message alone
    ],
)
def test_a_failing_view_names_its_sample(error, kind, workers):
    def view(x):
        if x == 3:
            raise error
        return {"x": torch.tensor(x)}

    stream = Stream(Numbers(range(6)), view, batch=6, workers=workers)(0)
    with pytest.raises(BadSample) as caught:
        next(stream)
    assert str(caught.value) == f"sample 3 (n3): {type(error).__name__}: {error}"  # one line, with workers too
    assert isinstance(caught.value.__cause__, kind)
    assert isinstance(caught.value.__cause__, ValueError | OSError) == (kind is not Exception)
    assert "raise error" in "".join(traceback.format_exception(caught.value))  # a defect can be found


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_do_not_fit_together_are_named(workers):
    stream = Stream(Numbers(range(4)), lambda x: {"x": torch.zeros(2, x + 1)}, batch=4, workers=workers)(0)
    with pytest.raises(BadSample, match=r"^the samples .*'x' comes in shapes that differ beyond the first axis.*n0.*"):
        next(stream)


def test_describe_names_the_samples_of_a_batch():
    stream = Stream(Numbers(range(6)), lambda x: torch.tensor(x), batch=3, seed=2)
    assert stream.describe(4) == ", ".join(f"{i} (n{i})" for i in next(stream(4)).tolist())
    both = together(a=stream, b=Stream(tensors(), lambda x: x, batch=1))
    assert both.describe(4).startswith(f"a: {stream.describe(4)}; b: ")
    assert "batch 3" in describe(iter([]), 3)


def test_together_gives_one_batch_of_each():
    both = together(
        a=Stream(tensors(), lambda x: {"x": x}, batch=2), b=Stream(tensors(), lambda x: {"y": x}, batch=3, seed=1)
    )
    batch = next(both(3))
    assert set(batch) == {"a", "b"}
    assert equal(batch["b"], next(Stream(tensors(), lambda x: {"y": x}, batch=3, seed=1)(3)))


@pytest.mark.parametrize(("samples", "batch"), [([], 2), ([1], 0)])
def test_nothing_to_stream_is_refused(samples, batch):
    with pytest.raises(ValueError, match="needs at least one sample"):
        Stream(samples, lambda x: x, batch=batch)


def test_collate_stacks_what_is_equal_and_keeps_types():
    out = collate([{"x": torch.ones(2), "n": 1, "f": 0.5, "s": "a", "d": {"y": np.zeros(3)}, "l": [torch.ones(1)]}] * 3)
    assert out["x"].shape == (3, 2)
    assert out["n"].dtype == torch.int64
    assert out["f"].tolist() == [0.5] * 3
    assert out["s"] == ["a"] * 3
    assert out["d"]["y"].shape == (3, 3)
    assert out["l"][0].shape == (3, 1)
    assert "valid" not in out


def test_collate_pads_ragged_samples_and_says_what_is_real():
    lengths = [3, 1, 2]
    out = collate([{"x": torch.ones(n, 2), "group": torch.ones(n, dtype=torch.long)} for n in lengths])
    assert out["x"].shape == (3, 3, 2)
    assert out["valid"].sum(1).tolist() == lengths
    assert torch.equal(out["x"][..., 0] == 1, out["valid"])
    assert torch.equal(out["group"] == 1, out["valid"])


def test_collate_gives_lists_of_views_parallel_lists_of_valid():
    samples = [{"views": [torch.ones(n, 3), torch.ones(4, 3)], "crops": [torch.ones(n + 1, 3)]} for n in (2, 3)]
    out = collate(samples)
    assert [v.sum(1).tolist() for v in out["valid"]] == [[2, 3], [4, 4]]
    assert [v.sum(1).tolist() for v in out["crops_valid"]] == [[3, 4]]


def test_collate_keeps_a_valid_that_samples_bring():
    samples = [{"x": torch.ones(n, 2), "valid": torch.arange(n) > 0} for n in (3, 2)]
    assert collate(samples)["valid"].tolist() == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([{"x": torch.ones(2)}, {"y": torch.ones(2)}], r"same keys: \['x'\] and \['y'\]"),
        ([{"x": torch.ones(2)}, {"x": torch.ones(2).double()}], "different dtypes"),
        ([{"x": [torch.ones(2)]}, {"x": [torch.ones(2)] * 2}], "lists of different lengths"),
        ([{"x": torch.ones(n), "y": torch.ones(2 * n)} for n in (1, 2)], "other lengths"),
    ],
)
def test_collate_refuses_what_does_not_fit(samples, words):
    with pytest.raises(ValueError, match=words):
        collate(samples)
