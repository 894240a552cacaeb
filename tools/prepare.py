"""Make what a recipe finds in its data before training, and keep it in its cache: once, and only what is missing.

Convex parts of shapes (acd), names of patches (beit), units of speech (hubert); and all data is looked at.

python tools/prepare.py --modality shape3d --task acd [--data folder ...] [any field of the recipe]
"""

import argparse
import sys
from collections.abc import Sequence

import progress
import recipes

from partwhole.core.sees import Seeing


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=(__doc__ or "").strip(), add_help=False, allow_abbrev=False
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was noticed")
    choice = recipes.choose(list(sys.argv[1:] if argv is None else argv), parser)
    if not hasattr(choice.recipe, "prepare"):
        raise recipes.Usage(f"task {choice.task} of {choice.modality} needs no preparation")
    watch = progress.make()
    try:
        samples = recipes.call(choice.recipe.prepare, watch=watch)
        if isinstance(choice.recipe, Seeing):
            choice.recipe.ready(samples, choice.recipe.encoder())  # type: ignore[attr-defined]
    finally:
        progress.close(watch)
    return 0


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
