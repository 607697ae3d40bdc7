"""A request has the fields of its type and no others (SPEC 6.3 to 6.6)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.messages import REQUEST_MODELS
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


def test_only_a_sweep_may_be_of_all_projects() -> None:
    for request_type, model in REQUEST_MODELS.items():
        document = _example(request_type) | {"project": "*"}
        if request_type == "sweep.requested":
            model.model_validate(document)
        else:
            with pytest.raises(ValidationError, match="project"):
                model.model_validate(document)
