"""Make a recipe's labels and keep them in its cache, without training: the slow part, once, and only what is missing.

python tools/prepare.py --modality shape3d --task acd [--data folder ...] [any field of the recipe]
"""

import argparse
import sys
from collections.abc import Sequence

import progress
import recipes


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
        recipes.call(choice.recipe.prepare, watch=watch)
    finally:
        progress.close(watch)
    return 0


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
