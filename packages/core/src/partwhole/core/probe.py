"""What features are worth for telling classes apart, with few labels and with all: the same for every modality.

Axes: N labelled things, D features.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from partwhole.core.data import Stream, View, collate
from partwhole.core.encoder import Encoder, describe, device_of, fresh
from partwhole.core.evaluate import PENALTIES, accuracy, embed, knn, linear, ridge, settled
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.methods import Supervised
from partwhole.core.watch import Quiet, Watch

Arm = Literal["input", "random", "scratch", "frozen", "finetune"]
Readout = Literal["knn", "ridge", "sgd"]
READ = {"knn": "knn", "ridge": "linear", "sgd": "sgd"}  # what rows of results call them
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How features are measured."""

    arms: tuple[Arm, ...] = ("input", "random", "scratch", "frozen")
    """input: a linear layer on what the network sees; random: on the features of a random network; scratch: a random
    network, all of it trained; frozen: on the pre-trained features; finetune: all of the pre-trained network trained.
    """
    shots: tuple[int | float, ...] = (1, 5, 10, 50)
    """Labels of each class, or below 1 a share of them (.01, .1), at least one each; all of them are measured too. A
    number that no class has is left out.
    """
    draws: int = 3
    """How often these labels are drawn anew, and with them the random networks."""
    readouts: tuple[Readout, ...] = ("knn", "ridge")
    """How fixed features are read: by their nearest neighbours, a linear layer in closed form, or one learned by SGD at
    the best of several rates, as papers report it.
    """
    neighbours: int = 20
    """Nearest neighbours that vote, at most as many as there are labels."""
    steps: int = 150
    """Steps of training from scratch, and of fine-tuning."""
    lr: float = 1e-3
    """Highest learning rate of both."""
    batch: int = 64
    """Labelled things of a step of both, at most as many as there are."""
    seed: int = 0
    """Of draws, heads and orders: the same for every encoder that is compared."""

    def __post_init__(self) -> None:
        for k in self.shots:
            check_count(k, "shots")
        if not self.readouts:
            raise ValueError("readouts are knn, ridge or sgd, and there are none")
        for name in ("draws", "neighbours", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")


@dataclass(frozen=True)
class Classes:
    """Things to learn from and to be tested on, with their labels."""

    train: Sequence[Any]
    train_label: Tensor
    test: Sequence[Any]
    test_label: Tensor
    names: Sequence[str]

    def problems(self) -> list[str]:
        """What makes the numbers say less; ValueError where there is nothing to tell apart."""
        known, asked = (set(label.tolist()) for label in (self.train_label, self.test_label))
        if len(known) < 2 or not asked & known:
            raise ValueError(
                f"telling classes apart needs two in the training half and one of them in the test half: got "
                f"{self._named(known)} and {self._named(asked)}"
            )
        unknown = asked - known
        if not unknown:
            return []
        return [f"in the test half but not in the training half, so always missed: {self._named(unknown)}"]

    def _named(self, labels: set[int]) -> str:
        return ", ".join(self.names[i] for i in sorted(labels)) or "none"

    def drawn(self, k: int | float, seed: int) -> list[int]:
        """k things of each class that has as many, of others all: indices into ``train``.

        Below 1, k is the share of each class, rounded, at least one thing.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        label, out = self.train_label[order], []
        for c in label.unique():
            mine = order[label == c].tolist()
            out += mine[: max(1, round(k * len(mine))) if k < 1 else int(k)]
        return out


def check_count(k: int | float, name: str) -> None:
    """ValueError where k is neither a number of labels nor a share of them."""
    if not (0 < k <= 1 or (k > 1 and float(k).is_integer())):
        raise ValueError(f"{name}: labels of each class are a whole number, or a share below 1; got {k}")


def probe(
    encoder: Encoder,
    classes: Classes,
    *,
    plain: View,
    look: View,
    options: Probe,
    supports: Mapping[str, Sequence[Sequence[int]]] | None = None,
    watch: Watch | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    begun: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Accuracy on the test half for every arm and number of labels.

    encoder: the pre-trained one; it is copied, never changed, and everything runs on its device.
    plain, look: sample -> x, as it stands for measuring, and at random for training. The x of things may differ in
        their first axis: they are padded, and the encoder is told what is ``valid``.
    supports: which things are learned from, a list of indices for each draw, by the number of labels (of each class);
        by default those that ``options`` draw, and all.
    keep, begun: is told the results so far, and brings those that an interrupted measurement kept.
    Returns {"shots": [..., "all"], "labels": {k: labels learned from}, "arms": {row: {k: [accuracy of each draw]}},
    "classes", "train", "test", "problems", "options", "of"}; rows are "input linear", "random knn", "random linear",
    "scratch", "frozen knn", "frozen linear", "finetune", and with the readout "sgd" "input sgd" and so on.

    Features of any origin need no Encoder: ``evaluate.knn``, ``ridge`` and ``linear`` take tensors. A module or a
    function of x is wrapped; a network like it with random weights cannot be made, so that the arms random and scratch
    are left out:

        encoder = Wrapped(features, dim=512)                              # core.encoder.Wrapped; features(x): (B, 512)
        classes = Classes(x, label, test_x, test_label, ["cat", "dog"])   # tensors, or samples
        options = Probe(arms=("input", "frozen"))
        probe(encoder, classes, plain=lambda x: x, look=lambda x: x, options=options)["arms"]["frozen linear"]["all"]
    """
    if needed := {"random", "scratch"} & set(options.arms):
        try:
            describe(encoder)
        except TypeError as error:
            raise TypeError(f"{' and '.join(sorted(needed))} need a network like the encoder with fresh weights, and "
                            f"{error}. Or leave them out of arms") from error  # fmt: skip
    if supports is None:
        supports = drawn_by(options, classes)
    return _Probing(encoder, classes, plain, look, options, supports, watch or Quiet(), keep, begun or {}).results


def drawn_by(options: Probe, classes: Classes) -> dict[str, list[list[int]]]:
    """What is learned from at each number of labels, in the order of their number, for each draw; all of them last."""
    most = int(classes.train_label.bincount().max())
    seeds = [options.seed * 1_000_003 + d for d in range(options.draws)]
    out = {f"{k:g}": [classes.drawn(k, seed) for seed in seeds] for k in options.shots if k < most}
    few = sorted(out.items(), key=lambda one: len(one[1][0]))
    return {**dict(few), ALL: [list(range(len(classes.train)))] * len(seeds)}


class _Probing:
    """The state of one call of ``probe``."""

    def __init__(
        self,
        encoder: Encoder,
        classes: Classes,
        plain: View,
        look: View,
        options: Probe,
        supports: Mapping[str, Sequence[Sequence[int]]],
        watch: Watch,
        keep: Callable[[dict[str, Any]], None],
        begun: Mapping[str, Any],
    ):
        self.encoder, self.classes, self.options, self.look = encoder, classes, options, look
        self.watch, self.keep, self.supports = watch, keep, supports
        self.results: dict[str, Any] = {
            "shots": list(supports),
            "labels": {k: len(rows[0]) for k, rows in supports.items()},
            "arms": {},
            "classes": list(classes.names),
            "train": len(classes.train),
            "test": len(classes.test),
            "problems": classes.problems(),
            "options": json.loads(json.dumps(asdict(options))),
            "of": fingerprint(encoder),
        }
        if {**begun, "arms": {}} == self.results:
            self.results["arms"] = {row: dict(cells) for row, cells in begun["arms"].items()}
        for problem in self.results["problems"]:
            watch.say(problem)
        rows = [{"x": plain(half[i])} for half in (classes.train, classes.test) for i in range(len(half))]
        both, at = collate(rows), len(classes.train)  # together, so that padding makes them of one length
        self.train, self.test = ({k: v[part] for k, v in both.items()} for part in (slice(at), slice(at, None)))
        for arm in options.arms:
            if arm in ("scratch", "finetune"):
                self.trained(arm)
            else:
                self.frozen(arm)

    def frozen(self, arm: str) -> None:
        """What is read from fixed features; another random network for each draw."""
        readouts = [r for r in self.options.readouts if arm != "input" or r != "knn"]
        features: tuple[Tensor, Tensor] | None = None
        for d in range(self.options.draws):
            cells = [(r, k) for r in readouts for k in self.supports if arm == "random" or k != ALL or d == 0]
            cells = [(r, k) for r, k in cells if len(self.cell(f"{arm} {READ[r]}", k)) == d]
            if not cells:
                continue
            if features is None or arm == "random":
                features = self.features(arm, d)
            for readout, k in cells:
                rows, (train, test) = self.supports[k][d], features
                x, y = train[rows], self.classes.train_label[rows].to(train.device)
                if readout == "knn":
                    found = knn(x, y, test, k=self.options.neighbours)
                elif readout == "ridge":
                    found = ridge(x, y, test, penalty=PENALTIES)
                else:
                    found = linear(x, y, test, seed=self.options.seed + d)
                self.put(f"{arm} {READ[readout]}", k, found.cpu())

    def features(self, arm: str, d: int) -> tuple[Tensor, Tensor]:
        if arm == "input":
            return self.train["x"].flatten(1), self.test["x"].flatten(1)
        encoder = self.encoder
        if arm == "random":
            encoder = settled(fresh(encoder, seed=self.options.seed + d), **next(self.parts(self.train)))
        train, test = (embed(encoder, self.parts(half)).float() for half in (self.train, self.test))
        return train, test

    def trained(self, arm: str) -> None:
        """A network with a linear layer behind it, all of it trained; with all labels once."""
        cells = [(k, d) for k in self.supports for d in range(1 if k == ALL else self.options.draws)]
        for done, (k, d) in enumerate(cells):
            self.watch.step(done, {"total": len(cells)})
            if len(self.cell(arm, k)) > d:
                continue
            seed = self.options.seed + d
            start = fresh(self.encoder, seed=seed) if arm == "scratch" else deepcopy(self.encoder)
            method = self.taught(start, self.supports[k][d], seed)
            with torch.no_grad():
                device, found = device_of(method), []
                for part in self.parts(self.test):
                    found.append(method.answer(**{name: value.to(device) for name, value in part.items()}).argmax(-1))
                self.put(arm, k, torch.cat(found).cpu())
        self.watch.step(len(cells), {"total": len(cells)})

    def taught(self, encoder: Encoder, rows: Sequence[int], seed: int) -> Supervised:
        torch.manual_seed(seed)
        method, options = Supervised(encoder, classes=len(self.classes.names)), self.options
        stream = Stream(_Some(self.classes, rows), _Labelled(self.look), batch=min(options.batch, len(rows)), seed=seed)
        how = Fit(steps=options.steps, lr=options.lr, weight_decay=0.01, seed=seed, device=str(device_of(encoder)))
        fit(Run(method=method, stream=stream), how, watch=Quiet())
        return method.eval()

    def parts(self, half: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """So many things at a time: {"x"} and, where their lengths differ, {"valid"}."""
        for i in range(0, len(half["x"]), self.options.batch):
            yield {k: v[i : i + self.options.batch] for k, v in half.items()}

    def cell(self, row: str, k: str) -> list[float]:
        return self.results["arms"].get(row, {}).get(k, [])

    def put(self, row: str, k: str, found: Tensor) -> None:
        right = accuracy(found, self.classes.test_label)
        self.results["arms"].setdefault(row, {}).setdefault(k, []).append(right)
        self.keep(self.results)


@dataclass(frozen=True)
class _Some(Sequence):
    """Some of the things, each with its label: (thing, label)."""

    classes: Classes
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = self.rows[i]
        return self.classes.train[row], self.classes.train_label[row]


@dataclass(frozen=True)
class _Labelled:
    """A view and the label: {"x", "label"}."""

    look: View

    def __call__(self, pair: Any) -> dict[str, Any]:
        return {"x": self.look(pair[0]), "label": pair[1]}


def fingerprint(encoder: Encoder) -> str:
    """Equal for equal weights."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
