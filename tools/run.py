"""Train a recipe, evaluate what came out, and say where everything is.

    python tools/run.py --modality shape3d --task acd [--recipe best] [--data folder ...] [--fit.lr 3e-4] ...
    torchrun --nproc-per-node 4 tools/run.py ...

The same command again goes on where it stopped. A run's folder holds run.json, metrics.jsonl, last.pt, the encoder
(encoder.safetensors, encoder.json) and what the recipe's evaluation writes.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: on a busy machine spinning threads crawl

import progress
import recipes
import torch

from partwhole.core import checkpoint, distributed, doctor, files, journal, signals
from partwhole.core.fit import fit


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py", description=(__doc__ or "").strip(), add_help=False, allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, metavar="PATH", help="where the run is kept; default runs/M-T[-R]")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events into the folder")
    parser.add_argument("--shard", action="store_true", help="short for --fit.shard: FSDP2 under torchrun")
    parser.add_argument("--traceback", action="store_true", help="show where an error was noticed")
    words = list(sys.argv[1:] if argv is None else argv)
    if "--shard" in words:
        words.append("--fit.shard")
    choice = recipes.choose(words, parser)
    recipe, options = choice.recipe, choice.options
    name = "-".join(filter(None, (choice.modality, choice.task, choice.name)))
    folder = options.folder or Path("runs") / name
    identity = {"modality": choice.modality, "task": choice.task, **recipes.to_json(recipe, decisive=True)}
    if contents := origins(recipe, folder):
        identity["contents"] = contents
    refuse_other(folder, identity)

    distributed.setup(recipe.fit.device)
    rank = distributed.rank()
    if rank:
        sys.stdout = open(os.devnull, "w")  # one process speaks
    watch = progress.make(rank)
    try:
        about = {"modality": choice.modality, "task": choice.task, "recipe_name": choice.name}
        distributed.attempt(lambda: rank == 0 and describe(folder, about, recipe, identity), "writing run.json")
        if options.tensorboard and rank == 0:
            watch = progress.Events(watch, folder)
        if distributed.world() > 1 and hasattr(recipe, "prepare"):
            distributed.first(lambda: recipes.call(recipe.prepare, watch=watch))  # not by all at once
        torch.manual_seed(recipe.fit.seed)
        run = recipes.call(recipe.build, folder, watch=watch)
        training = {k: v for k, v in identity.items() if k != "fit"}  # the loop knows its own options
        method = fit(run, recipe.fit, folder, watch=watch, identity=training)
        checkpoint.save_encoder(method.encoder, folder)
        distributed.close()  # what follows is for one process
        if rank == 0:
            finish(recipe, folder, watch)
    finally:
        progress.close(watch)
    return 0


def finish(recipe: Any, folder: Path, watch: Any) -> None:
    """The recipe's own evaluation of the encoder in ``folder``, and its table and report."""
    result: Mapping[str, Any] = {}
    if hasattr(recipe, "finish"):
        root = type(recipe).__module__.split(".")[0]
        encoder = checkpoint.load_encoder(folder, allow=(root,))  # the recipe's package runs already
        try:
            with signals.terminates_like_ctrl_c():
                result = recipes.call(recipe.finish, encoder, folder, say=watch.say, watch=watch) or {}
        except (KeyboardInterrupt, signals.Interrupted) as error:
            watch.say(f"stopped in the evaluation: the training is whole in {folder}; the same command evaluates on")
            raise KeyboardInterrupt(*(("SIGTERM",) if signals.is_sigterm(error) else ())) from error
    progress.close(watch)
    if result.get("table"):
        print(aligned(result["table"]))
    if result.get("text"):
        print(result["text"])
    print(f"encoder: {folder}   (partwhole.core.load_encoder({str(folder)!r}))")
    if result.get("report"):
        print(f"report:  {result['report']}")
    for finding in doctor.diagnose(journal.read(folder / journal.FILE)):
        print(f"careful: {finding.text}.")


def aligned(rows: Sequence[Any]) -> str:
    """Rows (lists, or dicts of one set of keys) as columns: text to the left, numbers to the right."""
    if isinstance(rows[0], Mapping):
        rows = [list(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[f"{x:.3f}" if isinstance(x, float) else "" if x is None else str(x) for x in row] for row in rows]
    count = max(map(len, cells))
    cells = [row + [""] * (count - len(row)) for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(count)]
    lines = []
    for row in cells:
        placed = [x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(placed).rstrip())
    return "\n".join(lines)


def origins(recipe: Any, folder: Path) -> dict[str, str]:
    """What the files are that a recipe's training begins from: the same paths may hold other weights one day."""
    found = recipe.origins() if hasattr(recipe, "origins") else {}
    for name, path in found.items():
        run = name == "init"  # a folder, where the others are files themselves
        if path.parent.resolve() == folder.resolve():
            raise recipes.Usage(
                f"--{name} is {'the folder' if run else 'in the folder'} of this very run, {folder}: choose another "
                "--folder for what begins there"
            )
        if path.is_file():
            continue
        if run:
            there = f"{path.parent} has no {path.name}" if path.parent.is_dir() else f"there is no folder {path.parent}"
        else:
            there = f"no weights at {path}: {'a folder' if path.is_dir() else 'no such file'}"
        wanted = "what a finished run left" if run else "a file of weights"
        raise recipes.Usage(f"--{name}: {there}. Give {wanted}, or leave --{name} out")
    return {name: files.digest(path) for name, path in found.items()}


def refuse_other(folder: Path, identity: Mapping[str, Any]) -> None:
    """Say that the folder is of another recipe before anything slow begins."""
    path = folder / "run.json"
    if not (folder / checkpoint.LAST).exists() or not path.exists():
        return
    try:
        old = json.loads(path.read_text())["identity"]
    except (ValueError, KeyError):
        return  # the loop asks the checkpoint itself
    differing = checkpoint.differences(old, json.loads(json.dumps(identity)))
    if differing:
        raise recipes.Usage(
            f"{folder} holds a run of another recipe: {'; '.join(differing)}. Choose another --folder, or the same "
            "fields to go on with it"
        )


def describe(folder: Path, about: Mapping[str, Any], recipe: Any, identity: Mapping[str, Any]) -> None:
    """Write ``run.json``: what is run, by which code, where."""
    packages = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    versions = {n: importlib.metadata.version(n) for n in sorted({p for p in packages if p.startswith("partwhole-")})}
    here = Path(__file__).parent
    record = {
        **about,
        "recipe": recipes.to_json(recipe),
        "identity": identity,
        "seed": recipe.fit.seed,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _git(here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **versions},
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": distributed.world(),
        },
    }
    files.write_json(folder / "run.json", record)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
