"""Which shapes of one set are also in another, under another name or in another format?"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from partwhole.core.files import NotSaved, write
from partwhole.shape3d import files

VERSION = 1  # of what is kept: raise it when `form` changes
LONG = 16  # letters of a file's name from which on it is a catalogue's number, and no two shapes share it
CLOSE = 1e-3  # of the radius

Form = list[float]


def form(path: str | Path) -> Form | None:
    """What turning, moving, scaling, renumbering and another format leave alone: the number of distinct vertices, 17
    quantiles of their distance to their mean, and their three standard deviations, as parts of the greatest distance.

    None where the file cannot be read.
    """
    try:
        vertices = files.join(files.read(path).vertices)[0]
    except (files.BadShape, OSError, ValueError):
        return None
    centred = vertices - vertices.mean(0)
    distance = np.linalg.norm(centred, axis=1)
    most = max(float(distance.max()), 1e-30)
    wide = np.sqrt(np.linalg.eigvalsh(centred.T @ centred / len(centred)).clip(0))
    numbers = np.concatenate([np.quantile(distance, np.linspace(0, 1, 17)), wide]) / most
    return [len(vertices), *numbers.round(6).tolist()]


def twins(paths: Sequence[str], known: Iterable[str], cache: Path) -> list[int]:
    """Positions of the ``paths`` that hold a shape of ``known``.

    That is the file itself, one in whose path a name of ``known`` of at least 16 letters stands (the catalogues of
    shapes number them so), or one of the same form. Forms are kept in ``cache``, so each file is read once.
    """
    places = {str(Path(path).resolve()) for path in known}
    names = {name for name in (Path(path).stem for path in places) if len(name) >= LONG}
    forms = _forms([*places, *paths], cache)
    by_count = defaultdict(list)
    for path in places:
        if (one := forms[path]) is not None:
            by_count[one[0]].append(one)

    def twin(path: str) -> bool:
        here = Path(path).resolve()
        if str(here) in places or names & {here.stem, *here.parts}:
            return True
        mine = forms[path]
        others = by_count.get(mine[0], []) if mine is not None else []
        return bool(others) and bool((np.abs(np.array(others) - mine).max(1) < CLOSE).any())

    return [i for i, path in enumerate(paths) if twin(path)]


def _forms(paths: Iterable[str], cache: Path) -> dict[str, Form | None]:
    place = cache / "forms.json"
    try:
        kept = json.loads(place.read_text())
        kept = kept["forms"] if kept["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        kept = {}
    found, new = {}, False
    for path in paths:
        status = Path(path).stat() if Path(path).exists() else None
        state = None if status is None else [status.st_size, status.st_mtime_ns]
        if path not in kept or kept[path][0] != state:
            kept[path], new = [state, form(path)], True
        found[path] = kept[path][1]
    if new:
        text = json.dumps({"version": VERSION, "forms": kept}).encode()
        with contextlib.suppress(NotSaved):  # a cache that can only be read: they are found out again next time
            write(place, lambda file: file.write(text))
    return found
