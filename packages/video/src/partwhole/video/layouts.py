"""Videos whose objects are known, in the layouts of DAVIS, JHMDB and VIP.

Letters: N frames, H height, W width, K points of a body.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwhole.core.watch import Quiet, Watch
from partwhole.video import folder
from partwhole.video.clips import Clips
from partwhole.video.index import pictured
from partwhole.video.packets import BadVideo
from partwhole.video.readers import IGNORED, FolderVideo, MaskFolder

JOINTS = (
    "neck belly face right_shoulder left_shoulder right_hip left_hip right_elbow left_elbow right_knee left_knee "
    "right_wrist left_wrist right_ankle left_ankle"
).split()
Sample = dict[str, Any]


def davis(
    root: str | Path,
    split: str | None = None,
    *,
    year: int | None = None,
    binary: bool | None = None,
    fps: float = 24.0,
    watch: Watch | None = None,
) -> Clips:
    """Samples {"video", "masks"} of a folder with JPEGImages and Annotations, with or without folders of resolutions
    (480p before others) within them; masks are images of ids.

    split    which sequences: ImageSets/<year>/<split>.txt, such as "val", or a file with their names, or of a file with
             a pair of paths on every line, as DAVIS-2016 has them; None: ``sequences.txt`` where it is there, else all.
    year     of the split: 2016 or 2017, by default the latest that has it.
    binary   any value but 0 is object 1, as for DAVIS-2016; by default where the first mask is grey with 0 and 255
             alone, or the split is that of 2016.

    A sequence without a mask of its first frame is skipped; where later ones are missing they do not count.
    Raises BadVideo where no sequence is left.
    """
    root = Path(root)
    images, masks = _level(root / "JPEGImages"), _level(root / "Annotations")
    listed, year = _sequences(root, split, year)
    names = listed or sorted((p.name for p in images.iterdir() if p.is_dir() and p.name[0] != "."), key=folder.natural)
    if binary is None and year == 2016:
        binary = True

    def load(name: str) -> tuple[Sample, str]:
        return _with_masks(images / name, masks / name, name, fps, binary)

    return _clips(root, names, load, watch)


def vip(
    root: str | Path, split: str | None = "val", *, parts: str = "Category_ids", watch: Watch | None = None
) -> Clips:
    """Samples {"video", "masks"} of VIP (Zhou et al., 2018): videos of people with masks of their parts, in the folders
    Images and Annotations/<parts>, of the videos that lists/<split>_videos.txt names (None: all).

    ``parts``: "Category_ids" of 19 parts, "Instance_ids", or "Human_ids" of people. The frames are 25 apart in the
    films that they are from. Errors as ``davis``.
    """
    root = Path(root)
    images, masks = _there(root / "Images"), _there(root / "Annotations" / parts)
    names = sorted((p.name for p in images.iterdir() if p.is_dir() and p.name[0] != "."), key=folder.natural)
    if split is not None:
        names = _lines(_there(root / "lists" / f"{split}_videos.txt"))
    return _clips(root, names, lambda name: _with_masks(images / name, masks / name, name, 1.0, False), watch)


def jhmdb(root: str | Path, split: int | None = 1, *, test: bool = True, watch: Watch | None = None) -> Clips:
    """Samples {"video", "points", "visible"} of JHMDB (Jhuang et al., 2013), from its folders Rename_Images,
    joint_positions and splits: ``points`` (N, K, 2) float32 are x and y of the joints ``JOINTS`` in every frame, in
    pixels, where 0 is the middle of the first one; ``visible`` (N, K) bool, those within the frame.

    ``split``: 1, 2 or 3, of it the part to ``test`` on or the one to learn from; None: all. Errors as ``davis``.
    """
    root = Path(root)
    images, joints = _there(root / "Rename_Images"), _there(root / "joint_positions")
    if split is None:
        classes = sorted(p.name for p in images.iterdir() if p.is_dir() and p.name[0] != ".")
        names = [f"{c}/{p.name}" for c in classes for p in sorted((images / c).iterdir()) if p.is_dir()]
    else:
        names, lists = [], sorted(_there(root / "splits").glob(f"*_test_split{split}.txt"))
        if not lists:
            raise BadVideo(root / "splits", f"no *_test_split{split}.txt in it", "split is 1, 2 or 3, or None for all")
        for path in lists:
            rows = [line.split() for line in _lines(path)]
            kind = path.name.removesuffix(f"_test_split{split}.txt")
            names += [f"{kind}/{os.path.splitext(r[0])[0]}" for r in rows if r[1:] == ["2" if test else "1"]]

    def load(name: str) -> tuple[Sample, str]:
        pictures = folder.look(images / name)
        points = _joints(joints / name / "joint_positions.mat")
        told = pictures.lost
        if told:
            raise BadVideo(images / name, told, "its joints belong to all frames: put the images back")
        if len(points) > len(pictures.names):
            raise BadVideo(images / name, f"{len(pictures.names)} frames, and joints of {len(points)}", "put them back")
        if len(points) < len(pictures.names):  # the last frames of some clips were not annotated
            told = f"joints of {len(points)} of {len(pictures.names)} frames; the others are left out"
            pictures = folder.Pictures(pictures.folder, pictures.names[: len(points)], pictures.size)
        H, W = pictures.size
        visible = (points >= 0).all(-1) & (points[..., 0] <= W - 1) & (points[..., 1] <= H - 1)
        video = FolderVideo(pictures, name=name, fps=25.0)
        return {"video": video, "points": points, "visible": visible}, told

    return _clips(root, names, load, watch)


def read_annotated(root: str | Path, *, watch: Watch | None = None) -> Clips:
    """The samples of a folder in one of these layouts, known by the folders in it: of DAVIS and VIP the part ``val``
    where it has one, else all; of JHMDB the part to test on of its first split. Errors as ``davis``."""
    root = Path(root)
    if (root / "Rename_Images").is_dir():
        return jhmdb(root, watch=watch)
    if (root / "JPEGImages").is_dir():
        has = root.joinpath("ImageSets").is_dir() and any((root / "ImageSets").rglob("val.txt"))
        return davis(root, "val" if has else None, watch=watch)
    if (root / "Images").is_dir():
        return vip(root, "val" if (root / "lists" / "val_videos.txt").is_file() else None, watch=watch)
    found = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else "nothing"
    wanted = "JPEGImages and Annotations (DAVIS), Images and Annotations (VIP) or Rename_Images (JHMDB)"
    raise BadVideo(root, f"no layout of videos with truth that is known: {found}", f"name the folder with {wanted}")


# ------------------------------------------------------------------ inside


def _clips(root: Path, names: Sequence[str], load: Callable[[str], tuple[Sample, str]], watch: Watch | None) -> Clips:
    """The samples that can be used, and what is wrong with the others; every file is read once to know."""
    samples: list[Sample] = []
    kept: list[str] = []
    problems: list[tuple[str, str]] = []
    watch = watch or Quiet()
    for done, name in enumerate(names, 1):
        try:
            sample, told = load(name)
            samples.append(sample)
            kept.append(name)
            if told:
                problems.append((str(root / name), f"kept: {told}"))
        except BadVideo as error:
            problems.append((error.path, f"skipped: {name}: {error.found}; {error.do}"))
        watch.step(done, {"total": len(names), "failed": done - len(kept)})
    if not samples:
        first = f"; the first: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise BadVideo(root, f"none of {len(names)} sequences can be used{first}", "mend them, or give others")
    return Clips(samples, kept, problems=problems, key=_key(root, samples))


def _key(root: Path, samples: Sequence[Sample]) -> str:
    """Changes with any of the files."""
    state = hashlib.sha256(str(root.resolve()).encode())
    for sample in samples:
        pictures, masks = sample["video"].pictures, sample.get("masks")
        state.update(pictured(pictures.folder, pictures.names).stamp.encode())
        if masks is not None:
            state.update(pictured(masks.folder, [f for f in masks.files if f is not None]).stamp.encode())
        else:
            state.update(sample["points"].numpy().tobytes())
    return state.hexdigest()[:24]


def _with_masks(images: Path, masks: Path, name: str, fps: float, binary: bool | None) -> tuple[Sample, str]:
    """A sample, and what is missing of it."""
    pictures = folder.look(images)
    by_stem = {os.path.splitext(file)[0]: file for file in folder.listed(_there(masks))}
    files = [by_stem.get(os.path.splitext(file)[0]) for file in pictures.names]
    if files[0] is None:
        found = f"no mask of its first frame {pictures.names[0]}, among {len(by_stem)}"
        raise BadVideo(masks, found, "objects are followed from it: put it there, by the same name")
    if binary is None:
        binary = _two_greys(masks / files[0])
    truth = MaskFolder(masks, files, pictures.size, name=name, fps=fps, binary=binary)
    known = [i for i, file in enumerate(files) if file is not None]
    for i in known:
        values = truth.frames([i])
        if i == 0 and not ((values > 0) & (values < IGNORED)).any():
            raise BadVideo(masks / files[0], "no object in the mask of the first frame", "mark one there")
    told = [pictures.lost] if pictures.lost else []
    if len(known) < len(files):
        told.append(f"masks of {len(known)} of {len(files)} frames; the others are not counted")
    return {"video": FolderVideo(pictures, name=name, fps=fps), "masks": truth}, "; ".join(told)


def _two_greys(path: Path) -> bool:
    """Whether a mask is grey, or in colours, and has the values 0 and 255 alone: those of DAVIS-2016 are."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode != "P" and set(np.unique(np.asarray(image.convert("RGB"))).tolist()) <= {0, 255}
    except Exception:  # told by whoever reads it
        return False


def _joints(path: Path) -> Tensor:
    """(N, K, 2) float32 of a joint_positions.mat, which counts pixels from 1."""
    from scipy.io import loadmat

    try:
        x = np.asarray(loadmat(str(path), variable_names=["pos_img"])["pos_img"], np.float32)
    except Exception as error:  # whatever a reader throws at a broken file is a report about that file
        found = f"no joints that can be read ({type(error).__name__}: {error})"
        raise BadVideo(path, found, "unpack it again") from error
    if x.ndim != 3 or x.shape[:2] != (2, len(JOINTS)) or not np.isfinite(x).all():
        raise BadVideo(path, f"pos_img {x.shape}; expected (2, {len(JOINTS)}, frames), finite", "unpack it again")
    return torch.from_numpy(x.transpose(2, 1, 0).copy()) - 1


def _sequences(root: Path, split: str | None, year: int | None) -> tuple[list[str], int | None]:
    """Names of the sequences of a split, [] for all, and its year where it has one."""
    if split is None:
        plain = root / "sequences.txt"
        return (_lines(plain) if plain.is_file() else []), year
    sets = root / "ImageSets"
    places = [(2017, sets / "2017"), (2016, sets / "2016"), (2016, sets / "480p"), (None, sets)]
    for found, place in places:
        path = place / f"{split}.txt"
        if path.is_file() and year in (None, found):
            rows = [line.split()[0] for line in _lines(path)]
            return list(dict.fromkeys(Path(r).parent.name if "/" in r else r for r in rows)), found
    there = sorted(str(p.relative_to(sets).with_suffix("")) for p in sets.rglob("*.txt")) if sets.is_dir() else []
    wanted = f"{year}/{split}" if year else split
    raise BadVideo(sets, f"no split {wanted!r} (there are {', '.join(there) or 'none'})", "name one of them, or None")


def _level(place: Path) -> Path:
    """The folder of sequences: below that of a resolution, where there is one."""
    _there(place)
    return next((place / r for r in ("480p", "1080p", "Full-Resolution") if (place / r).is_dir()), place)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _there(path: Path) -> Path:
    if not path.exists():
        raise BadVideo(path, "it is not there", "name the folder in which the data set was unpacked")
    return path
