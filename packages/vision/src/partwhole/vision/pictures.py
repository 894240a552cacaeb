"""Features in pictures: principal components as colours, likeness to a place, attention, what was rebuilt.

Axes: B images, H W pixels, h w places of a map, L tokens, D features, N rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.encoder import Encoder, device_of
from partwhole.core.methods import MAE
from partwhole.core.transformer import marked as hidden_or_not
from partwhole.vision.draw import Picture, covered, heat, marked, png
from partwhole.vision.maps import (
    attention,
    attention_mask,
    enlarged,
    feature_map,
    fitted,
    jaccard,
    objects,
    resting,
    step,
    thumbnail,
)
from partwhole.vision.views import MEAN, STD, Three

Sample = Mapping[str, Any]

# ------------------------------------------------------------------ in numbers


def pca(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` principal components of rows (N, D), as scores (N, count), the most varying first; float64.

    A component points to where its largest loading is positive, so that the sign is no accident. Components that rows
    do not have (fewer rows or features, no variation) are 0.
    """
    x = rows.detach().double()
    x = x - x.mean(0)
    _, size, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:count] * (size[:count] > size.max() * 1e-7)[:, None] if len(x) else axes
    if len(x) and size.max() <= 1e-9 * max(1.0, float(rows.detach().abs().max())):
        axes = torch.zeros_like(axes)  # rows that are all one: what is left is rounding
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    scores = x @ (axes * torch.where(largest < 0, -1.0, 1.0)).mT
    return F.pad(scores, (0, count - scores.shape[1]))


def foreground(features: Sequence[Tensor]) -> list[Tensor]:
    """Where the first principal component over all patches of all images is positive: (h, w) bool each.

    features: (D, h, w) of each image; their sizes may differ. A component has no sign of its own (DINOv2 takes the
    positive half: Oquab et al., 2023): here that half is the foreground of which more lies in the middle of the images
    than at their border. That is a guess about photographs, wrong where the thing fills the frame.
    """
    score = pca(torch.cat([f.flatten(1).mT for f in features]), 1)[:, 0]
    maps = [s.view(f.shape[1:]) for s, f in zip(score.split([f[0].numel() for f in features]), features, strict=True)]
    middle, border = [], []
    for m in maps:
        at = [((torch.arange(n, device=m.device) + 0.5) / n * 2 - 1).abs() for n in m.shape]
        far = torch.maximum(at[0][:, None], at[1][None])  # 0 in the middle, 1 at the border
        near = far <= far.median()
        middle.append(m[near])
        border.append(m[~near] if (~near).any() else m[near])
    turn = -1 if torch.cat(middle).mean() < torch.cat(border).mean() else 1
    return [turn * m > 0 for m in maps]


def pca_rgb(features: Sequence[Tensor], *, masked: bool = True) -> list[Tensor]:
    """Three principal components as red, green and blue: (3, h, w) in [0, 1] of each image's features (D, h, w).

    As DINOv2 shows its features (Oquab et al., 2023, Figure 1): ``foreground`` finds what is no background, which
    becomes black; the components are those of the foreground of all images together, so that like colours mean like
    features across images. Each is divided by its standard deviation and goes through sigmoid(2 z), as in DINOv3's
    demonstration (Siméoni et al., 2025). ``masked`` False colours everything.
    """
    if not len(features) or any(f.ndim != 3 for f in features):
        raise ValueError(
            f"features (D, h, w) of one image or more are needed; got {[tuple(f.shape) for f in features]}"
        )
    kept = foreground(features) if masked else [torch.ones_like(f[0], dtype=torch.bool) for f in features]
    rows = torch.cat([f.flatten(1).mT[k.flatten()] for f, k in zip(features, kept, strict=True)])
    colours = [f.new_zeros(3, *k.shape) for f, k in zip(features, kept, strict=True)]
    if not len(rows):
        return colours
    score = pca(rows, 3)
    score = (2 * score / score.std(0, correction=0).clamp(min=1e-12)).sigmoid()
    for colour, k, part in zip(colours, kept, score.split([int(k.sum()) for k in kept]), strict=True):
        colour[:, k] = part.mT.to(colour)
    return colours


def similarity(features: Tensor, place: tuple[float, float]) -> Tensor:
    """The cosine of every place's features (D, h, w) with those at ``place``, shares of height and width: (h, w)."""
    if not all(0 <= p < 1 for p in place):
        raise ValueError(f"a place is given as shares of height and width, from 0 to below 1; got {place}")
    at = [int(p * n) for p, n in zip(place, features.shape[1:], strict=True)]
    unit = F.normalize(features, dim=0)
    return torch.einsum("dhw,d->hw", unit, unit[:, at[0], at[1]])


@torch.no_grad()
def reconstructions(method: MAE, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What was there, what was seen, what was made of it: images like x (B, 3, H, W), three times; or clips, of an
    encoder over tubes of them.

    keep (B, L) bool or (B, K) indices: the visible patches. Hidden ones are 0 in the second, and in the third are what
    the method rebuilds, between the true visible ones. Where it rebuilds normalised patches, each gets the mean and the
    spread of the true patch back: its brightness and contrast are then told, not guessed.
    """
    embed = method.encoder.embed
    picture: Any = getattr(embed, "picture", None)
    if picture is None:
        raise ValueError(f"what is rebuilt as pixels can be shown, not that of {type(embed).__name__}: use Patches")
    with resting(method):
        rebuilt, _ = method.rebuilt({"x": x, "keep": keep})
    truth = embed.target(x)
    if method.normalise:
        rebuilt = rebuilt * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
    seen = hidden_or_not(keep, truth.shape[1])[..., None]
    parts = (truth, truth.masked_fill(~seen, 0), torch.where(seen, truth, rebuilt))
    original, visible, result = (picture(part, x) for part in parts)
    return original, visible, result


# ------------------------------------------------------------------ in pictures


def shown(x: Tensor, side: int, mean: Three = MEAN, std: Three = STD) -> Tensor:
    """What an encoder sees, (3, H, W), as colours, ``side`` pixels high."""
    y = x.detach().cpu().float() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    size = (side, max(1, round(side * x.shape[2] / x.shape[1])))
    return F.interpolate(y[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


class Shown:
    """Some images as an encoder sees them, and its map of each."""

    def __init__(self, encoder: Encoder, samples: Sequence[Sample], size: int, side: int, mean: Three, std: Three):
        if not len(samples):
            raise ValueError("a picture needs at least one sample, and there is none")
        pixels = step(encoder, size)
        self.seen = [fitted(s["image"], size, pixels, mean, std).to(device_of(encoder)) for s in samples]
        self.photos = [shown(x, side, mean, std) for x in self.seen]

    def features(self, encoder: Encoder) -> list[Tensor]:
        with torch.no_grad(), resting(encoder):
            return [feature_map(encoder, x[None])[0].float().cpu() for x in self.seen]


def pca_picture(
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    size: int = 224,
    side: int = 128,
    columns: int = 4,
    mean: Three = MEAN,
    std: Three = STD,
) -> Picture:
    """Images, below each its ``pca_rgb`` with and without the background; ``columns`` of them side by side."""
    these = Shown(encoder, samples, size, side, mean, std)
    maps = these.features(encoder)
    both = pca_rgb(maps, masked=False), pca_rgb(maps)
    rows = []
    for start in range(0, len(samples), columns):
        part = range(start, min(start + columns, len(samples)))
        rows.append([these.photos[i] for i in part])
        rows += [[enlarged(colours[i], these.photos[i].shape[1:]) for i in part] for colours in both]
    caption = (
        "Principal components of the features of patches as red, green and blue: images, the components of all "
        "patches, and those of the foreground, which is where the first component is on the side of the middle."
    )
    return Picture(png(rows), caption)


def similarity_picture(
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    places: Sequence[tuple[float, float]] = ((0.5, 0.5), (0.15, 0.15)),
    size: int = 224,
    side: int = 128,
    mean: Three = MEAN,
    std: Three = STD,
) -> Picture:
    """For every image a row: itself, then for each place how like to it every other is."""
    these = Shown(encoder, samples, size, side, mean, std)
    rows = []
    for photo, features in zip(these.photos, these.features(encoder), strict=True):
        heats = [marked(heat(similarity(features, place), photo.shape[1:]), place) for place in places]
        rows.append([photo, *heats])
    caption = (
        "Cosine of the features of every place with those at the red cross, from the lowest of the map, dark, to the "
        "highest, bright."
    )
    return Picture(png(rows), caption)


def attention_picture(
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    mass: float = 0.6,
    heads: int = 6,
    size: int = 224,
    side: int = 128,
    mean: Three = MEAN,
    std: Three = STD,
) -> Picture:
    """For every image a row: itself, the attention of its first ``heads`` heads and, where it has a mask of objects,
    the best head's mask and the true one."""
    these = Shown(encoder, samples, size, side, mean, std)
    rows, told = [], False
    for sample, x, photo in zip(samples, these.seen, these.photos, strict=True):
        found = attention(encoder, x[None])[0].float().cpu()
        row = [photo, *(heat(head, photo.shape[1:]) for head in found[:heads])]
        if "mask" in sample:
            truth, valid = (enlarged(m[None], photo.shape[1:])[0] for m in objects(sample))
            masks = enlarged(attention_mask(found, mass), photo.shape[1:])
            best = masks[jaccard(masks, truth, valid).argmax()]
            row += [covered(photo, best), covered(photo, truth)]
            told = True
        rows.append(row)
    caption = "What the class token attends to in the last block, by each head, from little, dark, to much, bright."
    if told:
        caption += f" Then the fewest patches with {mass:.0%} of it, of the head that fits best, and the true objects."
    return Picture(png(rows), caption)


def masks_picture(
    networks: Mapping[str, Encoder],
    samples: Sequence[Sample],
    *,
    mass: float = 0.6,
    size: int = 224,
    side: int = 128,
) -> Picture:
    """For every image a row: itself, its true objects, and the mask of attention of each network's best head."""
    rows = []
    for sample in samples:
        truth, valid = objects(sample)
        photo = thumbnail(sample["image"], side)
        row = [photo, covered(photo, enlarged(truth[None], photo.shape[1:])[0])]
        for network in networks.values():
            x = fitted(sample["image"], size, step(network, size)).to(device_of(network))
            masks = attention_mask(attention(network, x[None])[0], mass).cpu()
            best = jaccard(enlarged(masks, truth.shape), truth, valid).argmax()
            row.append(covered(photo, enlarged(masks[best][None], photo.shape[1:])[0]))
        rows.append(row)
    told = f"Images, their objects, and the mask of the attention of the best head of {', '.join(networks)}."
    return Picture(png(rows, limit=150_000), told)


def reconstruction_picture(
    method: MAE, x: Tensor, keep: Tensor, *, side: int = 128, mean: Three = MEAN, std: Three = STD
) -> Picture:
    """For every image of x (B, 3, H, W) a row: itself, its visible patches ``keep``, and what was rebuilt."""
    original, visible, rebuilt = reconstructions(method, x, keep)
    sets = (original, visible, rebuilt)
    rows = [[shown(images[i], side, mean, std) for images in sets] for i in range(len(x))]
    caption = "Images, the patches that the network sees, and what it makes of them, between those patches"
    told = "; the mean and contrast of each hidden patch are given" if method.normalise else ""
    return Picture(png(rows), f"{caption}{told}.")
