"""A request has the fields of its type and no others (SPEC 6.3 to 6.6, 16.1)."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from keyturn.messages import (
    ALL_ONLY_VIEWS,
    NAMED_LETTERS,
    REASON_MAX_CHARACTERS,
    REQUEST_MODELS,
    StatusView,
    encode,
)
from tests.unit.keyturn.messages.examples import REQUESTS


@pytest.mark.parametrize("valid", REQUESTS, ids=lambda document: document["type"])
def test_an_unknown_field_is_refused(valid: dict[str, Any]) -> None:
    model = REQUEST_MODELS[valid["type"]]
    model.model_validate(valid)
    with pytest.raises(ValidationError, match="Extra inputs"):
        model.model_validate(valid | {"more": 1})


@pytest.mark.parametrize("valid", REQUESTS, ids=lambda document: document["type"])
def test_a_field_without_a_default_is_required(valid: dict[str, Any]) -> None:
    model = REQUEST_MODELS[valid["type"]]
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    assert {"requested_at", "project"} <= set(required)
    for name in required:
        with pytest.raises(ValidationError, match="Field required"):
            model.model_validate({field: valid[field] for field in valid if field != name})


@pytest.mark.parametrize("valid", REQUESTS, ids=lambda document: document["type"])
def test_a_request_knows_when_it_was_made(valid: dict[str, Any]) -> None:
    document = valid | {"requested_at": "2026-11-24T10:00:00.5Z"}
    request = REQUEST_MODELS[valid["type"]].model_validate(document)
    assert request.requested_at_instant == datetime(2026, 11, 24, 10, 0, 0, 500_000, tzinfo=UTC)


def _example(request_type: str) -> dict[str, Any]:
    return next(document for document in REQUESTS if document["type"] == request_type)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inline": "AAAA", "staged": {"size": 1}},
        {"inline": "AAA"},
        {"staged": {"size": 0}},
        {"staged": {"size": 2**53}},
        {"staged": {"size": "1"}},
        {"staged": {"size": 1, "key": "x"}},
    ],
)
def test_a_body_is_inline_or_staged_and_of_a_size_that_can_be(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        REQUEST_MODELS["upload.requested"].model_validate(
            _example("upload.requested") | {"body": body}
        )


_OF_ALL = ("sweep.requested", "status.requested", "dead_letters.requested")


def test_only_sweeps_and_what_operators_request_may_be_of_all_projects() -> None:
    for request_type, model in REQUEST_MODELS.items():
        document = _example(request_type) | {"project": "*"}
        if request_type in _OF_ALL:
            model.model_validate(document)
        else:
            with pytest.raises(ValidationError, match="project"):
                model.model_validate(document)


@pytest.mark.parametrize(
    ("selection", "is_valid"),
    [
        ({"code": "unknown"}, True),
        ({"letters": [f"{number:064x}" for number in range(NAMED_LETTERS)]}, True),
        ({"letters": [f"{number:064x}" for number in range(NAMED_LETTERS + 1)]}, False),
        ({"letters": []}, False),
        ({"letters": ["A" * 64]}, False),
        ({"code": "No Code"}, False),
        ({"code": "unknown", "letters": ["0" * 64]}, False),
        ({}, False),
    ],
)
def test_dead_letters_are_selected_by_their_code_or_one_by_one(
    selection: dict[str, Any], *, is_valid: bool
) -> None:
    document = _example("dead_letters.requested") | {"code": None}
    with nullcontext() if is_valid else pytest.raises(ValidationError):
        REQUEST_MODELS["dead_letters.requested"].model_validate(document | selection)


def test_the_largest_request_for_letters_fits_in_a_message() -> None:
    """RabbitMQ's own limit is 16 MiB; and every retry is a copy of it."""
    more = {"letters": ["f" * 64] * NAMED_LETTERS, "reason": "\U0001f511" * REASON_MAX_CHARACTERS}
    request: Any = REQUEST_MODELS["dead_letters.requested"].model_validate(
        _example("dead_letters.requested") | {"code": None} | more
    )
    assert len(encode(request)) < 256 * 1024


@pytest.mark.parametrize("sweep_id", [None, "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"])
@pytest.mark.parametrize("project", ["acme", "*"])
@pytest.mark.parametrize("view", get_args(StatusView))
def test_a_report_has_a_sweep_and_projects_where_its_view_does(
    view: str, project: str, sweep_id: str | None
) -> None:
    document = _example("status.requested") | {"view": view, "project": project}
    document |= {} if sweep_id is None else {"sweep_id": sweep_id}
    is_valid = (view in ("sweep", "failures")) == (sweep_id is not None)
    is_valid &= project == "*" or view not in ALL_ONLY_VIEWS
    is_valid &= view != "evidence" or project != "*"
    with nullcontext() if is_valid else pytest.raises(ValidationError):
        REQUEST_MODELS["status.requested"].model_validate(document)


@pytest.mark.parametrize(
    ("view", "query", "is_valid"),
    [
        ("projects", {"filter": {"state": "old_key", "master_key": "2027"}}, True),
        ("projects", {"order": "-key_since", "page": 7}, True),
        ("projects", {"order": "kek_id"}, False),
        ("projects", {"order": "--project"}, False),
        ("projects", {"filter": {"state": "failed"}}, False),
        ("projects", {"filter": {"queue": "keyturn.upload.dead"}}, False),
        ("projects", {"filter": {"colour": "red"}}, False),
        ("projects", {"filter": {"text": "x" * 201}}, False),
        ("sweeps", {"filter": {"state": "not_clean", "kind": "rotation", "parts": True}}, True),
        ("sweeps", {"order": "started_at"}, False),
        ("audit", {"filter": {"since": "2026-11-24T10:00:00.000000Z", "reports": True}}, True),
        ("audit", {"filter": {"since": "yesterday"}}, False),
        ("dead_letters", {"filter": {"queue": "keyturn.upload.dead", "code": "gone"}}, True),
        ("queues", {"filter": {"text": "upload"}}, False),
        ("queues", {"page": 0}, False),
    ],
)
def test_a_report_is_filtered_and_ordered_by_what_its_view_has(
    view: str, query: dict[str, Any], is_valid: bool
) -> None:
    document = _example("status.requested") | {"view": view, "project": "*"} | query
    with nullcontext() if is_valid else pytest.raises(ValidationError):
        REQUEST_MODELS["status.requested"].model_validate(document)
