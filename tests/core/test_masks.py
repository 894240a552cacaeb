"""What is hidden: exact numbers, no token more often than another, neighbours together; masks as indices."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from partwhole.core.masks import cells, grid, hide, hide_blocks, indices, target_blocks
from partwhole.core.transformer import marked, pack, put, take

quick = settings(max_examples=40, deadline=None, derandomize=True)
DRAWS = 1500


def clumped() -> Tensor:
    """Points in space, most of them in two clumps, two in one place."""
    g = torch.Generator().manual_seed(0)
    points = torch.cat(
        [torch.randn(n, 3, generator=g) * s + i for i, (n, s) in enumerate([(14, 0.2), (14, 0.1), (6, 2)])]
    )
    points[-1] = points[-2]
    return points


PLACES = {"row": grid(20), "image": grid(6, 8), "video": grid(2, 4, 4), "points": clumped()}


def test_grid_is_row_by_row():
    assert grid(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid(3).tolist() == [[0], [1], [2]]


def uniform(masks: Tensor, chance: float) -> None:
    """masks (N, L): each column is true with this chance, to within five standard deviations."""
    spread = (chance * (1 - chance) / len(masks)) ** 0.5
    assert (masks.double().mean(0) - chance).abs().max() < 5 * spread


def test_E4_hide_hides_the_ratio_and_every_token_alike():
    g = torch.Generator().manual_seed(0)
    uniform(torch.stack([hide(10, 0.6, g) for _ in range(DRAWS)]), 0.6)
    uniform(torch.stack([hide(10, (0.2, 0.6), g, chance=0.7) for _ in range(DRAWS)]), 0.7 * 0.4)


@pytest.mark.parametrize("size", [5, 50])
@pytest.mark.parametrize("name", PLACES)
def test_E4_block_masks_hide_the_ratio_and_every_token_alike(name, size):
    """Also where all tokens are one cell, of which a part is hidden."""
    where, g = PLACES[name], torch.Generator().manual_seed(0)
    masks = torch.stack([hide_blocks(where, 0.4, size=size, generator=g) for _ in range(DRAWS)])
    count = round(0.4 * len(where))
    assert (masks.sum(1) == count).all()
    uniform(masks, count / len(where))


@pytest.mark.parametrize("name", PLACES)
def test_E4_every_token_is_a_target_alike(name):
    where, g = PLACES[name], torch.Generator().manual_seed(1)
    drawn = [target_blocks(where, targets=3, blocks=5, generator=g) for _ in range(DRAWS)]
    targets = torch.stack([d["targets"] for d in drawn])
    for block in range(3):
        uniform(targets[:, block], 1 / 5)
    for d in drawn:
        assert torch.equal(d["targets"].sum(0) + d["keep"].long(), torch.ones(len(where), dtype=torch.long))


def together(masks: Tensor, where: Tensor) -> float:
    """Of pairs of neighbours, one of them true, how often both are."""
    near = (torch.cdist(where, where) == 1).double()
    m = masks.double()
    return ((m @ near) * m).sum().item() / (m @ near).sum().item()


def test_blocks_keep_neighbours_together_and_scattered_masks_do_not():
    where, g = grid(12, 12), torch.Generator().manual_seed(0)
    scattered = torch.stack([hide(144, 0.25, g) for _ in range(100)])
    share = [together(scattered, where)]
    for size in (4, 16, 36):
        share.append(
            together(torch.stack([hide_blocks(where, 0.25, size=size, generator=g) for _ in range(100)]), where)
        )
    targets = torch.cat([target_blocks(where, generator=g)["targets"] for _ in range(50)])
    assert share[0] == pytest.approx(0.25, abs=0.03)
    assert share[0] + 0.2 < share[1] < share[2] < share[3]
    assert together(targets, where) > 0.7
    size = targets.sum(1).double()
    assert size.mean() == pytest.approx(144 / 7, rel=0.1)
    assert size.std() < 0.4 * size.mean()


@quick
@given(length=st.integers(2, 60), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_every_way_to_hide_hides_exactly_the_ratio(length, ratio, seed):
    g = torch.Generator().manual_seed(seed)
    expected = min(max(round(ratio * length), 1), length - 1)
    assert hide(length, ratio, g).sum() == expected
    assert hide_blocks(torch.randn(length, 2, generator=g), ratio, size=3, generator=g).sum() == expected


@pytest.mark.parametrize("draw", [hide, lambda length, *a, **k: hide_blocks(grid(length), *a, **k)])
def test_the_ratio_is_drawn_evenly_and_some_views_hide_nothing(draw):
    g, draws = torch.Generator().manual_seed(0), 2000
    counts = Counter(int(draw(41, (0.25, 0.75), generator=g, chance=0.5).sum()) for _ in range(draws))
    assert counts.pop(0) / draws == pytest.approx(0.5, abs=0.05)
    assert (min(counts), max(counts)) == (10, 31)
    inner = [counts[n] for n in range(11, 31)]  # a half of each end falls on the ends
    assert max(abs(n - sum(inner) / 20) for n in inner) < 4.5 * (sum(inner) / 20) ** 0.5
    assert draw(10, 0.5, generator=g, chance=0.0).sum() == 0


def test_masks_follow_from_the_generator_alone():
    where = grid(6, 6)
    for draw in (
        lambda g: hide_blocks(where, 0.5, generator=g),
        lambda g: target_blocks(where, generator=g)["targets"],
    ):
        a, b, c = (draw(torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    state = torch.get_rng_state()
    hide_blocks(where, 0.5, generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    first = hide_blocks(where, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, hide_blocks(where, 0.5)), "a view seeds torch's own generator"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hide(1, 0.5), "2 are needed"),
        (lambda: hide(8, (0.5, 0.2)), r"not at \(0\.5, 0\.2\)"),
        (lambda: hide(8, 0.0), "not at 0"),
        (lambda: hide(8, 0.5, chance=1.5), r"not at 1\.5"),
        (lambda: cells(grid(3), 4), "at least as many tokens as cells"),
        (lambda: cells(torch.zeros(3), 1), r"coordinates \(L, A\)"),
        (lambda: hide_blocks(grid(4), 1.0), "ratio"),
        (lambda: hide_blocks(grid(1), 0.5), "nothing to predict"),
        (lambda: hide_blocks(grid(4), 0.5, size=0), "at least one token"),
        (lambda: target_blocks(grid(9), targets=4, blocks=4), "some are left to see"),
        (lambda: indices(torch.ones(2, 3, dtype=torch.bool), 2), "3 tokens are meant, and there is room for 2"),
    ],
)
def test_P14_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------ masks as indices


@quick
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 8)), chance=st.floats(0, 1), seed=st.integers(0, 99))
def test_masks_and_indices_are_the_same_tokens(shape, chance, seed):
    g = torch.Generator().manual_seed(seed)
    mask, valid = torch.rand(shape, generator=g) < chance, torch.rand(shape, generator=g) < 0.7
    index = indices(mask)
    assert index.shape == (shape[0], mask.sum(1).max())
    for row, m in zip(index, mask, strict=True):
        assert [i for i in row.tolist() if i >= 0] == m.nonzero()[:, 0].tolist()
    roomy = indices(mask, shape[1] + 2)
    assert roomy.shape == (shape[0], shape[1] + 2)
    for marks in (mask, index, roomy, roomy.flip(1)):
        assert torch.equal(marked(marks, shape[1]), mask)
        at, real = pack(marks, valid)
        assert torch.equal(put(real[..., None], at, real, shape[1])[..., 0], mask & valid)
        tokens = torch.randn(*shape, 2, generator=g)
        back = put(take(tokens, at), at, real, shape[1])
        assert torch.equal(back, tokens * (mask & valid)[..., None])
    assert torch.equal(indices(mask[0], shape[1]), indices(mask, shape[1])[0]), "in a view, one thing at a time"
