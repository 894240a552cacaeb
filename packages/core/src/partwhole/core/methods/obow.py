"""OBoW: predict from a part which of a teacher's visual words the whole has (Gidaris et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, blank, mlp, pool_for
from partwhole.core.losses import bag_of_words, distill
from partwhole.core.method import Batch, Method
from partwhole.core.methods.targets import entropies
from partwhole.core.methods.views import multicrop
from partwhole.core.queue import Queue
from partwhole.core.schedules import cosine
from partwhole.core.teacher import Average, Teacher

DISTANCE_MOMENTUM = 0.99


class OBoW(Method):
    """batch: ``views``, a list of large views of one batch of things, ``crops``, a list of smaller ones, which the
    teacher does not see, of any sizes; optional ``valid`` and ``crops_valid``, lists parallel to them.

    The vocabulary is a queue of ``words`` tokens of the teacher, one of each view. A token is spread over the words by
    its distances, ``sharpness`` over the mean distance to the nearest; a view's bag holds the most of each word. What
    the student predicts with follows the vocabulary too: a small network makes a weight of each word.
    ``momentum`` rises to 1 along a cosine. ``entropy`` is that of a bag, ``entropy_of_mean`` that of the mean bag: both
    0 where one word is everywhere, both ln(words) where none is told from another.

    Otherwise than the authors: one level of features; the last tokens themselves are words, taken from places in turn,
    where they average 3 x 3 neighbours at random ones; LayerNorm in the small network, where words of all processes
    would count as often as there are processes in BatchNorm; the student sees large views too, and predicts the others;
    the loss is a cross entropy, a constant above their divergence, and a mean where they add up two kinds of crops.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        words: int = 8192,
        temperature: float = 0.125,
        sharpness: float = 15.0,
        momentum: float = 0.99,
        pool: nn.Module | None = None,
    ):
        super().__init__(encoder)
        self.pool = pool or pool_for(encoder)
        self.teacher = Teacher(encoder)
        self.weigh = mlp(encoder.dim, 2 * encoder.dim, encoder.dim, norm="layer")
        self.words = Queue(words, encoder.dim)
        self.words.fresh.normal_()  # the first vocabulary
        self.words.update()
        self.distance = Average(1, momentum=DISTANCE_MOMENTUM)
        self.distance.value.fill_(0.5)
        self.temperature, self.sharpness, self.momentum = temperature, sharpness, momentum

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student = multicrop(self.encoder, self.pool, batch)  # (S, B, D)
        words = F.normalize(self.words.rows, dim=-1).to(student.dtype)
        weight = F.normalize(self.weigh(words), dim=-1)  # (K, D)
        target = self.bags(batch["views"], batch.get("valid"))  # (T, B, K)
        loss = distill(student @ weight.mT, target, temperature=self.temperature)
        return {"loss": loss * distributed.share(student.shape[1]), **entropies(target)}

    @torch.no_grad()
    def bags(self, views: list[Tensor], valid: list[Tensor | None] | None) -> Tensor:
        """The bag of words of every view, (T, B, K); while training, new words and distances are remembered."""
        B, T = len(views[0]), len(views)
        number = torch.arange(B * T, device=views[0].device).view(B, T) + distributed.start(B) * T
        number = number + self.words.seen + self.words.added  # of the word that each view will give
        bags, chosen, distances = [], [], []
        special = self.encoder.special
        for t, (x, v) in enumerate(zip(views, valid or [None] * T, strict=True)):
            tokens, real = self.teacher(x, v)[:, special:], self.encoder.real(x, v)
            real = None if real is None else real[:, special:]
            temperature = self.distance.value / self.sharpness
            bag, distance = bag_of_words(tokens, self.words.rows, temperature=temperature, valid=real)
            bags.append(bag)
            chosen.append(one_of_each(tokens, real, number[:, t]))
            distances.append(distance)
        if self.training:
            self.words.add(torch.stack(chosen, 1).flatten(0, 1))
            self.distance.add(torch.cat(distances)[:, None])
        return torch.stack(bags)

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.encoder, momentum=cosine(progress, self.momentum, 1.0))
        self.words.update()
        self.distance.update()


def one_of_each(tokens: Tensor, valid: Tensor | None, number: Tensor) -> Tensor:
    """A real token of each thing (B, D), from places that fill the range evenly as number (B,) goes on."""
    count = tokens.new_full(number.shape, tokens.shape[1], dtype=torch.int64) if valid is None else valid.sum(1)
    golden = number % 2**31 * 2654435769 % 2**32  # multiples of the golden ratio, less their whole part, times 2^32
    place = golden * count >> 32
    if valid is not None:
        place = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True).gather(1, place[:, None]).squeeze(1)
    return blank(tokens, valid)[torch.arange(len(tokens), device=tokens.device), place]
