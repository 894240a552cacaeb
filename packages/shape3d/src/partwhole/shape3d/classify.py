"""Which category is a shape of? A linear SVM on pooled features (the ModelNet40 protocol of Gadelha et al., 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.encoder import Encoder, fresh
from partwhole.shape3d.fewshot import Draw
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.segment import rows, settled
from partwhole.shape3d.views import Augment


@torch.no_grad()
def descriptors(encoder: Encoder, shapes: Sequence[dict[str, Tensor]], augment: Augment) -> Tensor:
    """(S, D): for every level of the encoder, the L2-normalised signed square root of the mean, side by side, then L2.

    Encoders with ``levels`` give their intermediate features as well; others their per-point features alone.
    """
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    sums: dict[int, Tensor] = {}
    for which, _, x in rows(shapes, augment, device):
        levels = getattr(encoder, "levels", None)
        features = [f for f, _ in levels(x)] if levels else [encoder(x)]
        pooled = torch.cat([_root(f.float().mean(1)) for f in features], -1).cpu()
        for i, row in zip(which, pooled, strict=True):
            sums[i] = sums.get(i, 0) + row
    encoder.train(training)
    return F.normalize(torch.stack([sums[i] for i in range(len(shapes))]), dim=-1)


def svm_accuracy(
    encoder: Encoder, labelled: Labelled, draws: Sequence[Draw], augment: Augment, *, seed: int
) -> dict[str, list[float]]:
    """Test accuracy per draw, trained on its largest support: {"random": [...], "pretrained": [...]}.

    "random" is an encoder like this one with fresh weights, another one for each draw. The penalty C is chosen by
    cross-validation on the support. A draw whose supports all have one category gives nothing to tell apart, and no
    number: {} where that is so for every draw.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    category = np.array(labelled.category)
    splits = []
    for one in draws:
        several = [k for k, chosen in one.support.items() if len(set(category[chosen])) > 1]
        if not several:
            continue
        train = one.support[max(several)]
        splits.append((train, [i for i in one.test if category[i] in category[train]]))
    if not splits:
        return {}
    used = sorted({i for split in splits for half in split for i in half})  # few of a large set
    row = {i: r for r, i in enumerate(used)}
    shapes = [labelled[i] for i in used]
    pretrained = descriptors(encoder, shapes, augment).numpy()
    results: dict[str, list[float]] = {"random": [], "pretrained": []}
    for d, (train, test) in enumerate(splits):
        mine, here = [row[i] for i in train + test], len(train)
        unlike = settled(fresh(encoder, seed=seed + d), labelled, augment)
        random = descriptors(unlike, [shapes[r] for r in mine], augment).numpy()
        for kind, x in (("random", random), ("pretrained", pretrained[mine])):
            # The dual problem does not converge at a large C.
            machine: Any = LinearSVC(C=100.0, dual=False)  # pyright: ignore[reportArgumentType]
            if len(train) >= 3 * len(set(category[train])):  # as many of each
                machine = GridSearchCV(machine, {"C": [1.0, 10.0, 100.0, 500.0]}, cv=3)
            machine.fit(x[:here], category[train])
            results[kind].append(float((machine.predict(x[here:]) == category[test]).mean()))
    return results


def _root(x: Tensor) -> Tensor:
    return F.normalize(x.sign() * x.abs().sqrt(), dim=-1)
