"""Where images lie: in folders of any layout, in zip and tar archives, which are read in place.

Nothing here imports torch: the processes that check images use it.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

from partwhole.vision.decode import AGAIN, BadImage

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .j2k .avif .tga .ico .pcx"
    " .sgi".split()
)
ZIP, TAR = (".zip",), (".tar",)
SQUEEZED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
INNER = "archives are not opened within others, and of a folder when they are named themselves, as folder/archive.zip"
BYTES = 2**30  # a larger file is no image, or unpacks to one that fills the memory
PARTS = {
    "train": re.compile(r"train(ing)?\d{0,4}", re.IGNORECASE),
    "test": re.compile(r"(test|val|valid|validation)\d{0,4}", re.IGNORECASE),
    "unlabelled": re.compile(r"unlabell?ed\d{0,4}", re.IGNORECASE),
}
Split = Literal["train", "test", "unlabelled"]


class Entry(NamedTuple):
    """One image file. ``read`` gives its bytes."""

    name: str  # for people: a path, ``archive.zip/member.jpg`` in archives
    file: str  # what to open
    member: str  # of a zip archive, "" elsewhere
    offset: int  # of a tar archive: where its bytes begin; -1 elsewhere
    size: int  # bytes
    stamp: int  # changes with the content: time of the last change, for archives with their size or checksum
    folders: tuple[str, ...]  # below the root that was given


class Labelled(NamedTuple):
    """An image file and the name of its class, None where it has none."""

    entry: Entry
    label: str | None


def find(path: str | Path, cache: Path | None = None) -> tuple[list[Entry], list[tuple[str, str]]]:
    """All image files below a folder, in an archive, or the one that ``path`` is; in the order of their names.

    Image files are known by their suffix; a file named directly is taken whatever it is called. Hidden files and
    folders are passed over, links are followed. A compressed tar archive is laid open once in the folder ``cache``.
    Also (path, reason) of what was passed over though it may hold images. Raises BadImage where there is nothing.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            raise BadImage(path, "no such file or folder", "check the path")
        name = path.name.lower()
        if name.endswith(ZIP):
            return _zip(path)
        if name.endswith(TAR):
            return _tar(path, path)
        if name.endswith(SQUEEZED):
            return _tar(path, _opened(path, cache))
        status = path.stat()
    except PermissionError as error:
        raise BadImage(error.filename or path, "no permission to read it", "give yourself read access") from error
    return [Entry(str(path), str(path), "", -1, status.st_size, status.st_mtime_ns, ())], []


def read(entry: Entry) -> bytes:
    """The bytes of an image file. Raises BadImage where they cannot be had."""
    if entry.size > BYTES:
        raise BadImage(entry.name, f"{entry.size} bytes, more than {BYTES}", "reduce it")
    try:
        if entry.member:
            return _archive(entry.file, os.stat(entry.file).st_mtime_ns, os.getpid()).read(entry.member)
        with open(entry.file, "rb") as file:
            if entry.offset < 0:
                return file.read()
            file.seek(entry.offset)
            data = file.read(entry.size)
    except PermissionError as error:
        raise BadImage(entry.name, "no permission to read it", "give yourself read access") from error
    except FileNotFoundError as error:
        raise BadImage(entry.name, "it is no longer there", "put it back, or start again without it") from error
    except Exception as error:  # zipfile and the decompressors below it have many ways to say that bytes are missing
        raise BadImage(entry.name, f"it cannot be read ({type(error).__name__}: {error})", AGAIN) from error
    if len(data) < entry.size:
        raise BadImage(entry.name, "the archive is cut off within it", AGAIN)
    return data


def arrange(entries: list[Entry], split: Split | None) -> tuple[list[Labelled], list[tuple[str, str]]]:
    """The part ``split`` of the images below one root, with their classes.

    Folders that hold all images are no layer of their own. Where ``train*`` and ``val*`` or ``test*`` lie beside each
    other, "train" is the first, "test" the second (``test`` where both are there, unless only ``val`` has classes),
    "unlabelled" is train and ``unlabelled*``, and None is all. Else "train", "unlabelled" and None are all, and "test"
    is nothing. Images have classes where they lie in two or more folders: the first folder is the class.
    """
    low, high = min(e.folders for e in entries), max(e.folders for e in entries)
    depth = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    tops = {e.folders[depth] for e in entries if len(e.folders) > depth}
    parts = {kind: sorted(t for t in tops if pattern.fullmatch(t)) for kind, pattern in PARTS.items()}
    if not (parts["train"] and parts["test"]):
        chosen = entries if split != "test" else []
        return _classes([(e, e.folders[depth:]) for e in chosen])
    inside = {t: [(e, e.folders[depth + 1 :]) for e in entries if e.folders[depth : depth + 1] == (t,)] for t in tops}
    classes = {rest[0] for t in parts["train"] for _, rest in inside[t] if rest}
    if split == "test":
        shown = [t for t in parts["test"] if classes & {rest[0] for _, rest in inside[t] if rest}]
        wanted = (shown or parts["test"])[:1]
    elif split is None:
        wanted = sorted(t for kind in parts.values() for t in kind)
    else:
        wanted = parts["train"] + (parts["unlabelled"] if split == "unlabelled" else [])
    return _classes([x for t in wanted for x in inside[t]], sure=len(classes) > 1)


def _classes(
    found: list[tuple[Entry, tuple[str, ...]]], sure: bool = False
) -> tuple[list[Labelled], list[tuple[str, str]]]:
    tops = {rest[0] for _, rest in found if rest}
    if len(tops) < 2 and not sure:
        return [Labelled(e, None) for e, _ in found], []
    given = [Labelled(e, rest[0] if rest else None) for e, rest in found]
    bare = [e.name for e, label in given if label is None]
    return given, [(bare[0], f"kept: {len(bare)} images beside the folders of classes have no label")] if bare else []


# ------------------------------------------------------------------ inside


def _hidden(folders: Iterable[str], name: str) -> bool:
    return any(part.startswith((".", "__")) for part in folders) or name.startswith(".")


def _nothing(path: Path, names: Iterable[str], count: int) -> BadImage:
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    what = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8))
    return BadImage(
        path,
        f"no image among {count} files ({what})" if count else "nothing in it",
        f"put images there (.jpg .png .webp .tif ...); {INNER}",
    )


def _folder(root: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    found: list[Entry] = []
    others: list[str] = []
    problems: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        problems.append((str(error.filename), f"skipped: a folder that cannot be read ({error.strerror})"))

    for at, folders, names in os.walk(root, onerror=failed, followlinks=True):
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not _hidden([f], ""))
        below = Path(at).relative_to(root).parts
        for name in names:
            if _hidden((), name):
                continue
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                others.append(os.path.join(at, name))
                continue
            file = os.path.join(at, name)
            try:
                status = os.stat(file)
            except OSError as error:
                problems.append((file, f"skipped: it cannot be opened ({error.strerror})"))
                continue
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                problems.append((file, "skipped: not a file"))
            elif not os.access(file, os.R_OK):
                problems.append((file, "skipped: no permission to read it; give yourself read access"))
            else:
                found.append(Entry(file, file, "", -1, status.st_size, status.st_mtime_ns, below))
    if not found:
        if problems:
            raise BadImage(root, f"no image that can be read ({problems[0][1]})", "give yourself read access")
        raise _nothing(root, others, len(others))
    return sorted(found), problems + _archives(others)


@lru_cache(maxsize=8)
def _archive(path: str, changed: int, process: int) -> Any:
    """An open archive; of each process its own, for they would move each other's place in a shared file."""
    import zipfile

    return zipfile.ZipFile(path)


def _zip(path: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except PermissionError:
        raise
    except Exception as error:
        raise BadImage(path, f"not a readable zip archive ({type(error).__name__}: {error})", AGAIN) from error
    changed = path.stat().st_mtime_ns
    return _members(
        path,
        members,
        lambda name: (str(path), name, -1, members[name].file_size, changed ^ (members[name].CRC << 64)),
    )


def _tar(path: Path, opened: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    import tarfile

    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    try:
        with tarfile.open(opened, "r:") as archive:
            try:
                for member in archive:
                    if member.islnk():
                        links[member.name] = member.linkname
                    elif member.isfile() and not member.issparse():
                        members[member.name] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError) as error:
                problems.append((str(path), f"skipped: what follows {len(members)} files, cut off or broken ({error})"))
    except PermissionError:
        raise
    except Exception as error:
        raise BadImage(path, f"not a readable tar archive ({type(error).__name__}: {error})", AGAIN) from error
    members |= {name: members[target] for name, target in links.items() if target in members}
    status = path.stat()
    stamp = status.st_mtime_ns ^ (status.st_size << 64)
    found, more = _members(path, members, lambda name: (str(opened), "", *members[name], stamp))
    return found, problems + more


def _members(
    path: Path, names: Iterable[str], where: Callable[[str], tuple[str, str, int, int, int]]
) -> tuple[list[Entry], list[tuple[str, str]]]:
    found = []
    names = list(names)
    for name in names:
        *folders, last = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [""]
        if not _hidden(folders, last) and PurePosixPath(last).suffix.lower() in SUFFIXES:
            found.append(Entry(f"{path}/{name}", *where(name), tuple(folders)))
    if not found:
        raise _nothing(path, names, len(names))
    return sorted(found), _archives(f"{path}/{name}" for name in names)


def _archives(names: Iterable[str]) -> list[tuple[str, str]]:
    """What to say of archives among the files beside images."""
    inner = [name for name in names if name.lower().endswith((*ZIP, *TAR, *SQUEEZED))]
    return [(inner[0], f"skipped: {len(inner)} archives beside images; {INNER}")] if inner else []


def _opened(path: Path, cache: Path | None) -> Path:
    """A compressed tar archive without its compression, in the cache: only so can its members be read one by one."""
    import bz2
    import gzip
    import lzma

    if cache is None:
        do = "unpack it, make it a .tar or .zip, or name a cache folder where it can be laid open"
        raise BadImage(path, "a compressed tar archive, which cannot be read in place", do)
    status = path.stat()
    about = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    opened = cache / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.tar"
    if not opened.exists():
        from partwhole.core import files  # here: it imports torch

        openers = {"z": gzip.open, "2": bz2.open, "xz": lzma.open}
        name = path.name.lower()

        def pour(file: BinaryIO) -> None:
            while True:
                try:
                    data = source.read(2**22)
                except Exception as error:
                    found = f"not a readable archive ({type(error).__name__}: {error})"
                    raise BadImage(path, found, AGAIN) from error
                if not data:
                    return
                file.write(data)

        with openers["xz" if name.endswith("xz") else name[-1]](path, "rb") as source:
            files.write(opened, pour)
    return opened
