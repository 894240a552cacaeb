"""Files that are never half there, and failures to write them that say what to do."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class NotSaved(OSError):
    """A file could not be written; what was there before is as it was."""


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Let ``fill`` fill a new file beside ``path``, sync it, and put it in its place at once; NotSaved if it fails."""
    mine = f".{path.name}.{platform.node()}."
    temporary = path.with_name(f"{mine}{os.getpid()}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _tidy(path.parent, mine)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def digest(path: Path) -> str:
    """Equal for files of equal content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _tidy(folder: Path, begins: str) -> None:
    """Remove what processes of this machine were writing when they were killed."""
    for left in folder.glob(f"{begins}*.new"):
        try:
            os.kill(int(left.name[len(begins) : -len(".new")]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue  # not ours


def write_json(path: Path, value: Any) -> None:
    """As ``write``: JSON that people may read."""
    text = json.dumps(value, indent=2).encode()
    write(path, lambda file: file.write(text))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within: a failure to write ``path`` becomes NotSaved, which says what is left and what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in RuntimeError
        try:
            room = f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MB are free there"
        except OSError:
            room = ""
        try:
            kept = f"The earlier {path} is intact. " if path.exists() else ""
        except OSError:
            kept = ""
        do = "Free some space or correct the permissions, and run"
        if isinstance(error, FileExistsError | NotADirectoryError):
            room, do = "", "A file is where a folder should be: move it or choose another folder, and run"
        raise NotSaved(
            f"cannot write {path}: {error}{room}. {kept}{do} the same command again: it goes on from what was saved"
        ) from error
