"""The dashboards in `deploy/grafana`: their structure, without Grafana.

`test_alert_rules` checks that the metrics exist, `tests/integration/monitoring` that each panel
shows data.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, Final

import pytest

from tests.support.deployed_queries import DEPLOY, metric_names, resolve, variables

_DASHBOARDS: Final = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DEPLOY / "grafana/dashboards").iterdir())
}
_COLUMNS: Final = 24
_BUILT_IN: Final = {"__rate_interval", "__interval", "__range", "__all"}
_COUNTER_WITHOUT_RATE: Final = re.compile(r"(\w+_total)\b(?:\{[^{}]*\})?(?!\s*(?:\{[^{}]*\})?\[)")
_each: Final = pytest.mark.parametrize("name", _DASHBOARDS)


def _panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in _DASHBOARDS[name]["panels"] if panel["type"] != "row"]


@_each
def test_a_dashboard_has_no_identity_of_one_installation(name: str) -> None:
    dashboard = _DASHBOARDS[name]
    assert not dashboard.keys() & {"id", "uid"}
    assert dashboard["title"]
    assert dashboard["description"]
    assert dashboard["tags"]
    for panel in _panels(name):
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@_each
def test_ids_and_titles_are_unique(name: str) -> None:
    for field in ("id", "title"):
        values = [panel[field] for panel in _DASHBOARDS[name]["panels"]]
        assert len(set(values)) == len(values)
    titles = [dashboard["title"] for dashboard in _DASHBOARDS.values()]
    assert len(set(titles)) == len(titles)


@_each
def test_panels_are_in_the_grid_and_do_not_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in _DASHBOARDS[name]["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= _COLUMNS
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


@_each
def test_each_variable_is_defined_and_used(name: str) -> None:
    defined = [variable["name"] for variable in _DASHBOARDS[name]["templating"]["list"]]
    assert len(set(defined)) == len(defined)
    assert variables(json.dumps(_DASHBOARDS[name])) - _BUILT_IN == set(defined)


@_each
def test_each_panel_says_what_it_shows(name: str) -> None:
    for panel in _panels(name):
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert 0 < len(references) == len(set(references)), panel["title"]


@_each
def test_a_counter_is_shown_as_a_rate(name: str) -> None:
    expressions = [target["expr"] for panel in _panels(name) for target in panel["targets"]]
    assert [expr for expr in expressions if _COUNTER_WITHOUT_RATE.search(expr)] == []


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ("a:b:rate5m > bool 1e3", {"a:b:rate5m"}),
        ('sum by (job, le) (rate(x_total{code="y_total",job=~"a{2}"}[5m])) > 0', {"x_total"}),
        ("a / on (job) group_left (version) b", {"a", "b"}),
        ("sum(a) without (le) or vector(0) unless b offset 5m", {"a", "b"}),
        ('count(ALERTS{alertname=~"Keyturn.*"})', {"ALERTS"}),
        ("histogram_quantile(0.99, sum by (le) (x:rate5m{$job}))", {"x:rate5m"}),
        ("topk (3, rate (a [$__rate_interval]))", {"a"}),
    ],
)
def test_the_metrics_of_an_expression(expr: str, names: set[str]) -> None:
    assert metric_names(expr) == names


def test_variables_of_an_expression_are_replaced() -> None:
    assert variables('x{job=~"$job"}[$__range] ${datasource} 1$') == {
        "job",
        "__range",
        "datasource",
    }
    assert resolve("a[$w] ${v}", {"w": "5m", "v": "b"}) == "a[5m] b"
    with pytest.raises(KeyError, match="v"):
        resolve("a[$w] ${v}", {"w": "5m"})
