"""Points of one convex component should look alike (Gadelha et al., ECCV 2020)."""

from typing import Literal

import torch
from torch import Tensor, nn

from partwhole.core import distributed
from partwhole.core.encoder import Encoder, Prototypes
from partwhole.core.losses import distill, group_contrast, group_info_nce, group_means, group_pairs
from partwhole.core.method import Batch, Method
from partwhole.core.methods.assignment import balanced
from partwhole.core.methods.views import found, passes

# Axes: V views, B shapes, L points, D features, N components, K clusters.


class ComponentContrast(Method):
    """Contrast points by the convex component they lie on.

    ``loss="prototype"`` asks each point for its component among the mean features of its shape's components.
    ``loss="pair"`` is the paper's: every pair of points of a shape, pulled together or pushed below a cosine of
    ``margin``; negatives are kept by coins of the chance that makes them as many as the batch's positives.

    batch: ``views``, a list of inputs (B, L, channels) of the same shapes, and ``component``, a list parallel to it of
    (B, L), or (B, levels, L) from coarse to fine, -1 unknown; optional ``valid``, a list of (B, L), and ``seed`` (B,)
    for the coins. The paper has one view. With several the points of all of them are contrasted together: a component
    must look alike however the shape is turned, so that its place in space does not give it away.
    With several levels the finest is contrasted, and with prototypes points of one coarsest component are no negatives
    of each other.

    ``clusters`` above 0 adds a signal over all shapes, which the contrast within one shape does not have: a component
    must fall into the same of so many learned clusters in every view (swapped prediction, Caron et al., 2020), and
    there are fewer clusters than components, so components of different shapes share them. It needs two views.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        loss: Literal["prototype", "pair"] = "prototype",
        temperature: float = 0.1,
        margin: float = 0.5,
        clusters: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(encoder)
        self.head = nn.Linear(encoder.dim, dim)
        self.assign = Prototypes(encoder.dim, encoder.dim, dim // 2, clusters) if clusters else None
        self.weight = weight
        self.loss, self.temperature, self.margin = loss, temperature, margin

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views, masks = batch["views"], batch.get("valid")
        tokens = passes(lambda x, v: self.encoder(x, valid=v), views, masks)  # (V, B, L, D)
        feature = self.head(tokens).transpose(0, 1).flatten(1, 2)
        component, valid = torch.cat(batch["component"], -1), None if masks is None else torch.cat(masks, 1)
        levels = component if component.ndim == 3 else component[:, None]
        fine, coarse = levels[:, -1], levels[:, 0] if levels.shape[1] > 1 else None
        if self.loss == "pair":
            same, count = group_pairs(fine, valid)
            fraction = distributed.mean(same) / distributed.mean(count).clamp(min=1)
            seeds = batch["seed"].tolist() if "seed" in batch else []
            coins = [torch.Generator(feature.device).manual_seed(seed) for seed in seeds] or None
            loss = group_contrast(feature, fine, margin=self.margin, fraction=fraction, generator=coins, valid=valid)
        else:
            count = ((fine >= 0) if valid is None else (fine >= 0) & valid).sum()
            loss = group_info_nce(feature, fine, temperature=self.temperature, valid=valid, coarse=coarse)
        out = {"loss": loss * distributed.share(count), "items": torch.as_tensor(count)}
        if self.assign is None:
            return out
        fine = fine.unflatten(1, (len(views), -1)).transpose(0, 1)
        swapped = self.swapped(self.assign, tokens, fine, None if masks is None else torch.stack(list(masks)))
        total = out["loss"] + self.weight * swapped
        return {**out, "loss": total, "contrast": loss.detach(), "swapped": swapped.detach()}

    def swapped(self, assign: nn.Module, tokens: Tensor, component: Tensor, valid: Tensor | None) -> Tensor:
        """Cross entropy from the cluster of a component in one view to that in another.

        tokens (V, B, L, D), component and valid (V, B, L). N components are in every view.
        """
        masks = None if valid is None else valid.flatten(0, 1)
        mean, there = group_means(tokens.flatten(0, 1), component.flatten(0, 1), masks)
        mean, there = (x.unflatten(0, (len(tokens), -1)).flatten(1, 2) for x in (mean, there))  # (V, B G, D), (V, B G)
        index = found(there.all(0))
        scores = assign(mean[:, index].to(tokens.dtype))  # (V, N, K)
        return distill(scores, balanced(scores), temperature=0.1) * distributed.share(scores.shape[1])
