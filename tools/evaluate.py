"""Repeat the evaluation of a finished run, from what its folder holds.

python tools/evaluate.py --folder runs/shape3d-acd [any field of the recipe, such as --few-shot.draws 10]
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: on a busy machine spinning threads crawl

import progress
import recipes
import run

from partwhole.core import checkpoint, files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=(__doc__ or "").strip(), add_help=False, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--traceback", action="store_true")
    options, rest = parser.parse_known_args(list(sys.argv[1:] if argv is None else argv))
    if options.folder is None:
        if {"-h", "--help"} & set(rest):
            print((__doc__ or "").strip())
            return 0
        raise recipes.Usage("which run? Give its folder: --folder runs/<name>")
    recipe = read(options.folder)
    recipe = recipes.parse(
        type(recipe), rest, recipe, f"evaluate.py --folder {options.folder}", (__doc__ or "").strip()
    )
    if not hasattr(recipe, "finish"):
        raise recipes.Usage(f"{type(recipe).__name__} has no evaluation of its own")
    refuse_unfinished(options.folder)
    refuse_changed(options.folder, recipe)
    watch = progress.make()
    try:
        run.finish(recipe, options.folder, watch)
    finally:
        progress.close(watch)
    return 0


def refuse_unfinished(folder: Path) -> None:
    """Usage where the run has left no encoder yet, with the command that goes on with it."""
    if not all((folder / name).exists() for name in ("encoder.json", "encoder.safetensors")):
        begun = "is not whole" if (folder / checkpoint.LAST).exists() else "has not begun to train"
        command = json.loads((folder / "run.json").read_text()).get("command", "its command")
        raise recipes.Usage(
            f"the run in {folder} {begun}, so there is no encoder to evaluate. Go on with it: {command}"
        )


def refuse_changed(folder: Path, recipe: Any) -> None:
    """Usage where a file that the training began with holds something else now: what is compared may begin there too.

    Where it is gone the evaluation itself tells what it cannot do.
    """
    try:
        found = recipe.origins() if hasattr(recipe, "origins") else {}
    except ValueError:  # a folder that has lost its weights
        return
    began = json.loads((folder / "run.json").read_text()).get("identity", {}).get("contents", {})
    now = {name: files.digest(path) for name, path in found.items() if path.is_file()}
    if differing := checkpoint.differences({name: began.get(name) for name in now}, now, "contents"):
        paths = ", ".join(str(found[name]) for name in now if now[name] != began.get(name))
        raise recipes.Usage(
            f"the run in {folder} began with other weights than those in {paths}: {'; '.join(differing)}. Put back "
            "what was there, or move this away: what needs it is then left out"
        )


def read(folder: Path) -> Any:
    """The recipe in ``folder/run.json``."""
    path = folder / "run.json"
    if not path.exists():
        here = sorted(str(p.parent) for p in folder.parent.glob("*/run.json")) if folder.parent.is_dir() else []
        raise recipes.Usage(f"no run in {folder}: {path} is missing. Runs beside it: {', '.join(here) or 'none'}")
    try:
        record = json.loads(path.read_text())
        modality, task, fields = record["modality"], record["task"], record["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise recipes.Usage(f"{path} is damaged or foreign: {type(error).__name__}: {error}") from error
    tasks = recipes.load(modality).TASKS
    try:
        return recipes.from_json(tasks[recipes.nearest("task", task, tasks, modality)], fields)
    except ValueError as error:
        raise recipes.Usage(f"{path} was written by another version: {error}") from error


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
