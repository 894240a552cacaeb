"""What features are worth place by place: the class of every pixel, by a linear layer on maps.

Axes: B images, H W pixels, h w places of a map, D features, C classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.checkpoint import copied
from partwhole.core.data import Stream, as_it_is
from partwhole.core.encoder import Encoder, device_of, fresh
from partwhole.core.evaluate import settled
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.method import Batch, Method
from partwhole.core.norm import BatchNorm
from partwhole.core.probe import fingerprint
from partwhole.core.watch import Quiet, Steps, Watch
from partwhole.vision.maps import IGNORED, feature_map, fitted, resized, resting, step
from partwhole.vision.views import MEAN, STD, Three

Arm = Literal["commonest", "random", "scratch", "frozen", "finetune"]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """How features are measured on masks."""

    arms: tuple[Arm, ...] = ("commonest", "random", "scratch", "frozen")
    """commonest: every pixel is of the commonest class; random: a linear layer on a random network's features; scratch:
    a random network, all of it trained; frozen: on the pre-trained features; finetune: all of the pre-trained network
    trained."""
    draws: int = 3
    """How often each is measured, with other random networks, heads and orders."""
    size: int = 128
    """Side of what is seen of an image in training, and the shorter side in measuring, in pixels."""
    scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area that a crop has in training."""
    views: int = 4
    """Crops of each image that a linear layer alone is trained on: their features are made once."""
    steps: int = 300
    """Steps of training."""
    lr: float = 1e-3
    """Highest learning rate of the networks that are trained."""
    lr_linear: float = 1e-2
    """Highest learning rate of a linear layer alone."""
    batch: int = 16
    """Images of a step, at most as many as there are."""
    seed: int = 0
    """Of draws: the same for every encoder that is compared."""

    def __post_init__(self) -> None:
        for name in ("draws", "size", "views", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")


class Segment(Method):
    """The class of every pixel: a linear layer on the encoder's map, enlarged to the mask's size (bilinear).

    A BatchNorm before it makes features of any scale alike, as in DINOv2's head (Oquab et al., 2023). ``frozen``: the
    encoder is in eval mode, and gets no gradient.
    batch: ``x`` (B, 3, H, W), or its ``features`` (B, D, h, w), and ``mask`` (B, H', W') int64, 255 where it does not
    count.
    """

    def __init__(self, encoder: Encoder, *, classes: int, frozen: bool = False):
        super().__init__(encoder)
        self.classes, self.frozen = classes, frozen
        self.norm, self.head = BatchNorm(encoder.dim), nn.Linear(encoder.dim, classes)
        encoder.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> "Segment":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return feature_map(self.encoder, x)

    def logits(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, *size)."""
        rows = self.head(self.norm(features.movedim(1, -1))).movedim(-1, 1)  # linear, so it may come before enlarging
        return F.interpolate(
            rows.to(torch.promote_types(rows.dtype, torch.float32)), tuple(size), mode="bilinear", align_corners=False
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        mask = batch["mask"]
        if ((mask >= self.classes) & (mask != IGNORED)).any():
            raise ValueError(f"a mask has {mask.unique().tolist()}, where there are {self.classes} classes")
        count = (mask != IGNORED).sum()
        features = batch["features"] if "features" in batch else self.features(batch["x"])
        logits = self.logits(features, mask.shape[1:])
        loss = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="sum") / count.clamp(min=1)
        return {"loss": loss * distributed.share(count), "items": count}


@dataclass(frozen=True)
class Crop:
    """A random crop of an image and the same of its mask, mirrored or not: {"x" (3, S, S), "mask" (S, S)}."""

    size: int
    scale: tuple[float, float]
    mean: Three = MEAN
    std: Three = STD

    def __call__(self, sample: Any) -> dict[str, Tensor]:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        both = v2.Compose(
            [v2.RandomResizedCrop(self.size, scale=self.scale, antialias=True), v2.RandomHorizontalFlip()]
        )
        image, mask = both(tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["mask"]))
        x = resized(image.as_subclass(Tensor), (self.size, self.size), self.mean, self.std)
        return {"x": x, "mask": mask.as_subclass(Tensor)}


def segmentation(
    encoder: Encoder,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    classes: Sequence[str],
    options: Segmentation,
    watch: Watch | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    begun: Mapping[str, Any] | None = None,
    look: Callable[[str, int, Callable[[Any], Tensor]], Any] = lambda arm, draw, answer: None,
) -> dict[str, Any]:
    """Mean IoU over classes on the test images, for every arm.

    encoder: the pre-trained one; it is copied, never changed, and everything runs on its device.
    train, test: samples with "image" and "mask"; ``classes`` names the values of masks, from 0.
    keep, begun: is told the results so far, and brings those that an interrupted measurement kept.
    look: is given what an arm learned in a draw: sample -> the class of every pixel (H, W).
    Returns {"arms": {arm: [mean IoU of each draw]}, "iou": {arm: [[IoU of each class, None where it is neither there
    nor predicted] of each draw]}, "classes", "train", "test", "options", "of"}.
    """
    watch = watch or Quiet()
    if not len(train) or not len(test):
        raise ValueError(f"{len(train)} images to learn from and {len(test)} to measure on: one of each is needed")
    pixels, device = step(encoder, options.size), device_of(encoder)
    size = max(1, round(options.size / pixels)) * pixels
    results: dict[str, Any] = {
        "arms": {},
        "iou": {},
        "classes": list(classes),
        "train": len(train),
        "test": len(test),
        "options": json.loads(json.dumps(asdict(options))),
        "of": fingerprint(encoder),
    }
    if begun and {**begun, "arms": {}, "iou": {}} == results:
        results["arms"], results["iou"] = ({a: list(v) for a, v in begun[key].items()} for key in ("arms", "iou"))

    def put(arm: str, draw: int, answer: Callable[[Any], Tensor]) -> None:
        table = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        for sample in _each(test):
            table += confusion(answer(sample), sample["mask"], len(classes))
        each = iou(table)
        results["arms"].setdefault(arm, []).append(each[~each.isnan()].mean().item())
        results["iou"].setdefault(arm, []).append([None if v != v else v for v in each.tolist()])
        look(arm, draw, answer)
        keep(results)

    for arm in options.arms:
        draws = 1 if arm == "commonest" else options.draws
        for draw in range(len(results["arms"].get(arm, [])), draws):
            watch.say(f"segmentation, {arm}: draw {draw + 1} of {draws}")
            if arm == "commonest":
                best = _commonest(train, len(classes))
                put(arm, draw, lambda sample, best=best: torch.full_like(sample["mask"], best))
                continue
            seed, frozen = options.seed + draw, arm in ("random", "frozen")
            look_at = Crop(size, options.scale)
            start = copied(encoder) if arm in ("frozen", "finetune") else fresh(encoder, seed=seed)
            if arm == "random":
                torch.manual_seed(seed)
                start = settled(start, torch.stack([look_at(train[i])["x"] for i in range(min(16, len(train)))]))
            torch.manual_seed(seed)
            method = Segment(start, classes=len(classes), frozen=frozen).to(device)
            samples, view = (_featured(method, train, look_at, options), as_it_is) if frozen else (train, look_at)
            stream = Stream(samples, view, batch=min(options.batch, len(samples)), seed=seed)
            lr = options.lr_linear if frozen else options.lr
            how = Fit(steps=options.steps, lr=lr, weight_decay=0.01, seed=seed, device=str(device))
            fit(Run(method=method, stream=stream), how, watch=Steps(watch))

            def answer(sample: Any, method: Segment = method) -> Tensor:
                return predict(method, fitted(sample["image"], size, pixels), sample["mask"].shape)

            put(arm, draw, answer)
    return results


def _commonest(samples: Sequence[Any], classes: int) -> int:
    counts = torch.zeros(256, dtype=torch.int64)
    for sample in _each(samples):
        counts += torch.bincount(sample["mask"].flatten(), minlength=256)
    return int(counts[:classes].argmax())


@torch.no_grad()
def _featured(method: Segment, samples: Sequence[Any], look: Crop, options: Segmentation) -> list[dict[str, Tensor]]:
    """Crops of every sample, with their features in place of themselves."""
    out = []
    for start in range(0, options.views * len(samples), options.batch):
        part = range(start, min(start + options.batch, options.views * len(samples)))
        seen = [look(samples[i % len(samples)]) for i in part]
        features = method.features(torch.stack([s["x"] for s in seen]).to(device_of(method))).cpu()
        out += [{"features": f, "mask": s["mask"]} for f, s in zip(features, seen, strict=True)]
    return out


def _each(samples: Sequence[Any]) -> Any:
    return (samples[i] for i in range(len(samples)))


@torch.no_grad()
def predict(method: Segment, x: Tensor, size: Sequence[int]) -> Tensor:
    """The class of every pixel of an image x (3, H, W), at another size: ``size`` int64, on the CPU."""
    with resting(method):
        return method.logits(method.features(x[None].to(device_of(method))), size)[0].argmax(0).cpu()


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of class i (row) are taken for class j (column): (C, C) int64; those of 255 do not count."""
    counted = truth != IGNORED
    pairs = truth[counted] * classes + prediction[counted]
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def iou(table: Tensor) -> Tensor:
    """IoU of each class over all pixels of a ``confusion`` table, (C,) float64: VOC (Everingham et al., 2010).

    NaN where a class is neither there nor predicted.
    """
    both = table.diagonal().double()
    return both / (table.sum(0) + table.sum(1) - table.diagonal())
