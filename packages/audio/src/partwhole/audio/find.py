"""Which sound files a path names, and what is told of each: its class, its speaker, its part of the set."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from partwhole.audio.decode import BadSound, is_sound

Split = Literal["train", "test", "unlabelled"]
INDEX = "index.jsonl"
FSDD = re.compile(r"(\d)_([a-z]+)_(\d+)$")  # digit, speaker, number: the free spoken digit data set
COMMANDS = re.compile(r"([0-9a-f]{8})_nohash_\d+$")  # speaker, number: Speech Commands
OFFICIAL = 5  # FSDD's test part: the first so many recordings of a speaker and digit
PARTS = (("train", "train"), ("test", "test"), ("val", "test"), ("valid", "test"), ("dev", "test"),
         ("unlabelled", "unlabelled"), ("unlabeled", "unlabelled"))  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file and what is told of it."""

    file: Path
    name: str
    label: str | None = None
    speaker: str | None = None
    split: str | None = None


def find(path: str | Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The sounds of a file, or of a folder in one of these orders; and what is wrong, (path, reason).

    ``index.jsonl`` in it, or in one of its folders: a line {"file", "label", "speaker", "split"} for each sound, all
    but the file optional. Files named as FSDD's, ``{digit}_{speaker}_{number}``: its official parts. Else folders:
    first those of the parts (train, test or val, unlabelled), if there are any, then a folder for each class; one
    alone, or none, is no class. BadSound where there is no sound.
    """
    root = Path(path)
    if root.is_file() and root.name != INDEX:
        return [Entry(root, root.name)], []
    if not root.exists():
        raise BadSound(root, "there is no such file or folder", "correct the path")
    listed = root if root.is_file() else _listed(root)
    found, problems = _indexed(listed) if listed else (_ordered(root), [])
    if not found:
        raise BadSound(root, "no sound files in it", "give a folder of wav, flac, ogg, mp3 or m4a files")
    return found, problems


def chosen(entries: Sequence[Entry], split: Split | None, held_out: Sequence[str] = ()) -> list[Entry]:
    """The entries of a part: "train", "test", or "unlabelled", which is train and what has no label; None: all.

    ``held_out``: speakers whose sounds are the test part, and nothing else is. Anything is "train" where no part is
    told. BadSound where a speaker that is held out is not heard.
    """
    if held_out:
        heard = {e.speaker for e in entries if e.speaker is not None}
        if missing := [s for s in held_out if s not in heard]:
            who = ", ".join(sorted(heard)) if heard else "nobody: the files do not say who is heard"
            raise BadSound("held_out", f"{', '.join(missing)} is not heard; there is {who}", "name some of these")
        entries = [replace(e, split="test" if e.speaker in held_out else "train") for e in entries]
    if split is None:
        return list(entries)
    wanted = {"train": ("train", None), "test": ("test",), "unlabelled": ("train", "unlabelled", None)}[split]
    return [e for e in entries if e.split in wanted]


# ------------------------------------------------------------------ inside


def _listed(root: Path) -> Path | None:
    """The index of a folder, or of the one folder in it that has one."""
    if (root / INDEX).is_file():
        return root / INDEX
    inside = sorted(root.glob(f"*/{INDEX}"))
    return inside[0] if len(inside) == 1 else None


def _indexed(index: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    found, problems = [], []
    for number, line in enumerate(index.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            told = {k: None if row.get(k) is None else str(row[k]) for k in ("label", "speaker", "split")}
            split = dict(PARTS).get(told["split"] or "", told["split"])
            found.append(Entry(index.parent / row["file"], str(row["file"]), told["label"], told["speaker"], split))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append((f"{index}, line {number}", f'skipped: not {{"file": ...}} in JSON ({error!r:.80})'))
    return found, problems


def _ordered(root: Path) -> list[Entry]:
    paths = sorted(p for p in root.rglob("*") if is_sound(p) and p.is_file() and not p.name.startswith("."))
    if paths and all(FSDD.fullmatch(p.stem) for p in paths):
        return [_fsdd(p, root) for p in paths]
    inside = [p.relative_to(root) for p in paths]
    split = {p.parts[0]: part for p in inside if len(p.parts) > 1 and (part := _part(p.parts[0]))}
    if "train" not in split.values():
        split = {}  # a class may be called test
    rows = []
    for path, at in zip(paths, inside, strict=True):
        part = split.get(at.parts[0])
        folders = at.parts[1:-1] if part else at.parts[:-1]
        speaker = COMMANDS.fullmatch(path.stem)
        label = folders[0] if folders and part != "unlabelled" else None
        rows.append(Entry(path, at.as_posix(), label, speaker and speaker[1], part))
    if len({e.label for e in rows} - {None}) < 2:
        return [replace(e, label=None) for e in rows]
    return rows


def _fsdd(path: Path, root: Path) -> Entry:
    named = FSDD.fullmatch(path.stem)
    assert named is not None
    digit, speaker, number = named.groups()
    split = "test" if int(number) < OFFICIAL else "train"
    return Entry(path, path.relative_to(root).as_posix(), digit, speaker, split)


def _part(folder: str) -> str | None:
    return dict(PARTS).get(re.split(r"[^a-z]", folder.lower())[0])
