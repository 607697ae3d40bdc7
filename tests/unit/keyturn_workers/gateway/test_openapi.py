"""What the gateway says of itself: generated, committed, compared (SPEC 9.6).

To write it anew: `python -m tests.unit.keyturn_workers.gateway.test_openapi`.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from keyturn_workers.gateway import docs_page
from keyturn_workers.gateway.openapi import document

_FILE = Path(__file__).parents[4] / "contracts" / "openapi.json"


def generate() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def test_the_committed_description_is_the_served_one() -> None:
    assert _FILE.read_text() == generate(), (
        "run `python -m tests.unit.keyturn_workers.gateway.test_openapi`"
    )


def test_every_operation_has_an_id_of_its_own_and_every_reference_resolves() -> None:
    told = document()
    operations = [
        operation
        for item in told["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) == 8
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(told)):
        assert name in told["components"]["schemas"]


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets |= {value or "" for name, value in attrs if name in ("src", "href")}


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    """It is on the origin to which API keys are sent."""
    page = docs_page.page(document()).decode()
    loads = _Loads()
    loads.feed(page)
    assert loads.targets == {"/openapi.json"}
    assert not loads.tags & {"script", "link", "img", "iframe", "object"}
    policy = docs_page.HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    for path in document()["paths"]:
        assert path in page


if __name__ == "__main__":
    _FILE.write_text(generate())
