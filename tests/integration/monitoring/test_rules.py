"""`promtool` accepts the configuration and the rules of `deploy/`, and all their cases hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest
import yaml

from tools.servers.packages import MissingPackagesError
from tools.servers.prometheus import promtool

PROMETHEUS: Final = Path(__file__).parents[3] / "deploy/prometheus"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        promtool("--version", folder=PROMETHEUS)
    except MissingPackagesError as error:
        pytest.skip(f"promtool cannot be installed: {error}")


@pytest.mark.parametrize("rules", sorted(path.name for path in (PROMETHEUS / "rules").iterdir()))
def test_the_rules_are_valid(rules: str) -> None:
    status, output = promtool("check", "rules", "--lint-fatal", f"rules/{rules}", folder=PROMETHEUS)
    assert status == 0, output
    assert "SUCCESS" in output


def test_the_configuration_is_valid() -> None:
    """With the rule files that it names."""
    status, output = promtool(
        "check", "config", "--lint-fatal", "prometheus.yml", folder=PROMETHEUS
    )
    assert status == 0, output
    assert "2 rule files" in output or output.count("rules found") == 2, output


@pytest.mark.parametrize("cases", sorted(path.name for path in (PROMETHEUS / "tests").iterdir()))
def test_the_cases_hold(cases: str) -> None:
    status, output = promtool("test", "rules", f"tests/{cases}", folder=PROMETHEUS)
    assert status == 0, output


def test_an_alert_that_never_fires_fails_its_case(tmp_path: Path) -> None:
    """Each case that fires notices when its alert does not."""
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    file = folder / "rules/keyturn-alerts.yml"
    document = yaml.safe_load(file.read_text())
    alerts = [rule for group in document["groups"] for rule in group["rules"]]
    for rule in alerts:
        rule["expr"] = f"({rule['expr']}) unless on () vector(1)"
    file.write_text(yaml.safe_dump(document))
    cases = yaml.safe_load((folder / "tests/alerts.yml").read_text())
    cases["tests"] = [case for case in cases["tests"] if case["name"].endswith(" fires")]
    (folder / "tests/fires.yml").write_text(yaml.safe_dump(cases))
    status, output = promtool("test", "rules", "tests/fires.yml", folder=folder)
    assert status == 1
    assert [rule["alert"] for rule in alerts if f"alertname: {rule['alert']}," not in output] == []
