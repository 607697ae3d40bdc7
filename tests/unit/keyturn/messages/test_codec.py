"""Any bytes are a message or malformed, and a refusal never repeats a value (SPEC 6.3)."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    REQUEST_MODELS,
    RequestOrigin,
    encode,
    identity,
    parse_event,
    parse_request,
    rejection,
)
from tests.unit.keyturn.messages.examples import EVENTS, REQUESTS

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_json_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_malformed_and_in_no_other_way(body: bytes) -> None:
    for parse in (parse_request, parse_event):
        with pytest.raises(MalformedRequestError):
            parse(body)
    assert identity(body) is None


@pytest.mark.slow
@given(st.sampled_from(REQUESTS + EVENTS), st.data())
def test_any_json_in_a_field_is_taken_or_refused_as_malformed(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = None
    with suppress(MalformedRequestError):
        message = parse(body)
    if message is not None:
        assert parse(encode(message)) == message
    identity(body)


@pytest.mark.slow
@given(_json_values)
def test_any_json_value_is_refused_as_malformed(value: Any) -> None:
    with pytest.raises(MalformedRequestError):
        parse_request(json.dumps(value).encode())


@pytest.mark.parametrize("valid", REQUESTS + EVENTS, ids=lambda d: d["type"])
def test_examples_survive_a_round_trip(valid: dict[str, Any]) -> None:
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = parse(json.dumps(valid).encode())
    assert parse(encode(message)) == message


@given(st.text(max_size=40))
def test_a_refusal_never_repeats_the_value(secret: str) -> None:
    marked = f"S3CR3T {secret}"
    for field in ("project", "requested_at", "upload_id", "sealed_key", "body", "type"):
        with pytest.raises(MalformedRequestError) as refused:
            parse_request(json.dumps(REQUESTS[0] | {field: marked}).encode())
        assert "S3CR3T" not in str(refused.value)


@pytest.mark.slow
@given(st.sampled_from(REQUESTS), st.data())
def test_whatever_identity_reads_can_be_named_in_a_refusal(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    claimed = identity(body)
    if claimed is not None:
        event = rejection(
            *claimed,
            MalformedRequestError("a reason"),
            EVENTS[0]["at"],
            RequestOrigin.of("api", body),
        )
        assert parse_event(encode(event)) == event
