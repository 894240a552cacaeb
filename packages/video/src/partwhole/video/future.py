"""Future prediction: tell the next blocks of a clip among all, by what came before (DPC: Han et al., 2019; MemDPC:
Han et al., 2020).

Axes: B clips, N blocks, T frames of a block, S their side, P predicted blocks, h w places, D features, K slots; M rows
of all processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.data import collate
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.fit import move
from partwhole.core.losses import info_nce
from partwhole.core.method import Batch, Method
from partwhole.core.precision import unit
from partwhole.video.clip_views import Blocks
from partwhole.video.tubes import clip_map
from partwhole.vision.maps import resting
from partwhole.vision.pictures import shown
from partwhole.vision.pretext import drawn, framed, sheet

PAIRS = 2**22  # products of predictions and blocks that are held at once


class Foretelling(Method, ABC):
    """What both methods share. batch: ``x`` (B, N, 3, T, S, S), blocks of frames, of which the last ``steps`` are
    predicted: see ``clip_views.Blocks``.

    A block's features are the encoder's map of it, its mean over time; the encoder is one of clips (over ``Tubes``) or
    of images. At every place by itself a recurrent network aggregates the blocks seen so far, a small network predicts
    the next one from that, and the prediction is aggregated as if it had been seen, for the one after it. Each place of
    each prediction is to be told among all places of all predicted blocks of all clips, on all processes: those of
    other clips, of other times at its place, and of other places, in one cross entropy.

    ``accuracy``: how many were; ``block``: how many predicted blocks were told among all, by their places together.
    Both depend on how many clips there are to be told from.

    Apart from the papers, cosines over a temperature take the place of plain products, and nothing is dropped out of
    the recurrent network, which is torch's.
    """

    temperature: float
    steps: int

    @abstractmethod
    def foretold(self, z: Tensor) -> Tensor:
        """The last blocks by those before them: z (B, N, h, w, D) -> (B, P, h, w, D). The last are not looked at."""

    def blocks(self, x: Tensor) -> Tensor:
        """(B, N, 3, T, S, S) -> (B, N, h, w, D)."""
        if x.ndim != 6:
            raise ValueError(f"x is {tuple(x.shape)}: blocks of frames (B, N, 3, T, S, S) are needed")
        if x.shape[1] <= self.steps:
            raise ValueError(f"{x.shape[1]} blocks came, of which {self.steps} are to be predicted: one more is needed")
        return clip_map(self.encoder, x.flatten(0, 1)).mean(2).unflatten(0, x.shape[:2]).movedim(2, -1)

    def told(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss and how many were right; prediction, target (B, P, h, w, D)."""
        query, places = prediction.flatten(0, 3), prediction.shape[2] * prediction.shape[3]
        key, start = distributed.gather(target.flatten(0, 3)), distributed.start(len(query))
        positive = torch.arange(start, start + len(query), device=query.device)
        loss = info_nce(query, key, positive, temperature=self.temperature)
        with torch.no_grad():
            query, key = unit(query), unit(key)
            whole = query.view(-1, places * query.shape[1]), key.view(-1, places * key.shape[1])
            right = {"accuracy": found(query, key, start), "block": found(*whole, start // places)}
        share = distributed.share(len(query))
        return {"loss": loss * share, **{name: mean * share for name, mean in right.items()}}


class DPC(Foretelling):
    """Dense predictive coding (Han et al., 2019): see ``Foretelling``. The paper has 8 blocks of 5 frames, every third
    of a video at 30 a second, and predicts the last 3."""

    def __init__(self, encoder: Encoder, *, steps: int = 3, temperature: float = 0.1):
        super().__init__(encoder)
        self.steps, self.temperature = checked(steps), temperature
        self.cell = cell(encoder.dim, 1.0)
        self.predict = two_layers(encoder.dim, encoder.dim, 1.0)

    def foretold(self, z: Tensor) -> Tensor:
        return foretell(z, self.steps, self.cell, self.predict)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.blocks(batch["x"])
        out = self.told(self.foretold(z), z[:, -self.steps :])
        return {**out, "items": torch.tensor(z[:, : self.steps, ..., 0].numel(), device=z.device)}


class MemDPC(Foretelling):
    """DPC with a memory, both ways (Han et al., 2020): see ``Foretelling``.

        prediction = sum over k:  softmax(predict(aggregated))[k] * memory[k]

    So what is predicted is a mixture of ``slots`` learned features, and says of each how likely it is. A second
    recurrent network reads the clip from its end and predicts its beginning; the losses of both directions are added,
    the accuracies are their mean.
    """

    def __init__(self, encoder: Encoder, *, steps: int = 3, temperature: float = 0.1, slots: int = 1024):
        super().__init__(encoder)
        if slots < 2:
            raise ValueError(f"a memory of {slots} slots has nothing to choose from: 2 or more are needed")
        self.steps, self.temperature, self.slots = checked(steps), temperature, slots
        self.forth, self.back = cell(encoder.dim, 0.1), cell(encoder.dim, 0.1)
        self.choose = two_layers(encoder.dim, slots, 0.1)
        self.memory = nn.Parameter(torch.randn(slots, encoder.dim))

    def remember(self, hidden: Tensor) -> Tensor:
        return self.choose(hidden).softmax(-1) @ self.memory

    def foretold(self, z: Tensor) -> Tensor:
        return foretell(z, self.steps, self.forth, self.remember)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.blocks(batch["x"])
        ahead = self.told(self.foretold(z), z[:, -self.steps :])
        turned = z.flip(1)
        back = self.told(foretell(turned, self.steps, self.back, self.remember), turned[:, -self.steps :])
        both = {name: (ahead[name] + back[name]) / (1 if name == "loss" else 2) for name in ahead}
        return {**both, "items": torch.tensor(z[:, : self.steps, ..., 0].numel(), device=z.device)}


# ------------------------------------------------------------------ inside


def foretell(z: Tensor, steps: int, cell: nn.GRUCell, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """The last ``steps`` of z (B, N, h, w, D) by those before them, (B, P, h, w, D); each place by itself."""
    rows = z[:, : z.shape[1] - steps].movedim(1, 0).flatten(1, 3)  # (N - P, B h w, D)
    hidden = torch.zeros_like(rows[0])
    for row in rows:
        hidden = cell(row.relu(), hidden)
    predictions = [predict(hidden)]
    for _ in range(steps - 1):
        hidden = cell(predictions[-1].relu(), hidden)
        predictions.append(predict(hidden))
    return torch.stack(predictions).unflatten(1, (len(z), *z.shape[2:4])).movedim(0, 1)


def found(query: Tensor, key: Tensor, start: int) -> Tensor:
    """Share of the queries (N, D) whose nearest key (M, D) is the one of their own number, from ``start`` on."""
    own = torch.arange(start, start + len(query), device=query.device)
    step = max(1, PAIRS // len(key))
    hits = [(q @ key.mT).argmax(1) == i for q, i in zip(query.split(step), own.split(step), strict=True)]
    return torch.cat(hits).double().mean()


def checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"{steps} blocks are to be predicted: expected 1 or more")
    return steps


def cell(dim: int, gain: float) -> nn.GRUCell:
    made = nn.GRUCell(dim, dim)
    for name, p in made.named_parameters():
        for gate in p.data.split(dim):
            nn.init.orthogonal_(gate, gain) if name.startswith("weight") else nn.init.zeros_(gate)
    return made


def two_layers(dim: int, out: int, gain: float) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))
    for name, p in net.named_parameters():
        nn.init.orthogonal_(p, gain) if name.endswith("weight") else nn.init.zeros_(p)
    return net


# ------------------------------------------------------------------ what it foretells


CAPTION = (
    "Clips, a frame of each block. Below the last ones, which were to be told, is what each prediction is nearest to "
    "among all of these blocks: green where it is the right one."
)


@torch.no_grad()
def picture(method: Foretelling, view: Blocks, samples: Sequence[Any], *, seed: int = 0) -> bytes:
    """For each sample a row of its blocks, and a row of what was told of the last ones. A PNG."""
    seen = collate([drawn(view, samples, i, seed) for i in range(len(samples))])
    x = seen["x"]
    with resting(method):
        z = method.blocks(move(x, device_of(method)))
        prediction, target = (
            unit(y.float()).flatten(0, 1).flatten(1) for y in (method.foretold(z), z[:, -method.steps :])
        )
    nearest = (prediction @ target.mT).argmax(1).cpu()
    N, P, side = x.shape[1], method.steps, x.shape[-1]
    middle = [[shown(x[b, n, :, x.shape[3] // 2], side) for n in range(N)] for b in range(len(x))]
    rows = []
    for b, clip in enumerate(middle):
        answers = []
        for p in range(P):
            at = int(nearest[b * P + p])
            answers.append(framed(middle[at // P][N - P + at % P], at == b * P + p))
        blank = torch.ones_like(clip[0])
        rows += [clip, [*[blank] * (N - P), *answers]]
    return sheet(rows, side=64)
