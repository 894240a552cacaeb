"""Which category is a shape of? A linear SVM on pooled features (the ModelNet40 protocol of Gadelha et al., 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.encoder import Encoder
from partwhole.shape3d.fewshot import Draw, fresh, rows, settled
from partwhole.shape3d.labelled import Labelled
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
    cross-validation on the support.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    category = np.array(labelled.category)
    pretrained = descriptors(encoder, labelled, augment).numpy()
    results: dict[str, list[float]] = {"random": [], "pretrained": []}
    for d, one in enumerate(draws):
        k = max(one.support)
        train = one.support[k]
        test = [i for i in one.test if category[i] in category[train]]
        unlike = descriptors(settled(fresh(encoder, seed=seed + d), labelled, augment), labelled, augment).numpy()
        for kind, x in (("random", unlike), ("pretrained", pretrained)):
            machine: Any = LinearSVC(C=100.0, random_state=0, dual="auto", max_iter=5000)
            if k >= 3:
                machine = GridSearchCV(machine, {"C": [1.0, 10.0, 100.0, 500.0]}, cv=3)
            machine.fit(x[train], category[train])
            results[kind].append(float((machine.predict(x[test]) == category[test]).mean()))
    return results


def _root(x: Tensor) -> Tensor:
    return F.normalize(x.sign() * x.abs().sqrt(), dim=-1)
