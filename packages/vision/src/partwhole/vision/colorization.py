"""Paint a grey image (Zhang, Isola and Efros, 2016).

Axes: B things, S side of what the network sees, L tokens, D features, h x w of the map of colours, Q bins, N pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed, files
from partwhole.core.catalog import Given
from partwhole.core.data import View
from partwhole.core.encoder import Encoder
from partwhole.core.fit import Run
from partwhole.core.losses import soft_cross_entropy
from partwhole.core.method import Batch, Method
from partwhole.core.precision import widen
from partwhole.vision import lab
from partwhole.vision.pretext import ask, crop, drawn, normalised, sheet
from partwhole.vision.views import MEAN, STD

Scale = Literal[2, 4]
WITHIN = 10.0  # in units of ab: as far as from bin to bin, a difference that is seen at once


@dataclass(frozen=True)
class Greyed:
    """An image without colours, and its colours: {"x": (3, size, size), "ab": (2, side, side)}.

    x is the grey image of the same L, three times over and normalised as any other, so that every encoder takes it, and
    any black and white photograph. ab are the colours of ``side`` x ``side`` squares of it, each the mean of its
    pixels: the authors take one pixel of each.
    """

    size: int
    side: int
    area: tuple[float, float] = (0.5, 1.0)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        rgb = self.cut(sample)
        return {"x": self.seen(rgb), "ab": F.adaptive_avg_pool2d(lab.from_rgb(rgb)[1:], self.side)}

    def cut(self, sample: dict[str, Any]) -> Tensor:
        """The image in colour, in [0, 1]."""
        return crop(sample["image"], self.size, area=self.area)

    def seen(self, rgb: Tensor) -> Tensor:
        """What the network sees of it."""
        return normalised(lab.grey(rgb), self.mean, self.std)


def prior(samples: Sequence[Any], view: Greyed, *, most: int = 2000, seed: int = 0) -> Tensor:
    """How often each bin is the nearest to a colour of these images, (Q,): of ``most`` of them, evenly spread."""
    named, count = lab.Bins(), torch.zeros(lab.BINS, dtype=torch.float64)
    if len(samples) == 0:
        raise ValueError("how often colours occur cannot be measured: there is no image")
    for i in range(0, len(samples), -(-len(samples) // most)):
        ab = drawn(view, samples, i, seed)["ab"].flatten(1).mT
        count += named(ab)[0][:, 0].bincount(minlength=lab.BINS)
    return (count / count.sum()).float()


def rebalancing(prior: Tensor, *, uniform: float = 0.5, sigma: float = 5.0) -> Tensor:
    """How much a pixel of each bin counts, the more the rarer: (Q,), of mean 1 over pixels (Zhang et al., 2016).

    smooth = the prior, blurred over ab by a Gaussian of ``sigma``
    weight ~ 1 / ((1 - uniform) * smooth + uniform / Q),   sum over q: smooth[q] * weight[q] = 1
    """
    centres = lab.bins().double()
    blur = (-(centres[:, None] - centres).square().sum(-1) / (2 * sigma**2)).exp()
    smooth = (blur / blur.sum(0)) @ prior.double()
    weight = 1 / ((1 - uniform) * smooth + uniform / len(smooth))
    return (weight / (smooth * weight).sum()).float()


class Colorizer(Method):
    """batch: ``x`` (B, 3, S, S), grey; ``ab`` (B, 2, h, w), its colours, h x w being ``scale`` times the encoder's map.

    The loss is the cross entropy to the five bins around each colour, rare colours counting more once ``rebalance`` was
    told how rare: ``weight`` (Q,) is a buffer. ``logits(x, (h, w))`` are (B, h, w, Q). The head makes scale x scale
    pixels of every token that is not special, looks at each with its neighbours (3 x 3), ``width`` features wide, and
    names the bin. The paper has a network of its own with a map of S / 4; a transformer with patches of 16 and a
    ``scale`` of 4 has the same.

    In an evaluation there are also ``within``, the share of pixels whose painted colour is not farther than 10 from the
    true one, and ``grey_within``, that of an image left grey.
    """

    weight: Tensor

    def __init__(self, encoder: Encoder, *, scale: Scale = 4, width: int = 64):
        super().__init__(encoder)
        if scale not in (2, 4):
            raise ValueError(f"scale is {scale}: the map of colours is 2 or 4 times the encoder's")
        self.scale = scale
        self.head = nn.Sequential(
            nn.Conv2d(encoder.dim, width * scale**2, 1),
            nn.PixelShuffle(scale),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, lab.BINS, 1),
        )
        self.bins = lab.Bins()
        self.register_buffer("weight", torch.ones(lab.BINS))

    def rebalance(self, prior: Tensor, *, uniform: float = 0.5) -> None:
        """Let each bin count by how rare it is: see ``rebalancing``."""
        self.weight.copy_(rebalancing(prior, uniform=uniform))

    def logits(self, x: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """(B, h, w, Q); ``shape`` (h, w) of a map that is not square."""
        tokens = self.encoder(x)[:, self.encoder.special :]
        side = isqrt(tokens.shape[1])
        high, wide = (side, side) if shape is None else (n // self.scale for n in shape)
        if high * wide != tokens.shape[1] or (shape is not None and shape != (high * self.scale, wide * self.scale)):
            asked = "a square map" if shape is None else f"a map of {shape[0]} x {shape[1]} colours"
            raise ValueError(
                f"the encoder gave {tokens.shape[1]} tokens for {asked}, {self.scale} x {self.scale} colours for each: "
                "they must be as many as the map has places"
            )
        return self.head(tokens.mT.unflatten(2, (high, wide))).permute(0, 2, 3, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ab = widen(batch["ab"])
        logits = self.logits(batch["x"], tuple(ab.shape[2:]))
        colour = ab.permute(0, 2, 3, 1).flatten(0, 2)  # (N, 2)
        index, part = self.bins(colour)
        loss = soft_cross_entropy(logits.flatten(0, 2), index, part, weight=self.weight[index[:, 0]])
        share = distributed.share(len(colour))
        out = {"loss": loss * share, "items": torch.tensor(len(colour), device=ab.device)}
        if self.training:
            return out
        with torch.no_grad():
            painted = annealed_mean(logits, self.bins.centres)
            near = [(guess - ab).norm(dim=1) <= WITHIN for guess in (painted, torch.zeros_like(ab))]
        within, as_grey = (one.double().mean() * share for one in near)
        return {**out, "within": within, "grey_within": as_grey}


def annealed_mean(logits: Tensor, centres: Tensor, *, temperature: float = 0.38) -> Tensor:
    """The colour that a distribution over bins stands for (Zhang et al., 2016).

    It lies between the mean, which is dull, and the mode, which jumps from place to place.

        ab = sum over q: softmax(logits / temperature)[q] * centres[q]

    logits (B, h, w, Q), centres (Q, 2) -> (B, 2, h, w).
    """
    return ((widen(logits) / temperature).softmax(-1) @ widen(centres)).permute(0, 3, 1, 2)


def paint(method: Colorizer, view: Greyed, rgb: Tensor) -> Tensor:
    """Images in the colours that the network gives them: sRGB (B, 3, S, S) in [0, 1], of which only L is used."""
    logits = ask(method, method.logits, view.seen(rgb))
    ab = annealed_mean(logits, lab.bins())
    ab = F.interpolate(ab, rgb.shape[-2:], mode="bilinear", align_corners=False)
    return lab.to_rgb(torch.cat([lab.from_rgb(rgb)[:, :1], ab], 1))


def side_of(encoder: Encoder, size: int) -> int:
    """How many tokens along each side the encoder makes of a square image; ValueError where they are no square."""
    training, first = encoder.training, next(encoder.parameters())
    with torch.no_grad():
        length = encoder.eval()(torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype)).shape[1]
    encoder.train(training)
    side = isqrt(length - encoder.special)
    if side**2 != length - encoder.special:
        raise ValueError(f"{length - encoder.special} tokens of an image of {size} x {size} are no square map")
    return side


@dataclass(frozen=True, kw_only=True)
class Colorization:
    """Paint a grey image (Zhang, Isola and Efros, 2016)."""

    scale: Scale = 4
    """Colours for each token along each side: 4 are finer than 2, and cost four times as much."""
    uniform: float = 0.5
    """Share of an even distribution in how often colours are taken to occur: 1 lets all pixels count alike."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return Colorizer(encoder, scale=self.scale)

    def view(self, encoder: Encoder) -> Greyed:
        size = self.size  # type: ignore[attr-defined]  # of the recipe
        return Greyed(size, self.scale * side_of(encoder, size))

    def build(self, folder: Path | None = None, watch: Any = None) -> Run:
        """The recipe's run, once it is known how rare each colour is in its images."""
        run: Run = super().build(folder, watch)  # type: ignore[misc]
        assert isinstance(run.method, Colorizer)
        samples, view = run.stream.samples, run.stream.view  # type: ignore[attr-defined]
        run.method.rebalance(distributed.first(lambda: self.prior(samples, view)), uniform=self.uniform)
        return run

    def prior(self, samples: Sequence[Any], view: View) -> Tensor:
        """Measured once for these samples and options, and kept."""
        from safetensors.torch import load_file, save

        assert isinstance(view, Greyed)
        path = self.kept(f"colours-{view.side}", samples)  # type: ignore[attr-defined]  # of the recipe
        if not path.exists():
            data = save({"prior": prior(samples, view)})
            files.write(path, lambda file: file.write(data))
        return load_file(path)["prior"]


def picture(method: Colorizer, view: Greyed, samples: Sequence[Any], *, seed: int = 0) -> bytes:
    """Three rows, a column for each sample: what the network saw, as it painted it, and the truth. A PNG."""
    rgb = torch.stack([drawn(view.cut, samples, i, seed) for i in range(len(samples))])
    return sheet([list(row) for row in (lab.grey(rgb), paint(method, view, rgb), rgb)])
