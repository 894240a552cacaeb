"""What features are worth on images with masks or boxes, as a part of a run's evaluation and page.

Attention against true masks, classes of pixels, objects found. Each result is kept as soon as it is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from partwhole.core import files
from partwhole.core.checkpoint import load_encoder
from partwhole.core.data import some
from partwhole.core.encoder import Encoder, device_of, fresh
from partwhole.core.fit import NonFinite
from partwhole.core.probe import Classes, fingerprint
from partwhole.core.watch import Steps, Watch
from partwhole.vision.annotated import BACKGROUND, Annotated, Halves, Parts, layout, parts
from partwhole.vision.detection import Detection, detection
from partwhole.vision.draw import boxed, painted, png, stacked
from partwhole.vision.maps import attention, enlarged, jaccard_of, objects, step, thumbnail
from partwhole.vision.pictures import masks_picture
from partwhole.vision.precision import Found
from partwhole.vision.segmentation import Segmentation, segmentation

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe

What = Literal["jaccard", "segmentation", "detection"]
SHOWN = 4  # images in a picture
SIDE = 160  # pixels of their height
SCENES = (100, 50)  # generated ones that are learned from and measured on


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How masks of attention are compared with true ones."""

    size: int = 224
    """Shorter side of an image as the network sees it, in pixels."""
    mass: float = 0.6
    """Share of the attention that a mask holds."""
    draws: int = 3
    """Random networks."""

    def __post_init__(self) -> None:
        for name in ("size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is a share of the attention, above 0 and at most 1, and is {self.mass}")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What is measured on annotated images."""

    what: tuple[What, ...] = ("jaccard", "segmentation", "detection")
    """jaccard: masks of attention against true ones; segmentation: the class of every pixel; detection: boxes,
    and with its ``masks`` those of objects."""
    beside: tuple[Path, ...] = ()
    """Folders of other runs, such as a supervised one, whose attention is measured beside."""
    test: float = 0.3
    """Share of the images that is measured on, where a set has no parts of its own."""
    seed: int = 0
    """Of that choice."""
    jaccard: Attention = Attention()
    segmentation: Segmentation = Segmentation()
    detection: Detection = Detection()

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise ValueError(f"test is a share of the images, above 0 and below 1, and is {self.test}")


def check(recipe: "ImageRecipe") -> None:
    """ValueError or FileNotFoundError, before any training, where what is to be measured on is not there."""
    if recipe.annotated is not None:
        layout(recipe.annotated)
        for folder in recipe.transfer.beside:
            load_encoder(folder)


def annotated(recipe: "ImageRecipe", classes: Classes | None, watch: Watch) -> tuple[str, Parts, Transfer] | None:
    """The name of the annotated images, they, and what is measured on them; None where there are none.

    Where images and labels are generated their own masks serve, for what takes little time.
    """
    options = recipe.transfer
    if recipe.annotated is not None:
        watch.say(f"reading the annotated images of {recipe.annotated}")
        masks = options.detection.masks and "detection" in options.what
        found = parts(recipe.annotated, test=options.test, seed=options.seed, instances=masks, watch=Steps(watch))
        for path, reason in found.problems:
            watch.say(f"{path}: {reason}")
        return str(recipe.annotated), found, options
    quick = tuple(kind for kind in options.what if kind != "detection")
    if recipe.data or recipe.labelled is not None or classes is None or not quick:
        return None
    halves = Halves(*(_scenes(half, n) for half, n in zip((classes.train, classes.test), SCENES, strict=True)))
    small: dict[str, Any] = {
        "what": quick,
        "jaccard": replace(options.jaccard, size=recipe.size),
        "segmentation": replace(
            options.segmentation,
            size=recipe.size,
            arms=tuple(arm for arm in options.segmentation.arms if arm in ("commonest", "random", "frozen")),
        ),
    }
    return "generated scenes", Parts("scenes", halves, None, "of the labelled scenes"), replace(options, **small)


def _scenes(samples: Sequence[Any], count: int) -> Annotated:
    def load(i: int) -> dict[str, Tensor]:
        return {"image": samples[i]["image"], "mask": (samples[i]["mask"] > 0).long()}

    loads = [(str(i), lambda i=i: load(i)) for i in range(min(count, len(samples)))]
    return Annotated(loads, [BACKGROUND, "object"])


# ------------------------------------------------------------------ measured


def transfer(
    encoder: Encoder,
    found: Parts,
    options: Transfer,
    folder: Path,
    *,
    name: str,
    watch: Watch,
    keep: Callable[[dict[str, Any]], None],
    begun: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that ``options`` ask, and pictures in ``folder``/transfer.

    keep, begun: is told the results so far, and brings those that an interrupted measurement kept. What was measured
    before on the same images with the same weights, and is not asked now, stays.
    Returns {"of", "set", "notes", "jaccard", "segmentation", "detection"}; what cannot be measured is among the notes.
    """
    pairs = {kind: found.boxes if kind == "detection" else found.masks for kind in ("segmentation", "detection")}
    told = {
        "name": name,
        "layout": found.layout,
        "divided": found.told,
        "problems": [list(one) for one in found.problems],
        **{kind: {"train": len(p.train), "test": p.test.names} for kind, p in pairs.items() if p is not None},
    }
    results: dict[str, Any] = {"of": fingerprint(encoder), "set": told, "notes": []}
    if begun.get("of") == results["of"] and begun.get("set") == told:
        results |= {kind: begun[kind] for kind in ("jaccard", "segmentation", "detection") if kind in begun}
    these = _Measurements(encoder, found.whole, options, folder / "transfer", watch, results, keep)
    for kind, measure in {
        "jaccard": these.attention, "segmentation": these.segmentation, "detection": these.detection
    }.items():  # fmt: skip
        if kind not in options.what:
            continue
        pair = found.boxes if kind == "detection" else found.masks
        try:
            if pair is None:
                raise ValueError(f"{name} has no {'boxes' if kind == 'detection' else 'masks'}")
            these.put(kind, measure(pair, results.pop(kind, {})))
        except (ValueError, NonFinite) as error:  # one measurement of several
            results["notes"].append(f"{kind} was not measured: {error}")
            watch.say(results["notes"][-1])
    keep(results)
    return results


@dataclass(frozen=True)
class _Measurements:
    """What the measurements of one call of ``transfer`` share; each is given the images and what it found before."""

    encoder: Encoder
    whole: bool  # attention, which learns nothing, is seen on both halves
    options: Transfer
    folder: Path  # of pictures
    watch: Watch
    results: dict[str, Any]
    keep: Callable[[dict[str, Any]], None]

    def put(self, kind: str, measured: dict[str, Any]) -> None:
        self.results[kind] = measured
        self.keep(self.results)

    def write(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write(self.folder / f"{name}.png", lambda file: file.write(data))

    def attention(self, pair: Halves, old: Mapping[str, Any]) -> dict[str, Any]:
        how, encoder, device = self.options.jaccard, self.encoder, device_of(self.encoder)
        samples = _both(pair) if self.whole else pair.test
        _attends(encoder, how.size)
        others, notes = {}, []
        for path in self.options.beside:
            try:
                other = load_encoder(path).to(device)
                _attends(other, how.size)
                others[path.name if path.name not in others else str(path)] = other
            except (ValueError, OSError) as error:
                notes.append(f"{path} is left out: {error}")
        measured: dict[str, Any] = {
            "options": asdict(how),
            "beside": {name: fingerprint(other) for name, other in others.items()},
            "images": len(samples),
            "notes": notes,
            "rows": {},
            "shown": "",
        }
        if old and {**old, "rows": {}, "shown": ""} == measured:
            return dict(old)
        self.watch.say(f"attention of {2 + len(others)} networks on {len(samples)} images")
        table = jaccard_of(
            encoder, samples, beside=others, size=how.size, mass=how.mass, draws=how.draws, watch=Steps(self.watch)
        )
        measured["rows"] = {row: {column: asdict(s) for column, s in cells.items()} for row, cells in table.items()}
        with_objects = [s for s in some(samples, 4 * SHOWN) if objects(s)[0].any()][:SHOWN]
        if with_objects:
            networks = {"this run": encoder, **others, "a random network": fresh(encoder, seed=0)}
            picture = masks_picture(networks, with_objects, size=how.size, mass=how.mass, side=SIDE)
            self.write("jaccard", picture.png)
            measured["shown"] = picture.caption
        return measured

    def segmentation(self, pair: Halves, old: Mapping[str, Any]) -> dict[str, Any]:
        shown = some(pair.test, SHOWN)

        def sheet(name: str, answer: Callable[[Any], Tensor]) -> None:
            photos = [thumbnail(s["image"], SIDE) for s in shown]
            masks = [enlarged(answer(s)[None], p.shape[1:])[0].long() for s, p in zip(shown, photos, strict=True)]
            self.write(f"segmentation-{name}", png([[painted(p, m)] for p, m in zip(photos, masks, strict=True)]))

        sheet("truth", lambda sample: sample["mask"])
        return segmentation(
            self.encoder, pair.train, pair.test, classes=pair.train.classes, options=self.options.segmentation,
            watch=self.watch, keep=partial(self.put, "segmentation"), begun=old,
            look=lambda arm, draw, answer: draw or sheet(arm, answer),
        )  # fmt: skip

    def detection(self, pair: Halves, old: Mapping[str, Any]) -> dict[str, Any]:
        shown = some(pair.test, SHOWN)

        def sheet(name: str, answer: Callable[[Any], Found]) -> None:
            rows = []
            for sample in shown:
                photo, one = thumbnail(sample["image"], SIDE), answer(sample)
                count = int((~sample["ignored"]).sum())  # no least score: those of a short training are low
                sure = one.scores.argsort(descending=True, stable=True)[:count]
                boxes, tints = one.boxes[sure] * (photo.shape[2] / sample["image"].shape[2]), one.labels[sure]
                if one.masks is not None:
                    tints = torch.arange(1, 1 + len(boxes))  # of each object its own, as masks touch
                    photo = painted(photo, enlarged(stacked(one.masks[sure])[None], photo.shape[1:])[0].long())
                rows.append([boxed(photo, boxes, tints)])
            self.write(f"detection-{name}", png(rows))

        sheet("truth", lambda s: Found(s["boxes"], s["labels"], (~s["ignored"]).float(), s.get("masks")))
        return detection(
            self.encoder, pair.train, pair.test, classes=pair.train.classes, options=self.options.detection,
            watch=self.watch, keep=partial(self.put, "detection"), begun=old,
            look=lambda arm, draw, answer: draw or sheet(arm, answer),
        )  # fmt: skip


def _both(pair: Halves) -> Annotated:
    new = pair.test.subset(range(len(pair.test)))
    new.loads = sorted([*pair.train.loads, *pair.test.loads], key=lambda one: one[0])
    return new


def _attends(encoder: Encoder, size: int) -> None:
    """ValueError where no attention can be seen."""
    pixels = step(encoder, size)
    side = max(1, round(size / pixels)) * pixels
    attention(encoder, torch.zeros(1, 3, side, side, device=device_of(encoder)))
