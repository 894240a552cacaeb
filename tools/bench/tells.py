"""What do the features of points tell: which shape it is, where the point lies, or something else?

    python tools/bench/tells.py runs/simclr runs/mae

For each run on shapes, and for a random network like its own, on every other labelled shape as it stands, with each
feature scaled to unit variance over all points:

between shapes    share of the variance that is between the means of shapes
place             share of what is left that a quadratic function of the point's place explains, fitted on the same
rank              effective number of dimensions of what is left (exponential of the entropy of its singular values)
part IoU          of the linear layer with most labels, as the run's evaluation has it

A method that compares whole shapes does well by making all points of a shape alike, one that fills in hidden patches
by knowing where each is: either at the cost of what tells parts apart.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import evaluate
import torch
from torch import Tensor

from partwhole.core import checkpoint
from partwhole.core.encoder import Encoder, fresh
from partwhole.core.monitor import rankme
from partwhole.shape3d.segment import settled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="finished runs on shapes")
    print("| features | between shapes | place | rank | part IoU |\n|---|---|---|---|---|")
    told = set()
    for folder in parser.parse_args().folders:
        recipe = evaluate.read(folder)
        trained = checkpoint.load_encoder(folder, allow=("partwhole",))
        measured = json.loads((folder / "evaluation.json").read_text())["few_shot"]["arms"]
        for name, arm, encoder in _encoders(folder, recipe, trained):
            if arm == "random" and (name in told or arm not in measured):
                continue
            told.add(name)
            cells = measured[arm]
            iou = statistics.mean(cells[max(cells, key=int)]["category_iou"])
            shapes, place, rank = tells(*_features(recipe.per_point(encoder), recipe))
            print(f"| {name} | {shapes:.2f} | {place:.2f} | {rank:.0f} | {iou:.3f} |", flush=True)


def _encoders(folder: Path, recipe: Any, trained: Encoder) -> Iterator[tuple[str, str, Encoder]]:
    random = settled(fresh(trained, seed=0), recipe.evaluation(), recipe.augment)
    yield f"random {recipe.network.name}", "random", random
    yield folder.name, "linear", trained


@torch.no_grad()
def _features(encoder: Encoder, recipe: Any) -> tuple[Tensor, Tensor]:
    """Features (B, P, D) and places (B, P, 3) of every other labelled shape, as it stands."""
    labelled = recipe.evaluation()
    look = replace(recipe.augment, rotate="none", scale=(1.0, 1.0), shift=0.0)
    torch.manual_seed(0)
    x = torch.stack([look(labelled[i])["x"] for i in range(0, len(labelled), 2)])
    encoder.eval()
    return torch.cat([encoder(part).float() for part in x.split(32)]), x[..., :3]


def tells(feature: Tensor, place: Tensor) -> tuple[float, float, float]:
    """Between shapes, place, rank: as above. feature (B, P, D), place (B, P, 3)."""
    mean, std = feature.mean((0, 1)), feature.std((0, 1)) + 1e-6
    feature = (feature - mean) / std
    means = feature.mean(1, keepdim=True)
    within = (feature - means).flatten(0, 1)
    total = feature.square().mean()
    x = (place - place.mean(1, keepdim=True)).flatten(0, 1)
    pairs = torch.stack([x[:, i] * x[:, j] for i in range(3) for j in range(i + 1)], 1)
    known = torch.cat([x, pairs, torch.ones_like(x[:, :1])], 1)
    left = within - known @ torch.linalg.lstsq(known, within).solution
    rank = rankme(within[torch.randperm(len(within), generator=torch.Generator().manual_seed(0))[:4096]])
    return float(means.square().mean() / total), float(1 - left.square().sum() / within.square().sum()), float(rank)


if __name__ == "__main__":
    main()
