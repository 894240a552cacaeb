"""Few-shot part segmentation: what do k labelled shapes per category buy, with and without pre-training?

Protocol. A draw orders the shapes of every category at random (by seed); its first k are the support, so supports are
nested; the test shapes are those of the official split, or the last ones of the order. Every point of a test shape is
predicted, among the parts of its category; a part that is neither there nor predicted counts as IoU 1. The mean over
the parts of a shape is averaged over shapes ("shape"), or over the shapes of a category and then over categories
("category"). The spread is over draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.checkpoint import copied
from partwhole.core.data import Stream, together
from partwhole.core.encoder import Encoder, build, describe
from partwhole.core.evaluate import mean_iou, part_iou
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.method import Joint, Method
from partwhole.core.watch import Quiet
from partwhole.shape3d.acd import SegmentParts
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.views import Augment, plain

# Axes: S shapes, R rows of a batch, L points of a row, P points of a shape, D features, K parts of all categories.

Arm = Literal["random", "scratch", "linear", "finetune", "joint"]
ARMS: dict[str, str] = {
    "random": "frozen random network, linear layer trained",
    "scratch": "random network, all of it trained",
    "linear": "pre-trained, frozen, linear layer trained",
    "finetune": "pre-trained, linear layer trained, then all of it",
    "joint": "random network, labelled and unlabelled shapes together",
}


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """How few-shot part segmentation is measured."""

    shots: tuple[int, ...] = (1, 3, 5, 10)
    """Labelled shapes per category."""
    draws: int = 5
    """Random supports; the spread is over them."""
    arms: tuple[Arm, ...] = ("random", "scratch", "linear", "finetune")
    """What to compare; joint trains on labelled and unlabelled shapes at once and takes longest."""
    test: int = 10
    """Test shapes per category and draw at most, where the labelled set has no split of its own."""
    rotate: Literal["axis", "so3", "none"] = "none"
    """How labelled shapes are turned in training. Test shapes never are: turning helps only where poses vary."""
    steps: int = 300
    """Optimizer steps of fine-tuning, the same from scratch."""
    joint_steps: int = 1000
    """Optimizer steps of joint training."""
    joint_weight: float = 10.0
    """Weight of the self-supervised loss in joint training."""
    batch: int = 8
    """Labelled shapes per step."""
    lr: float = 2e-3
    """Learning rate from scratch and of joint training."""
    finetune_lr: float = 5e-4
    """Learning rate of fine-tuning, which starts from the trained linear layer."""
    weight_decay: float = 1e-4
    """Weight decay of fine-tuning, the same from scratch."""
    penalty: float = 1e-3
    """L2 penalty on the weights of the linear layer on frozen features."""
    seed: int = 0
    """Of supports, heads and orders: the same for every encoder that is compared."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"shots are numbers of labelled shapes, 1 or more, and are {self.shots}")
        for name in ("draws", "test", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")
        if not self.arms:
            raise ValueError(f"arms says what to compare: some of {', '.join(ARMS)}")


@dataclass(frozen=True)
class Draw:
    """Indices into a labelled set: nested supports by k, and the shapes to test on."""

    support: dict[int, list[int]]
    test: list[int]
    problems: list[str]

    def names(self, labelled: Labelled) -> dict[str, list[str]]:
        """{"1": names of the support at k = 1, ..., "test": names}: what to write down."""
        chosen = {**{str(k): support for k, support in self.support.items()}, "test": self.test}
        return {key: [labelled.names[i] for i in indices] for key, indices in chosen.items()}


def draw(labelled: Labelled, options: FewShot, index: int) -> Draw:
    """The ``index``-th supports and test shapes. Categories too small for a k are left out of it, and named."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + index)
    most = max(options.shots)
    support: dict[int, list[int]] = {k: [] for k in options.shots}
    test: list[int] = []
    problems: list[str] = []
    for c, name in enumerate(labelled.categories):
        mine = [i for i, category in enumerate(labelled.category) if category == c]
        if not mine:  # a published list of categories of which this set has some
            continue
        order = [mine[i] for i in torch.randperm(len(mine), generator=generator).tolist()]
        held = [i for i in order if labelled.split[i] == "test"]
        train = [i for i in order if labelled.split[i] != "test"]
        if not held:
            room = min(options.test, max(len(order) - most, 1)) if len(order) > 1 else 0
            held, train = order[len(order) - room :], order[: len(order) - room]
        if not held or not train:
            problems.append(f"{name}: {len(mine)} shape(s), too few to label one and test on another; left out")
            continue
        for k in options.shots:
            if len(train) >= k:
                support[k] += train[:k]
            else:
                problems.append(f"{name}: {len(train)} shape(s) to label, {k} wanted; left out at k = {k}")
        test += held
    for k in [k for k, chosen in support.items() if not chosen]:
        problems.append(
            f"no category has {k} shapes to label: k = {k} is not measured (ask for fewer with --few-shot.shots)"
        )
        del support[k]
    return Draw(support, test, problems)


def all_draws(labelled: Labelled, options: FewShot) -> list[Draw]:
    """Every draw. Raises ValueError, with the reasons, where no category has enough shapes to label and to test."""
    draws = [draw(labelled, options, d) for d in range(options.draws)]
    if not all(one.support for one in draws):
        reasons = "; ".join(draws[0].problems)
        raise ValueError(f"few-shot segmentation cannot be measured on {labelled.note}: {reasons}")
    return draws


@dataclass(frozen=True)
class Seen:
    """What one trained network predicted: test shape -> the part of each of its points."""

    arm: Arm
    k: int
    draw: int
    predictions: dict[int, Tensor]


def few_shot(
    encoder: Encoder,
    labelled: Labelled,
    augment: Augment,
    options: FewShot,
    *,
    joint: Callable[[Encoder], tuple[Method, Stream]] | None = None,
    say: Callable[[str], None] = lambda text: None,
    look: Callable[[Seen], None] = lambda seen: None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure every arm at every k for every draw.

    encoder: the pre-trained one; it is copied, never changed, and everything runs on its device.
    augment: the view to train on; tests see whole shapes as they are.
    joint: gives the self-supervised method on a fresh encoder and its stream, for the arm of that name.
    say, look, keep: are told what happens, each network's predictions, and the results so far.
    Returns {"shots", "draws", "arms": {arm: {k: {"category_iou", "shape_iou", "per_category"}}}, "supports",
    "problems"}, with one number per draw in every list.
    """
    if "joint" in options.arms and joint is None:
        raise ValueError(
            "the arm 'joint' needs a self-supervised method and its shapes: pass joint=, or leave the arm out"
        )
    augment = replace(augment, rotate=options.rotate)
    draws = all_draws(labelled, options)
    results: dict[str, Any] = {
        "shots": sorted(draws[0].support),
        "draws": options.draws,
        "arms": {arm: {} for arm in options.arms},
        "supports": [one.names(labelled) for one in draws],
        "problems": list(dict.fromkeys(p for one in draws for p in one.problems)),
    }
    for problem in results["problems"]:
        say(problem)
    for d, one in enumerate(draws):
        for arm in options.arms:
            start = encoder if arm in ("linear", "finetune") else fresh(encoder, seed=options.seed + d)
            if arm == "random":
                settled(start, labelled, augment)
            for k, chosen in one.support.items():
                support = _Subset(labelled, chosen)
                if arm in ("scratch", "joint"):
                    torch.manual_seed(options.seed + d)
                    method = SegmentParts(copied(start), labelled.part_mask)
                    method = train(
                        method, support, augment, options, lr=options.lr, joint=joint if arm == "joint" else None
                    )
                else:
                    method = linear_probe(start, support, labelled.part_mask, augment, options)
                    if arm == "finetune":
                        method = train(method, support, augment, options, lr=options.finetune_lr)
                known = {labelled.category[i] for i in chosen}
                test = [i for i in one.test if labelled.category[i] in known]
                predictions = dict(zip(test, predict(method, _Subset(labelled, test), augment), strict=True))
                look(Seen(arm, k, d, predictions))
                _add(results["arms"][arm].setdefault(str(k), {}), test_iou(predictions, labelled))
            text = ", ".join(f"k={k} {cell['category_iou'][-1]:.3f}" for k, cell in results["arms"][arm].items())
            say(f"draw {d + 1} of {options.draws}, {arm}: {text}")
            keep(results)
    return results


def train(
    segment: SegmentParts,
    shapes: Sequence[dict[str, Tensor]],
    augment: Augment,
    options: FewShot,
    *,
    lr: float,
    joint: Callable[[Encoder], tuple[Method, Stream]] | None = None,
) -> SegmentParts:
    """``segment``, all of it trained on labelled ``shapes`` with the one loop of core."""
    stream = Stream(shapes, augment, batch=options.batch, seed=options.seed)
    method: Method = segment
    steps = options.steps
    if joint is not None:
        other, unlabelled = joint(segment.encoder)
        method = Joint(
            {"labelled": segment, "unlabelled": other}, {"labelled": 1.0, "unlabelled": options.joint_weight}
        )
        stream, steps = together(labelled=stream, unlabelled=unlabelled), options.joint_steps
    loop = Fit(
        steps=steps,
        lr=lr,
        weight_decay=options.weight_decay,
        seed=options.seed,
        device=str(_device(segment)),
        log_every=steps,
        evaluate_every=steps,
    )
    fit(Run(method=method, stream=stream), loop, watch=Quiet())
    return segment


def linear_probe(
    encoder: Encoder,
    shapes: Sequence[dict[str, Tensor]],
    part_mask: Tensor,
    augment: Augment,
    options: FewShot,
    *,
    points: int = 512,
) -> SegmentParts:
    """A linear layer on frozen features: multinomial logistic regression by L-BFGS.

    At most ``points`` points per shape are fitted. Features are standardised, and the scaling is folded into the layer.
    """
    device = _device(encoder)
    method = SegmentParts(copied(encoder), part_mask).to(device).eval()
    feature, part, category = [], [], []
    for i, row, x in rows(shapes, augment, device):
        with torch.no_grad():
            tokens = method.encoder(x).float()
        for j, index, token in zip(i, row, tokens, strict=True):
            some = torch.randperm(len(index), generator=torch.Generator().manual_seed(j))[:points]
            feature.append(token[some.to(device)])
            part.append(shapes[j]["part"][index[some]])
            category.append(shapes[j]["category"].expand(len(some)))
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
        loss = F.cross_entropy(logits, y) + options.penalty / 2 * weight.square().sum()
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
    for which, indices, x in rows(shapes, augment, _device(method)):
        category = torch.stack([shapes[i]["category"] for i in which]).to(x.device)
        for i, index, part in zip(which, indices, method.logits(x, category).argmax(-1).cpu(), strict=True):
            labels[i][index] = part
    return labels


def test_iou(predictions: Mapping[int, Tensor], labelled: Labelled) -> dict[str, Any]:
    """{"category_iou", "shape_iou", "per_category"} of predicted parts (P,) by shape, over labelled points."""
    iou, by_category = [], {name: [] for name in labelled.categories}
    for i, prediction in predictions.items():
        part, c = labelled[i]["part"], labelled.category[i]
        iou.append(part_iou(prediction, part, labelled.part_mask[c], valid=part >= 0))
        by_category[labelled.categories[c]].append(iou[-1].item())
    category = torch.tensor([labelled.category[i] for i in predictions])
    per_category = {name: sum(v) / len(v) for name, v in by_category.items() if v}
    return {**mean_iou(torch.stack(iou), category), "per_category": per_category}


def rows(
    shapes: Sequence[dict[str, Tensor]], augment: Augment, device: torch.device, *, batch: int = 32
) -> Iterator[tuple[list[int], list[Tensor], Tensor]]:
    """Batches of rows of ``augment.points`` points that together cover every point of every shape.

    Yields the shape of each row, the indices of its points, and the input (R, L, channels). Orders are fixed, and a
    shape's last row is filled up from its first.
    """
    todo: list[tuple[int, Tensor]] = []
    for i, shape in enumerate(shapes):
        count = len(shape["points"])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
        todo += [(i, order[(torch.arange(augment.points) + s) % count]) for s in range(0, count, augment.points)]
    for s in range(0, len(todo), batch):
        some = todo[s : s + batch]
        x = torch.stack([plain(shapes[i], normals=augment.normals)["x"][index] for i, index in some])
        yield [i for i, _ in some], [index for _, index in some], x.to(device)


def fresh(encoder: Encoder, *, seed: int) -> Encoder:
    """An encoder like this one with random weights, on the same device."""
    torch.manual_seed(seed)
    here = [type(m).__module__ for m in encoder.modules()]  # imported already, so trusted
    new = build(describe(encoder), allow=here)
    assert isinstance(new, Encoder)
    return new.to(_device(encoder))


@torch.no_grad()
def settled(encoder: Encoder, shapes: Sequence[dict[str, Tensor]], augment: Augment) -> Encoder:
    """``encoder`` after its running statistics have seen some of ``shapes``: a random network that is not also badly
    scaled.
    """
    some = [shapes[i] for i in range(0, len(shapes), max(1, len(shapes) // 16))][:16]
    x = torch.stack([augment(shape)["x"] for shape in some]).to(_device(encoder))
    encoder.train()
    for _ in range(30):  # each keeps nine tenths of the past
        encoder(x)
    return encoder.eval()


class _Subset(Sequence):
    """Some samples of a sequence, loaded once."""

    def __init__(self, samples: Sequence[dict[str, Tensor]], indices: Sequence[int]):
        self.samples = [samples[i] for i in indices]

    def __getitem__(self, i: Any) -> Any:
        return self.samples[i]

    def __len__(self) -> int:
        return len(self.samples)


def _add(cell: dict[str, Any], iou: Mapping[str, Any]) -> None:
    for key in ("category_iou", "shape_iou"):
        cell.setdefault(key, []).append(iou[key])
    for name, value in iou["per_category"].items():
        cell.setdefault("per_category", {}).setdefault(name, []).append(value)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
