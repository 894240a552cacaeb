"""What a view hides: how much, how often, where."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from partwhole.core.data import hide


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edges(hidden: Tensor) -> int:
    """Neighbours on a torus of which one is hidden and the other is not."""
    return sum(int((hidden ^ hidden.roll(1, axis)).sum()) for axis in range(hidden.ndim))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("shape", [11, (4, 6), (2, 3, 5)])
def test_E4_every_position_is_as_likely_as_any_other(shape, blocks):
    g, draws = generator(), 2000
    masks = torch.stack([hide(shape, (0.1, 0.6), g, chance=0.7, blocks=blocks) for _ in range(draws)]).double()
    often = masks.mean(0)
    assert often.shape == (math.prod(shape) if isinstance(shape, tuple) else shape,)
    spread = (often.mean() * (1 - often.mean()) / draws).sqrt()
    assert (often - often.mean()).abs().max() < 4.5 * spread
    assert often.min() > 0


@pytest.mark.parametrize("blocks", [False, True])
def test_as_many_are_hidden_as_were_asked_for(blocks):
    g = generator()
    for length in (2, 3, 10, 30):
        for ratio in (0.01, 0.3, 0.5, 0.99):
            count = int(hide(length, ratio, g, blocks=blocks).sum())
            assert count == min(max(round(ratio * length), 1), length - 1)
    assert [int(hide((5, 8), 0.4, g, blocks=blocks).sum()) for _ in range(20)] == [16] * 20


def test_the_ratio_is_drawn_evenly_and_some_views_hide_nothing():
    g, draws = generator(), 4000
    counts = Counter(int(hide(41, (0.25, 0.75), g, chance=0.5).sum()) for _ in range(draws))
    assert counts.pop(0) / draws == pytest.approx(0.5, abs=0.03)
    assert min(counts) == 10
    assert max(counts) == 31
    inner = [counts[n] for n in range(11, 31)]  # a half of each end falls on the ends
    assert max(abs(n - sum(inner) / 20) for n in inner) < 4.5 * (sum(inner) / 20) ** 0.5
    assert hide(10, 0.5, g, chance=0.0).sum() == 0


def test_boxes_hang_together_and_single_positions_do_not():
    g = generator()
    boxes = [hide((12, 12), 0.4, g, blocks=True).view(12, 12) for _ in range(50)]
    single = [hide((12, 12), 0.4, g).view(12, 12) for _ in range(50)]
    assert sum(map(edges, boxes)) < 0.6 * sum(map(edges, single))
    one = hide((12, 12), 1 / 144, g, blocks=True)
    assert one.sum() == 1
    rows = torch.stack([b.any(1).sum() for b in boxes]).float()
    assert rows.std() > 0, "boxes come in many proportions"


def test_it_follows_from_the_generator_alone():
    options = {"chance": 0.8, "blocks": True}
    draws = [[hide((6, 6), (0.1, 0.5), g, **options) for _ in range(5)] for g in (generator(1), generator(1))]
    assert all(map(torch.equal, *draws))
    state = torch.get_rng_state()
    hide((6, 6), (0.1, 0.5), generator(), **options)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    first = hide((6, 6), 0.4, blocks=True)
    torch.manual_seed(3)
    assert torch.equal(first, hide((6, 6), 0.4, blocks=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1), 0.5), "2 are needed"),
        ((8, (0.5, 0.2)), r"not at \(0\.5, 0\.2\)"),
        ((8, 1.0), r"not at 1\.0"),
        ((8, 0.5, None, 1.5), r"not at 1\.5"),
    ],
)
def test_impossible_wishes_are_told_so(arguments, message):
    shape, ratio, *rest = arguments
    with pytest.raises(ValueError, match=message):
        hide(shape, ratio, chance=rest[1] if rest else 1.0)
