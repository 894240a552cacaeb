"""Line charts, bar charts and heat maps as SVG text: no plotting library, crisp at any zoom, coloured by the page.

Letters: T points of a series. Colours are the CSS variables --s0 .. --s7 of ``report.css``, told apart in light and
dark mode and by colour-blind readers; every series also has its own dash and marker, for print without colour.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

SIZE = (460, 290)  # of the drawing; the text keeps its size relative to it
COLOURS = 8
DASHES = ("", "7 4", "2 4", "9 3 2 3", "", "7 4", "2 4", "9 3 2 3")
DIRECT = 15  # longer names stand in the legend only: beside the line they would eat the plot
DENSE = 240  # a longer series is drawn as the means of this many slices, with a band from their least to their greatest


@dataclass(frozen=True)
class Series:
    """One line: ``x``, ``y`` of length T, and optionally ``spread`` (T,), drawn as y - spread to y + spread.

    Points that are not finite leave a gap in the line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.x), len(self.y), *([] if self.spread is None else [len(self.spread)])}
        if len(sizes) != 1:
            raise ValueError(f"series {self.name!r}: x, y and spread must be of one length, got {sorted(sizes)}")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten) that lie in [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)] or [low]


def number(value: float) -> str:
    """A number as a reader wants it on an axis: 0.25, 12, 1,500, 20k, 3M, 1e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    log_x: bool = False,
    x_ticks: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[float, float] = SIZE,
) -> str:
    """Draw series as lines.

    Args:
        series: the lines; the first is drawn in the quiet colour when there are several (the baseline).
        title: above the chart.
        x, y: names of the axes.
        log_x: logarithmic x axis; points with x <= 0 are left out.
        x_ticks: where to mark the x axis, round numbers by default.
        y_range: limits of the y axis, by default just what the lines and their spreads need.
        size: width and height, about those in CSS pixels at which the chart will be seen.

    Returns:
        A ``<figure>`` for :meth:`partwhole.core.report.Page.raw`.
    """
    lines = [_clean(s, log_x) for s in series]
    shown = [row for line in lines for row in line]
    if not shown:
        return f'<figure class="chart"><p class="name">{escape(title)}</p><p>No finite values.</p></figure>'
    low_x, high_x = min(r[0] for r in shown), max(r[0] for r in shown)
    low_y, high_y = y_range or _padded(min(r[2] for r in shown), max(r[3] for r in shown))
    if high_x - low_x <= 1e-9 * max(abs(low_x), abs(high_x)):
        low_x, high_x = (low_x / 2, high_x * 2) if log_x else (low_x - 1 - abs(low_x), high_x + 1 + abs(high_x))
    direct = len(series) > 1 and all(len(s.name) <= DIRECT for s in series)
    left = 50.0
    right = size[0] - (18 + 7.4 * max(len(s.name) for s in series) if direct else 14)
    top, bottom = 26.0 if y else 10.0, size[1] - (46.0 if x else 26.0)

    def across(value: float) -> float:
        a, b, v = (math.log(low_x), math.log(high_x), math.log(value)) if log_x else (low_x, high_x, value)
        return left + 8 + (v - a) / (b - a) * (right - left - 8)

    def down(value: float) -> float:
        return bottom - (value - low_y) / (high_y - low_y) * (bottom - top)

    marks = _x_ticks(low_x, high_x, log_x) if x_ticks is None else [t for t in x_ticks if low_x <= t <= high_x]
    out = [_axes(left, right, top, bottom, [(down(t), number(t)) for t in ticks(low_y, high_y)])]
    out += [
        f'<path class="axis base" d="M{across(t):.1f} {bottom:g}v5"/>'
        f'<text x="{across(t):.1f}" y="{bottom + 19:g}" text-anchor="middle">{number(t)}</text>'
        for t in marks
    ]
    out.append(_axis_names(x, y, (left + right) / 2, size[1]))
    few = max(len(line) for line in lines) <= 16
    ends = []
    # The first series, the baseline, is drawn first, the others over it.
    for i, (s, line) in enumerate(zip(series, lines, strict=True)):
        if not line:
            continue
        colour = _colour(i, len(series))
        out += _draw(line, across, down, colour=colour, index=i, few=few, name=s.name)
        ends.append((down(line[-1][1]), s.name, colour))
    if direct:
        out += [
            f'<text class="label" x="{right + 10:g}" y="{at + 4:.1f}" style="fill:{colour}">{escape(name)}</text>'
            for at, name, colour in _apart(ends, 16, top + 4, bottom - 2)
        ]
    keys = [_key(s.name, i, len(series)) for i, s in enumerate(series)] if len(series) > 1 and not direct else []
    return _figure(title, f"{y} against {x}" if x and y else title, out, keys, size)


def bar_chart(bars: Sequence[tuple[str, float]], *, title: str = "", x: str = "", y: str = "") -> str:
    """Draw (name, height) pairs, heights >= 0, as bars side by side, in the order given; returns a ``<figure>``."""
    high = max((h for _, h in bars if math.isfinite(h)), default=0.0)
    if high <= 0:
        return f'<figure class="chart"><p class="name">{escape(title)}</p><p>Nothing to count.</p></figure>'
    left, right, top, bottom = 50.0, SIZE[0] - 10.0, 26.0 if y else 10.0, SIZE[1] - (46.0 if x else 26.0)
    step = (right - left) / len(bars)
    every = math.ceil((10 + 7 * max(len(name) for name, _ in bars)) / step)
    out = [_axes(left, right, top, bottom, [(bottom - t / high * (bottom - top), number(t)) for t in ticks(0, high)])]
    for i, (name, height) in enumerate(bars):
        size = height / high * (bottom - top) if math.isfinite(height) else 0.0
        out.append(
            f'<rect x="{left + step * (i + 0.1):.2f}" y="{bottom - size:.1f}" width="{step * 0.8:.2f}" '
            f'height="{size:.1f}" style="fill:var(--s1)"><title>{escape(f"{name}: {number(height)}")}</title></rect>'
        )
        if i % every == 0:
            middle = left + step * (i + 0.5)
            out.append(f'<text x="{middle:.1f}" y="{bottom + 18:g}" text-anchor="middle">{escape(name)}</text>')
    out.append(_axis_names(x, y, (left + right) / 2, SIZE[1]))
    return _figure(title, f"{y} by {x}" if x and y else title, out, [], SIZE)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    spreads: Sequence[Sequence[float]] | None = None,
    apart: int = 0,
    title: str = "",
    x: str = "",
    y: str = "",
    text: Callable[[float], str] = number,
) -> str:
    """Draw numbers as a table whose cells are the stronger in colour the greater they are.

    Args:
        rows, columns: their names, R and C.
        values: R times C; one that is not finite is a dash on no colour.
        spreads: R times C, written as plus or minus under their numbers where they are finite.
        apart: so many of the last columns stand apart, such as the means of the others.
        title, x, y: above the map, and of its columns and rows.
        text: how a number is written.

    Returns:
        A ``<figure>`` for :meth:`partwhole.core.report.Page.raw`.
    """
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        sizes = sorted({len(row) for row in values})
        raise ValueError(f"{len(rows)} rows of {len(columns)} values are named, got {len(values)} of {sizes}")
    shown = [v for row in values for v in row if math.isfinite(v)]
    if not shown:
        return f'<figure class="chart"><p class="name">{escape(title)}</p><p>No finite values.</p></figure>'
    low, high = min(shown), max(shown)
    left, top, gap, tall = 12 + 7.2 * max(map(len, rows)), 20.0 if y else 2.0, 8.0, 46.0 if spreads else 36.0
    wide = max(6 + 7.4 * max(map(len, columns)), min(90.0, (SIZE[0] - left - gap) / len(columns)))
    starts = [left + wide * j + (gap if j >= len(columns) - apart else 0) for j in range(len(columns))]
    bottom, middle = top + tall * len(rows), left + wide * len(columns) / 2
    size = (max(SIZE[0], left + wide * len(columns) + gap), bottom + (42 if x else 22))
    out = []
    for i, (row, name) in enumerate(zip(values, rows, strict=True)):
        at = top + tall * i
        out.append(f'<text x="{left - 8:g}" y="{at + tall / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for j, (value, start) in enumerate(zip(row, starts, strict=True)):
            known = math.isfinite(value)
            spread = spreads[i][j] if spreads and known else math.nan
            under = f"\N{PLUS-MINUS SIGN}{text(spread)}" if math.isfinite(spread) else ""
            out += _cell(
                (start, at, wide, tall),
                text(value) if known else "\N{EN DASH}",
                under,
                hover=f"{name}, {columns[j]}",
                # Never so strong that the page's ink is hard to read on it, in light or dark mode.
                strength=0.05 + 0.5 * ((value - low) / (high - low) if high > low else 0.5) if known else 0.0,
                bold=value == high,
            )
    out += [
        f'<text x="{start + wide / 2:.1f}" y="{bottom + 16:g}" text-anchor="middle">{escape(name)}</text>'
        for start, name in zip(starts, columns, strict=True)
    ]
    out.append(_axis_names(x, y, middle, size[1]))
    return _figure(title, f"{y} by {x}" if x and y else title, out, [], size)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _clean(s: Series, log_x: bool) -> list[tuple[float, float, float, float, bool]]:
    """Rows (x, y, low, high, joined to the row before) of the finite points, thinned where there are very many."""
    rows: list[tuple[float, float, float, float, bool]] = []
    joined = False
    spread = s.spread if s.spread is not None else [0.0] * len(s.x)
    for x, y, d in zip(s.x, s.y, spread, strict=True):
        x, y, d = float(x), float(y), float(d)
        if not (math.isfinite(x) and math.isfinite(y)) or (log_x and x <= 0):
            joined = False
            continue
        d = d if math.isfinite(d) else 0.0
        rows.append((x, y, y - d, y + d, joined))
        joined = True
    if len(rows) <= 2 * DENSE:
        return rows
    thin = []
    for i in range(DENSE):
        part = rows[i * len(rows) // DENSE : (i + 1) * len(rows) // DENSE]
        n = len(part)
        mean_x, mean_y = sum(r[0] for r in part) / n, sum(r[1] for r in part) / n
        thin.append((mean_x, mean_y, min(r[2] for r in part), max(r[3] for r in part), i > 0))
    return thin


def _draw(rows: Sequence, across, down, *, colour: str, index: int, few: bool, name: str) -> list[str]:
    """One series: band, line and, when there are few points, whiskers and markers with their values on hover."""
    out, piece = [], []
    pieces = [piece]
    for row in rows:
        if not row[4] and piece:
            piece = []
            pieces.append(piece)
        piece.append(row)
    for piece in pieces:
        if any(r[3] > r[2] for r in piece) and len(piece) > 1:
            edge = [f"{across(r[0]):.1f} {down(r[3]):.1f}" for r in piece]
            edge += [f"{across(r[0]):.1f} {down(r[2]):.1f}" for r in reversed(piece)]
            out.append(f'<path class="band" d="M{"L".join(edge)}Z" style="fill:{colour}"/>')
        path = "L".join(f"{across(r[0]):.1f} {down(r[1]):.1f}" for r in piece)
        dash = f' stroke-dasharray="{DASHES[index % COLOURS]}"' if DASHES[index % COLOURS] else ""
        if len(piece) > 1:
            out.append(f'<path class="line" d="M{path}" style="stroke:{colour}"{dash}/>')
        elif not few:
            out.append(_marker(index, across(piece[0][0]), down(piece[0][1]), 2.0, colour, ""))
    for x, y, low, high, _ in rows if few else ():
        at = across(x)
        if high > low:
            ends = "".join(f"M{at - 3:.1f} {down(end):.1f}h6" for end in (low, high))
            path = f"M{at:.1f} {down(low):.1f}V{down(high):.1f}{ends}"
            out.append(f'<path class="whisker" style="stroke:{colour}" d="{path}"/>')
        spread = f" \N{PLUS-MINUS SIGN} {(high - low) / 2:.3g}" if high > low else ""
        out.append(_marker(index, at, down(y), 4.2, colour, f"{name}: {y:.4g}{spread} at {number(x)}"))
    return out


def _cell(
    box: tuple[float, float, float, float], text: str, under: str, *, hover: str, strength: float, bold: bool
) -> list[str]:
    """A coloured box (left, top, width, height) with a number in it, and a smaller one under that."""
    left, top, width, height = box
    middle, centre, weight = left + width / 2, top + height / 2, ";font-weight:600" if bold else ""
    out = [
        f'<rect x="{left + 1:.1f}" y="{top + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}" rx="3" '
        f'style="fill:var(--s1);fill-opacity:{strength:.3f}">'
        f"<title>{escape(f'{hover}: {text} {under}'.strip())}</title></rect>",
        f'<text x="{middle:.1f}" y="{centre + (-2 if under else 4):.1f}" text-anchor="middle" '
        f'style="fill:var(--ink);pointer-events:none{weight}">{escape(text)}</text>',
    ]
    if under:
        out.append(
            f'<text x="{middle:.1f}" y="{centre + 14:.1f}" text-anchor="middle" '
            f'style="fill:var(--ink);font-size:10.5px;pointer-events:none">{escape(under)}</text>'
        )
    return out


def _marker(index: int, x: float, y: float, r: float, colour: str, title: str) -> str:
    """Circle, square, triangle or diamond by index, so that series are told apart without colour."""
    hover = f"<title>{escape(title)}</title>" if title else ""
    q = round(1.25 * r, 2)
    shape = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{x:.1f} {y - q:.1f}l{q} {1.7 * q:.2f}h{-2 * q}Z",
        f"M{x:.1f} {y - q:.1f}l{q} {q}l{-q} {q}l{-q} {-q}Z",
    )[index % 4]
    return f'<path class="dot" d="{shape}" style="fill:{colour}">{hover}</path>'


def _colour(index: int, count: int) -> str:
    """The baseline of several is grey; a lone series is in the first strong colour."""
    return f"var(--s{1 if count == 1 else index % COLOURS})"


def _padded(low: float, high: float) -> tuple[float, float]:
    size = max(abs(low), abs(high))
    room = (high - low) * 0.06 if high - low > 1e-9 * size else size * 0.1 or 1.0
    return low - room, high + room


def _x_ticks(low: float, high: float, log: bool) -> list[float]:
    if not log:
        return ticks(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    return [m * 10.0**p for p in powers for m in steps if low * 0.999 <= m * 10.0**p <= high * 1.001] or [low, high]


def _axes(left: float, right: float, top: float, bottom: float, marks: Sequence[tuple[float, str]]) -> str:
    rows = "".join(
        f'<path class="axis" d="M{left:g} {at:.1f}H{right:g}"/>'
        f'<text x="{left - 8:g}" y="{at + 4:.1f}" text-anchor="end">{name}</text>'
        for at, name in marks
        if top - 1 <= at <= bottom + 1
    )
    return f'{rows}<path class="axis base" d="M{left:g} {bottom:g}H{right:g}"/>'


def _axis_names(x: str, y: str, middle: float, height: float) -> str:
    below = f'<text x="{middle:g}" y="{height - 6:g}" text-anchor="middle">{escape(x)}</text>' if x else ""
    return below + (f'<text x="2" y="12">{escape(y)}</text>' if y else "")


def _apart(
    ends: Sequence[tuple[float, str, str]], gap: float, top: float, bottom: float
) -> list[tuple[float, str, str]]:
    """Move labels up and down until none is nearer than ``gap`` to the next."""
    rows = sorted(ends)
    at = [min(max(r[0], top), bottom) for r in rows]
    for _ in range(200):
        for i in range(1, len(at)):
            lack = gap - (at[i] - at[i - 1])
            if lack > 1e-6:
                at[i - 1] -= lack / 2
                at[i] += lack / 2
        if at and at[-1] > bottom:
            at[-1] = bottom
        if at and at[0] < top:
            at[0] = top
    return [(a, name, colour) for a, (_, name, colour) in zip(at, rows, strict=True)]


def _key(name: str, index: int, count: int) -> str:
    colour = _colour(index, count)
    dash = f' stroke-dasharray="{DASHES[index % COLOURS]}"' if DASHES[index % COLOURS] else ""
    line = f'<path class="line" d="M0 5H22" style="stroke:{colour}"{dash}/>{_marker(index, 11, 5, 3.6, colour, "")}'
    return f'<span class="key"><svg viewBox="0 0 22 10" aria-hidden="true">{line}</svg>{escape(name)}</span>'


def _figure(title: str, label: str, body: Sequence[str], keys: Sequence[str], size: tuple) -> str:
    name = f'<p class="name">{escape(title)}</p>' if title else ""
    legend = f"<figcaption>{''.join(keys)}</figcaption>" if keys else ""
    svg = f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'
    kind = "chart wide" if size[0] > 400 else "chart"
    return f'<figure class="{kind}">{name}{svg}{legend}</figure>'
