"""Base64 that is read once: the text stays what it was, and its bytes come from no other text."""

from __future__ import annotations

import copy
import pickle

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import b64, b64_checked, b64_decode
from keyturn.messages import InlineBody


@given(st.binary(max_size=100))
def test_a_checked_text_is_the_same_text_and_carries_its_bytes(data: bytes) -> None:
    text = b64(data)
    checked = b64_checked(text)
    assert (checked, hash(checked), str(checked)) == (text, hash(text), text)
    assert b64_decode(checked) == b64_decode(text) == data
    assert orjson.dumps({"x": checked}) == orjson.dumps({"x": text})
    for again in (copy.deepcopy(checked), pickle.loads(pickle.dumps(checked))):  # noqa: S301
        assert (again, b64_decode(again)) == (text, data)


@pytest.mark.parametrize("text", ["QR==", "QQ=", "QQ", "Q Q=", "QQ==\n", "-_==", "é"])
def test_what_is_no_base64_is_never_checked(text: str) -> None:
    with pytest.raises(ValueError, match="not standard base64"):
        b64_checked(text)


def test_what_is_made_of_a_checked_text_is_read_anew() -> None:
    checked = b64_checked(b64(b"abc") + b64(b"def"))
    assert b64_decode(checked[:4]) == b"abc"
    assert b64_decode(checked + b64(b"ghi")) == b"abcdefghi"


def test_a_model_holds_it_and_tells_it_as_text() -> None:
    body = InlineBody(inline=b64(b"sealed"))
    assert type(InlineBody(inline=b64(b"x")).inline) is not str
    assert body == InlineBody.model_validate_json(body.model_dump_json())
    assert body.model_dump(mode="json") == {"inline": b64(b"sealed")}
