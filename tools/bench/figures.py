"""Figures of the bench as values: spreads over rounds, rows with an aim, table and JSON. Pure.

A ratio is taken within each round, and its median over the rounds is compared with the aim.
It must never hide a miss.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WAITING = "waiting"
"""Time by the clock in which the process's core had nothing to do: no CPU time, so no layer."""


@dataclass(frozen=True)
class Spread:
    """What several rounds gave."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("no rounds")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Minimum, median, maximum, and each round."""
        return {
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "rounds": list(self.values),
        }

    def shown(self) -> str:
        """The median, and the range where there is one."""
        low, high = min(self.values), max(self.values)
        spread = f" ({number(low)}\N{EN DASH}{number(high)})" if len(self.values) > 1 else ""
        return number(self.median) + spread


@dataclass(frozen=True)
class Row:
    """One figure: ours, theirs, and how they compare.

    `ratios` are 1 where both are as good, and higher where ours is better; without `theirs`
    the figure itself is compared with the aim.
    """

    figure: str
    server: str
    unit: str
    ours: Spread
    theirs: Spread | None = None
    against: str = ""
    ratios: Spread | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the aim; None where there is none."""
        value = (self.ratios or self.ours).median
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        return None

    def aim(self) -> str:
        """The aim as text."""
        if self.at_least is not None:
            return f"≥ {number(self.at_least)}"
        return "" if self.at_most is None else f"≤ {number(self.at_most)} {self.unit}"

    def as_json(self) -> dict[str, Any]:
        """Everything about the row."""
        return {
            "figure": self.figure,
            "server": self.server,
            "unit": self.unit,
            "ours": self.ours.as_json(),
            "theirs": self.theirs.as_json() if self.theirs else None,
            "against": self.against,
            "ratio": self.ratios.as_json() if self.ratios else None,
            "aim": self.aim(),
            "met": self.met,
        }


@dataclass(frozen=True)
class Rate:
    """One round of one side: units a second, and CPU milliseconds a unit."""

    per_s: float
    cpu_ms: float

    @classmethod
    def reported(cls, report: Mapping[str, float]) -> Rate:
        """Of what a loop of `tools.bench.bare` printed."""
        return cls(report["done"] / report["wall_s"], 1000 * report["cpu_s"] / report["done"])


@dataclass(frozen=True)
class Comparison:
    """Two sides of one figure on one server; their rounds alternated."""

    figure: str
    server: str
    against: str
    ours: Sequence[Rate]
    theirs: Sequence[Rate]
    unit: str = "objects"

    def throughput(self, aim: float | None = None) -> Row:
        """Units a second."""
        ours, theirs = [r.per_s for r in self.ours], [r.per_s for r in self.theirs]
        ratios = higher_is_better(ours, theirs)
        return self._row(self.figure, f"{self.unit}/s", ours, theirs, ratios, aim)

    def cpu(self, aim: float | None = None) -> Row:
        """CPU time a unit."""
        ours, theirs = [r.cpu_ms for r in self.ours], [r.cpu_ms for r in self.theirs]
        ratios = lower_is_better(ours, theirs)
        return self._row(
            f"{self.figure}, CPU", f"ms/{self.unit.removesuffix('s')}", ours, theirs, ratios, aim
        )

    def _row(
        self,
        figure: str,
        unit: str,
        ours: list[float],
        theirs: list[float],
        ratios: Spread,
        aim: float | None,
    ) -> Row:
        both = Spread(tuple(ours)), Spread(tuple(theirs))
        return Row(figure, self.server, unit, *both, self.against, ratios, at_least=aim)


@dataclass
class Results:
    """All rows of a run, milliseconds an object by layer, and what could not be measured."""

    rows: list[Row] = field(default_factory=list)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """The whole run as one JSON document."""
        document = {
            "rows": [row.as_json() for row in self.rows],
            "ms_an_object_by_layer": self.profiles,
            "notes": self.notes,
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def higher_is_better(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ratios of rounds where more is better, as in objects a second."""
    return Spread(tuple(a / b for a, b in zip(ours, theirs, strict=True)))


def lower_is_better(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ratios of rounds where less is better, as in CPU time an object."""
    return higher_is_better(theirs, ours)


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(
    rows: Sequence[Row],
    *,
    title: str = "Keyturn bench: median (range) of the rounds; ratio 1 is par",
) -> Table:
    """The rows for a person."""
    shown = Table(title=title)
    for name in ("figure", "server", "ours", "theirs", "ratio", "aim", "met", "rounds"):
        shown.add_column(name, overflow="fold")
    words = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "-"}
    for row in rows:
        theirs = f"{row.theirs.shown()} [dim]{row.against}[/dim]" if row.theirs else "-"
        shown.add_row(
            row.figure,
            row.server,
            f"{row.ours.shown()} {row.unit}",
            theirs,
            row.ratios.shown() if row.ratios else "-",
            row.aim() or "-",
            words[row.met],
            str(len(row.ours.values)),
        )
    return shown


def profile_table(process: str, layers: Mapping[str, float]) -> Table:
    """CPU milliseconds an object by layer, the dearest first; `waiting` is none of them."""
    total = sum(ms for layer, ms in layers.items() if layer != WAITING)
    shown = Table(title=f"CPU time an object by layer: {process}")
    shown.add_column("layer")
    shown.add_column("ms", justify="right")
    shown.add_column("share", justify="right")
    for layer, ms in sorted(layers.items(), key=lambda item: -item[1]):
        if layer != WAITING:
            shown.add_row(layer, f"{ms:.3f}", f"{ms / total:.1%}")
    shown.add_row("all", f"{total:.3f}", "100%")
    if WAITING in layers:
        shown.add_row("waiting, by the clock", f"{layers[WAITING]:.3f}", "-")
    return shown
