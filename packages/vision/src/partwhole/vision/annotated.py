"""Images with masks or boxes, read from the layouts of PASCAL VOC, COCO and PennFudan.

Axes: H W pixels, N objects. A box is left, top, right, bottom, in pixels from the image's corner.

Masks and boxes belong to the pixels as they are stored, so an image is not turned upright by its EXIF orientation.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from partwhole.core.watch import Quiet, Watch
from partwhole.vision.decode import decode
from partwhole.vision.images import LARGEST
from partwhole.vision.maps import IGNORED
from partwhole.vision.outlines import around, numbered, outline
from partwhole.vision.pack import sample

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
BACKGROUND = "background"
Sample = dict[str, Any]
Load = Callable[[], Sample]


class Annotated(Sequence):
    """Samples {"image" uint8 (3, H, W)} with a "mask" (H, W) int64, 255 where nothing counts; or with "boxes" (N, 4)
    float32, "labels" (N,) int64 and "ignored" (N,) bool, true where an object need not be found; or with all of them.
    Boxes that reach beyond the image are cut at its border. Where it is asked for and every object has a mask of its
    own, "masks" (N, H, W) bool holds them.

    ``classes[label]`` names a label, of which 0 is the background. ``problems`` (path, what was found and what to do)
    were left out; every file is read once to know them, and ``watch`` sees it.
    """

    def __init__(self, loads: Iterable[tuple[str, Load]], classes: Sequence[str], watch: Watch | None = None):
        self.classes = list(classes)
        self.loads: list[tuple[str, Load]] = []
        self.problems: list[tuple[str, str]] = []
        loads, watch = list(loads), watch or Quiet()
        for done, (name, load) in enumerate(loads, 1):
            try:
                _checked(load(), len(self.classes))
            except Exception as error:  # whatever a decoder throws at a broken file is a report about that file
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                self.problems.append((name, f"skipped: {kind}{error}; mend it, or leave it out"))
            else:
                self.loads.append((name, load))
            watch.step(done, {"total": len(loads)})
        if not self.loads:
            raise ValueError(f"no image can be used: {self.problems[:3] or 'there is none'}")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.loads]

    def __len__(self) -> int:
        return len(self.loads)

    def __getitem__(self, i: Any) -> Sample:
        return _checked(self.loads[i][1](), len(self.classes))

    def subset(self, indices: Iterable[int]) -> "Annotated":
        """Some of them, in this order; what was left out stays told."""
        new = Annotated.__new__(Annotated)
        new.classes, new.problems, new.loads = self.classes, self.problems, [self.loads[i] for i in indices]
        return new


def voc(
    root: str | Path,
    split: str = "train",
    *,
    what: Literal["mask", "boxes", "instances"] = "mask",
    watch: Watch | None = None,
) -> Annotated:
    """A folder VOCdevkit/VOC2007 or its like: the images that ImageSets/{Segmentation,Main}/<split>.txt names.

    Borders of objects, 255 in its masks, do not count; "difficult" objects are ignored. ``what``: "mask" of classes;
    "boxes"; "instances", the "masks" of SegmentationObject, each of the commonest class in it, with boxes around them.
    """
    root = Path(root)
    listed = _there(root / "ImageSets" / ("Main" if what == "boxes" else "Segmentation") / f"{split}.txt")
    names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]

    def load(name: str) -> Sample:
        image = _rgb(root / "JPEGImages" / f"{name}.jpg")
        if what == "boxes":
            return {"image": image, **_voc_boxes(root / "Annotations" / f"{name}.xml")}
        mask = _indices(root / "SegmentationClass" / f"{name}.png")
        if what == "mask":
            return {"image": image, "mask": mask}
        masks = numbered(_indices(root / "SegmentationObject" / f"{name}.png"))
        if masks.shape[1:] != mask.shape:
            raise ValueError(f"masks of objects {tuple(masks.shape[1:])} and of classes {tuple(mask.shape)}")
        labels = [int(mask[one].mode().values) for one in masks]
        if not all(0 < label <= len(VOC) for label in labels):
            raise ValueError(f"objects of the classes {labels} by SegmentationClass, which are 1 to {len(VOC)}")
        return {"image": image, "masks": masks, **_boxes(around(masks), labels, [False] * len(masks))}

    return Annotated([(name, lambda name=name: load(name)) for name in names], [BACKGROUND, *VOC], watch)


def _voc_boxes(path: Path) -> dict[str, Tensor]:
    from xml.etree import ElementTree

    boxes, labels, ignored = [], [], []
    for thing in ElementTree.parse(path).getroot().iter("object"):
        name, box = thing.findtext("name", "").strip(), thing.find("bndbox")
        if name not in VOC or box is None:
            raise ValueError(f"an object {name!r}: expected a bndbox and one of {', '.join(VOC)}")
        left, top, right, bottom = (float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append([left - 1, top - 1, right, bottom])  # its pixels count from 1, and the last one is inside
        labels.append(1 + VOC.index(name))
        ignored.append(thing.findtext("difficult", "0").strip() == "1")
    return _boxes(boxes, labels, ignored)


def coco(
    annotations: str | Path, images: str | Path, *, instances: bool = False, watch: Watch | None = None
) -> Annotated:
    """The images of a COCO file ``instances_*.json``, in the folder ``images``, with boxes; crowds are ignored.

    Where all objects have outlines there is a mask of classes too, in which a smaller object lies upon a larger one,
    and a crowd does not count; and with ``instances`` the masks of objects.
    """
    try:
        told = json.loads(_there(Path(annotations)).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{annotations} is no JSON ({error}): download it again") from error
    if not isinstance(told, dict) or not {"images", "annotations", "categories"} <= told.keys():
        raise ValueError(f"{annotations} has no images, annotations and categories: take an instances_*.json of COCO")
    categories = sorted(told["categories"], key=lambda c: c["id"])
    label = {c["id"]: i for i, c in enumerate(categories, 1)}
    things: dict[Any, list[Mapping[str, Any]]] = {}
    for thing in told["annotations"]:
        things.setdefault(thing["image_id"], []).append(thing)
    outlined = bool(told["annotations"]) and all(thing.get("segmentation") for thing in told["annotations"])

    def load(entry: Mapping[str, Any]) -> Sample:
        found = things.get(entry["id"], [])
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (t["bbox"] for t in found)]
        labels = _boxes(boxes, [label[t["category_id"]] for t in found], [bool(t.get("iscrowd", 0)) for t in found])
        image = _rgb(Path(images) / entry["file_name"])
        if not outlined:
            return {"image": image, **labels}
        H, W = image.shape[1:]
        if (H, W) != (entry.get("height", H), entry.get("width", W)):
            raise ValueError(f"an image {(H, W)}, said to be {(entry['height'], entry['width'])}")
        masks = torch.stack([torch.zeros(H, W, dtype=torch.bool), *(outline(t["segmentation"], H, W) for t in found)])
        mask = torch.zeros(H, W, dtype=torch.int64)
        for i in masks[1:].flatten(1).sum(1).argsort(descending=True).tolist():
            mask[masks[1 + i]] = IGNORED if labels["ignored"][i] else labels["labels"][i]
        return {"image": image, "mask": mask, **({"masks": masks[1:]} if instances else {}), **labels}

    loads = [(str(entry["file_name"]), lambda entry=entry: load(entry)) for entry in told["images"]]
    return Annotated(loads, [BACKGROUND, *(c["name"] for c in categories)], watch)


def pennfudan(
    root: str | Path, *, name: str = "person", instances: bool = False, watch: Watch | None = None
) -> Annotated:
    """A folder with images/<name>.jpg and masks/<name>.png, or names with _mask, in which object i has the value i; or
    with PNGImages and PedMasks, as it is published.

    The mask is 1 where an object is, the boxes are those around them; with ``instances`` there are masks of objects.
    """
    root = Path(root)
    published = (root / "PNGImages").is_dir()
    images, masks = (root / part for part in (("PNGImages", "PedMasks") if published else ("images", "masks")))
    paths = sorted(p for p in _there(images).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))

    def load(path: Path) -> Sample:
        beside = [masks / f"{path.stem}{end}.png" for end in ("", "_mask")]
        numbers = _indices(next((m for m in beside if m.exists()), beside[0]))
        each = numbered(numbers, but=())
        found = _boxes(around(each), [1] * len(each), [False] * len(each))
        image = {"image": _rgb(path), "mask": (numbers > 0).long()}
        return {**image, **({"masks": each} if instances else {}), **found}

    return Annotated([(path.name, lambda path=path: load(path)) for path in paths], [BACKGROUND, name], watch)


# ------------------------------------------------------------------ a folder of any layout


LAYOUTS = {
    "PennFudan": "images/ and masks/, or PNGImages/ and PedMasks/",
    "VOC": "JPEGImages/ and ImageSets/",
    "COCO": "annotations.json and images/, or annotations/instances_train*.json with a folder of that name",
}


class Halves(NamedTuple):
    """Images to learn from, and to measure on, of which there may be none."""

    train: Annotated
    test: Annotated


@dataclass(frozen=True)
class Parts:
    """What an annotated set has."""

    layout: str
    masks: Halves | None
    """With masks; None where it has none."""
    boxes: Halves | None
    """With boxes; None where it has none."""
    told: str
    """How the halves were made."""
    whole: bool = False
    """They were one, so that what needs no training may be measured on both."""

    @property
    def problems(self) -> list[tuple[str, str]]:
        halves = [half for pair in (self.masks, self.boxes) if pair is not None for half in pair]
        return list(dict.fromkeys(one for half in halves for one in half.problems))


def layout(root: str | Path) -> tuple[str, Path]:
    """The name of the layout of a folder, or of the one folder in it that has one, and that folder.

    ValueError, with what was looked for, where there is none.
    """
    root = Path(root)
    within = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if kind := _kind(root):
        return kind, root
    found = [(kind, p) for p in within if (kind := _kind(p))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{root} has several annotated sets: give one of {', '.join(str(p) for _, p in found)}")
    here = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "it is no folder"
    looked = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    raise ValueError(
        f"{root} is no set of annotated images that is known. Looked there, and in the folders in it, for {looked}. "
        f"Found: {here or 'nothing'}"
    )


def _kind(root: Path) -> str | None:
    if (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir():
        return "VOC"
    if (root / "annotations.json").is_file() or list(root.glob("annotations/instances_train*.json")):
        return "COCO"
    pairs = (("images", "masks"), ("PNGImages", "PedMasks"))
    return "PennFudan" if any(all((root / part).is_dir() for part in pair) for pair in pairs) else None


def parts(
    root: str | Path, *, test: float = 0.3, seed: int = 0, instances: bool = False, watch: Watch | None = None
) -> Parts:
    """An annotated set of any ``layout``, in halves: its own, else the share ``test`` by ``seed`` is to measure on.

    ``instances``: boxes come with the "masks" of their objects, where the set has them; those of VOC, which has them of
    fewer images, are then of these.

    Of VOC, those are "trainval" and "test" where the second is annotated, else "train" and "val"; of COCO, the files
    instances_train*.json and instances_val*.json.
    """
    kind, root = layout(root)
    if kind == "VOC":
        return _parts_of_voc(root, instances and (root / "SegmentationObject").is_dir(), watch)
    alone = root / "annotations.json"
    if kind == "PennFudan":
        found = pennfudan(root, instances=instances, watch=watch)
    elif alone.exists():
        images = root / "images" if (root / "images").is_dir() else root
        found = coco(alone, images, instances=instances, watch=watch)
    else:
        files = [sorted(root.glob(f"annotations/instances_{part}*.json")) for part in ("train", "val")]
        if not files[1]:
            raise ValueError(f"{files[0][0]} has no instances_val*.json beside it to measure on")
        named = [one[0] for one in files]
        folders = [root / f.stem.removeprefix("instances_") for f in named]
        pair = Halves(*(coco(*at, instances=instances, watch=watch) for at in zip(named, folders, strict=True)))
        if pair.train.classes != pair.test.classes:
            raise ValueError(f"{named[0]} and {named[1]} have other categories: give both the same list of them")
        return Parts(kind, _with("mask", pair), pair, f"its own parts, {named[0].stem} and {named[1].stem}")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, round(test * len(found)))
    pair = Halves(found.subset(sorted(order[count:])), found.subset(sorted(order[:count])))
    told = f"{count} of {len(found)} images, chosen by the seed {seed}, are to measure on"
    return Parts(kind, _with("mask", pair), pair, told, whole=True)


def _parts_of_voc(root: Path, instances: bool, watch: Watch | None) -> Parts:
    def halves(lists: str, what: Literal["mask", "boxes", "instances"], beside: str) -> tuple[Halves, str] | None:
        for names in (("trainval", "test"), ("train", "val")):
            files = [root / "ImageSets" / lists / f"{name}.txt" for name in names]
            if not all(f.exists() for f in files):
                continue
            first = next(iter(files[1].read_text().split()), "")
            if names[1] == "val" or list((root / beside).glob(f"{first}.*")):  # tests were published without answers
                return Halves(*(voc(root, name, what=what, watch=watch) for name in names)), " and ".join(names)
        return None

    masks = halves("Segmentation", "mask", "SegmentationClass")
    boxes = halves("Segmentation", "instances", "SegmentationObject") if instances else None
    boxes = boxes or halves("Main", "boxes", "Annotations")
    if masks is None and boxes is None:
        raise ValueError(f"{root / 'ImageSets'} has neither Segmentation/train.txt and val.txt, nor Main/train.txt ...")
    told = ", ".join(f"{what} {found[1]}" for what, found in (("masks", masks), ("boxes", boxes)) if found)
    return Parts("VOC", masks and masks[0], boxes and boxes[0], f"its own parts ({told})")


def _with(key: str, halves: Halves) -> Halves | None:
    return halves if all(key in half[0] for half in halves if len(half)) else None


# ------------------------------------------------------------------ inside


def _boxes(boxes: list[list[float]], labels: list[int], ignored: list[bool]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignored": torch.tensor(ignored, dtype=torch.bool),
    }


def _checked(sample: Sample, classes: int) -> Sample:
    """The sample, its boxes within the image; ValueError for what does not fit together."""
    size = sample["image"].shape[1:]
    if "mask" in sample:
        mask = sample["mask"]
        if mask.shape != size:
            raise ValueError(f"an image {tuple(size)} with a mask {tuple(mask.shape)}")
        if ((mask >= classes) & (mask != IGNORED)).any() or (mask < 0).any():
            raise ValueError(f"a mask with {mask.unique().tolist()}, where there are {classes} classes")
    if "boxes" not in sample:
        return sample
    boxes, (H, W) = sample["boxes"], size
    if "masks" in sample and sample["masks"].shape != (len(boxes), H, W):
        raise ValueError(f"{len(boxes)} objects in an image {(H, W)} with masks {tuple(sample['masks'].shape)}")
    if not ((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])).all():
        raise ValueError("a box without an area")
    inside = torch.minimum(boxes.clamp(min=0), torch.tensor([W, H, W, H], dtype=boxes.dtype))
    if not ((inside[:, 0] < inside[:, 2]) & (inside[:, 1] < inside[:, 3])).all():
        raise ValueError(f"a box outside the image, of {H} by {W}: {boxes.tolist()}")
    return {**sample, "boxes": inside}


def _rgb(path: Path) -> Tensor:
    return sample(decode(_there(path).read_bytes(), path.name, largest=LARGEST, upright=False))["image"]


def _indices(path: Path) -> Tensor:
    """The values of a mask, of a palette its indices: (H, W) int64."""
    from PIL import Image

    with Image.open(_there(path)) as image:
        if image.width * image.height > LARGEST:
            raise ValueError(f"a mask of {image.width} x {image.height} pixels, more than {LARGEST}")
        values = np.array(image)
    if values.ndim != 2:
        raise ValueError(f"a mask of mode {image.mode}: one value a pixel is needed, as grey or as a palette")
    return torch.from_numpy(values.astype(np.int64))


def _there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is not there: is this another layout, or a folder above or below?")
    return path
