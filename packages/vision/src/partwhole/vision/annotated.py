"""Images with masks or boxes, read from the layouts of PASCAL VOC, COCO and PennFudan.

Axes: H W pixels, N objects. A box is left, top, right, bottom, in pixels from the image's corner.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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

    ``classes[label]`` names a label, of which 0 is the background. ``problems`` (path, what was found and what to do)
    were left out; every file is read once to know them.
    """

    def __init__(self, loads: Iterable[tuple[str, Load]], classes: Sequence[str]):
        self.classes = list(classes)
        self.loads: list[tuple[str, Load]] = []
        self.problems: list[tuple[str, str]] = []
        for name, load in loads:
            try:
                _checked(load(), len(self.classes))
            except Exception as error:  # whatever a decoder throws at a broken file is a report about that file
                self.problems.append((name, f"{type(error).__name__}: {error}; mend it, or leave it out"))
            else:
                self.loads.append((name, load))
        if not self.loads:
            raise ValueError(f"no image can be used: {self.problems[:3] or 'there is none'}")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.loads]

    def __len__(self) -> int:
        return len(self.loads)

    def __getitem__(self, i: Any) -> Sample:
        return self.loads[i][1]()

    def subset(self, indices: Iterable[int]) -> "Annotated":
        """Some of them, in this order; what was left out stays told."""
        new = Annotated.__new__(Annotated)
        new.classes, new.problems, new.loads = self.classes, self.problems, [self.loads[i] for i in indices]
        return new


def voc(root: str | Path, split: str = "train", *, what: Literal["mask", "boxes"] = "mask") -> Annotated:
    """A folder VOCdevkit/VOC2007 or its like: the images that ImageSets/{Segmentation,Main}/<split>.txt names.

    Borders of objects, 255 in its masks, do not count; "difficult" objects are ignored.
    """
    root = Path(root)
    listed = _there(root / "ImageSets" / ("Segmentation" if what == "mask" else "Main") / f"{split}.txt")
    names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]

    def load(name: str) -> Sample:
        image = _rgb(root / "JPEGImages" / f"{name}.jpg")
        if what == "mask":
            return {"image": image, "mask": _indices(root / "SegmentationClass" / f"{name}.png")}
        return {"image": image, **_voc_boxes(root / "Annotations" / f"{name}.xml")}

    return Annotated([(name, lambda name=name: load(name)) for name in names], [BACKGROUND, *VOC])


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


def coco(annotations: str | Path, images: str | Path) -> Annotated:
    """The images of a COCO file ``instances_*.json``, in the folder ``images``, with boxes; crowds are ignored."""
    told = json.loads(_there(Path(annotations)).read_text())
    if not isinstance(told, dict) or not {"images", "annotations", "categories"} <= told.keys():
        raise ValueError(f"{annotations} has no images, annotations and categories: take an instances_*.json of COCO")
    categories = sorted(told["categories"], key=lambda c: c["id"])
    label = {c["id"]: i for i, c in enumerate(categories, 1)}
    things: dict[Any, list[Mapping[str, Any]]] = {}
    for thing in told["annotations"]:
        things.setdefault(thing["image_id"], []).append(thing)

    def load(entry: Mapping[str, Any]) -> Sample:
        found = things.get(entry["id"], [])
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (t["bbox"] for t in found)]
        crowds = [bool(t.get("iscrowd", 0)) for t in found]
        image = _rgb(Path(images) / entry["file_name"])
        return {"image": image, **_boxes(boxes, [label[t["category_id"]] for t in found], crowds)}

    loads = [(str(entry["file_name"]), lambda entry=entry: load(entry)) for entry in told["images"]]
    return Annotated(loads, [BACKGROUND, *(c["name"] for c in categories)])


def pennfudan(root: str | Path, *, name: str = "person") -> Annotated:
    """A folder with images/<name>.jpg and masks/<name>.png, or names with _mask, in which object i has the value i.

    The mask is 1 where an object is; "instances" (H, W) keeps their numbers, and the boxes are those around them.
    """
    root = Path(root)
    images = sorted(p for p in _there(root / "images").iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))

    def load(path: Path) -> Sample:
        masks = [root / "masks" / f"{path.stem}{end}.png" for end in ("", "_mask")]
        instances = _indices(next((m for m in masks if m.exists()), masks[0]))
        boxes = []
        for i in instances.unique().tolist():
            if i:
                y, x = (instances == i).nonzero().unbind(1)
                boxes.append([x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1])
        found = _boxes(boxes, [1] * len(boxes), [False] * len(boxes))
        return {"image": _rgb(path), "mask": (instances > 0).long(), "instances": instances, **found}

    return Annotated([(path.name, lambda path=path: load(path)) for path in images], [BACKGROUND, name])


def _boxes(boxes: list[list[float]], labels: list[int], ignored: list[bool]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignored": torch.tensor(ignored, dtype=torch.bool),
    }


def _checked(sample: Sample, classes: int) -> None:
    """ValueError for what does not fit together."""
    size = sample["image"].shape[1:]
    if "mask" in sample:
        mask = sample["mask"]
        if mask.shape != size:
            raise ValueError(f"an image {tuple(size)} with a mask {tuple(mask.shape)}")
        if ((mask >= classes) & (mask != 255)).any():
            raise ValueError(f"a mask with {mask.unique().tolist()}, where there are {classes} classes")
    if "boxes" in sample:
        left, top, right, bottom = sample["boxes"].unbind(1)
        if not ((left < right) & (top < bottom)).all():
            raise ValueError("a box without an area")


def _rgb(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _indices(path: Path) -> Tensor:
    """The values of a mask, of a palette its indices: (H, W) int64."""
    from PIL import Image

    with Image.open(path) as image:
        values = np.array(image)
    if values.ndim != 2:
        raise ValueError(f"a mask of mode {image.mode}: one value a pixel is needed, as grey or as a palette")
    return torch.from_numpy(values.astype(np.int64))


def _there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is not there: is this another layout, or a folder above or below?")
    return path
