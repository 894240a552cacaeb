"""Few-shot part segmentation: what do k labelled shapes per category buy, with and without pre-training?

Protocol. A draw orders the shapes of every category at random (by seed); its first k are the support, so supports are
nested; the test shapes are those of the official split, or the last ones of the order. Every point of a test shape is
predicted, among the parts of its category; a part that is neither there nor predicted counts as IoU 1. The mean over
the parts of a shape is averaged over shapes ("shape"), or over the shapes of a category and then over categories
("category"). The spread is over draws.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from partwhole.core.checkpoint import copied
from partwhole.core.data import Batches, Stream, together
from partwhole.core.encoder import Encoder, device_of, fresh
from partwhole.core.evaluate import mean_iou, part_iou
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.method import Joint, Method
from partwhole.core.watch import Quiet, Watch
from partwhole.shape3d.labelled import Labelled
from partwhole.shape3d.segment import SegmentParts, linear_probe, predict, settled
from partwhole.shape3d.side import side_by_side
from partwhole.shape3d.views import Augment

# Axes: P points of a shape.

Arm = Literal["random", "scratch", "linear", "finetune", "joint"]


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """How few-shot part segmentation is measured."""

    shots: tuple[int, ...] = (1, 3, 5, 10)
    """Labelled shapes per category."""
    draws: int = 5
    """Random supports; the spread is over them."""
    arms: tuple[Arm, ...] = ("random", "scratch", "linear", "finetune")
    """What to compare; joint trains on labelled and unlabelled shapes at once and takes longest."""
    levels: Literal["all", "last"] = "all"
    """Features that a part is told from: those of all levels of PointNet++ side by side, or the last alone."""
    test: int = 10
    """Test shapes per category and draw at most, where the labelled set has no split of its own."""
    rotate: Literal["axis", "so3", "none"] = "none"
    """How labelled shapes are turned in training. Test shapes never are: turning helps only where poses vary."""
    unturned: float = 0.5
    """Share of the labelled shapes that are left as they stand where the others are turned."""
    steps: int = 300
    """Optimizer steps of fine-tuning, the same from scratch."""
    joint_steps: int = 1000
    """Optimizer steps of joint training."""
    joint_weight: float = 10.0
    """Weight of the self-supervised loss in joint training."""
    batch: int = 8
    """Labelled shapes per step."""
    lr: float = 4e-3
    """Learning rate of fine-tuning and joint training, the same from scratch."""
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
            raise ValueError(f"arms says what to compare: some of {', '.join(get_args(Arm))}")


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
class Cell:
    """One network to train and to test."""

    arm: Arm
    k: int
    draw: int


@dataclass(frozen=True)
class Seen(Cell):
    """What a network predicted: test shape -> the part of each of its points."""

    predictions: dict[int, Tensor]


def few_shot(
    encoder: Encoder,
    labelled: Labelled,
    augment: Augment,
    options: FewShot,
    *,
    joint: Callable[[Encoder], tuple[Method, Batches]] | None = None,
    watch: Watch | None = None,
    look: Callable[[Seen], None] = lambda seen: None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    begun: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Measure every arm at every k for every draw.

    encoder: the pre-trained one; it is copied, never changed, and everything runs on its device.
    augment: the view to train on; tests see whole shapes as they are.
    joint: gives the self-supervised method on a fresh encoder and its stream, for the arm of that name.
    watch, look, keep: are told what happens, each network's predictions, and the results so far.
    begun: what an interrupted measurement kept: cells of the same encoder, options and shapes are not measured again.
    processes: cells measured side by side on the CPU, each in a process of one thread, which takes about 1 GB.
    Returns {"shots", "draws", "arms": {arm: {k: {"category_iou", "shape_iou", "per_category"}}}, "supports",
    "problems", "options", "of", "complete"}, with one number per draw in every list.
    """
    watch = watch or Quiet()
    if "joint" in options.arms and joint is None:
        raise ValueError(
            "the arm 'joint' needs a self-supervised method and its shapes: pass joint=, or leave the arm out"
        )
    augment = replace(augment, rotate=options.rotate, unturned=options.unturned)
    draws = all_draws(labelled, options)
    results: dict[str, Any] = {
        "shots": sorted(draws[0].support),
        "draws": options.draws,
        "options": asdict(options),
        "arms": {arm: {} for arm in options.arms},
        "supports": [one.names(labelled) for one in draws],
        "problems": list(dict.fromkeys(p for one in draws for p in one.problems)),
        "of": fingerprint(encoder, labelled, augment, options),
        "complete": False,
    }
    if begun and begun.get("of") == results["of"] and not begun.get("complete"):
        results["arms"] = {arm: dict(begun["arms"].get(arm, {})) for arm in options.arms}
    for problem in results["problems"]:
        watch.say(problem)
    cells = [Cell(arm, k, d) for d, one in enumerate(draws) for arm in options.arms for k in one.support]
    left = [cell for cell in cells if not _measured(cell, results["arms"], draws)]

    def measure(cell: Cell) -> Seen:
        return predicted(cell, draws[cell.draw], encoder, labelled, augment, options, joint)

    known = len(cells) - len(left)
    processes = processes if device_of(encoder).type == "cpu" else 1
    for done, seen in enumerate(side_by_side(measure, left, processes), known + 1):
        look(seen)
        _add(results["arms"][seen.arm], seen.k, test_iou(seen.predictions, labelled))
        keep(results)
        watch.step(done, {"total": len(cells)})
        if done == len(cells) or (cells[done].arm, cells[done].draw) != (seen.arm, seen.draw):
            of_arm = results["arms"][seen.arm].items()
            text = ", ".join(f"k={k} {cell['category_iou'][-1]:.3f}" for k, cell in of_arm)
            watch.say(f"draw {seen.draw + 1} of {options.draws}, {seen.arm}: {text}")
    results["complete"] = True
    keep(results)
    return results


def predicted(
    cell: Cell,
    drawn: Draw,
    encoder: Encoder,
    labelled: Labelled,
    augment: Augment,
    options: FewShot,
    joint: Callable[[Encoder], tuple[Method, Batches]] | None,
) -> Seen:
    """Train the network of ``cell`` and let it predict: a function of its arguments alone."""
    seed = options.seed + cell.draw
    start = starting(cell.arm, encoder, labelled, augment, seed=seed)
    chosen = drawn.support[cell.k]
    torch.manual_seed(seed)
    support = [labelled[i] for i in chosen]
    method = trained(cell.arm, start, support, labelled.part_mask, augment, options, joint=joint)
    known = {labelled.category[i] for i in chosen}
    test = [i for i in drawn.test if labelled.category[i] in known]
    parts = predict(method, [labelled[i] for i in test], augment)
    return Seen(cell.arm, cell.k, cell.draw, dict(zip(test, parts, strict=True)))


def starting(arm: Arm, encoder: Encoder, labelled: Labelled, augment: Augment, *, seed: int) -> Encoder:
    """What ``arm`` starts from: the pre-trained encoder or one with random weights."""
    if arm in ("linear", "finetune"):
        return encoder
    new = fresh(encoder, seed=seed)
    return settled(new, labelled, augment) if arm == "random" else new


def trained(
    arm: Arm,
    start: Encoder,
    support: Sequence[dict[str, Tensor]],
    part_mask: Tensor,
    augment: Augment,
    options: FewShot,
    *,
    joint: Callable[[Encoder], tuple[Method, Batches]] | None = None,
) -> SegmentParts:
    """What ``arm`` makes of the labelled shapes ``support``; ``start`` is not changed."""
    if arm in ("scratch", "joint"):
        method = SegmentParts(copied(start), part_mask)
    else:
        method = linear_probe(start, support, part_mask, augment, penalty=options.penalty)
    if arm in ("random", "linear"):
        return method
    return train(method, support, augment, options, joint=joint if arm == "joint" else None)


def fingerprint(encoder: Encoder, labelled: Labelled, augment: Augment, options: FewShot) -> str:
    """Equal for two measurements of the same weights by the same options on the same shapes."""
    digest = hashlib.sha256(repr((augment, options, labelled.names)).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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


def train(
    segment: SegmentParts,
    shapes: Sequence[dict[str, Tensor]],
    augment: Augment,
    options: FewShot,
    *,
    joint: Callable[[Encoder], tuple[Method, Batches]] | None = None,
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
        lr=options.lr,
        weight_decay=options.weight_decay,
        seed=options.seed,
        device=str(device_of(segment)),
        log_every=steps,
        evaluate_every=steps,
    )
    fit(Run(method=method, stream=stream), loop, watch=Quiet())
    return segment


def _measured(cell: Cell, arms: Mapping[str, Any], draws: Sequence[Draw]) -> bool:
    """Whether ``arms`` hold a number for ``cell``: they are filled draw by draw."""
    known = arms[cell.arm].get(str(cell.k), {"category_iou": []})["category_iou"]
    return len(known) > sum(cell.k in earlier.support for earlier in draws[: cell.draw])


def _add(cells: dict[str, Any], k: int, iou: Mapping[str, Any]) -> None:
    cell = cells.setdefault(str(k), {"category_iou": [], "shape_iou": [], "per_category": {}})
    for key in ("category_iou", "shape_iou"):
        cell[key].append(iou[key])
    for name, value in iou["per_category"].items():
        cell["per_category"].setdefault(name, []).append(value)
