"""The parts that are read of an AMQP 1.0 message, however hostile it is (SPEC 6.9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_workers.reports.dead_letters.amqp1 import _parse
from tools.harness.amqp1 import HARMLESS, POISONS, Parts, string, symbol

_SIGNED = {"keyturn-publisher": string("api"), "keyturn-code": symbol("bad_seal")}
_DEEP = b"\x00" * 100_000 + b"\x40"


@pytest.mark.parametrize("name", [*POISONS, *HARMLESS])
def test_the_body_is_read_whatever_else_a_message_has(name: str) -> None:
    body, _ = _parse((POISONS | HARMLESS)[name].encode(b"body"))
    assert body == b"body"


@pytest.mark.parametrize(
    "odd", [*(parts.application for parts in POISONS.values()), {"x": b"\x45"}, {"x": b"\x54\xff"}]
)
def test_texts_are_headers_and_nothing_else_is(odd: dict[str, bytes]) -> None:
    parts = Parts(_SIGNED | odd, properties={"message_id": string("id")})
    _, properties = _parse(parts.encode(b"body"))
    assert properties.headers == {"keyturn-publisher": "api", "keyturn-code": "bad_seal"}
    assert (properties.message_id, properties.content_type) == ("id", None)


def test_of_the_brokers_annotations_only_its_reason_is_read() -> None:
    reason = {"x-first-death-reason": string("delivery_limit"), "x-exchange": string("keyturn")}
    _, properties = _parse(Parts(annotations=reason).encode(b""))
    assert properties.headers == {"x-first-death-reason": "delivery_limit"}


def test_headers_that_are_too_large_are_not_read() -> None:
    body, properties = _parse(Parts(_SIGNED | {"x": string("y" * 200_000)}).encode(b"body"))
    assert (body, properties.headers) == (b"body", {})


_ID = {"message_id": string("id")}
_WHOLE = Parts(_SIGNED, _ID).encode(b"body")


@pytest.mark.parametrize(
    "payload",
    [
        bytes.fromhex("005375a0014100"),
        b"\x00\x53\x75" + bytes(5000),
        b"\x00\x80" + bytes(7) + b"\x75\xa0\x01A",
        b"\x00\xa3\x10amqp:data:binary\xa0\x01A",
        bytes.fromhex("005374c1020140") + _WHOLE,  # a name without a value
        bytes.fromhex("005379a00141"),
        bytes.fromhex("005375a1014100"),
        bytes.fromhex("005375a00541"),
        bytes.fromhex("005375a000") * 10_000,
        Parts(_SIGNED | {"x": _DEEP}, _ID).encode(b"body"),
    ],
)
def test_the_body_of_a_malformed_message_is_all_of_it(payload: bytes) -> None:
    """RabbitMQ checks nothing from the body on; no letter may end its readers."""
    body, properties = _parse(payload)
    assert (body, properties.headers) == (payload, {})
    assert (properties.message_id, properties.content_type) == (None, None)


_CUTS = st.tuples(
    st.sampled_from([parts.encode(b"body") for parts in (POISONS | HARMLESS).values()]),
    st.integers(0, 400),
    st.integers(0, 8),
    st.binary(max_size=8),
).map(lambda cut: cut[0][: cut[1]] + cut[3] + cut[0][cut[1] + cut[2] :])


@given(st.one_of(st.binary(), st.binary().map(b"\x00\x53\x75".__add__), _CUTS))
def test_any_payload_is_a_letter(payload: bytes) -> None:
    body, properties = _parse(payload)
    assert len(body) <= len(payload)
    assert all(isinstance(text, str) for text in (properties.headers or {}).values())


def test_a_text_that_is_not_utf_8_is_still_text() -> None:
    _, properties = _parse(HARMLESS["string-not-utf8"].encode(b""))
    assert properties.headers == {"x": "\N{REPLACEMENT CHARACTER}"}
