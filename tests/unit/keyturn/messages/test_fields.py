"""JSON and the fields that messages share are read strictly; no value is shown (SPEC 1, 6)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import RequestOrigin, parse_request
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
from keyturn.messages.json_text import as_text, load_json, problems, readable_fields
from tests.unit.keyturn.messages.examples import REQUESTS


@given(st.sampled_from(REQUESTS), st.data())
def test_a_duplicate_name_is_malformed_at_any_depth(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(valid)
    places = [i for i, character in enumerate(text) if text[i : i + 2] == '{"']
    place = data.draw(st.sampled_from(places))
    end = text.index('"', place + 2)
    name = text[place + 1 : end + 1]
    twice = f"{text[: place + 1]}{name}: 0, {text[place + 1 :]}"
    with pytest.raises(MalformedRequestError, match="duplicate name"):
        parse_request(twice.encode())


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedRequestError):
        load_json(b'{"a":' + b"[" * 200_000)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not a JSON object"),
        (b"[]", "the body is not a JSON object"),
        (b'"text"', "the body is not a JSON object"),
        (b"\xff", "the body is not a JSON object"),
        ('{"a": 1}'.encode("utf-16"), "the body is not a JSON object"),
        (b'{"a": "\\ud800"}', "the body is not a JSON object"),
        (b'{"a": ["\\ud800"]}', "the body is not a JSON object"),
        (b'{"a": [[{"b": ["", ["\\udfff"]]}]]}', "the body is not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate name in an object"),
        (b'{"a": 1} {}', "the body is not a JSON object"),
    ],
)
def test_what_is_no_strict_json_object_is_malformed(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        load_json(body)
    assert refused.value.detail == reason
    assert refused.value.__cause__ is None


def test_a_json_object_is_read_as_it_is() -> None:
    assert load_json('{"a": ["ü", null, 1.5], "b": {}}'.encode()) == {
        "a": ["ü", None, 1.5],
        "b": {},
    }


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"a": "x", "b": "y", "b": "z"}', {"a": "x"}),
        (b'{"a": "x", "n": ' + b"9" * 5000 + b"}", {"a": "x", "n": None}),
        (b'{"a": "x", "n": NaN}', {"a": "x", "n": pytest.approx(float("nan"), nan_ok=True)}),
        (b"[1]", None),
        (b'{"a": "x"', None),
        (b"\xff{}", None),
        (b'{"a":' + b"[" * 200_000, None),
    ],
)
def test_of_a_malformed_request_what_is_unambiguous_can_be_read(
    body: bytes, fields: dict[str, Any] | None
) -> None:
    assert readable_fields(body) == fields


def test_text_is_text_and_nothing_else() -> None:
    assert [as_text(value) for value in ("x", 1, None, ["x"])] == ["x", None, None, None]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: int
    second: int
    third: int
    fourth: int


def test_problems_are_named_without_their_values_and_not_without_end() -> None:
    with pytest.raises(ValidationError) as refused:
        _Model.model_validate(dict.fromkeys(("first", "second", "third", "fourth"), "canary"))
    text = problems(refused.value)
    assert text.count("valid integer") == 3
    assert text.endswith("; and 1 more")
    assert "canary" not in text


def test_a_senders_own_name_is_cut_short_and_stays_on_one_line() -> None:
    valid = dict.fromkeys(("first", "second", "third", "fourth"), 1)
    with pytest.raises(ValidationError) as refused:
        _Model.model_validate(valid | {"x\n" + "y" * 100: 1})
    text = problems(refused.value)
    assert text.startswith("x\\n" + "y" * 37 + ": ")
    assert "\n" not in text


# The fields that messages share.


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
