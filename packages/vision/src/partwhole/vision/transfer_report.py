"""What ``transfer`` measured, in words: a table for the terminal, a section of a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partwhole.core.probe_report import plus
from partwhole.core.report import Page, Spread, picture_html

ROWS = {  # in the order of reading; {} is the method
    "commonest": "every pixel of the commonest class",
    "random": "random network, frozen",
    "scratch": "random network, all of it trained",
    "frozen": "{}, frozen",
    "finetune": "{}, then all of it trained",
}


def tables(results: Mapping[str, Any], method: str) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """What was measured: {kind: (header, rows)}, the cells strings and spreads, an arm a row."""
    out: dict[str, tuple[list[str], list[list[Any]]]] = {}
    if rows := results.get("jaccard", {}).get("rows"):
        names = {"encoder": method, "random": "random network", "centre box": "box in the middle, of the best size"}
        order = [*(row for row in rows if row not in names), *names]
        order = ["encoder", *(row for row in order if row != "encoder")]
        columns = list(rows["encoder"])
        cells = [[names.get(row, row), *(Spread(**rows[row][c]) for c in columns)] for row in order]
        out["jaccard"] = (["Jaccard of attention", *columns], cells)
    if arms := results.get("segmentation", {}).get("arms"):
        out["segmentation"] = (
            ["segmentation", "mean IoU"],
            [[ROWS[a].format(method), Spread.of(arms[a])] for a in ROWS if a in arms],
        )
    if arms := results.get("detection", {}).get("arms"):
        columns = list(next(iter(arms.values())))
        cells = [[ROWS[a].format(method), *(Spread.of(arms[a][c]) for c in columns)] for a in ROWS if a in arms]
        out["detection"] = (["detection", *columns], cells)
    return out


def text(results: Mapping[str, Any], method: str) -> str:
    """The same, for a terminal."""
    lines = [f"on {results['set']['name']} ({results['set']['divided']}):"]
    found = tables(results, method)
    wide = max((len(row[0]) for header, rows in found.values() for row in (header, *rows)), default=0) + 2
    for header, rows in found.values():
        lines.append(header[0].ljust(wide) + "".join(f"{name:>16s}" for name in header[1:]))
        lines += [row[0].ljust(wide) + "".join(f"{plus(cell):>16s}" for cell in row[1:]) for row in rows]
    if problems := results["set"]["problems"]:
        lines.append(f"{len(problems)} of its images were skipped")
    return "\n".join([*lines, *_notes(results)])


def _notes(results: Mapping[str, Any]) -> list[str]:
    return [*results["notes"], *results.get("jaccard", {}).get("notes", [])]


ABOUT = {
    "jaccard": (
        "The fewest patches with {mass:.0%} of the class token's attention in the last block, against the objects "
        "(Caron et al., 2021). The best head is chosen for each image by its own truth, so that more heads score "
        "higher without knowing more; the box in the middle is as large as is best for all images together. "
        "\N{PLUS-MINUS SIGN} over images."
    ),
    "segmentation": (
        "Frozen: a linear layer on the features of patches. \N{PLUS-MINUS SIGN} over draws of networks, heads and "
        "orders."
    ),
    "detection": (
        "Frozen: the detector learns, the encoder does not. AP50 as VOC 2007 has it, and AP over overlaps from .5 to "
        ".95 as COCO, that of masks by their pixels. \N{PLUS-MINUS SIGN} over draws of networks, heads and orders. "
        "The surest are drawn, as many as an image has objects; with masks each in a colour of its own."
    ),
}
TITLES = {"jaccard": "What is attended to", "segmentation": "The class of every pixel", "detection": "Objects found"}


def section(page: Page, results: Mapping[str, Any], folder: Path, method: str) -> Page:
    """Tables and pictures of what was measured."""
    told = results["set"]
    page.section("On annotated images").text(f"Images of {told['name']}: {told['divided']}.")
    for kind, (header, rows) in tables(results, method).items():
        page.heading(TITLES[kind])
        page.table(header, rows, best="column")
        page.text(ABOUT[kind].format(mass=results["jaccard"]["options"]["mass"] if kind == "jaccard" else 0))
        if kind == "jaccard":
            path, shown = folder / "transfer" / "jaccard.png", results[kind]["shown"]
            if shown and path.exists():
                page.picture(path.read_bytes(), shown)
        else:
            _columns(page, folder / "transfer", kind, results[kind]["arms"], method)
        if kind == "segmentation":
            _classes(page, results[kind], method)
    for note in _notes(results):
        page.note(f"{note}.")
    if problems := told["problems"]:
        page.table(["file", "what"], problems[:200], fold=f"{len(problems)} annotated images that were skipped")
    return page


def _columns(page: Page, folder: Path, kind: str, arms: Mapping[str, Any], method: str) -> None:
    """The truth and every arm's answer side by side, on the same images."""
    named = {"truth": "the truth", **{arm: name.format(method) for arm, name in ROWS.items() if arm in arms}}
    paths = {name: folder / f"{kind}-{arm}.png" for arm, name in named.items() if arm != "commonest"}
    page.grid([picture_html(p.read_bytes(), name) for name, p in paths.items() if p.exists()], width=200)


def _classes(page: Page, measured: Mapping[str, Any], method: str) -> None:
    names, found = measured["classes"], measured["iou"]
    rows = [
        [name, *(Spread.of(draw[i] for draw in found[arm]) for arm in ROWS if arm in found)]
        for i, name in enumerate(names)
    ]
    header = ["IoU", *(ROWS[arm].format(method) for arm in ROWS if arm in found)]
    page.table(header, rows, best="row", fold=f"each of the {len(names)} classes")
