"""What the gateway says of itself: generated, committed, compared (SPEC 9.6).

To regenerate it: `python -m tests.unit.keyturn_workers.gateway.test_openapi`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from keyturn_workers.gateway.openapi import document

_FILE = Path(__file__).parents[4] / "contracts" / "openapi.json"


def generate() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def test_the_committed_description_is_the_served_one() -> None:
    assert _FILE.read_text() == generate(), (
        "run `python -m tests.unit.keyturn_workers.gateway.test_openapi`"
    )


def test_every_operation_has_an_id_of_its_own_and_every_reference_resolves() -> None:
    described = document()
    operations = [
        operation
        for item in described["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(described)):
        assert name in described["components"]["schemas"]


if __name__ == "__main__":
    _FILE.write_text(generate())
