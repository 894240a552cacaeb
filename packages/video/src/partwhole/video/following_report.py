"""What ``measure`` found, in words: a table for the terminal, a section of a page."""

from collections.abc import Mapping
from typing import Any

from partwhole.core.report import Page, Spread, decimal

ROWS = {  # in the order of reading; {} is the method
    "copy": "the first mask, copied",
    "pixels": "pixels as features",
    "random": "random network",
    "encoder": "{}",
}
KEYS = ("J&F", "J", "F", "J recall", "J decay")


def cells(results: Mapping[str, Any]) -> dict[str, list[Spread]]:
    """The measured rows in the order of reading, and their numbers ``KEYS``, spreads over random networks."""
    mean = results["mean"]
    return {
        row: [Spread(mean[row][key], mean[row].get(f"{key} spread", 0.0), len(results["rows"][row])) for key in KEYS]
        for row in ROWS
        if row in mean
    }


def table(results: Mapping[str, Any], method: str) -> str:
    """A row a line."""
    rows = cells(results)
    wide = max((len(ROWS[row].format(method)) for row in rows), default=0) + 2
    head = f"objects of {len(results['sequences'])} videos followed"
    wide = max(wide, len(head) + 2)
    lines = [head.ljust(wide) + "".join(f"{key:>10s}" for key in KEYS)]
    for row, found in rows.items():
        numbers = "".join(f"{decimal(cell.mean, 3):>10s}" for cell in found)
        lines.append(ROWS[row].format(method).ljust(wide) + numbers)
    return "\n".join([*lines, *(f"{name}: {what}" for name, what in results["problems"])])


def section(page: Page, results: Mapping[str, Any], method: str) -> None:
    """What the features are worth for following objects: all videos, and each."""
    options = results["options"]
    page.section("Objects followed by the features")
    page.text(
        "The masks of the first frame are given; those of the others are carried along by what looks alike to the "
        f"frozen network (protocol {options['preset']}). J is the share of an object's pixels that are right, F that "
        "of its outline, as the DAVIS challenge has them."
    )
    rows = cells(results)
    page.table(["", *KEYS], [[ROWS[row].format(method), *found] for row, found in rows.items()])
    each = []
    for name in results["sequences"]:
        of = [_mean([v for draw in results["rows"][row] for v in draw[name]["J"]]) for row in rows]
        each.append([name, *of])
    page.table(["J of", *(ROWS[row].format(method) for row in rows)], each, fold="each video", best="row")
    for name, what in results["problems"]:
        page.note(f"{name} is left out: {what}.")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
