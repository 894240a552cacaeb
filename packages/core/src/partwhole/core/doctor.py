"""What is wrong with a training, in plain words, from the lines of its ``metrics.jsonl``.

    for finding in diagnose(journal.read(folder / "metrics.jsonl")):
        print(finding.text)

The loop asks after every logged step (``Fit.doctor``); ``tools/run.py`` and the report ask at the end. What is read:
the loss, ``gradient_norm`` and ``lr``, what the monitor adds (``partwhole.core.monitor``), and of a method's values:

std                          of its embeddings: near 1 where they fill the sphere, 0 where they have collapsed
entropy, entropy_of_mean     of a teacher's targets, and of their mean; kl, from the targets to the student's

under these names or behind a prefix (``dino/entropy``). Nothing is said on fewer than ``WINDOW`` lines, nor, but of
what can only be dead, while the learning rate still rises. All of the last ``WINDOW`` lines must agree.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW = 6  # lines
FLAT = 30  # lines before a loss can be called flat
DEAD = 1e-5  # a spread that is rounding
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    """Names the finding, so that it is told once."""
    text: str
    """What is seen, what it means, what to do."""
    collapsed: bool = True
    """Whether training on is a waste; else it is worth a look."""


class Collapsed(RuntimeError):
    """The doctor stopped a training that learns nothing (``Fit.doctor`` is "stop"); its state is saved."""


class Doctor:
    """Reads line after line; ``look`` returns what was not found before."""

    def __init__(self, rows: Iterable[Row] = ()):
        self.rows, self.told = list(rows), set[str]()

    def look(self, row: Row) -> list[Finding]:
        self.rows.append(row)
        new = [f for f in diagnose(self.rows) if f.kind not in self.told]
        self.told |= {f.kind for f in new}
        return new


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """What is wrong at the end of ``rows``, the lines of a journal in their order; [] where nothing is."""
    rows = [r for r in rows if "loss" in r]  # the others are evaluations
    last = rows[-WINDOW:]
    if len(last) < WINDOW:
        return []
    found = [*_not_finite(last), *_still(last)]
    rates = [r.get("lr") or 0.0 for r in last]
    if rates[-1] > rates[0]:
        return found
    names = {k.rpartition("/")[2]: k for k in last[-1]}
    found += [*_features(last), *_teacher(last, names), *_prototypes(last), *_chance(rows), *_exploding(rows)]
    return found or _flat(rows, names)


# ------------------------------------------------------------------ checks


def _not_finite(last: Sequence[Row]) -> list[Finding]:
    bad = sorted({k for r in last[-1:] for k, v in r.items() if v is None or (_number(v) and not math.isfinite(v))})
    if not bad:
        return []
    return [
        Finding(
            "not finite",
            f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} NaN or infinite: nothing after this can be trusted. "
            "Look at the batch, lower lr, set clip, or leave bf16",
        )
    ]


def _still(last: Sequence[Row]) -> list[Finding]:
    """What no learning rate can explain: no gradient at all, or features that are all one."""
    norms = _values(last, "gradient_norm")
    found = []
    if norms and max(norms) < 1e-8:
        found.append(
            Finding(
                "no gradient",
                f"the gradient has been 0 ({norms[-1]:.2g}) in the last {WINDOW} logged steps: nothing is learned. A "
                "dead activation, a detached loss or a collapsed output does that; look at the encoder's output",
            )
        )
    spreads = _values(last, "features/std")
    if spreads and max(spreads) < DEAD:
        found.append(
            Finding(
                "dead features",
                f"std of the encoder's features is {spreads[-1]:.2g}: it gives the same for every input (RankMe 1), "
                "whatever the loss says. No gradient leads out of there: start again with a lower lr, a norm in the "
                "encoder, or another initialisation",
            )
        )
    return found


def _features(last: Sequence[Row]) -> list[Finding]:
    spreads, centred = _values(last, "features/std"), _values(last, "features/rankme_centred")
    if spreads and max(spreads) < DEAD:
        return []  # said already
    low = {}
    for name in (k for k in last[-1] if k.rpartition("/")[2] == "std"):
        values = _values(last, name)
        if values and max(values) < (1e-3 if name == "features/std" else 0.02):  # means of tokens are alike by nature
            low["the encoder's features" if name == "features/std" else "the embeddings z"] = values[-1]
    if low:
        rank = _values(last, "features/rankme")
        words = " and ".join(f"of {what} to {value:.2g}" for what, value in low.items())
        return [
            Finding(
                "low std",
                f"std has fallen, {words}, where 1 fills the sphere"
                + (f" (RankMe of the features: {rank[-1]:.3g})" if rank else "")
                + ": every input gets nearly the same. Lower lr; a method without negatives needs its predictor, a "
                "slower teacher (momentum nearer to 1), batch norm in its heads, or a term for the variance",
            )
        ]
    if centred and max(centred) < 1.2:
        return [
            Finding(
                "one direction",
                f"the features differ in one direction only (RankMe less their mean: {centred[-1]:.3g}): a dimensional "
                "collapse. Weigh a covariance or uniformity term more, or lower lr",
            )
        ]
    return []


def _teacher(last: Sequence[Row], names: Mapping[str, str]) -> list[Finding]:
    entropy, of_mean = (_values(last, names.get(k, k)) for k in ("entropy", "entropy_of_mean"))
    if not entropy or not of_mean or max(m - e for m, e in zip(of_mean, entropy, strict=True)) > 0.003:
        return []
    if max(of_mean) < 0.05:
        return [
            Finding(
                "teacher on one prototype",
                f"the teacher's entropy is {entropy[-1]:.2g} and that of its mean {of_mean[-1]:.2g}: it puts every "
                "input on one prototype. Centre its output (a centre that moves: momentum 0.9), balance it (Sinkhorn), "
                "or raise its temperature",
            )
        ]
    return [
        Finding(
            "teacher says the same",
            f"the teacher's entropy has stayed at {entropy[-1]:.4g}{_as_log(entropy[-1])}, and so has that of its "
            "mean: it says the same of every input, and there is nothing to learn from it. Lower the teacher's "
            "temperature (0.04 to 0.07 for cosines), and centre its output if that is off",
        )
    ]


def _prototypes(last: Sequence[Row]) -> list[Finding]:
    share = _values(last, "prototypes/used")
    if not share or max(share) > 0.02:
        return []
    return [
        Finding(
            "dead prototypes",
            f"rows choose {100 * share[-1]:.2g} % of the prototypes that they could: the rest are dead. Use fewer "
            "prototypes, balance them (Sinkhorn, or a centre), or lower lr",
            collapsed=False,
        )
    ]


def _chance(rows: Sequence[Row]) -> list[Finding]:
    window = _values(rows[-2 * WINDOW :], "loss")
    if len(window) < 2 * WINDOW or max(window) - min(window) > 1e-4 * abs(window[-1]) or not _as_log(window[-1]):
        return []
    return [
        Finding(
            "loss of chance",
            f"loss has stayed at {window[-1]:.4g}{_as_log(window[-1])}: that of an output which is the same for all "
            "candidates. Lower lr or raise warmup; see the std of the features (is "
            "the encoder alive?) and the temperature (is the teacher's output uniform?)",
        )
    ]


def _flat(rows: Sequence[Row], names: Mapping[str, str]) -> list[Finding]:
    of = names.get("kl", "loss")  # a teacher that sharpens or softens moves the loss too
    values = _values(rows[:: len(rows) // 1000 + 1], of)
    if len(values) < FLAT:
        return []
    size = len(values) / 10
    medians = [statistics.median(values[int(i * size) : int((i + 1) * size)]) for i in range(10)]
    low, high = min(medians), max(medians)
    if high - low > 0.005 * max(abs(low), abs(high)):
        return []
    return [
        Finding(
            "flat loss",
            f"{of} has stayed between {low:.4g} and {high:.4g} since the first step: it does not fall. Raise lr, and "
            "see whether the task can be solved from what is shown",
            collapsed=False,
        )
    ]


def _exploding(rows: Sequence[Row]) -> list[Finding]:
    norms = _values(rows[-100 * WINDOW :], "gradient_norm")
    if len(norms) < 3 * WINDOW:
        return []
    usual, now = statistics.median(norms), min(norms[-WINDOW:])
    if now < 100 * usual:
        return []
    return [
        Finding(
            "exploding gradient",
            f"the gradient's norm has grown to {norms[-1]:.3g}, where {usual:.3g} was usual: lower lr or set clip",
            collapsed=False,
        )
    ]


# ------------------------------------------------------------------ inside


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """The numbers under ``name``; [] unless every row has one."""
    found = [r[name] for r in rows if _number(r.get(name)) and math.isfinite(r[name])]
    return found if len(found) == len(rows) else []


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _as_log(value: float) -> str:
    """Such as " = ln 4096" where ``value`` is the logarithm of a whole number, or nearly of a power of two; or ""."""
    if not 0.5 < value < 20:
        return ""
    whole, power = round(math.exp(value)), 2 ** round(value / math.log(2))
    if abs(math.exp(value) - whole) <= 0.05 + 1e-6 * whole:
        return f" = ln {whole}"
    return f" = ln {power}" if abs(value - math.log(power)) <= 2e-3 else ""
