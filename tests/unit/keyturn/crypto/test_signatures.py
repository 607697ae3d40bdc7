"""A signature or MAC is for one deployment, publisher and kind of message (SPEC 6.3, 6.7)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import (
    EventVerifier,
    MarkVerifier,
    RetryNote,
    SignatureError,
    SigningKey,
    VerifyKey,
    from_base64,
    to_base64,
)

SIGNING = SigningKey.from_seed(bytes(range(32)))
VERIFY = VerifyKey.from_bytes(SIGNING.public_bytes)


def test_signatures_are_for_one_deployment_publisher_and_kind() -> None:
    body = b'{"type": "upload.requested"}'
    request = SIGNING.sign_request("default", "api", body)
    VERIFY.verify_request("default", "api", body, request)
    event = SIGNING.sign_event("default", body)
    VERIFY.verify_event("default", body, event)
    refused = [("other", "api", body), ("default", "apj", body), ("default", "api", body + b" ")]
    refused += [("default", "", b"api\0" + body), ("default\0api", "", body), ("\ud800", "", body)]
    for deployment, publisher, sent in refused:
        with pytest.raises(SignatureError):
            VERIFY.verify_request(deployment, publisher, sent, request)
    for deployment, sent in (("other", body), ("default", b""), ("default\0", body)):
        with pytest.raises(SignatureError):
            VERIFY.verify_event(deployment, sent, event)
    with pytest.raises(SignatureError):  # a request is never an event
        VERIFY.verify_event("default", b"api\0" + body, request)
    with pytest.raises(SignatureError):
        VERIFY.verify_request("default", "api", body, event)


def test_a_marks_signature_is_for_one_deployment_and_no_other_kind() -> None:
    body = b'{"type":"keyring.marked"}'
    signature = SIGNING.sign_mark("default", body)
    VERIFY.verify_mark("default", body, signature)
    label = b"keyturn/v1/mark\0default\0"
    Ed25519PublicKey.from_public_bytes(VERIFY.public_bytes).verify(
        from_base64(signature), label + body
    )
    for deployment, sent in (("other", body), ("default", body + b" "), ("default\0", body[1:])):
        with pytest.raises(SignatureError):
            VERIFY.verify_mark(deployment, sent, signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_event("default", body, signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_request("default", "", body, signature)
    others = [
        SIGNING.sign_event("default", body),
        SIGNING.sign_request("default", "mark", body),
        to_base64(SIGNING.sign_dsse("keyturn/v1/mark", body)),
        signature[:-4],
        "",
    ]
    for other in others:
        with pytest.raises(SignatureError):
            VERIFY.verify_mark("default", body, other)


@given(
    st.text(max_size=90)
    | st.binary(max_size=70).map(to_base64)
    | st.binary(min_size=64, max_size=80).map(to_base64)
)
def test_whatever_the_signature_only_signature_errors_come_out(signature: str) -> None:
    with pytest.raises(SignatureError):
        VERIFY.verify_request("default", "api", b"{}", signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_event("default", b"{}", signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_mark("default", b"{}", signature)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_signing_keys_are_32_bytes(length: int) -> None:
    for read in (SigningKey.from_seed, VerifyKey.from_bytes):
        with pytest.raises(ValueError, match=r"32|key"):
            read(bytes(length))


def test_a_key_is_named_by_its_public_half() -> None:
    """RFC 8032's first test key; its id is that of `sha256sum`, cut to 8 bytes."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signing = SigningKey.from_seed(seed)
    assert signing.id == "21fe31dfa154a261"
    assert VerifyKey.from_bytes(signing.public_bytes).id == signing.id
    assert signing.id != SIGNING.id


def test_a_signing_key_does_not_show() -> None:
    assert bytes(range(32)).hex() not in repr(SIGNING)
    assert not any("seed" in name for name in vars(SIGNING))


def test_a_dsse_signature_covers_type_and_payload_and_is_no_other_kind() -> None:
    signature = SIGNING.sign_dsse("type", b"payload")
    assert SIGNING.verify_key() == VERIFY
    VERIFY.verify_dsse("type", b"payload", signature)
    encoded = b"DSSEv1 4 type 7 payload"
    Ed25519PublicKey.from_public_bytes(VERIFY.public_bytes).verify(signature, encoded)
    for payload_type, payload in (
        ("typ", b"payload"),
        ("type", b"payloac"),
        ("type 7", b"payload"),
    ):
        with pytest.raises(SignatureError):
            VERIFY.verify_dsse(payload_type, payload, signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_dsse("type", b"payload", signature[:-1])
    with pytest.raises(SignatureError):
        VERIFY.verify_event("default", b"payload", to_base64(signature))


def test_any_of_several_event_keys_verifies_an_event_of_its_deployment() -> None:
    other = SigningKey.from_seed(bytes(32))
    verifier = EventVerifier("default", [VerifyKey.from_bytes(other.public_bytes), VERIFY])
    signature = SIGNING.sign_event("default", b"{}")
    for named in (SIGNING.id, other.id, "", "no id"):
        assert verifier.is_signed(b"{}", signature, named)
    assert not verifier.is_signed(b"{ }", signature)
    assert not verifier.is_signed(b"{}", "")
    assert not verifier.is_signed(b"{}", SIGNING.sign_event("elsewhere", b"{}"))
    assert not EventVerifier("default", []).is_signed(b"{}", signature)


def test_one_event_and_a_batch_of_events_are_signed_under_labels_of_their_own() -> None:
    body = b'{"type":"upload.stored","events":[]}'
    batch, single = SIGNING.sign_events("default", body), SIGNING.sign_event("default", body)
    Ed25519PublicKey.from_public_bytes(VERIFY.public_bytes).verify(
        from_base64(batch), b"keyturn/v1/events\0default\0" + body
    )
    verifier = EventVerifier("default", [VERIFY])
    assert verifier.is_batch_signed(body, batch)
    assert not verifier.is_signed(body, batch)
    assert not verifier.is_batch_signed(body, single)
    assert not verifier.is_batch_signed(body + b" ", batch)
    assert not verifier.is_batch_signed(body, SIGNING.sign_events("elsewhere", body))


def test_the_key_that_signed_a_mark_is_found_whichever_key_it_names() -> None:
    other = SigningKey.from_seed(bytes(32))
    verifier = MarkVerifier("default", [other.verify_key(), VERIFY])
    signature = SIGNING.sign_mark("default", b"{}")
    for named in (SIGNING.id, other.id, "", "no id"):
        assert verifier.signer(b"{}", signature, named) == SIGNING.id
    assert verifier.signer(b"{}", other.sign_mark("default", b"{}"), SIGNING.id) == other.id
    assert verifier.signer(b"{ }", signature) is None
    assert verifier.signer(b"{}", SIGNING.sign_mark("elsewhere", b"{}")) is None
    assert verifier.signer(b"{}", SIGNING.sign_event("default", b"{}")) is None
    assert MarkVerifier("default", []).signer(b"{}", signature) is None


# The MAC of a worker's note on a retry (SPEC 6.3).


RETRY_KEY: Final = SigningKey.from_seed(bytes(range(32))).retry_key()
NOTE: Final = RetryNote(
    queue="keyturn.upload",
    publisher="api",
    request="0" * 64,
    attempt=3,
    code="storage_unavailable",
    not_before="2026-11-24T10:00:00.000000Z",
)


def test_a_note_verifies_as_it_was_made() -> None:
    RETRY_KEY.verify("default", NOTE, RETRY_KEY.mac("default", NOTE))


@pytest.mark.parametrize(
    "change",
    [
        {"queue": "keyturn.control"},
        {"publisher": "web"},
        {"publisher": ""},
        {"request": "1" * 64},
        {"attempt": 4},
        {"attempt": 33},
        {"code": "unknown_project"},
        {"not_before": "2026-11-24T10:00:01.000000Z"},
    ],
)
def test_a_note_that_was_changed_does_not_verify(change: dict[str, Any]) -> None:
    with pytest.raises(SignatureError):
        RETRY_KEY.verify("default", replace(NOTE, **change), RETRY_KEY.mac("default", NOTE))


def test_a_note_is_for_one_deployment() -> None:
    with pytest.raises(SignatureError):
        RETRY_KEY.verify("other", NOTE, RETRY_KEY.mac("default", NOTE))


def test_each_event_key_has_a_retry_key_of_its_own() -> None:
    other = SigningKey.from_seed(bytes(32)).retry_key()
    with pytest.raises(SignatureError):
        RETRY_KEY.verify("default", NOTE, other.mac("default", NOTE))


def test_the_mac_is_that_of_the_specification() -> None:
    """HMAC-SHA256 under HKDF of the event key's seed, both written out here."""
    extracted = hmac.digest(bytes(32), bytes(range(32)), "sha256")
    derived = hmac.digest(extracted, b"keyturn/v1/retry-key\x01", "sha256")
    message = b"\0".join(
        [
            b"keyturn/v1/retry",
            b"default",
            b"keyturn.upload",
            b"api",
            b"0" * 64,
            b"3",
            b"storage_unavailable",
            b"2026-11-24T10:00:00.000000Z",
        ]
    )
    expected = hmac.new(derived, message, hashlib.sha256).digest()
    assert from_base64(RETRY_KEY.mac("default", NOTE)) == expected


@settings(max_examples=25)
@given(st.text(max_size=50) | st.binary(max_size=40).map(to_base64))
def test_whatever_the_mac_only_signature_errors_come_out(mac: str) -> None:
    with pytest.raises(SignatureError):
        RETRY_KEY.verify("default", NOTE, mac)


def test_a_note_that_no_label_can_hold_verifies_under_nothing() -> None:
    odd = replace(NOTE, code="a\0b")
    with pytest.raises(ValueError, match="zero byte"):
        RETRY_KEY.mac("default", odd)
    with pytest.raises(SignatureError):
        RETRY_KEY.verify("default", odd, RETRY_KEY.mac("default", NOTE))
