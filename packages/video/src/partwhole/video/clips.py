"""Videos as a sequence of samples: files, folders of files, folders of frames."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from partwhole.core import files
from partwhole.core.watch import Quiet, Watch
from partwhole.video.backends import ReaderName, usable
from partwhole.video.folder import Pictures
from partwhole.video.index import VERSION, Entry, Index, find
from partwhole.video.packets import BadVideo
from partwhole.video.readers import FileVideo, FolderVideo, Video


class Clips(Sequence):
    """A sequence of samples {"video": Video}, with "masks" and other keys where they came with them.

    ``names`` says where each came from, ``problems`` (path, reason) what is wrong, where a reason begins with "skipped"
    or "kept"; ``key`` changes with the videos, for what is made of them and kept. A sample is small: its frames are
    read when they are asked for.
    """

    def __init__(
        self, samples: Sequence[Any], names: Sequence[str], *, problems: Sequence[tuple[str, str]] = (), key: str = ""
    ):
        self.samples, self.names, self.problems, self.key = samples, list(names), list(problems), key

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.samples[i] for i in range(*index.indices(len(self)))]
        return self.samples[range(len(self))[index]]

    def subset(self, indices: Iterable[int]) -> "Clips":
        """The clips of ``indices`` alone, in that order; problems stay what they are."""
        chosen = [range(len(self))[i] for i in indices]
        key = hashlib.sha256(f"{self.key} {chosen}".encode()).hexdigest()[:24]
        return Clips(_Chosen(self.samples, chosen), [self.names[i] for i in chosen], problems=self.problems, key=key)

    def told(self, most: int = 10) -> list[str]:
        """Lines for a person: what was skipped and why, at most so many; what was kept all the same comes last."""
        order = sorted(self.problems, key=lambda problem: not problem[1].startswith("skipped"))
        lines = [f"{path}: {reason}" for path, reason in order[:most]]
        return lines + ([f"and {len(order) - most} more"] if len(order) > most else [])


def read_clips(
    paths: str | Path | Iterable[str | Path],
    *,
    reader: ReaderName = "auto",
    least: int = 1,
    fps: float = 25.0,
    cache: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Clips:
    """All videos of files and folders: .mp4 .avi .mkv .webm .mov and their like, and every folder with images directly
    in it, whose frames they are.

    reader   what decodes files: "auto" takes, for each, the fastest that is right for it.
    least    frames that a video must have; shorter ones are skipped.
    fps      frames per second of folders of frames, which do not say it.
    cache    folder where is kept what is found, so that the second time takes no decoding.
    limit    only so many of the videos, chosen at random by ``seed`` before any is looked at.
    workers  processes that look at videos; all cores by default.  ``watch`` is told how far the work is.

    Each video is looked at once: of files all packets are read and both ends decoded, of folders all images. Broken
    ones are skipped and told in ``.problems``; of one that is cut off, what can be read is kept, and told.
    Raises BadVideo where none is left.
    """
    usable(reader)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[Entry] = []
    problems: list[tuple[str, str]] = []
    for path in given:
        entries, more = find(path)
        found += entries
        problems += more
    found = list({e.stamp: e for e in found}.values())
    if limit is not None and limit < len(found):
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:limit]
        found = [found[i] for i in sorted(chosen.tolist())]
    index = Index(None)
    if cache is not None:
        roots = sorted(str(Path(p).resolve()) for p in given)
        about = f"{VERSION} {reader} {limit} {0 if limit is None else seed} {roots}"
        index = Index(Path(cache) / "videos" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.videos")
    try:
        index.add(found, reader, workers, watch or Quiet())
    except files.NotSaved as error:
        cause = error.__cause__ or error
        reason = f"kept: the cache cannot be written ({cause}); videos are looked at in every run. Free some space or "
        problems.append((str(cache), f"{reason}name another cache"))
        index.path = None
        index.add(found, reader, workers, watch or Quiet())
    good = []
    for entry in found:
        row = index.rows[entry.stamp]
        if "bad" in row:
            problems.append((entry.path, f"skipped: {'; '.join(row['bad'])}"))
            continue
        count = len(row["about"]["names"]) if entry.folder else row["shapes"][1][0]
        if count < least:
            problems.append((entry.path, f"skipped: {count} frames, and {least} are needed; give longer ones"))
            continue
        if row["about"]["lost"]:
            problems.append((entry.path, f"kept: {row['about']['lost']}; the other {count} are used"))
        if reader not in ("auto", row.get("reader", reader)):
            problems.append((entry.path, f"kept: it is read by {row['reader']}; {row['why']}"))
        good.append(entry)
    if not good:
        first = f"; the first: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise BadVideo(", ".join(map(str, given)), f"none of {len(found)} videos can be used{first}", "give others")
    key = hashlib.sha256("\n".join(f"{e.stamp} {index.rows[e.stamp].get('reader')}" for e in good).encode())
    return Clips(_Found(good, index, fps), [e.path for e in good], problems=problems, key=key.hexdigest()[:24])


# ------------------------------------------------------------------ inside


class _Found(Sequence):
    def __init__(self, entries: list[Entry], known: Index, fps: float):
        self.entries, self.known, self.fps = entries, known, fps

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: Any) -> dict[str, Any]:
        entry = self.entries[i]
        row = self.known.rows[entry.stamp]
        video: Video
        if entry.folder:
            about = row["about"]
            pictures = Pictures(about["folder"], tuple(about["names"]), tuple(about["size"]), about["lost"])
            video = FolderVideo(pictures, fps=self.fps)
        else:
            video = FileVideo(entry.path, self.known.packets(entry.stamp), reader=row["reader"], why=row["why"])
        return {"video": video}


class _Chosen(Sequence):
    def __init__(self, samples: Any, places: list[int]):
        if isinstance(samples, _Chosen):
            samples, places = samples.samples, [samples.places[i] for i in places]
        self.samples, self.places = samples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[self.places[index]]
