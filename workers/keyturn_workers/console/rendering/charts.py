"""Charts as SVG that the server draws, each with the same numbers as text (SPEC 16.2). Pure.

Only the shapes are in the SVG, which stretches to its place. Words and numbers are HTML around it,
so they keep their size on a phone. Colors come from the style sheet by class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from markupsafe import Markup

from keyturn_workers.console.rendering.text import rate

Point = tuple[datetime, float]
WIDTH: Final = 600
HEIGHT: Final = 100
_TABLE_ROWS: Final = 24
_MINUTE: Final = timedelta(minutes=1)
_STEPS: Final = (1, 2, 2.5, 5, 10)
_WHOLE_STEPS: Final = (1, 2, 4, 6, 10)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn series.

    Attributes:
        title: The counted quantity, with its unit.
        svg: The picture, with a summary in one sentence.
        top: The value at the upper edge.
        ticks: The times below the picture, evenly spaced.
        table: The same numbers over a few longer spans: the beginning of each, and its mean.
        latest: The newest value.
        is_empty: True if all values are zero.
    """

    title: str
    svg: Markup
    top: float
    ticks: tuple[str, ...]
    table: tuple[tuple[datetime, float], ...]
    latest: float
    is_empty: bool


def bars(title: str, series: Sequence[Point], *, kind: str = "accent") -> Chart:
    """Return a chart with one bar for each point, for counts in equal spans of time.

    Args:
        title: The counted quantity.
        series: The beginning of each span, and its value; not empty.
        kind: The class that colors it: `accent`, `bad`.
    """
    values = [value for _, value in series]
    top = ceiling(max(values), is_whole=all(value % 1 == 0 for value in values))
    step = WIDTH / len(series)
    shapes = []
    for index, (at, value) in enumerate(series):
        height = value / top * HEIGHT
        left, width = index * step, step * 0.86
        # A hit area of the whole height, so that a small bar shows its value, too.
        shapes.append(
            f"<g><title>{_clock(at)} UTC: {rate(value)}</title>"
            f'<rect class="hit" x="{left:.2f}" y="0" width="{step:.2f}" height="{HEIGHT}"/>'
            f'<rect class="bar" x="{left:.2f}" y="{HEIGHT - height:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}"/></g>'
        )
    # `Markup.format` for each bar would take half of the page's time.
    drawn = Markup("".join(shapes))  # noqa: S704 - numbers and times
    summary = (
        f"{title}, from {_clock(series[0][0])} to {_clock(series[-1][0])} UTC: lowest "
        f"{rate(min(values))}, highest {rate(max(values))}, latest {rate(values[-1])}."
    )
    grid = Markup('<path class="grid" d="M0 0H{0}M0 {1}H{0}M0 {2}H{0}"/>').format(
        WIDTH, HEIGHT // 2, HEIGHT
    )
    svg = Markup(
        '<svg class="plot {}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}{}</svg>'
    ).format(kind, WIDTH, HEIGHT, summary, grid, drawn)
    return Chart(
        title=title,
        svg=svg,
        top=top,
        ticks=_ticks(series),
        table=_condense(series),
        latest=values[-1],
        is_empty=not any(values),
    )


def ceiling(value: float, *, is_whole: bool) -> float:
    """Return a round number at or above the value, for the upper edge.

    With `is_whole`, only whole numbers are shown: then half of the edge is whole, too.
    """
    if value <= 0 or not math.isfinite(value):
        return 2.0 if is_whole else 1.0
    size = 10.0 ** math.floor(math.log10(value))
    edges = (step * size for step in (_WHOLE_STEPS if is_whole else _STEPS))
    return next(
        edge for edge in edges if value <= edge * (1 + 1e-9) and not (is_whole and edge % 2)
    )


def _ticks(series: Sequence[Point], count: int = 4) -> tuple[str, ...]:
    first, last = series[0][0], series[-1][0]
    part = (last - first) / (count - 1)
    form = "%H:%M:%S" if part < _MINUTE else "%H:%M"
    return tuple(_clock(first + part * index, form) for index in range(count))


def _condense(series: Sequence[Point]) -> tuple[Point, ...]:
    width = -(-len(series) // _TABLE_ROWS)
    parts = [series[index : index + width] for index in range(0, len(series), width)]
    return tuple((part[0][0], sum(value for _, value in part) / len(part)) for part in parts)


def _clock(at: datetime, form: str = "%H:%M") -> str:
    return at.astimezone(UTC).strftime(form)
