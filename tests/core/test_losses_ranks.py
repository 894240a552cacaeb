"""How each loss is shared by several processes: the table in ``partwhole.core.losses``, row by row."""

import itertools

import pytest
import torch
from torch import Tensor

from partwhole.core import distributed, losses
from partwhole.core.losses import (
    barlow,
    consistency,
    cross_entropy,
    distill,
    gram_anchoring,
    group_contrast,
    group_info_nce,
    group_pairs,
    info_nce,
    koleo,
    linear_cross_entropy,
    masked_cross_entropy,
    masked_distill,
    masked_mse,
    masked_smooth_l1,
    negative_cosine,
    nt_xent,
    sigmoid_contrast,
    sigreg,
    soft_cross_entropy,
    vicreg,
)
from partwhole.core.threads import ranks

G = torch.Generator().manual_seed(0)
N, L, D = 9, 7, 4
GROUP = torch.randint(-1, 3, (N, L), generator=G)
VALID = torch.rand(N, L, generator=G) < 0.7
HIDDEN = torch.rand(N, L, generator=G) < 0.5
CLASS = torch.randint(0, 4, (N, L), generator=G)
TOKENS, ROWS, OTHER = (torch.randn(*shape, D, generator=G, dtype=torch.float64) for shape in ((N, L), (N,), (N,)))
TARGET = torch.randn(N, L, D, generator=G, dtype=torch.float64)


def nce(live: Tensor, at: slice) -> Tensor:
    """Keys are gathered, and the positives of three queries are missing."""
    mine = torch.arange(N)[at]
    positive = torch.where(mine % 3 == 0, -1, torch.arange(len(live)) + distributed.start(len(live)))
    loss = info_nce(live, distributed.gather(live * OTHER[at]), positive)
    return loss * distributed.share((positive >= 0).sum())


def views(live: Tensor, at: slice) -> Tensor:
    z = torch.stack([live, live * OTHER[at], live.sin()])
    key = distributed.gather(z.flatten(0, 1))
    return nt_xent(z, key=key, start=distributed.start(3 * len(live))) * distributed.share(3 * len(live))


def sigmoid(live: Tensor, at: slice) -> Tensor:
    """Keys are gathered; every query counts, with its positive or without."""
    mine = torch.arange(len(live)) + distributed.start(len(live))
    key = distributed.gather(live * OTHER[at])
    loss = sigmoid_contrast(live, key, torch.where(mine % 3 == 0, -1, mine), bias=-1.0, tile=2)
    return loss * distributed.share(len(live))


def cosine(live: Tensor, at: slice) -> Tensor:
    return negative_cosine(live, TARGET[at], valid=VALID[at]) * distributed.share(VALID[at].sum())


def distillation(live: Tensor, at: slice) -> Tensor:
    student, teacher = torch.stack([live, live * 2, live - 1]), OTHER[at].softmax(-1).expand(2, -1, -1)
    return distill(student, teacher) * distributed.share(len(live))


def hidden_distillation(live: Tensor, at: slice) -> Tensor:
    rows = HIDDEN[at]
    return masked_distill(live[rows], TARGET[at].softmax(-1)[rows], rows) * distributed.share(len(live))


def mse(live: Tensor, at: slice) -> Tensor:
    loss = masked_mse(live, TARGET[at], HIDDEN[at], valid=VALID[at])
    return loss * distributed.share((HIDDEN[at] & VALID[at]).sum())


def smooth(live: Tensor, at: slice) -> Tensor:
    loss = masked_smooth_l1(live, TARGET[at], HIDDEN[at], valid=VALID[at])
    return loss * distributed.share((HIDDEN[at] & VALID[at]).sum())


def tokens(live: Tensor, at: slice) -> Tensor:
    counted = HIDDEN[at] & VALID[at]
    loss = masked_cross_entropy(live, CLASS[at], HIDDEN[at], valid=VALID[at])
    return loss * distributed.share(counted.sum())


def layer(live: Tensor, at: slice) -> Tensor:
    loss = linear_cross_entropy(live, OTHER, CLASS[at], valid=VALID[at])
    return loss * distributed.share(VALID[at].sum())


def prototypes(live: Tensor, at: slice) -> Tensor:
    loss = group_info_nce(live, GROUP[at], valid=VALID[at])
    return loss * distributed.share((VALID[at] & (GROUP[at] >= 0)).sum())


def pairs(live: Tensor, at: slice) -> Tensor:
    same, every = group_pairs(GROUP[at], VALID[at])
    fraction = distributed.mean(same) / distributed.mean(every)
    loss = group_contrast(live, GROUP[at], negatives="expected", fraction=fraction, valid=VALID[at])
    return loss * distributed.share(every)


def spreading(live: Tensor, at: slice) -> Tensor:
    loss = koleo(live, distributed.gather(live), first=distributed.start(len(live)))
    return loss * distributed.share(len(live))


def anchored(live: Tensor, at: slice) -> Tensor:
    loss = gram_anchoring(live, TARGET[at], valid=VALID[at])
    return loss * distributed.share(VALID[at].sum(1).square().sum())


def twins(live: Tensor, at: slice) -> Tensor:
    return barlow(distributed.gather(live), distributed.gather(live * OTHER[at]))


def terms(live: Tensor, at: slice) -> Tensor:
    return sum(vicreg(distributed.gather(live), distributed.gather(live * OTHER[at])).values(), OTHER.new_zeros(()))


def normality(live: Tensor, at: slice) -> Tensor:
    return sigreg(distributed.gather(live * OTHER[at]), OTHER.mT)


def classes(live: Tensor, at: slice) -> Tensor:
    return cross_entropy(live, GROUP[at], smoothing=0.1) * distributed.share((GROUP[at] >= 0).sum())


def parts(live: Tensor, at: slice) -> Tensor:
    index = torch.stack([CLASS[at], (CLASS[at] + 1) % D], -1)
    loss = soft_cross_entropy(live, index, TARGET[at][..., :2].softmax(-1), weight=TARGET[at][..., 2].abs())
    return loss * distributed.share(len(live))


def guesses(live: Tensor, at: slice) -> Tensor:
    loss = consistency(TARGET[at], live, threshold=0.5, valid=VALID[at])["loss"]
    return loss * distributed.share(VALID[at].sum())


HELPERS = {"bag_of_words", "group_means", "group_pairs", "sinkhorn"}  # no losses
SHARED = {
    "info_nce": (nce, ROWS),
    "nt_xent": (views, ROWS),
    "sigmoid_contrast": (sigmoid, ROWS),
    "negative_cosine": (cosine, TOKENS),
    "distill": (distillation, ROWS),
    "masked_distill": (hidden_distillation, TOKENS),
    "masked_mse": (mse, TOKENS),
    "masked_smooth_l1": (smooth, TOKENS),
    "masked_cross_entropy": (tokens, TOKENS),
    "linear_cross_entropy": (layer, TOKENS),
    "group_info_nce": (prototypes, TOKENS),
    "group_contrast": (pairs, TOKENS),
    "koleo": (spreading, ROWS),
    "gram_anchoring": (anchored, TOKENS),
    "barlow": (twins, ROWS),
    "vicreg": (terms, ROWS),
    "sigreg": (normality, ROWS),
    "cross_entropy": (classes, TOKENS),
    "soft_cross_entropy": (parts, TOKENS),
    "consistency": (guesses, TOKENS),
}


def test_P2_every_loss_says_how_it_is_reduced():
    table = [line.split()[0] for line in (losses.__doc__ or "").splitlines()[4:] if line.strip()]
    assert sorted(table) == sorted(SHARED) == sorted(set(losses.__all__) - HELPERS)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SHARED)
def test_P1_the_gradient_over_ranks_is_that_of_one_process(name, world):
    """Uneven pieces: 9 things over 2, 3 or 4 ranks, of which the last has one."""
    loss, x = SHARED[name]
    whole = x.clone().requires_grad_()
    value = loss(whole, slice(None))
    value.backward()
    ends = [0, *{1: [], 2: [8], 3: [5, 8], 4: [3, 5, 8]}[world], 9]
    slices = [slice(a, b) for a, b in itertools.pairwise(ends)]
    lives = [x[s].clone().requires_grad_() for s in slices]
    with ranks(world) as run:
        values = torch.stack(run(lambda r: loss(lives[r], slices[r])))
    values.sum().div(world).backward()  # the mean over ranks, as data parallel takes it
    assert values.mean().item() == pytest.approx(value.item(), rel=1e-12)
    grads = torch.cat([live.grad for live in lives if live.grad is not None])
    assert whole.grad is not None
    assert torch.allclose(grads, whole.grad, rtol=1e-9, atol=1e-13)


def test_P1_a_rank_with_nothing_to_count_takes_no_part():
    lives = [TOKENS[:4].clone().requires_grad_(), TOKENS[4:].clone().requires_grad_()]
    masks = [VALID[:4], torch.zeros_like(VALID[4:])]

    def loss(r: int) -> Tensor:
        return negative_cosine(lives[r], lives[r].roll(1, 0), valid=masks[r]) * distributed.share(masks[r].sum())

    with ranks(2) as run:
        values = run(loss)
    expected = negative_cosine(lives[0], lives[0].roll(1, 0), valid=masks[0])
    assert torch.stack(values).mean().item() == pytest.approx(expected.item(), rel=1e-12)
