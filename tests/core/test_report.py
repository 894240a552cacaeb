"""The page: nothing from outside, nothing unescaped, nothing half written; charts that show what they are given."""

import itertools
import math
import os
import re
import statistics
import struct
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partwhole.core.charts import DENSE, Series, bar_chart, heat_map, line_chart, number, ticks
from partwhole.core.report import Page, Spread, curves, decimal, flatten, picture_html, read_metrics, table_html

EVIL = """<x onclick="go()">&amp; 'one' "two" </script></style><img src=http://example.org/a.png>"""
VOID = {"meta", "link", "img", "br", "path", "rect"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open, f"left open: {reader.open}"
    return reader


def tiny_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0abc")) + chunk(b"IEND", b"")


def full_page(word: str) -> Page:
    page = Page(word, lead=word).section(word).heading(word).text(word).text(word, lead=True).note(word).code(word)
    page.table([word, "a"], [[word, Spread.of([0.1, 0.3])]], caption=word).table([word], [[word]], fold=word)
    lines = [Series(word, [1, 2, 3], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1]), Series("b", [1, 2, 3], [2.0, 1.0, 0.5])]
    page.chart(lines, title=word, x=word, y=word).bars([(word, 2.0)], title=word, x=word, y=word)
    return page.picture(tiny_png(), word, width=20).grid([line_chart(lines)]).section("b").section("c")


def test_everything_a_user_supplies_is_escaped():
    reader = read(full_page(EVIL).html())
    assert "x" not in {tag for tag, _ in reader.tags}
    assert not [attrs for _, attrs in reader.tags if "onclick" in attrs]
    assert [a["src"][:22] for tag, a in reader.tags if tag == "img"] == ["data:image/png;base64,"]
    shown = [text for _, text in reader.text if EVIL in text]
    # title, h1, lead, link, h2, h3, p, p, note, pre, caption, 2 tables' header and cell, fold, series, axes, ...
    assert len(shown) >= 18


def test_the_page_refers_to_nothing_outside_itself():
    html = full_page("a word").html()
    reader = read(html)
    for tag, attrs in reader.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            if value := attrs.get(name):
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value!r}>"
    assert not re.search(r"https?://|@import|//[a-z]+\.[a-z]", html.split("<body>")[0])
    policy = next(a for tag, a in reader.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    anchors = {a["href"][1:] for tag, a in reader.tags if tag == "a"}
    assert anchors == {a["id"] for _, a in reader.tags if "id" in a}


def test_sections_of_one_name_have_links_of_their_own():
    page = Page("t").section("Same").section("Same").section("Same!").section("—")
    assert len({name for name, _ in page.sections}) == 4


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = Page("first").write(tmp_path / "deep" / "report.html")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        Page("second").write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    name = b"caf\xe9.off".decode("utf-8", "surrogateescape")
    text = Page(name).table(["file"], [[name]]).write(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "caf?.off" in text


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_spread_is_mean_and_sample_deviation(values):
    spread = Spread.of([*values, math.nan, None])
    assert spread.count == len(values)
    assert spread.mean == pytest.approx(statistics.fmean(values))
    assert spread.std == pytest.approx(statistics.stdev(values))


def test_spread_of_one_and_of_none():
    assert Spread.of([0.5]) == Spread(0.5, 0.0, 1)
    assert math.isnan(Spread.of([]).mean)
    assert "±" not in table_html(["a"], [[Spread.of([0.5])]])


def bold(html: str) -> list[str]:
    return [re.sub("<[^>]*>", "", b) for b in re.findall(r"<b>(.*?)</b>", html)]


def test_the_best_is_bold_in_each_column_or_row_and_ties_share_it():
    rows = [["a", 0.5, 0.9, 7], ["b", 0.7001, 0.2, 9], ["c", 0.7002, None, 1]]
    assert bold(table_html(["", "x", "y", "n"], rows, best="column")) == [".900", ".700", ".700"]
    assert bold(table_html(["", "x", "y", "n"], rows, best="row")) == [".900", ".700"]
    assert bold(table_html(["", "x", "y", "n"], rows, best="column", least=True)) == [".500", ".200"]
    assert bold(table_html(["x"], [[math.nan], [Spread.of([0.25])], [Spread.of([0.5, 0.7])]], best="column")) == [
        ".600 \N{PLUS-MINUS SIGN} .141"
    ]
    assert bold(table_html(["x"], [[0.5], [0.6]])) == []


def test_a_table_with_a_missing_cell_is_refused():
    with pytest.raises(ValueError, match="row 1 of the table has 1 cells, the header has 2"):
        table_html(["a", "b"], [[1, 2], [3]])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.61449, 3, ".614"),
        (1.0, 3, "1.000"),
        (-0.25, 2, "\N{MINUS SIGN}.25"),
        (0.7, 1, "0.7"),
        (12.34, 1, "12.3"),
        (math.nan, 3, "\N{EN DASH}"),
    ],
)
def test_decimals(value, digits, text):
    assert decimal(value, digits) == text


def test_only_png_and_gif_are_embedded():
    assert "data:image/gif;base64," in picture_html(b"GIF89a")
    with pytest.raises(ValueError, match="must be the bytes of a PNG file"):
        picture_html(b"<svg onload=...>")


# -- charts ----------------------------------------------------------------------------------------------------------

finite = st.floats(-1e30, 1e30, allow_subnormal=False)


@given(finite, finite)
def test_ticks_are_round_few_and_inside(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert 1 <= len(found) <= 11
    if high - low > 1e-6 * max(abs(low), abs(high)):
        room = 1e-6 * (high - low)
        assert all(low - room <= t <= high + room for t in found)
        assert found == sorted(found)
        assert len(found) >= 2


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1500, "1,500"), (20000, "20k"), (3e6, "3M"), (1e-5, "1e-05")]
)
def test_axis_numbers(value, text):
    assert number(value) == text


def path_of(html: str, kind: str) -> list[list[tuple[float, ...]]]:
    paths = re.findall(rf'<path class="{kind}" d="([^"]*)"', html)
    return [[tuple(map(float, p.split())) for p in re.split("[ML]", d.rstrip("Z")) if p] for d in paths]


def test_lines_stand_where_their_values_are():
    html = line_chart([Series("a", [0, 1, 4], [0.0, 1.0, 2.0])])
    (points,) = path_of(html, "line")
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) * 3 == pytest.approx(x2 - x1, abs=0.3)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1  # up is more
    marked = dict(re.findall(r'y="([\d.]+)" text-anchor="end">([^<]*)<', html))
    heights = {text: float(at) - 4 for at, text in marked.items()}
    assert heights["1"] == pytest.approx(y1, abs=0.2)


def test_on_a_log_axis_equal_ratios_are_equal_distances():
    (points,) = path_of(line_chart([Series("a", [0, 1, 10, 100], [5.0, 1.0, 2.0, 3.0])], log_x=True), "line")
    assert len(points) == 3  # zero has no place there
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)


def test_values_that_are_not_finite_leave_a_gap():
    values = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0]
    html = line_chart([Series("a", range(7), values)])
    assert [len(p) for p in path_of(html, "line")] == [2, 2]
    assert "nan" not in html
    assert "inf" not in html


def test_a_spread_is_drawn_as_a_band_of_its_width():
    html = line_chart([Series("a", [0, 1], [1.0, 1.0], [0.5, 0.25])], y_range=(0, 2))
    (band,), (line,) = path_of(html, "band"), path_of(html, "line")
    height = [max(y for x, y in band if x == at) - min(y for x, y in band if x == at) for at, _ in line]
    assert height[0] == pytest.approx(2 * height[1], abs=0.3)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30), st.booleans())
def test_every_drawn_coordinate_is_inside_the_picture(points, log_x):
    html = line_chart([Series("a", [p[0] for p in points], [p[1] for p in points])], log_x=log_x)
    read(html)
    for line in path_of(html, "line"):
        assert all(0 <= x <= 460 and 0 <= y <= 290 for x, y in line)


def test_a_very_long_series_is_small_and_keeps_its_extremes():
    values = [math.sin(i / 500) for i in range(100_000)]
    values[54_321] = 9.0
    html = line_chart([Series("a", range(100_000), values)], y_range=(-1, 9))
    assert len(html) < 25_000
    (line,), (band,) = path_of(html, "line"), path_of(html, "band")
    assert len(line) == DENSE
    assert min(y for _, y in band) == pytest.approx(10, abs=0.2)  # the top of the plot


def test_series_are_told_apart_without_colour():
    html = line_chart([Series(f"series number {i} of 4", [1, 2], [i, i + 1.0]) for i in range(4)])
    lines = re.findall(r'<path class="line"[^>]*>', html.split("<figcaption>")[0])
    assert len({re.search(r'stroke-dasharray="[^"]*"|/>', line)[0] for line in lines}) == 4  # pyright: ignore
    assert html.split("<figcaption>")[1].count('class="key"') == 4


def test_labels_beside_the_lines_do_not_overlap():
    html = line_chart([Series(f"s{i}", [1, 2], [1.0, 1.0 + i / 1000]) for i in range(6)])
    at = sorted(float(y) for y in re.findall(r'class="label" x="[^"]*" y="([^"]*)"', html))
    assert len(at) == 6
    assert min(b - a for a, b in itertools.pairwise(at)) >= 15.5


def test_a_series_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="'a': x, y and spread must be of one length"):
        Series("a", [1, 2], [1.0])


def test_empty_charts_say_so():
    assert "No finite values" in line_chart([Series("a", [1], [math.nan])])
    assert "No finite values" in line_chart([])
    assert "Nothing to count" in bar_chart([])
    assert "No finite values" in heat_map(["a"], ["b"], [[math.nan]])


def test_bars_have_heights_in_proportion():
    heights = [float(h) for h in re.findall(r' height="([\d.]+)"', bar_chart([("1", 2.0), ("2", 4.0), ("3", 0.0)]))]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == 0


CELL = r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" .*?fill-opacity:([\d.]+)"><title>([^<]*)</title>'


def test_a_heat_map_says_every_number_and_is_the_stronger_the_greater_it_is():
    values = [[0.1, 0.5, 0.3], [math.nan, 0.9, 0.9]]
    names = {"title": "T", "x": "second", "y": "first", "text": lambda v: f"{v:.2f}"}
    html = heat_map(["r", EVIL], ["a", "b", "mean"], values, apart=1, **names)
    read(html)
    cells = re.findall(CELL, html)
    dash = "\N{EN DASH}"
    assert [c[4] for c in cells[:3]] == ["r, a: 0.10", "r, b: 0.50", "r, mean: 0.30"]
    assert cells[3][4].endswith(f", a: {dash}")
    written = re.findall(r"pointer-events:none(;font-weight:600)?\">([^<]*)<", html)
    assert [text for _, text in written] == ["0.10", "0.50", "0.30", dash, "0.90", "0.90"]
    assert [text for bold, text in written if bold] == ["0.90", "0.90"]
    strength = [float(c[3]) for c in cells]
    assert strength[0] < strength[2] < strength[1] < strength[4] == strength[5] < 0.6
    assert strength[3] == 0
    left = [float(c[0]) for c in cells[:3]]
    assert left[2] - left[1] > left[1] - left[0] > float(cells[0][2])  # the last stands apart, none overlap
    down = [float(c[1]) for c in cells]
    assert down[0] == down[1] == down[2]
    assert down[3] == down[4] == down[5] > down[0] + 30
    assert "first by second" in html


def test_a_heat_map_has_room_for_long_names_and_writes_spreads_beneath():
    names = ["a long name indeed"] * 9
    html = heat_map(names, names, [[1.0] * 9] * 9, spreads=[[0.25] * 8 + [math.nan]] * 9)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', html)[1])  # pyright: ignore[reportOptionalSubscript]
    assert all(float(x) + float(w) <= width for x, _, w, _, _ in re.findall(CELL, html))
    assert html.count(">\N{PLUS-MINUS SIGN}0.25<") == html.count(">\N{PLUS-MINUS SIGN}") == 9 * 8
    with pytest.raises(ValueError, match=r"1 rows of 2 values are named, got 1 of \[1\]"):
        heat_map(["a"], ["b", "c"], [[1.0]])


# -- a run's files ---------------------------------------------------------------------------------------------------


def test_metrics_survive_a_torn_line_and_a_missing_file(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 2.0}\n\n[1]\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "loss": 2.0}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_curves_show_each_number_once_and_a_resumed_step_as_last_written():
    rows = [{"step": s, "accuracy": s / 4, "loss": 9.0, "note": "x", "seconds": 1.0, "ok": True} for s in (1, 2, 3)]
    charts = curves([*rows, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.0}, {"loss": 4.0}])
    assert [re.search('class="name">([^<]*)', c)[1] for c in charts] == ["loss", "accuracy"]  # pyright: ignore
    (line,) = path_of(charts[0], "line")
    assert len(line) == 3
    assert line[1][1] == line[2][1] > line[0][1]


def test_nested_settings_become_rows():
    rows = flatten({"fit": {"lr": 1e-3, "deep": {"a": [1, 2]}}, "name": "x", "none": None, "empty": {}})
    assert rows == [("fit.lr", "0.001"), ("fit.deep.a", "[1, 2]"), ("name", "x"), ("none", "null"), ("empty", "{}")]
