"""Names for tokens: k-means that is what it says, the same each time, and files that are safe to read."""

import pytest
import torch
from common import quick
from common import single as draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.checkpoint import BadCheckpoint
from partwhole.core.encoder import Vectors
from partwhole.core.tokenizer import Tokenizer, kmeans, means_of


def heaps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """200 points around six far-off middles, and the middles."""
    middle = 20 * draw(6, 3, seed=7)
    return middle[torch.arange(200) % 6] + 0.1 * draw(200, 3, seed=seed), middle


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_heaps_that_are_far_apart(seed):
    x, middle = heaps()
    means = kmeans(x, 6, seed=seed)
    found = torch.cdist(middle, means)
    assert found.min(1).values.max() < 0.1
    assert sorted(found.argmin(1).tolist()) == list(range(6))


@quick
@given(n=st.integers(1, 30), count=st.integers(1, 30), seed=st.integers(0, 99), far=st.sampled_from([0.0, 1e4]))
def test_kmeans_ends_where_each_mean_is_the_mean_of_what_is_nearest(n, count, seed, far):
    x, count = draw(n, 2, seed=seed) + far, min(n, count)
    means = kmeans(x, count, seed=seed)
    cluster = torch.cdist(x.double() - far, means.double() - far).argmin(1)
    assert cluster.unique().numel() == count, "rows that differ leave no cluster empty"
    for c in range(count):
        assert torch.allclose(means[c], x[cluster == c].mean(0), atol=1e-4 + far * 1e-6)


def test_kmeans_is_the_same_each_time_and_follows_its_seed():
    x, state = draw(100, 3), torch.get_rng_state()
    a, b, c = (kmeans(x, 9, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_P14_kmeans_of_equal_rows_and_of_too_few():
    assert torch.equal(kmeans(torch.ones(5, 2), 3), torch.ones(3, 2))
    for x, count in ((draw(3, 2), 4), (draw(3, 2), 0), (draw(3), 1)):
        with pytest.raises(ValueError, match="at least as many rows"):
            kmeans(x, count)
    with pytest.raises(ValueError, match="not finite"):
        kmeans(torch.tensor([[0.0], [torch.nan]]), 1)


def test_clusters_that_have_become_empty_take_the_farthest_rows():
    x = torch.tensor([[0.0], [2.0], [9.0], [11.0]])
    got = means_of(x, torch.tensor([1, 1, 1, 1]), torch.tensor([1.0, 4.0, 3.0, 2.0]), 3)
    assert got.tolist() == [[2.0], [5.5], [9.0]]


def tokenizer() -> Tokenizer:
    batches = [{"x": heaps(s)[0].view(20, 10, 3)} for s in range(3)]
    return Tokenizer.learn(Vectors(3, 8, length=10), batches, count=6)


def test_ids_name_the_nearest_mean_and_padding_changes_nothing():
    names, x = tokenizer(), heaps(9)[0].view(20, 10, 3)
    ids = names.ids(x)
    assert ids.dtype == torch.int64
    assert torch.equal(ids.flatten(), torch.cdist(x.flatten(0, 1), names.means).argmin(1))
    assert ids.flatten()[:6].unique().numel() == 6
    assert torch.equal(ids.flatten()[:6], ids.flatten()[6:12]), "one name for one heap"
    valid = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    junk = x.masked_fill(~valid[..., None], torch.nan)
    assert torch.equal(names.ids(junk, valid), ids.masked_fill(~valid, 0))
    assert torch.equal(names.ids(x.bfloat16()), ids)


def test_padding_teaches_nothing():
    x, valid = heaps()[0].view(20, 10, 3), torch.arange(10) < torch.arange(20)[:, None] % 8 + 3
    learned = [
        Tokenizer.learn(Vectors(3, 8), [{"x": torch.where(valid[..., None], x, junk), "valid": valid}], count=6).means
        for junk in (0.0, 1e3)
    ]
    assert torch.equal(*learned)


def test_learning_leaves_the_encoders_embedding_as_it_is():
    embed = Vectors(3, 8)
    Tokenizer.learn(embed, [{"x": draw(2, 5, 3)}], count=2)
    assert all(p.requires_grad for p in embed.parameters())


def test_a_tokenizer_comes_back_from_its_file(tmp_path):
    names, path = tokenizer(), tmp_path / "names.safetensors"
    names.save(path)
    again, x = Tokenizer.load(path), heaps(9)[0].view(20, 10, 3)
    assert torch.equal(again.means, names.means)
    assert torch.equal(again.ids(x), names.ids(x))


def test_a_file_that_is_no_tokenizer_is_told_so(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "names.safetensors"
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(path)
    tokenizer().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCheckpoint, match="no tokenizer, or damaged"):
        Tokenizer.load(path)
    for about in ({}, {"tokenizer": "[]"}, {"tokenizer": '{"format": 2}'}, {"tokenizer": '{"format": 1, "embed": {}}'}):
        save_file({"means": torch.zeros(2, 3)}, path, about)
        with pytest.raises(BadCheckpoint, match="no tokenizer, or damaged"):
            Tokenizer.load(path)
    foreign = '{"format": 1, "embed": {"class": "os:system", "arguments": {}}}'
    save_file({"means": torch.zeros(2, 3)}, path, {"tokenizer": foreign})
    with pytest.raises(BadCheckpoint, match="not in partwhole"):
        Tokenizer.load(path)
    with pytest.raises(ValueError, match=r"means \(V, 3\) are needed"):
        Tokenizer(Vectors(3, 8), torch.zeros(2, 4))
