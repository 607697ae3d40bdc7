"""JSON is read strictly, and errors repeat no value (SPEC 6.3)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import parse_request
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
