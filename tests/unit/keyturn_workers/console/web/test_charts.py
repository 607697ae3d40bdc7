"""Charts: what they show, and the same as text (SPEC 16.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest

from keyturn_workers.console.web import charts

_AT = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)


def series(*values: float) -> list[charts.Point]:
    return [(_AT + timedelta(minutes=number), value) for number, value in enumerate(values)]


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
    chart = charts.bars("Uploads <b>", series(1, 40, 7), unit="/min")
    said = "Uploads <b>, from 08:00 to 08:02 UTC: lowest 1/min, highest 40/min, latest 7/min."
    assert chart.summary == said
    assert parsed(chart.svg).attrib["aria-label"] == said
    assert [value for _, value in chart.table] == [1, 40, 7]
    assert chart.ticks == ("08:00:00", "08:00:40", "08:01:20", "08:02:00")


def test_words_at_a_bar_are_escaped() -> None:
    (title,) = parsed(charts.bars("Uploads", series(3), unit=" <b>&").svg).iter("title")
    assert title.text == "08:00: 3 <b>&"


def test_a_long_time_is_marked_by_minutes() -> None:
    assert charts.bars("Uploads", series(*range(10))).ticks == ("08:00", "08:03", "08:06", "08:09")


def test_a_long_series_has_a_short_table() -> None:
    chart = charts.bars("Uploads", series(*range(60)))
    assert len(chart.table) == 20
    assert chart.table[0] == (_AT, 1)


def test_nothing_is_no_error() -> None:
    assert charts.bars("Uploads", series(0, 0)).is_empty
    assert charts.bars("Uploads", []).summary == "Uploads: no values yet."
    assert charts.line("Rate", series(3)).latest == 3
    assert charts.sparkline(series(1)) == ""


def test_no_chart_has_a_style_or_a_script_in_it() -> None:
    drawn = [
        charts.bars("Uploads", series(1, 2)).svg,
        charts.line("Rate", series(1, 2, 3)).svg,
        charts.sparkline(series(1, 2, 3)),
    ]
    for svg in drawn:
        names = {name for shape in parsed(svg).iter() for name in shape.attrib}
        assert "style" not in names
        assert not [name for name in names if name.startswith("on")]


def test_a_line_follows_its_times() -> None:
    uneven = [(_AT, 0.0), (_AT + timedelta(minutes=1), 5.0), (_AT + timedelta(minutes=4), 10.0)]
    path = parsed(charts.line("Rate", uneven).svg).find("path[@class='line']")
    assert path is not None
    assert path.attrib["d"] == "M0.00 100.00L150.00 50.00L600.00 0.00"


def test_rates_come_from_a_growing_total() -> None:
    samples = [(_AT, 0.0), (_AT + timedelta(seconds=10), 50.0), (_AT + timedelta(seconds=10), 60.0)]
    assert charts.rates(samples) == [(_AT + timedelta(seconds=10), 5.0)]


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
    assert charts.ceiling(value) == pytest.approx(top)
