"""Charts: what they show, and the same as text (SPEC 16.2)."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, get_args
from xml.etree import ElementTree as ET

import pytest

from keyturn_workers.console.rendering import charts, text
from keyturn_workers.console.rendering.templates import StaticFiles
from keyturn_workers.console.settings import Color
from tools.harness.console_data import MadeUp
from tools.harness.console_preview import PreviewAuth, client, preview_app

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)


def series(*values: float) -> list[charts.Point]:
    return [(_AT + timedelta(minutes=number), value) for number, value in enumerate(values)]


def _colors(sheet: str, color: str) -> Iterator[dict[str, str]]:
    """The variables of the style sheet with this color, in the light theme and in the dark one."""
    own = re.findall(rf':root\[data-color="{color}"\] {{(.*?)}}', sheet)
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", sheet[:2000] + "".join(own))
    for theme in (1, 2):
        yield {each[0]: each[theme] for each in pairs}


def _contrast(one: str, other: str) -> float:
    """The contrast of two colors by WCAG 2."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("color", get_args(Color))
def test_each_accent_color_is_legible_in_both_themes(color: str) -> None:
    sheet = client(preview_app(MadeUp())).get("/static/console.css").text
    assert color == "teal" or f'data-color="{color}"' in sheet
    for shown in _colors(sheet, color):
        found = {
            (front, back): _contrast(shown[front], shown[back])
            for front, back in (
                ("accent-text", "accent"),
                *(("accent", back) for back in ("bg", "surface", "raised", "accent-soft")),
            )
        }
        assert {pair: value for pair, value in found.items() if value < 4.5} == {}


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - our own


def heights(chart: charts.Chart) -> list[float]:
    return [
        float(shape.attrib["height"])
        for shape in parsed(chart.svg).iter("rect")
        if shape.attrib["class"] == "bar"
    ]


def test_bars_are_as_high_as_their_values() -> None:
    chart = charts.bars("Uploads", series(0, 5, 10))
    assert heights(chart) == [0, 50, 100]
    assert (chart.top, chart.latest, chart.is_empty) == (10, 10, False)


def test_each_chart_says_the_same_as_text() -> None:
    chart = charts.bars("Uploads <b>", series(1, 40, 7))
    said = "Uploads <b>, from 08:00 to 08:02 UTC: lowest 1, highest 40, latest 7."
    assert parsed(chart.svg).attrib["aria-label"] == said
    assert [value for _, value in chart.table] == [1, 40, 7]
    assert chart.ticks == ("08:00:00", "08:00:40", "08:01:20", "08:02:00")


def test_a_bar_says_its_time_and_value() -> None:
    (title,) = parsed(charts.bars("Uploads", series(3)).svg).iter("title")
    assert title.text == "08:00 UTC: 3"


def test_a_long_time_is_marked_by_minutes() -> None:
    assert charts.bars("Uploads", series(*range(10))).ticks == ("08:00", "08:03", "08:06", "08:09")


def test_a_long_series_has_a_short_table() -> None:
    chart = charts.bars("Uploads", series(*range(60)))
    assert len(chart.table) == 20
    assert chart.table[0] == (_AT, 1)


def test_nothing_is_no_error() -> None:
    assert charts.bars("Uploads", series(0, 0)).is_empty


def test_no_chart_has_a_style_or_a_script_in_it() -> None:
    shapes = parsed(charts.bars("Uploads", series(1, 2)).svg).iter()
    names = {name for shape in shapes for name in shape.attrib}
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]


@pytest.mark.parametrize(
    ("value", "top"),
    [
        (0, 1),
        (-1, 1),
        (float("inf"), 1),
        (0.3, 0.5),
        (1, 1),
        (1.1, 2),
        (2.2, 2.5),
        (7, 10),
        (101, 200),
    ],
)
def test_the_upper_edge_is_round(value: float, top: float) -> None:
    assert charts.ceiling(value, is_whole=False) == pytest.approx(top)


@pytest.mark.parametrize(
    ("value", "top"), [(0, 2), (1, 2), (3, 4), (5, 6), (7, 10), (10, 10), (25, 40), (101, 200)]
)
def test_of_counts_half_of_the_upper_edge_is_a_whole_number_too(value: float, top: float) -> None:
    assert charts.bars("Uploads", series(value)).top == top


_NOW = datetime(2026, 11, 26, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a&b<c>", "a&amp;b&lt;c&gt;"),
        ("a\u202eb", 'a<span class="code-point">U+202E</span>b'),
        ("a\x00", 'a<span class="code-point">U+0000</span>'),
        ("a\u200bb", 'a<span class="code-point">U+200B</span>b'),
        ("<\n>", '&lt;<span class="code-point">U+000A</span>&gt;'),
        ("\U000e0041", '<span class="code-point">U+E0041</span>'),
        (" a  b ", " a  b "),
        ("日本", "日本"),
    ],
)
def test_untrusted_text_hides_nothing(raw: str, shown: str) -> None:
    assert text.visible(raw) == f'<bdi class="text">{shown}</bdi>'


def test_long_text_says_that_it_was_cut() -> None:
    assert "ab" in text.visible("abcde", 2)
    assert "3 more characters" in text.visible("abcde", 2)
    assert text.plain("a\u202e" * 3, 2) == "aU+202E…"


@pytest.mark.parametrize(
    ("words", "shown"), [("", ""), ("add it to KEY_A", "Add it to KEY_A."), ("Wait.", "Wait.")]
)
def test_sentences(words: str, shown: str) -> None:
    assert text.sentence(words) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", ""),
        (
            "run keyturn a-b --resign; wait",
            'run keyturn a-b <span class="option">--resign</span>; wait',
        ),
        ("keyturn x <y>--z", 'keyturn x &lt;y&gt;<span class="option">--z</span>'),
        ("a-----b", "a-----b"),
        (text.visible("--x"), '<bdi class="text"><span class="option">--x</span></bdi>'),
    ],
)
def test_no_line_ends_inside_an_option(words: str, shown: str) -> None:
    assert text.whole_options(words) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "—"), (0, "0"), (12345, "12,345"), (1234567.8, "1,234,568")]
)
def test_numbers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "—"), (0, "0"), (0.5, "0.50"), (5.0, "5"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_rates(value: float | None, shown: str) -> None:
    assert text.rate(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "—"),
        (float("inf"), "—"),
        (0.2, "0 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (187_300, "2 d 4 h"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "now"), (3, "3 s ago"), (200, "3 min ago"), (-7200, "in 2 h"), (200_000, "2 d ago")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert text.ago(_NOW - timedelta(seconds=seconds), _NOW) == shown


def test_times_say_utc_with_seconds_today_and_the_date_of_another_day() -> None:
    assert text.clock_time(_NOW - timedelta(hours=1), _NOW) == "11:00:30 UTC"
    assert text.clock_time(_NOW - timedelta(days=1), _NOW) == "2026-11-25 12:00 UTC"
    short = [text.short_time(_NOW - timedelta(hours=hours), _NOW) for hours in (1, 24)]
    assert short == ["11:00 UTC", "2026-11-25"]
    exact = text.clock_time(_NOW - timedelta(days=1), _NOW, is_exact=True)
    assert exact == "2026-11-25 12:00:30 UTC"
    assert text.iso(_NOW) == "2026-11-26T12:00:30Z"


_VENDOR = files("keyturn_workers.console.rendering") / "static/vendor"
_ROW = re.compile(r"^\| `(\S+\.js)` .* `([0-9a-f]{64})` \|$", re.MULTILINE)


def test_scripts_of_others_are_what_their_readme_names() -> None:
    named = dict(_ROW.findall((_VENDOR / "README.md").read_text()))
    held = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in _VENDOR.iterdir()
        if entry.name != "README.md"
    }
    assert held == named
    assert len(held) == 1


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("vendor/htmx-4.0.1.min.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_is_cached_for_ever_under_its_versioned_address(name: str, media_type: str) -> None:
    answer = client(preview_app(MadeUp(), auth=PreviewAuth(None))).get(StaticFiles().url(name))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_another_version_is_not_cached_for_ever() -> None:
    answer = client(preview_app(MadeUp())).get("/static/console.css?v=0")
    assert answer.headers["cache-control"] == "no-cache"
    again = client(preview_app(MadeUp())).get(
        "/static/console.css", headers={"if-none-match": answer.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["none.css", "vendor/README.md", "../templates/base.html", "%2e%2e/app.py", ""]
)
def test_nothing_else_is_served(path: str) -> None:
    assert client(preview_app(MadeUp())).get(f"/static/{path}").status_code == 404
