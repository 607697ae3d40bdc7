"""The SBOM is CycloneDX, and lists exactly what is shipped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.tools.supply.exported import export
from tools.supply.lock import PUBLISHERS
from tools.supply.sbom import faults

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def sbom(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        export(tmp_path / "sbom.json", "cyclonedx1.5").read_text()
    )
    return document


def test_it_is_the_shipped_set(sbom: dict[str, Any]) -> None:
    assert faults(json.dumps(sbom)) == []
    assert sbom["metadata"]["component"]["name"] == "keyturn-workers"
    assert all(
        one["purl"].startswith("pkg:pypi/")
        for one in sbom["components"]
        if one["name"] != PUBLISHERS
    )


def test_missing_and_extra_packages_are_reported(sbom: dict[str, Any]) -> None:
    gone = sbom["components"].pop(0)
    sbom["components"][0]["version"] = "0"
    first, second, third = faults(json.dumps(sbom))
    assert first == f"missing: {gone['name']} {gone['version']}"
    assert second.startswith("missing: ")
    assert third == f"not shipped: {sbom['components'][0]['name']} 0"


@pytest.mark.parametrize("change", [{"bomFormat": "other"}, {"components": [{"name": "x"}]}])
def test_another_format_is_reported(sbom: dict[str, Any], change: dict[str, Any]) -> None:
    (fault,) = faults(json.dumps(sbom | change))
    assert fault.startswith("not CycloneDX 1.5")
