"""The gateway does as it describes itself: requests made up from its own OpenAPI (SPEC 9.6).

Schemathesis makes them, good and bad; each answer must be one that the
description names, in status, content type, headers and schema, and never an internal failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from keyturn.messages import ObjectDeleted, UploadStored
from tests.unit.keyturn_workers.gateway.bench import API_KEY, KEY, NEW_API_KEY
from tests.unit.keyturn_workers.gateway.serving import Serving
from tests.unit.keyturn_workers.gateway.test_description import DOCUMENT

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.unit.keyturn_workers.gateway.serving import FakePublisher

pytestmark = pytest.mark.slow

_CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_ROTATION_ID = "2f6c9a0e-1111-4111-8111-111111111111"
_Decorator = Callable[[Callable[..., None]], Callable[[], None]]
OPERATIONS = [
    (path, method)
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method != "parameters"
]


def _outcome(publisher: FakePublisher, request_id: str) -> Event:
    at = "2026-11-24T10:00:00.000000Z"
    if any(delete["id"] == request_id for delete in (*publisher.deletes, *publisher.many)):
        deleted = ObjectDeleted(request_id=request_id, project="acme", key=KEY, at=at)
        publisher.outcomes = {KEY: deleted}
        return deleted
    return UploadStored(upload_id=request_id, project="acme", key=KEY, size=0, generation=1, at=at)


@cache
def _schema() -> Any:
    serving = Serving(wait_max_s=0, max_deletes=20)
    serving.bench.plant_sealed(bytes(40_000))
    ring = serving.bench.ring
    current = type(ring.current)(
        1, ring.current.kek_id, ring.current.kek, _ROTATION_ID, ring.current.at, ring.current.at
    )
    serving.bench.write_keyring(replace(ring, current=current))
    serving.publisher.answer = partial(_outcome, serving.publisher)
    return schemathesis.openapi.from_asgi("/openapi.json", serving.app)


# Besides generated requests: requests that lead to each of the responses.
_LEADING = st.sampled_from(
    [
        {},
        {"Range": "bytes=5-9"},
        {"Range": "bytes=999999-"},
        {"If-None-Match": "*"},
        {"If-Match": '"x"'},
        {"Prefer": "wait=1"},
    ]
)
_THERE = st.sampled_from(
    [
        {"key": KEY, "rotation_id": _ROTATION_ID},
        {"key": "reports/new.pdf", "rotation_id": _ROTATION_ID},  # nothing is stored there
        {},
    ]
)
_KEYS = st.sampled_from([None, f"Bearer {NEW_API_KEY}", "Basic eA=="])


def _made_up(path: str, method: str, max_examples: int) -> Callable[..., _Decorator]:
    """Run a test with this many cases of the operation, valid and invalid."""
    operation = _schema()[path][method]
    cases = operation.as_strategy() | operation.as_strategy(
        generation_mode=schemathesis.GenerationMode.NEGATIVE
    )
    make_protocol_class = settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    def with_more(*more: st.SearchStrategy[Any]) -> _Decorator:
        return lambda test: make_protocol_class(given(cases, *more)(test))  # type: ignore[no-untyped-call]

    return with_more


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_response_to_the_projects_key_matches_the_description(path: str, method: str) -> None:
    seen = set()

    # Enough that one is served whatever is drawn: Hypothesis draws constants of the modules that
    # are loaded as well, so that the cases differ when other tests run too.
    @_made_up(path, method, 32)(_THERE, _LEADING, st.booleans())
    def answers(case: Any, there: dict[str, str], leading: dict[str, str], bare: bool) -> None:
        known = {"project": "acme", **there}
        case.path_parameters = {n: known.get(n, v) for n, v in case.path_parameters.items()}
        if bare:
            case.headers = {}
        if path.endswith("/deletes") and there.get("key") == KEY:
            case.body = {"keys": [KEY, "reports/new.pdf"]}  # no made-up key has an object
        response = case.call(headers={"Authorization": f"Bearer {API_KEY}", **leading})
        case.validate_response(response, checks=_CHECKS)
        seen.add(response.status_code)

    answers()
    assert any(status < 300 for status in seen), seen


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if "project" in each[0]])
def test_every_response_to_another_key_is_the_described_401(path: str, method: str) -> None:
    @_made_up(path, method, 6)(_KEYS)
    def answers(case: Any, authorization: str | None) -> None:
        case.path_parameters |= {"project": "acme"}
        response = case.call(headers={"Authorization": authorization} if authorization else {})
        case.validate_response(response, checks=_CHECKS)
        assert response.status_code == 401

    answers()
