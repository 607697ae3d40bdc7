"""The alert rules: complete, about metrics that exist, with a runbook that exists and cases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.ingest.metrics import IngestMetrics
from keyturn_workers.master_keys.providers import KmsMetrics
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.deployed_queries import DEPLOY, expressions, metric_names

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
