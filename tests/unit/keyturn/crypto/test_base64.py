"""Base64 that is read once: the text stays what it was, and its bytes come from no other text."""

from __future__ import annotations

import base64
import copy
import pickle

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import (
    from_base64,
    to_base64,
    validate_base64,
)
from keyturn.messages import InlineBody


@given(st.binary(max_size=100))
def test_a_checked_text_is_the_same_text_and_carries_its_bytes(data: bytes) -> None:
    text = to_base64(data)
    checked = validate_base64(text)
    assert (checked, hash(checked), str(checked)) == (text, hash(text), text)
    assert from_base64(checked) == from_base64(text) == data
    assert orjson.dumps({"x": checked}) == orjson.dumps({"x": text})
    for again in (copy.deepcopy(checked), pickle.loads(pickle.dumps(checked))):  # noqa: S301
        assert (again, from_base64(again)) == (text, data)


@pytest.mark.parametrize("text", ["QR==", "QQ=", "QQ", "Q Q=", "QQ==\n", "-_==", "é"])
def test_what_is_no_base64_is_never_checked(text: str) -> None:
    with pytest.raises(ValueError, match="not standard base64"):
        validate_base64(text)


def test_what_is_made_of_a_checked_text_is_read_again() -> None:
    checked = validate_base64(to_base64(b"abc") + to_base64(b"def"))
    assert from_base64(checked[:4]) == b"abc"
    assert from_base64(checked + to_base64(b"ghi")) == b"abcdefghi"


def test_a_model_holds_it_and_serializes_it_as_text() -> None:
    body = InlineBody(inline=to_base64(b"sealed"))
    assert type(InlineBody(inline=to_base64(b"x")).inline) is not str
    assert body == InlineBody.model_validate_json(body.model_dump_json())
    assert body.model_dump(mode="json") == {"inline": to_base64(b"sealed")}


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    assert from_base64(to_base64(data)) == data


@given(st.text("AQg+/=-_ \n\0é", max_size=12))
def test_base64_has_one_spelling(text: str) -> None:
    """Against the standard library's decoder: accepted only where encoding gives the text back."""
    try:
        decoded = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(decoded).decode() == text
    except ValueError:
        canonical = False
    if canonical:
        assert from_base64(text) == decoded
    else:
        with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
            from_base64(text)


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "QQ===", "====", "_-==", "é", "A"]
)
def test_base64_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
        from_base64(text)
