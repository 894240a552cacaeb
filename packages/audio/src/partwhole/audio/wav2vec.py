"""wav2vec 2.0: tell the quantised features of a hidden frame from those of others of its sound (Baevski et al., 2020).

Axes: B sounds, L tokens, M hidden ones of a sound, K distractors, C channels, D features, G groups, V entries of each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.audio.waveform import Waveform
from partwhole.core import distributed
from partwhole.core.method import Batch, Method
from partwhole.core.precision import in_float32, positive_temperature, unit, widen
from partwhole.core.transformer import TransformerEncoder, pack, take

UNTIL = 0.7  # of the training, in which the temperature of the codes falls: about where the paper's reaches its end


@in_float32
def masked_contrast(
    context: Tensor, target: Tensor, distractors: Tensor, valid: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Pick each hidden frame's own target among some of the same sound; 0 where there is nothing to pick from.

        s[b, m, n] = cos(context[b, m], target[b, n]) / temperature
        loss       = mean over valid (b, m) with a distractor:
                         log(exp s[b, m, m] + sum over k: exp s[b, m, distractors[b, m, k]]) - s[b, m, m]

    context, target (B, M, D); distractors (B, M, K) indices of M, -1 for none, one named twice counts twice; valid
    (B, M), true where a frame is real: the rest may hold anything and is no distractor.
    """
    own, others, there = compared(context, target, distractors, valid, temperature=temperature)
    total = torch.cat([own[..., None], others], -1).logsumexp(-1)
    return (total - own).sum() / there.sum().clamp(min=1)


@in_float32
def compared(
    context: Tensor, target: Tensor, distractors: Tensor, valid: Tensor, *, temperature: float = 0.1
) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``masked_contrast``: s[b, m, m] (B, M), the s of the distractors (B, M, K), -inf where one is none; and which
    frames have any (B, M): of the others all is 0 and -inf."""
    positive_temperature(temperature)
    if not context.shape == target.shape == (*valid.shape, target.shape[-1]) or distractors.shape[:2] != valid.shape:
        raise ValueError(
            "context and target (B, M, D), distractors (B, M, K) and valid (B, M) are needed; got "
            f"{tuple(context.shape)}, {tuple(target.shape)}, {tuple(distractors.shape)} and {tuple(valid.shape)}"
        )
    blank = ~valid[..., None]
    score = unit(context.masked_fill(blank, 0)) @ unit(target.masked_fill(blank, 0)).mT / temperature
    which = torch.where(blank, -1, distractors)
    at = which.clamp(min=0)
    counted = (which >= 0) & valid.gather(1, at.flatten(1)).view(at.shape)
    there = counted.any(-1)
    own = score.diagonal(dim1=1, dim2=2).masked_fill(~there, 0)
    return own, score.gather(2, at).masked_fill(~counted, -torch.inf), there


@in_float32
def diversity(share: Tensor) -> Tensor:
    """How unevenly entries are used, 0 where evenly, nearly 1 where each group uses one.

        loss = 1 - sum over g: exp(-sum over v: share[g, v] log share[g, v]) / (G V)

    share (G, V): the mean over frames of the probabilities of the entries, without noise. As in the official code; the
    text has the entropy itself.
    """
    return 1 - torch.special.entr(share).sum(-1).exp().sum() / share.numel()


class Quantiser(nn.Module):
    """Features (B, M, C) -> one of V entries in each of G groups, put together: (B, M, dim).

    In training the choice is drawn, by noise that is given, and its gradient is that of the softmax at ``temperature``
    (Jang et al., 2017); else it is the likeliest.
    """

    def __init__(self, channels: int, *, groups: int, entries: int, dim: int):
        super().__init__()
        if groups < 1 or entries < 2 or dim % groups:
            raise ValueError(
                f"{groups} groups of {entries} entries that share {dim} features: at least 1, at least 2, and a "
                "multiple of the groups are needed"
            )
        self.groups, self.entries = groups, entries
        self.logits = nn.Linear(channels, groups * entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.table = nn.Parameter(torch.rand(groups, entries, dim // groups))

    def forward(self, x: Tensor, noise: Tensor | None, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also which entries were chosen (B, M, G), and the probabilities (B, M, G, V); noise (B, M, G, V)."""
        logits = widen(self.logits(x).unflatten(-1, (self.groups, self.entries)))
        drawn = logits if noise is None else logits + noise.to(logits)
        codes = drawn.argmax(-1)
        weight = F.one_hot(codes, self.entries).to(logits)
        if noise is not None:
            soft = (drawn / temperature).softmax(-1)
            weight = weight - soft.detach() + soft  # the value of one, the gradient of the other
        y = torch.einsum("bmgv,gvd->bmgd", weight.to(self.table), self.table)
        return y.flatten(2), codes, logits.softmax(-1)


class Wav2Vec2(Method):
    """batch: ``x``, sounds; ``hidden`` (B, L) bool, which of their tokens are hidden; ``seed`` (B,) int, a number for
    each sound from which its noise and its distractors follow; optional ``valid``, which samples are real.

    What the encoder makes of a hidden token is to be nearer (``masked_contrast``) to the quantised features of that
    token than to those of ``distractors`` other hidden tokens of the sound, drawn with replacement; those of the same
    codes do not count. loss = contrast + ``weight`` * ``diversity`` of the entries over all processes. A sound with
    less than two hidden tokens has no distractors, and adds nothing to the former.
    ``temperature`` is two numbers: that of the codes falls from one to the other until .7 of the training has passed.
    ``codebook`` is the groups, the entries of each, and the features of all groups together.

    ``accuracy`` is the share of hidden tokens whose own target is the nearest, ``codes`` how many codes are in use: the
    mean over groups of the perplexity, at most V.

    Apart from the paper the features of the last convolution have no penalty, and their gradient is not scaled down, as
    they are behind a layer norm; noise and distractors follow from numbers that the view draws, so that one process
    equals several.
    """

    encoder: TransformerEncoder
    temperature: Tensor

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        codebook: tuple[int, int, int] = (2, 320, 256),
        dim: int = 256,
        distractors: int = 100,
        weight: float = 0.1,
        temperature: tuple[float, float] = (2.0, 0.5),
    ):
        super().__init__(encoder)
        if not isinstance(encoder.embed, Waveform):
            raise TypeError(f"the features of a Waveform are quantised, and this encoder has {type(encoder.embed)}")
        if distractors < 1 or not min(temperature) > 0:
            raise ValueError(f"distractors are 1 or more and temperatures above 0; got {distractors} and {temperature}")
        self.distractors, self.weight, self.temperatures = distractors, weight, temperature
        groups, entries, width = codebook
        self.mask_token = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        self.quantiser = Quantiser(encoder.embed.channels, groups=groups, entries=entries, dim=width)
        self.project, self.project_target = nn.Linear(encoder.dim, dim), nn.Linear(width, dim)
        self.register_buffer("temperature", torch.tensor(temperature[0]))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, hidden, valid, embed = batch["x"], batch["hidden"], batch.get("valid"), self.encoder.embed
        assert isinstance(embed, Waveform)
        features, real = embed.features(x, valid=valid), embed.tokens_valid(x, valid)
        tokens = self.encoder(features, hidden=hidden, token=self.mask_token, valid=real)[:, self.encoder.special :]
        index, there = pack(hidden, real)  # (B, M)
        noise, distractors = drawn(batch["seed"], there, self.distractors, self.quantiser)
        if not self.training:
            noise = None
        quantised, codes, likely = self.quantiser(take(features, index), noise, self.temperature)
        context, target = self.project(take(tokens, index)), self.project_target(quantised)
        others = distractors.masked_fill(same(codes, distractors), -1)
        contrast = masked_contrast(context, target, others, there)
        with torch.no_grad():
            own, score, asked = compared(context, target, others, there)
            count = asked.sum()
            right = ((own > score.amax(-1)) & asked).sum() / count.clamp(min=1)
        total = distributed.total(likely.masked_fill(~there[..., None, None], 0).sum((0, 1)))
        share = total / distributed.total(there.sum().to(total)).clamp(min=1)
        uneven = diversity(share)
        return {
            "loss": contrast * distributed.share(count) + self.weight * uneven,
            "items": count,
            "contrast": contrast.detach(),
            "accuracy": right,
            "codes": (1 - uneven.detach()) * self.quantiser.entries,
        }

    def after_step(self, progress: float) -> None:
        start, end = self.temperatures
        self.temperature.fill_(start * (end / start) ** min(progress / UNTIL, 1.0))


def drawn(seed: Tensor, there: Tensor, count: int, quantiser: Quantiser) -> tuple[Tensor, Tensor]:
    """Gumbel noise (B, M, G, V) and distractors (B, M, count): a function of each sound's own number ``seed`` (B,) and
    of how many of its hidden tokens are real, those of ``there`` (B, M), which come first. Distractors are other ones
    of them, -1 where there is none."""
    shape = (quantiser.groups, quantiser.entries)
    noise, distractors = torch.zeros(*there.shape, *shape), torch.full((*there.shape, count), -1)
    for row, (number, hidden) in enumerate(zip(seed.tolist(), there.sum(1).tolist(), strict=True)):
        generator = torch.Generator().manual_seed(number)
        noise[row, :hidden] = -torch.empty(hidden, *shape).exponential_(generator=generator).log()
        if hidden > 1:
            other = torch.randint(hidden - 1, (hidden, count), generator=generator)
            distractors[row, :hidden] = other + (other >= torch.arange(hidden)[:, None])
    return noise.to(there.device), distractors.to(there.device)


def same(codes: Tensor, distractors: Tensor) -> Tensor:
    """Which distractors (B, M, K) have the codes (B, M, G) of the frame itself."""
    alike = (codes[:, :, None] == codes[:, None]).all(-1)
    return alike.gather(2, distractors.clamp(min=0))
