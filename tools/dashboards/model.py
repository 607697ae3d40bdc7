"""A dashboard as its authors think of it: rows of panels, each with its queries.

`document` makes Grafana's JSON of it. What every panel needs has no default: a title, a
description, a unit and a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "table"]
# Of Grafana: counts, seconds, bytes, per second, bytes per second, a share from 0 to 1.
Unit = Literal["short", "s", "bytes", "ops", "reqps", "Bps", "percentunit", "none"]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query. `legend` may name labels, as in `{{queue}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: In words of the glossary.
        description: What it shows and what to do about it; Grafana shows it at the title.
        unit: Of all its values.
        queries: One series or more for each.
        kind: How it is drawn. A table shows the labels of a query's newest values.
        width: Of 24 columns.
        height: In units of Grafana's grid.
        red_from: From this value on, a `stat` is red.
        stacked: Whether the series of a `timeseries` add up.
        maximum: The end of the scale; found by Grafana if None.
    """

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    red_from: float | None = None
    stacked: bool = False
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A headline with the panels below it, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of one label of one metric."""

    name: str
    label: str
    metric: str

    @property
    def query(self) -> str:
        """As Grafana's Prometheus data source takes it."""
        return f"label_values({self.metric}, {self.name})"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard; a choice of the data source is always there."""

    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def stat(
    title: str, description: str, unit: Unit, expr: str, red_from: float | None = None
) -> Panel:
    """One number, a sixth of the width."""
    query = (Query(expr),)
    return Panel(title, description, unit, query, "stat", width=4, height=4, red_from=red_from)
