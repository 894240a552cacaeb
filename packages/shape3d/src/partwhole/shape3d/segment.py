"""Parts of shapes: a network that names the part of every point, its linear layer alone, and its predictions."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core import distributed, evaluate
from partwhole.core.checkpoint import copied
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.method import Batch, Method
from partwhole.shape3d.views import Augment, plain

# Axes: B shapes of a batch, R rows, L points of a row, P points of a shape, D features, C categories, K parts of all.


class SegmentParts(Method):
    """Name the part of every point: what few labels train.

    ``part_mask`` (C, K) says which parts a category has; the others are never predicted for it.
    batch: ``x`` (B, L, channels), ``part`` (B, L) with -1 where unlabelled, ``category`` (B,), optional ``valid``.
    """

    def __init__(self, encoder: Encoder, part_mask: Tensor):
        super().__init__(encoder)
        self.head = nn.Linear(encoder.dim, part_mask.shape[1])
        self.part_mask: Tensor
        self.register_buffer("part_mask", part_mask.bool())

    def logits(self, x: Tensor, category: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, L, K), -inf for parts that the category does not have."""
        logits = self.head(self.encoder(x, valid=valid))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill(~self.part_mask[category][:, None], -torch.inf)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        part, valid = batch["part"], batch.get("valid")
        if valid is not None:
            part = part.masked_fill(~valid, -1)
        logits = self.logits(batch["x"], batch["category"], valid)
        count = (part >= 0).sum()
        loss = F.cross_entropy(logits.mT, part, ignore_index=-1, reduction="sum") / count.clamp(min=1)
        return {"loss": loss * distributed.share(count), "items": torch.as_tensor(count)}


def linear_probe(
    encoder: Encoder,
    shapes: Sequence[dict[str, Tensor]],
    part_mask: Tensor,
    augment: Augment,
    *,
    penalty: float = 1e-3,
    views: int = 8,
    rows: int = 60_000,
    batch: int = 32,
) -> SegmentParts:
    """A linear layer on frozen features: multinomial logistic regression by L-BFGS.

    penalty: L2, on the weights. Fitted are about ``rows`` points, spread over so many ``views`` of each shape as
    training would see it. Features are standardised, and the scaling is folded into the layer.
    """
    device = device_of(encoder)
    method = SegmentParts(copied(encoder), part_mask).to(device).eval()
    feature, part, category = [], [], []
    for start in range(0, len(shapes) * views, batch):
        seen = [augment(shapes[i % len(shapes)]) for i in range(start, min(start + batch, len(shapes) * views))]
        with torch.no_grad():
            tokens = method.encoder(torch.stack([view["x"] for view in seen]).to(device))
        few = -(-rows // (len(shapes) * views))  # an augmentation gives its points in random order
        feature.append(tokens[:, :few].float().flatten(0, 1))
        part.append(torch.cat([view["part"][:few] for view in seen]))
        category.append(torch.cat([view["category"].expand(len(view["part"][:few])) for view in seen]))
    x, y, allowed = torch.cat(feature), torch.cat(part).to(device), part_mask[torch.cat(category)].to(device)
    x, y, allowed = x[y >= 0], y[y >= 0], allowed[y >= 0]
    mean, std = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / std
    weight = torch.zeros(part_mask.shape[1], x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(part_mask.shape[1], device=device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = (x @ weight.mT + bias).masked_fill(~allowed, -torch.inf)
        loss = F.cross_entropy(logits, y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        method.head.weight.copy_(weight / std)
        method.head.bias.copy_(bias - (weight / std) @ mean)
    return method


@torch.no_grad()
def predict(method: SegmentParts, shapes: Sequence[dict[str, Tensor]], augment: Augment) -> list[Tensor]:
    """The part of every point of every shape: a list of (P,) int64 on the CPU.

    A shape with more than ``augment.points`` points is cut into random subsets of that size which cover it.
    """
    method.eval()
    labels = [torch.full((len(shape["points"]),), -1) for shape in shapes]
    for which, indices, x in rows(shapes, augment, device_of(method)):
        category = torch.stack([shapes[i]["category"] for i in which]).to(x.device)
        for i, index, part in zip(which, indices, method.logits(x, category).argmax(-1).cpu(), strict=True):
            labels[i][index] = part
    return labels


def rows(
    shapes: Sequence[dict[str, Tensor]], augment: Augment, device: torch.device, *, batch: int = 32
) -> Iterator[tuple[list[int], list[Tensor], Tensor]]:
    """Batches of rows of ``augment.points`` points that together cover every point of every shape.

    Yields the shape of each row, the indices of its points, and the input (R, L, channels). Orders are fixed, and a
    shape's last row is filled up from its first.
    """
    rows_of = ((i, s) for i, shape in enumerate(shapes) for s in range(0, len(shape["points"]), augment.points))
    while some := list(islice(rows_of, batch)):
        indices = []
        for i, s in some:
            count = len(shapes[i]["points"])
            order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
            indices.append(order[(torch.arange(augment.points) + s) % count])
        samples = zip(some, indices, strict=True)
        x = torch.stack([plain(shapes[i], normals=augment.normals)["x"][index] for (i, _), index in samples])
        yield [i for i, _ in some], indices, x.to(device)


def settled(encoder: Encoder, shapes: Sequence[dict[str, Tensor]], augment: Augment) -> Encoder:
    """``encoder`` after its running statistics have seen some of ``shapes``: see ``evaluate.settled``."""
    some = [shapes[i] for i in range(0, len(shapes), max(1, len(shapes) // 16))][:16]
    return evaluate.settled(encoder, torch.stack([augment(shape)["x"] for shape in some]))
