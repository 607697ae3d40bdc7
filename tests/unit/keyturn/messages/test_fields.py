"""The fields that messages share are checked, and none of their values is shown (SPEC 1, 6)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.messages import RequestOrigin
from keyturn.messages.fields import (
    Base64,
    CallerMetadata,
    ContentType,
    Count,
    Generation,
    Key,
    Project,
    RequestDigest,
    RequestId,
    ShortName,
    StrictModel,
    Time,
)


class _Fields(StrictModel):
    project: Project = "acme"
    name: ShortName = "main"
    id: RequestId = "2f6c9a0e-0000-4000-8000-000000000001"
    at: Time = "2026-11-24T10:00:00Z"
    key: Key = "a/b"
    data: Base64 = "AAAA"
    content_type: ContentType = "text/plain"
    metadata: CallerMetadata = {}  # noqa: RUF012  # pydantic copies it
    digest: RequestDigest = "0" * 64
    generation: Generation = 1
    count: Count = 0


@pytest.mark.parametrize(
    "field",
    [
        {"project": "a" * 63},
        {"name": "2026-11"},
        {"at": "2026-11-24T10:00:00.123456Z"},
        {"key": "ü" * 450},
        {"data": ""},
        {"content_type": "text/plain; charset=utf-8"},
        {"metadata": {"author": "Grüße"}},
        {"generation": 2**40},
    ],
)
def test_what_the_specification_allows_is_taken_as_it_is(field: dict[str, Any]) -> None:
    read = _Fields.model_validate(field)
    assert read.model_dump(include=set(field)) == field


@pytest.mark.parametrize(
    "field",
    [
        {"project": "CANARY"},
        {"project": "canary\n"},
        {"name": "c" * 33},
        {"id": "2F6C9A0E-0000-4000-8000-000000000001"},
        {"at": "2026-13-24T10:00:00Z"},
        {"at": "2026-11-24T10:00:00+01:00"},
        {"key": "canary//x"},
        {"key": "../canary"},
        {"data": "canary"},
        {"content_type": "canary\r\nX-Evil: 1"},
        {"metadata": {"enc-algo": "canary"}},
        {"metadata": {"Author": "canary"}},
        {"metadata": {"author": "canary" * 200}},
        {"digest": "canary"},
        {"generation": 0},
        {"generation": "1"},
        {"count": -1},
        {"count": 1.0},
        {"count": True},
        {"canary": 1},
    ],
)
def test_anything_else_is_refused_and_its_value_is_not_shown(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        _Fields.model_validate(field)
    if "canary" not in field:  # a field's name is shown
        assert "canary" not in str(refused.value).lower()


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _Fields().count = 1  # type: ignore[misc]


def test_a_requests_origin_is_its_publisher_and_the_digest_of_its_bytes() -> None:
    origin = RequestOrigin.of("billing", b"body")
    assert origin == RequestOrigin("billing", hashlib.sha256(b"body").hexdigest())
    assert origin != RequestOrigin.of("billing", b"body ")
    assert origin != RequestOrigin.of("web", b"body")
