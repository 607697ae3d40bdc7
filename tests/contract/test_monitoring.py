"""Alert rules and dashboards: complete, about metrics that exist, with runbooks and cases.

Without Prometheus or Grafana: `tests/integration/monitoring` checks that each panel shows data.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics
from keyturn_workers.keys.master_keys.providers import KmsMetrics
from keyturn_workers.pipeline.ingest.metrics import IngestMetrics
from keyturn_workers.process.metrics import WorkerMetrics
from tests.support.deployed_queries import DEPLOY, expressions, metric_names, resolve, variables

_ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = DEPLOY / "prometheus"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _rules(name: str) -> list[dict[str, Any]]:
    groups = _yaml(PROMETHEUS / "rules" / name)["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in _rules("keyturn-alerts.yml")}
RECORDED: Final = {rule["record"]: rule for rule in _rules("keyturn-recording.yml")}
CASES: Final = _yaml(PROMETHEUS / "tests/alerts.yml")["tests"]


def _named() -> set[str]:
    """The metrics and recorded series that any file of `deploy/` names."""
    return {name for file in expressions().values() for expr in file for name in metric_names(expr)}


def _exported() -> set[str]:
    """The names of Keyturn's own metrics, as docs/reference/metrics.md lists them."""
    metrics, gateway = WorkerMetrics(), GatewayMetrics()
    metrics.registry.add_process()
    KmsMetrics(metrics.registry).observer("vault")
    CustomerKeyMetrics(metrics.registry, {})
    IngestMetrics(metrics.registry, ["drop"])
    text = (metrics.registry.render()[0] + gateway.registry.render()[0]).decode()
    return {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if "keyturn" in name}


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_has_a_severity_and_says_what_it_means(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    # One line each, and the description names what it is about.
    assert all("\n" not in text for text in rule["annotations"].values())
    assert "{{" not in rule["annotations"]["summary"]


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_the_runbook_of_an_alert_exists(alert: str) -> None:
    document, _, anchor = ALERTS[alert]["annotations"]["runbook"].partition("#")
    assert anchor == alert.lower()
    assert anchor in _anchors(_ROOT / document)


def test_the_runbook_has_no_other_alert() -> None:
    text = (_ROOT / "docs/operations/runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (Keyturn\w+)$", text, re.MULTILINE) == list(ALERTS)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    expected = [
        bool(test["exp_alerts"])
        for case in CASES
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == alert
    ]
    assert {True, False} == set(expected)


def test_queries_are_found_everywhere() -> None:
    """In rules, in panels, and in autoscalers."""
    files = expressions()
    dashboards = {f"grafana/dashboards/{path.name}" for path in DEPLOY.rglob("dashboards/*.json")}
    rules = {"prometheus/rules/keyturn-alerts.yml", "prometheus/rules/keyturn-recording.yml"}
    assert {*dashboards, *rules, "kubernetes/components/keda/scaled-objects.yaml"} <= files.keys()
    assert len(dashboards) == 4


def test_every_metric_of_ours_that_is_named_exists() -> None:
    """Those of others are compared with what a real server exports."""
    ours = {name.removesuffix("_bucket") for name in _named() if name.startswith("keyturn_")}
    assert ours
    assert ours <= _exported()


def test_every_recorded_series_that_is_named_is_recorded_and_used() -> None:
    assert {name for name in _named() if name.startswith("keyturn:")} == RECORDED.keys()


def test_no_document_repeats_a_rule() -> None:
    """docs/ points to the files: an expression in two places would differ some day."""
    for path in (_ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:- alert|- record|expr):", text, re.MULTILINE), path


# The dashboards in `deploy/grafana`: their structure.


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
