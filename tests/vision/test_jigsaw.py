"""Jigsaw puzzles: the set of permutations, what a puzzle shows and hides, what is solved."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from partwhole.core.catalog import Given
from partwhole.core.data import Stream, collate
from partwhole.core.encoder import Embed, Wrapped
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Quiet
from partwhole.vision import jigsaw, pretext
from partwhole.vision.jigsaw import Jigsaw, JigsawPuzzles, Puzzle, permutations, picture


class Patches(Embed):
    def __init__(self, patch, dim):
        super().__init__()
        self.net = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x, *, valid=None):
        return self.net(x).flatten(2).mT


def vit():
    return TransformerEncoder(Patches(4, 16), dim=16, depth=1, heads=2, cls=True)


def cnn():
    return Wrapped(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 16, 3, 2, 1)), 16)


def images(count=6, side=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{"image": torch.randint(256, (3, side, side), generator=draw, dtype=torch.uint8)} for _ in range(count)]


# ------------------------------------------------------------------ permutations


@pytest.mark.parametrize(("count", "least"), [(9, 9), (24, 6), (60, 4)])
def test_permutations_are_distinct_and_as_unlike_as_they_can_be(count, least):
    """In no set of k do more than 8 k / (k - 1) places differ on average: some tile has a place k / 9 times or more."""
    table = permutations(count)
    assert table.shape == (count, 9)
    assert torch.equal(table.sort(1).values, torch.arange(9).expand(count, 9))
    apart = (table[:, None] != table).sum(-1)
    apart = apart[~torch.eye(count, dtype=torch.bool)].double()
    assert apart.min() == least
    bound = 8 * count / (count - 1)
    assert 0.995 * bound < apart.mean() <= bound + 1e-9


def test_each_is_the_farthest_from_those_before():
    """The least that a permutation agrees with others in sum is an assignment problem, solved here by another way."""
    from scipy.optimize import linear_sum_assignment

    table = permutations(24)
    for k in range(1, 24):
        used = nn.functional.one_hot(table[:k], 9).sum(0)  # how often a place has a tile
        rows, columns = linear_sum_assignment(used.numpy())
        assert used[torch.arange(9), table[k]].sum() == used.numpy()[rows, columns].sum()


def test_permutations_are_a_function_of_count_and_seed():
    table = permutations(9)
    before = torch.get_rng_state()
    jigsaw.permutations.cache_clear()
    assert torch.equal(permutations(9), table)
    assert permutations(9) is permutations(9), "made once"
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(permutations(5), table[:5]), "the first of more"
    assert not torch.equal(permutations(9, seed=1), table)
    for count in (1, 362_881):
        with pytest.raises(ValueError, match=f"{count} permutations are asked for; 2 to 362,880"):
            permutations(count)


# ------------------------------------------------------------------ what is shown


def test_place_i_shows_the_tile_that_the_permutation_names():
    y, x = torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij")
    image = torch.stack([y // 10 * 3 + x // 10] * 3).to(torch.uint8)  # each tile of its number
    view, labels = Puzzle(10, count=9, gap=0.0, guard=False, area=(1.0, 1.0)), []
    torch.manual_seed(0)
    for _ in range(300):
        out = view({"image": image})
        shown = ((out["x"] * 0.25 + 0.5) * 255).mean((1, 2, 3)).round().long()
        order = permutations(9)[out["label"]]
        mirrored = torch.tensor([2, 1, 0, 5, 4, 3, 8, 7, 6])
        assert torch.equal(shown, order) or torch.equal(shown, mirrored[order])
        labels.append(out["label"])
    share = torch.stack(labels).bincount(minlength=9) / 300
    assert (share - 1 / 9).abs().max() < 0.06


def test_the_guard_takes_brightness_and_contrast_of_every_tile_and_colour():
    view, cut = Puzzle(16, count=9), torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = view.seen(cut)
    assert x.mean((2, 3)).abs().max() < 1e-5
    assert (x.std((2, 3)) - 1).abs().max() < 1e-4
    gain, offset = torch.rand(2, 9, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    other = cut * (0.2 + gain) + offset
    assert torch.allclose(view.seen(other), x, atol=1e-3), "a change of them changes nothing"
    assert not view.seen(torch.full((9, 3, 16, 16), 0.3)).abs().max() > 1e-3, "a flat tile stays flat"


def test_the_guard_makes_three_images_in_ten_grey_and_displaces_colours():
    y, _ = torch.meshgrid(torch.arange(90), torch.arange(90), indexing="ij")
    image = {"image": torch.stack([y, y, y]).to(torch.uint8)}
    colourful = {"image": images(1, 90)[0]["image"] // 2}
    torch.manual_seed(0)
    view = Puzzle(24, count=9, area=(1.0, 1.0))
    grey = [bool((cut[:, 0] - cut[:, 1]).abs().max() < 0.2) for cut, _ in (view.cut(colourful) for _ in range(20))]
    assert not any(grey), "colours of a noise are apart, even when it is grey: they are displaced"
    rows = torch.stack([view.cut(image)[0][:, :, 0, 0] * 255 for _ in range(400)]).round()[:, 4]  # (400, 3)
    assert set((rows[:, 0] - rows[:, 1]).abs().unique().tolist()) <= {0.0, 1.0, 2.0}
    assert (rows[:, 0] != rows[:, 1]).double().mean() > 0.5
    flat = {"image": torch.tensor([200, 0, 100], dtype=torch.uint8)[:, None, None].expand(3, 40, 40)}
    share = sum(bool(cut.std(1).max() < 1e-3) for cut, _ in (view.cut(flat) for _ in range(400))) / 400
    assert 0.23 < share < 0.37
    with pytest.raises(ValueError, match="expected 0 or more"):
        Puzzle(24, gap=-0.1)


def test_the_gap_is_between_none_and_twice_the_mean():
    x = torch.arange(96).expand(3, 96, 96).to(torch.uint8)  # the column
    view, gaps = Puzzle(24, count=9, guard=False, area=(1.0, 1.0)), []
    torch.manual_seed(0)
    for _ in range(200):
        corner = (view.cut({"image": x})[0][:, 0, 0, :] * 255).round().view(3, 3, 24)
        step = corner[..., 1:, :].amin(-1) - corner[..., :-1, :].amax(-1) - 1
        gaps.append(step if step.mean() > -20 else corner[..., :-1, :].amin(-1) - corner[..., 1:, :].amax(-1) - 1)
    gap = torch.stack(gaps)
    assert (gap.amin(), gap.amax()) == (0, 16)
    assert gap.mean().item() == pytest.approx(8, abs=0.4)


# ------------------------------------------------------------------ the method


@pytest.mark.parametrize("make", [vit, cnn])
def test_it_is_a_method_with_any_encoder(make):
    torch.manual_seed(0)
    batch = collate([Puzzle(8, count=9)(one) for one in images(5)])
    check_method(lambda: JigsawPuzzles(make(), count=9, hidden=12), batch)


def test_features_are_joined_in_the_order_shown():
    torch.manual_seed(0)
    method, x = JigsawPuzzles(vit().double(), count=9, hidden=12).double(), torch.randn(2, 9, 3, 8, 8).double()
    vectors = torch.stack([method.encoder(x[:, i])[:, 0] for i in range(9)], 1)
    assert torch.allclose(method.logits(x), method.head(vectors.reshape(2, -1)))
    with pytest.raises(ValueError, match=r"x must be \(B, 9, 3, t, t\)"):
        method.logits(x[:, 1:])


def test_it_learns_to_solve_puzzles():
    """Images of one drawing each time: what is on a tile says where it is from."""
    drawing = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    drawing = nn.functional.interpolate(drawing[None], (36, 36), mode="bilinear")[0]

    def noisy(count, seed):
        noise = 0.1 * torch.randn(count, 3, 36, 36, generator=torch.Generator().manual_seed(seed))
        return [{"image": ((drawing + one).clamp(0, 1) * 255).to(torch.uint8)} for one in noise]

    torch.manual_seed(0)
    method, test = JigsawPuzzles(cnn(), count=9, hidden=64), noisy(60, 1)
    view = Puzzle(12, count=9, gap=0.0, area=(1.0, 1.0))
    before = pretext.held_out(method, view, test)["accuracy"]
    fit(Run(method=method, stream=Stream(noisy(60, 0), view, batch=12)), Fit(steps=60, lr=5e-3), watch=Quiet())
    assert before < 0.3
    assert pretext.held_out(method, view, test)["accuracy"] > 0.6


class Solver(nn.Module):
    """Answers as told."""

    def __init__(self, answers):
        super().__init__()
        self.p, self.answers = nn.Parameter(torch.zeros(())), iter(answers)

    def logits(self, x):
        return torch.eye(9)[next(self.answers)][None]


def test_the_picture_puts_tiles_where_the_network_says(monkeypatch):
    rows = []
    monkeypatch.setattr(jigsaw, "sheet", lambda shown: rows.append(shown) or b"")
    view, samples = Puzzle(8, count=9, guard=False), images(4)
    labels = [int(pretext.drawn(view.cut, samples, i, 0)[1]) for i in range(4)]
    picture(Solver([labels[0], (labels[1] + 1) % 9, labels[2], labels[3]]), view, samples)
    shown, solved, truth = rows[0]
    for i, right in enumerate([True, False, True, True]):
        inside = solved[i][:, 3:-3, 3:-3]
        assert torch.equal(inside, truth[i]) == right
        assert torch.equal(solved[i], pretext.framed(inside, right))
        assert not torch.equal(shown[i], truth[i])
    monkeypatch.undo()
    assert picture(Solver(labels), view, samples)[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_recipe_makes_the_method_and_the_view():
    @dataclass(frozen=True, kw_only=True)
    class Base:
        size: int = 16

    @dataclass(frozen=True, kw_only=True)
    class Both(Jigsaw, Base):
        pass

    recipe, encoder = Both(permutations=9, gap=0.5), vit()
    method, view = recipe.method(encoder, Given(things=3, batch=2)), recipe.view(encoder)
    assert view == Puzzle(8, count=9, gap=0.5)
    batch = collate([view(one) for one in images(3)])
    assert method.logits(batch["x"]).shape == (3, 9)
