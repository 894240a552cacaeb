"""What ``probe`` measured, in words: a table for the terminal, a section of a page."""

from collections.abc import Mapping
from typing import Any

from partwhole.core.report import Page, Series, Spread, decimal, line_chart

ROWS = {  # in the order of reading; {} is the method
    "input linear": "the input itself, linear layer",
    "random knn": "random network, nearest neighbours",
    "random linear": "random network, linear layer",
    "scratch": "random network, all of it trained",
    "frozen knn": "{}, nearest neighbours",
    "frozen linear": "{}, linear layer",
    "finetune": "{}, then all of it trained",
}


def cells(results: Mapping[str, Any]) -> dict[str, list[Spread]]:
    """The measured rows in the order of reading, and their accuracy at each number of labels."""
    arms = results.get("arms") or {}
    return {row: [Spread.of(arms[row].get(k) or []) for k in results["shots"]] for row in ROWS if row in arms}


def table(results: Mapping[str, Any], method: str) -> str:
    """Accuracy, mean and standard deviation over draws of the labels, a row a line."""
    rows = cells(results)
    wide = max((len(ROWS[row].format(method)) for row in rows), default=0) + 2
    lines = ["accuracy".ljust(wide) + "".join(f"{_labels(k):>15s}" for k in results["shots"])]
    lines += [ROWS[r].format(method).ljust(wide) + "".join(f"{plus(c):>15s}" for c in rows[r]) for r in rows]
    return "\n".join([*lines, *results["problems"]])


def summary(results: Mapping[str, Any], method: str) -> str:
    """One plain sentence: the pre-trained features with all labels, against random ones and training from scratch."""
    rows = {row: spreads[-1] for row, spreads in cells(results).items() if spreads and spreads[-1].count}
    ours = [row for row in ("frozen knn", "frozen linear", "finetune") if row in rows]
    if not ours:
        return ""
    best = max(ours, key=lambda row: rows[row].mean)
    others = [
        f"{ROWS[row]}: {decimal(rows[row].mean, 3)}"
        for row in ("random linear", "scratch", "input linear")
        if row in rows
    ]
    said = f"{ROWS[best].format(method)}: {decimal(rows[best].mean, 3)} of {results['test']:,} test things named right"
    chance = f"chance: {decimal(1 / max(1, len(results['classes'])), 3)}"
    return f"{said[0].upper()}{said[1:]} with all {results['train']:,} labels ({'; '.join([*others, chance])})."


def section(page: Page, results: Mapping[str, Any], method: str) -> Page:
    """The table and, where there are several numbers of labels, the curve."""
    rows = cells(results)
    page.section("What the features are worth")
    if text := summary(results, method):
        page.text(text)
    header = ["accuracy", *map(_labels, results["shots"])]
    page.table(header, [[ROWS[row].format(method), *spreads] for row, spreads in rows.items()], best="column", digits=3)
    page.text(
        "k labels of each class, or all; mean \N{PLUS-MINUS SIGN} standard deviation over draws of the labels, and of "
        "random networks. The best of each column is bold."
    )
    shots = [int(k) for k in results["shots"] if k.isdigit()]
    if len(shots) > 1:
        series = [
            Series(ROWS[row].format(method), shots, [c.mean for c in r][: len(shots)], [c.std for c in r][: len(shots)])
            for row, r in rows.items()
        ]
        page.raw(line_chart(series, title="Accuracy", x="labels of each class", log_x=True, x_ticks=shots))
    for problem in results["problems"]:
        page.note(problem)
    return page


def _labels(k: str) -> str:
    return f"k = {k}" if k.isdigit() else f"{k} labels"


def plus(spread: Spread) -> str:
    """A cell of a table for the terminal."""
    if not spread.count:
        return "-"
    return f"{spread.mean:.3f}" + (f" ± {spread.std:.3f}" if spread.count > 1 else "")
