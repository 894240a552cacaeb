"""Features as maps, what a class token attends to, and how well that covers the objects.

Axes: B images, H W their pixels, h w places of a map, D features, N heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.encoder import Encoder, Wrapped, device_of, fresh
from partwhole.core.report import Spread
from partwhole.core.transformer import TransformerEncoder
from partwhole.core.watch import Watch
from partwhole.vision.backbone import Backbone
from partwhole.vision.views import MEAN, STD, Three

IGNORED = 255  # in a mask: a pixel of no class


def feature_map(encoder: Encoder, x: Tensor) -> Tensor:
    """The tokens of x (B, 3, H, W) where they lie in the image: (B, D, h, w), without special tokens.

    For our transformer over patches, any network of timm that has a map, and a ``Wrapped`` module that gives one. The
    encoder stays in the mode it is in, and gradients flow. ValueError where the tokens have no places.
    """
    if isinstance(encoder, Wrapped):
        y = encoder.module(x)
        if y.ndim != 4:
            raise ValueError(f"{type(encoder.module).__name__} gave {tuple(y.shape)}: a map (B, D, h, w) is needed")
        return y
    if isinstance(encoder, Backbone) and not _embed(encoder):
        y = encoder.net.forward_features(x)
        if y.ndim != 4:
            raise ValueError(f"{encoder.name} gave {tuple(y.shape)}, and says not how its tokens lie in the image")
        return y.permute(0, 3, 1, 2) if encoder.last else y
    return _placed(encoder(x)[:, encoder.special :].mT, encoder, x)


def _embed(encoder: Encoder) -> Callable[[Tensor], tuple[int, int]] | None:
    """What says how many rows and columns of patches an encoder makes of x; None of one that has no patches."""
    if isinstance(encoder, TransformerEncoder):
        return getattr(encoder.embed, "grid", None)
    net = getattr(encoder, "net", None)
    patches = getattr(net, "patch_embed", None)
    if not hasattr(patches, "dynamic_feat_size") or not hasattr(net, "blocks"):
        return None  # Swin and its like have patches too, but put them together on the way
    return lambda x: patches.dynamic_feat_size(tuple(x.shape[-2:]))  # type: ignore[union-attr]


def _placed(rows: Tensor, encoder: Encoder, x: Tensor) -> Tensor:
    """(B, K, L) of what belongs to tokens -> (B, K, h, w)."""
    embed = _embed(encoder)
    if embed is None:
        raise ValueError(f"{_name(encoder)} says not how its tokens lie in the image: no map can be made of them")
    h, w = embed(x)
    if h * w != rows.shape[-1]:
        raise ValueError(f"{_name(encoder)} makes {rows.shape[-1]} tokens, which are not {h} rows of {w}")
    return rows.unflatten(-1, (h, w))


def _name(encoder: Encoder) -> str:
    return encoder.name if isinstance(encoder, Backbone) else type(encoder).__name__


@torch.no_grad()
def attention(encoder: Encoder, x: Tensor) -> Tensor:
    """How much the class token takes of each place in the last block, by each head: (B, N, h, w).

    Its shares of special tokens are left out, so that a head sums to less than 1. In eval mode, whatever the encoder
    is in. ValueError for networks without a class token, and for those of timm that do not show their attention.
    """
    if isinstance(encoder, TransformerEncoder):
        with resting(encoder):
            return _placed(encoder.attention(x), encoder, x)
    if not isinstance(encoder, Backbone) or not encoder.special:
        raise ValueError(
            f"{_name(encoder)} has no class token, whose attention could be looked at: "
            "take a transformer with one, such as the network vit or vit_small_patch16_224"
        )
    last = encoder.net.blocks[-1] if hasattr(encoder.net, "blocks") else None
    layer: Any = getattr(last, "attn", None)
    if not hasattr(layer, "attn_drop") or not hasattr(layer, "fused_attn"):
        raise ValueError(f"the last block of {encoder.name} does not show its attention: choose a plain ViT of timm")
    seen: list[Tensor] = []
    hook = layer.attn_drop.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    fused, layer.fused_attn = layer.fused_attn, False  # so that the weights are made at all
    try:
        with resting(encoder):
            encoder(x)
    finally:
        layer.fused_attn = fused
        hook.remove()
    return _placed(seen[0][:, :, 0, encoder.special + encoder.registers :], encoder, x)


@contextmanager
def resting(encoder: torch.nn.Module) -> Iterator[None]:
    """In eval mode within."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


# ------------------------------------------------------------------ masks of attention


def attention_mask(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The fewest places that together hold ``mass`` of each head's attention (Caron et al., 2021): bool, (..., h, w).

        kept[i] = sum over j with attention[j] > attention[i] of attention[j]  <  mass * sum over j of attention[j]

    Of places that tie the first come first. attention (..., h, w), not negative.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is a share of the attention, above 0 and at most 1, and is {mass}")
    flat = attention.flatten(-2).double()
    value, order = flat.sort(dim=-1, descending=True, stable=True)
    before = value.cumsum(-1) - value
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, order, before < mass * flat.sum(-1, keepdim=True))
    return kept.view(attention.shape)


def jaccard(mask: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Places in both over places in either, over the last two axes: bool (..., H, W) -> (...) float64; 1 of nothing.

    valid (..., H, W): true where a place counts.
    """
    if valid is not None:
        mask, truth = mask & valid, truth & valid
    both, either = (mask & truth).sum((-2, -1)), (mask | truth).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1).double(), 1.0)


def jaccard_of(
    encoder: Encoder,
    samples: Sequence[Mapping[str, Any]],
    *,
    beside: Mapping[str, Encoder] | None = None,
    size: int = 224,
    mass: float = 0.6,
    draws: int = 3,
    seed: int = 0,
    mean: Three = MEAN,
    std: Three = STD,
    watch: Watch | None = None,
) -> dict[str, dict[str, Spread]]:
    """How well the masks of attention cover the objects: {row: {"best head": Spread, "mean of heads": Spread}}, the
    spread over images.

    samples: "image" uint8 (3, H, W) and "mask" (H, W), of an object where above 0, not counted where 255. Images
    without an object are left out.
    size: the shorter side that the encoder sees; the longer one is as long as the image has it.
    Rows: "encoder"; the names of those ``beside`` it; "random", networks like it with fresh weights, the mean of
    ``draws``; "centre box", a box in the middle with the image's proportions, of the size that is best for all these
    images together.

    The best head of each image, by its own truth, is the protocol of DINO's paper (Caron et al., 2021): it looks at
    the answer, so that more heads score higher without knowing more. The mean of the heads does not. A mask is laid
    over the image by nearest patches, and compared at the image's own size.
    """
    if draws < 1:
        raise ValueError(f"draws of random networks must be at least 1, and are {draws}")
    found = [i for i in range(len(samples)) if objects(samples[i])[0].any()]
    if not found:
        raise ValueError(f"none of {len(samples)} samples has an object: mask (H, W) above 0 where there is one")
    rows = {"encoder": [encoder], **{name: [other] for name, other in (beside or {}).items()}}
    rows["random"] = [fresh(encoder, seed=seed + d) for d in range(draws)]
    steps = {row: step(networks[0], size) for row, networks in rows.items()}
    scores: dict[str, list[Tensor]] = {row: [] for row in rows}
    for done, i in enumerate(found, 1):
        sample = samples[i]
        truth, valid = objects(sample)
        for row, networks in rows.items():
            x = fitted(sample["image"], size, steps[row], mean, std)[None].to(device_of(encoder))
            each = []
            for network in networks:
                mask = attention_mask(attention(network, x), mass)
                each.append(jaccard(enlarged(mask[0], truth.shape).cpu(), truth, valid))
            scores[row].append(torch.stack(each))  # (networks, heads)
        if watch is not None:
            watch.step(done, {"total": len(found)})
    table = {
        row: {
            "best head": Spread.of(s.amax(1).mean().item() for s in each),
            "mean of heads": Spread.of(s.mean().item() for s in each),
        }
        for row, each in scores.items()
    }
    box = centre_box([objects(samples[i]) for i in found])
    return {**table, "centre box": {"best head": box, "mean of heads": box}}


def centre_box(truths: Sequence[tuple[Tensor, Tensor]]) -> Spread:
    """The Jaccard of a box in the middle of each image (truth, valid), of the size that has the highest mean."""
    tried = []
    for share in torch.arange(1, 21) / 20:
        scores = []
        for truth, valid in truths:
            inside = [(((torch.arange(n) + 0.5) / n * 2 - 1).abs() <= share) for n in truth.shape]
            scores.append(jaccard(inside[0][:, None] & inside[1], truth, valid).item())
        tried.append(Spread.of(scores))
    return max(tried, key=lambda s: s.mean)


def objects(sample: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(H, W) bool twice: where an object is, and what counts."""
    if "mask" not in sample:
        raise ValueError(f"a sample has {sorted(sample)}: a mask (H, W) of its objects is needed too")
    mask = sample["mask"]
    if mask.shape != sample["image"].shape[-2:]:
        raise ValueError(f"a mask {tuple(mask.shape)} for an image {tuple(sample['image'].shape)}: give one as large")
    return (mask > 0) & (mask != IGNORED), mask != IGNORED


# ------------------------------------------------------------------ images as encoders see them


def fitted(image: Tensor, size: int, step: int = 1, mean: Three = MEAN, std: Three = STD) -> Tensor:
    """The whole image, uint8 (3, H, W), as an encoder sees it: float32 (3, H', W').

    The shorter side becomes ``size``, the longer one as long as the image has it, both to the nearest multiple of
    ``step``, which makes nothing of the image fall beside the map.
    """
    shorter = min(image.shape[1:])
    return resized(image, [max(1, round(side * size / shorter / step)) * step for side in image.shape[1:]], mean, std)


def resized(image: Tensor, sides: Sequence[int], mean: Three = MEAN, std: Three = STD) -> Tensor:
    """The whole image, uint8 (3, H, W), as float32 (3, *sides), with antialiasing, normalised."""
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"an image is {image.dtype} {tuple(image.shape)}: uint8 (3, H, W) is needed")
    x = F.interpolate(image[None] / 255, tuple(sides), mode="bilinear", antialias=True, align_corners=False)[0]
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def thumbnail(image: Tensor, side: int) -> Tensor:
    """The whole image, uint8 (3, H, W), to be looked at: float32 in [0, 1], ``side`` pixels high."""
    H, W = image.shape[1:]
    return resized(image, (side, max(1, round(W * side / H))), (0, 0, 0), (1, 1, 1))


def patch(encoder: Encoder) -> int | None:
    """The side of a patch in pixels; None of a network without patches."""
    if isinstance(encoder, TransformerEncoder) and hasattr(encoder.embed, "patch"):
        return encoder.embed.patch  # type: ignore[return-value]
    if isinstance(encoder, Backbone) and _embed(encoder):
        return int(encoder.net.patch_embed.patch_size[0])
    return None


def step(encoder: Encoder, size: int) -> int:
    """The pixels between two places of the map of an image of ``size`` by ``size``: of patches their side."""
    if side := patch(encoder):
        return side
    with torch.no_grad(), resting(encoder):
        found = feature_map(encoder, torch.zeros(1, 3, size, size, device=device_of(encoder))).shape[-1]
    return max(1, size // found)


def enlarged(x: Tensor, size: Sequence[int], *, smooth: bool = False) -> Tensor:
    """Maps (K, h, w) as (K, *size): each place a block, or ``smooth``, bilinear; of bool bool, of others float."""
    wide = x[None].float()
    y = (
        F.interpolate(wide, tuple(size), mode="bilinear", align_corners=False)
        if smooth
        else F.interpolate(wide, tuple(size), mode="nearest-exact")
    )
    return y[0].bool() if x.dtype == torch.bool else y[0]
