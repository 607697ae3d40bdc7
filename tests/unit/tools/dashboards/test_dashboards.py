"""The committed dashboards are the generated ones, and their structure is sound.

Grafana itself is not run: it is not among the packages that a test can install.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from tools import dashboards
from tools.dashboards.checks import problems

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = sorted(dashboards.DASHBOARDS)
_JSON = dict[str, Any]


def _committed(name: str) -> _JSON:
    document: _JSON = json.loads((dashboards.FOLDER / name).read_text(encoding="utf-8"))
    return document


def test_the_committed_dashboards_are_the_generated_ones() -> None:
    """Where this fails: `python -m tools.dashboards`, and look at the difference."""
    found = {path.name: path.read_text(encoding="utf-8") for path in dashboards.FOLDER.iterdir()}
    assert found == dashboards.files()


@pytest.mark.parametrize("name", _NAMES)
def test_the_structure_is_sound(name: str) -> None:
    assert problems(_committed(name)) == []


def test_each_dashboard_has_its_title() -> None:
    titles = {_committed(name)["title"] for name in _NAMES}
    assert len(titles) == len(_NAMES)


def _second(document: _JSON) -> _JSON:
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]
    second: _JSON = panels[1]
    return second


def _overlap(document: _JSON) -> None:
    _second(document)["gridPos"]["x"] -= 1


def _outside(document: _JSON) -> None:
    _second(document)["gridPos"]["w"] = 25


def _same_id(document: _JSON) -> None:
    _second(document)["id"] = document["panels"][0]["id"]


def _same_title(document: _JSON) -> None:
    _second(document)["title"] = document["panels"][1]["title"]


def _undefined(document: _JSON) -> None:
    _second(document)["targets"][0]["expr"] = 'up{job=~"$jobs"}'


def _unused(document: _JSON) -> None:
    document["templating"]["list"].append({"name": "cluster"})


def _twice(document: _JSON) -> None:
    document["templating"]["list"].append(document["templating"]["list"][0])


def _source(document: _JSON) -> None:
    _second(document)["targets"][0]["datasource"] = {"type": "prometheus", "uid": "PBFA97CFB"}


def _installation(document: _JSON) -> None:
    document["uid"] = "abc"


def _no_unit(document: _JSON) -> None:
    del _second(document)["fieldConfig"]["defaults"]["unit"]


def _no_description(document: _JSON) -> None:
    _second(document)["description"] = ""


def _no_query(document: _JSON) -> None:
    _second(document)["targets"] = []


def _counter(document: _JSON) -> None:
    _second(document)["targets"][0]["expr"] = 'sum(keyturn_retries_total{code="x"})'


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_overlap, "overlap"),
        (_outside, "outside the grid"),
        (_same_id, "two panels have one id"),
        (_same_title, "two panels are called"),
        (_undefined, "$jobs is used and not defined"),
        (_unused, "$cluster is defined and not used"),
        (_twice, "two variables have one name"),
        (_source, "a data source of its own"),
        (_installation, "an id of one installation"),
        (_no_unit, "has no unit"),
        (_no_description, "has no title or description"),
        (_no_query, "has no query"),
        (_counter, "shows the counter keyturn_retries_total without a rate"),
    ],
)
def test_damage_is_found(damage: Callable[[_JSON], None], problem: str) -> None:
    document = copy.deepcopy(_committed("uploads.json"))
    damage(document)
    assert [found for found in problems(document) if problem in found]
