"""What can be said about a dashboard's JSON without Grafana: its structure."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tools.dashboards.document import COLUMNS
from tools.dashboards.promql import variables

if TYPE_CHECKING:
    from collections.abc import Iterator

_JSON = dict[str, Any]
# Grafana's own; the last three come with a data link or a repeat only.
_BUILT_IN = re.compile(r"__(?:rate_interval|interval|interval_ms|range|range_s|all)")


def problems(document: _JSON) -> list[str]:
    """What is wrong with a dashboard's JSON, in words; empty if nothing is."""
    panels: list[_JSON] = document["panels"]
    return [
        *_identity(document, panels),
        *_places(panels),
        *_variables(document),
        *(problem for panel in panels if panel["type"] != "row" for problem in _panel(panel)),
    ]


def _identity(document: _JSON, panels: list[_JSON]) -> Iterator[str]:
    if document.keys() & {"id", "uid"}:
        yield "the dashboard has an id of one installation"
    numbers = [panel["id"] for panel in panels]
    if len(set(numbers)) != len(numbers):
        yield "two panels have one id"
    if not (document["title"] and document["description"] and document["tags"]):
        yield "the dashboard has no title, description or tag"
    titles = [panel["title"] for panel in panels]
    yield from (f"two panels are called {t}" for t in {t for t in titles if titles.count(t) > 1})


def _places(panels: list[_JSON]) -> Iterator[str]:
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] < 0 or place["x"] + place["w"] > COLUMNS or min(place["w"], place["h"]) < 1:
            yield f"{panel['title']} is outside the grid"
    for one, other in combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{one['title']} and {other['title']} overlap"


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    return not (beside or below)


def _variables(document: _JSON) -> Iterator[str]:
    defined = [variable["name"] for variable in document["templating"]["list"]]
    used = {name for name in variables(json.dumps(document)) if not _BUILT_IN.fullmatch(name)}
    yield from (f"${name} is used and not defined" for name in sorted(used - set(defined)))
    yield from (f"${name} is defined and not used" for name in sorted(set(defined) - used))
    if len(set(defined)) != len(defined):
        yield "two variables have one name"


def _panel(panel: _JSON) -> Iterator[str]:
    title = panel["title"]
    if not (title and panel.get("description")):
        yield f"{title or panel['id']} has no title or description"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield f"{title} has no unit"
    references = [target["refId"] for target in panel["targets"]]
    if not references or len(set(references)) != len(references):
        yield f"{title} has no query, or two with one letter"
    for part in (panel, *panel["targets"]):
        if part["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
            yield f"{title} has a data source of its own"
    for target in panel["targets"]:
        counters = re.findall(
            r"(\w+_total)\b(?:\{[^{}]*\})?(?!\s*(?:\{[^{}]*\})?\[)", target["expr"]
        )
        yield from (f"{title} shows the counter {name} without a rate" for name in counters)
