"""One self-contained HTML page: it opens offline, on a phone, in light and dark mode, and on paper.

Nothing is fetched from anywhere: style, charts (:mod:`partwhole.core.charts`), pictures and scripts are inside it,
and its content security policy forbids every request, so that a later change cannot bring one in unnoticed.

>>> page = Page("A run").section("Result").table(["shots", "IoU"], [[1, Spread.of([0.5, 0.6])]])
>>> page.chart([Series("loss", [0, 1, 2], [3.0, 2.0, 1.5])], x="step").write("report.html")   # doctest: +SKIP
"""

import base64
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from partwhole.core import files
from partwhole.core.charts import Series, bar_chart, line_chart

__all__ = [
    "Page",
    "Series",
    "Spread",
    "bar_chart",
    "curves",
    "flatten",
    "line_chart",
    "picture_html",
    "read_metrics",
    "table_html",
]

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Spread:
    """A table cell: mean and standard deviation of ``count`` values."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Mean and sample standard deviation (n - 1; 0 for one value) of the finite values; NaN when there are none."""
        kept = [float(v) for v in values if v is not None and math.isfinite(v)]
        if not kept:
            return cls(math.nan, math.nan, 0)
        return cls(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else 0.0, len(kept))


class Page:
    """Collects parts in reading order; every method returns the page, so that calls chain.

    All text is escaped; only :meth:`raw` takes HTML, which its caller answers for.
    """

    def __init__(self, title: str, *, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self.parts: list[str] = []
        self.sections: list[tuple[str, str]] = []

    def section(self, title: str) -> "Page":
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {name for name, _ in self.sections}
        name = next(n for n in (slug, *(f"{slug}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        self.sections.append((name, title))
        return self.raw(f'<h2 id="{name}">{escape(title)}</h2>')

    def heading(self, title: str) -> "Page":
        return self.raw(f"<h3>{escape(title)}</h3>")

    def text(self, text: str, *, lead: bool = False) -> "Page":
        """Paragraphs, separated by blank lines."""
        start = '<p class="lead">' if lead else "<p>"
        return self.raw("".join(f"{start}{escape(p.strip())}</p>" for p in re.split(r"\n\s*\n", text) if p.strip()))

    def note(self, text: str) -> "Page":
        """A remark set apart."""
        return self.raw(f"<aside><p>{escape(text)}</p></aside>")

    def code(self, text: str) -> "Page":
        """Text to copy: a command, an error message."""
        return self.raw(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[Any], rows: Sequence[Sequence[Any]], *, fold: str = "", **options: Any) -> "Page":
        """A table (:func:`table_html`); with ``fold`` it is closed under that title until it is opened."""
        html = table_html(header, rows, **options)
        return self.raw(folded(fold, html) if fold else html)

    def chart(self, series: Sequence[Series], **options: Any) -> "Page":
        """Lines (:func:`partwhole.core.charts.line_chart`)."""
        return self.raw(line_chart(series, **options))

    def bars(self, bars: Sequence[tuple[str, float]], **options: Any) -> "Page":
        """Bars (:func:`partwhole.core.charts.bar_chart`)."""
        return self.raw(bar_chart(bars, **options))

    def picture(self, png: bytes, caption: str = "", *, width: int | None = None) -> "Page":
        """A PNG or a GIF, ``width`` CSS pixels wide where there is room."""
        return self.raw(picture_html(png, caption, width=width))

    def grid(self, parts: Sequence[str], *, width: int = 400) -> "Page":
        """HTML parts (charts, pictures) side by side, as many as fit at ``width`` CSS pixels each."""
        columns = f"repeat(auto-fill,minmax(min(100%,{int(width)}px),1fr))"
        html = f'<div class="grid" style="grid-template-columns:{columns}">{"".join(parts)}</div>'
        return self.raw(html) if parts else self

    def raw(self, html: str) -> "Page":
        """HTML as it is. It must not refer to anything outside the page: the policy would block it."""
        self.parts.append(html)
        return self

    def html(self) -> str:
        """The whole document."""
        style = resources.files("partwhole.core").joinpath("report.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in self.sections)
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<title>{escape(self.title)}</title>\n<link rel="icon" href="data:,">',
                f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{escape(self.title)}</h1>",
                f'<p class="lead">{escape(self.lead)}</p>' if self.lead else "",
                f"<nav>{links}</nav>" if len(self.sections) > 2 else "",
                *self.parts,
                "</main>\n</body>\n</html>\n",
            ]
        )

    def write(self, path: Path | str) -> Path:
        """Write the document to ``path``, whole or not at all; its folder is made when it is missing."""
        path = Path(path)
        # A file name that is not UTF-8 reaches Python as lone surrogates, which no encoding takes: "?" stands in.
        page = self.html().encode("utf-8", "replace")
        files.write(path, lambda file: file.write(page))
        return path


# -- tables and pictures ---------------------------------------------------------------------------------------------


def table_html(
    header: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    digits: int = 3,
    best: Literal["row", "column"] | None = None,
    least: bool = False,
) -> str:
    """A table of strings, numbers and :class:`Spread`.

    Args:
        header: one cell per column.
        rows: as many cells as the header has; None and NaN are shown as a dash.
        caption: above the table.
        digits: decimals of the numbers that are not whole.
        best: set in bold the greatest floats of each row or of each column, all that look equal.
        least: the smallest is the best.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {i} of the table has {len(row)} cells, the header has {len(header)}")
    columns = [[r[j] for r in rows if r[j] is not None] for j in range(len(header))]
    numeric = [bool(cells) and all(_is_number(c) for c in cells) for cells in columns]
    groups = {"row": [[(i, j) for j in range(len(header))] for i in range(len(rows))]}
    groups["column"] = [[(i, j) for i in range(len(rows))] for j in range(len(header))]
    bold: set[tuple[int, int]] = set()
    for group in groups[best] if best else ():
        values = {at: round(v, digits) for at in group if (v := _score(rows[at[0]][at[1]])) is not None}
        if len(values) > 1:
            top = min(values.values()) if least else max(values.values())
            bold |= {at for at, v in values.items() if v == top}
    head = "".join(f"<th{_class(numeric[j])}>{escape(str(h))}</th>" for j, h in enumerate(header))
    body = ""
    for i, row in enumerate(rows):
        cells = (_cell(c, digits, (i, j) in bold) for j, c in enumerate(row))
        body += "<tr>" + "".join(f"<td{_class(numeric[j])}>{c}</td>" for j, c in enumerate(cells)) + "</tr>"
    name = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(map(str, header)) else ""
    return f'<div class="table"><table>{name}{head}<tbody>{body}</tbody></table></div>'


def decimal(value: float, digits: int) -> str:
    """A fixed number of decimals, as scores are printed: with two or more, no zero stands before the point (.614)."""
    if not math.isfinite(value):
        return "\N{EN DASH}" if math.isnan(value) else str(value)
    text = f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return re.sub(r"^(\N{MINUS SIGN}?)0\.", r"\1.", text) if digits > 1 else text


def picture_html(png: bytes, caption: str = "", *, width: int | None = None) -> str:
    """A ``<figure>`` with the PNG inside it, or the GIF, which may move.

    Raises:
        ValueError: the bytes are neither.
    """
    kind = "png" if png[:8] == b"\x89PNG\r\n\x1a\n" else "gif" if png[:6] == b"GIF89a" else ""
    if not kind:
        raise ValueError(f"a picture must be the bytes of a PNG file, or a GIF; these begin with {png[:8]!r}")
    size = f' style="width:{int(width)}px"' if width else ""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(caption)}"{size} src="data:image/{kind};base64,{data}">{text}</figure>'


def folded(title: str, html: str) -> str:
    """HTML that is hidden under ``title`` until the reader opens it."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float, Spread)) and not isinstance(cell, bool)


def _score(cell: Any) -> float | None:
    """What competes for the best: floats and spreads. Whole numbers are counts."""
    value = cell.mean if isinstance(cell, Spread) else cell
    return value if isinstance(value, float) and math.isfinite(value) else None


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(cell: Any, digits: int, bold: bool) -> str:
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, Spread):
        text = decimal(cell.mean, digits)
        if cell.count > 1:
            text += f' <span class="spread">\N{PLUS-MINUS SIGN} {decimal(cell.std, digits)}</span>'
    elif isinstance(cell, float):
        text = decimal(cell, digits)
    elif isinstance(cell, int) and not isinstance(cell, bool):
        text = f"{cell:,}"
    else:
        text = escape(str(cell))
    return f"<b>{text}</b>" if bold else text


# -- a run's own files -----------------------------------------------------------------------------------------------


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows ("fit.lr", "0.001") for a table."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}.")
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, one for each line that can be read.

    A process that is killed may leave its last line half written: it is passed over. A missing file has no rows.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


NOT_CURVES = ("step", "seconds", "time", "epoch")


def curves(rows: Sequence[Mapping[str, Any]], *, skip: Sequence[str] = NOT_CURVES) -> list[str]:
    """A small chart for each number that ``rows`` of metrics hold, against "step"; the loss first.

    A step that is there twice (a run that was resumed) counts as it was last written.
    """
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if not _is_number(step):
            continue
        for key, value in row.items():
            if key not in skip and _is_number(value):
                points.setdefault(key, {})[step] = value  # pyright: ignore[reportArgumentType]
    charts = []
    for name in sorted(points, key=lambda k: k != "loss"):
        steps = sorted(points[name])
        charts.append(
            line_chart([Series(name, steps, [points[name][s] for s in steps])], title=name, x="step", size=(320, 210))
        )
    return charts
