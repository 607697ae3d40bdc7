"""A note on a retry counts only as the worker wrote it (SPEC 6.3)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import RetryNote, SignatureError, SigningKey, from_base64, to_base64

KEY: Final = SigningKey.from_seed(bytes(range(32))).retry_key()
NOTE: Final = RetryNote(
    queue="keyturn.upload",
    publisher="api",
    request="0" * 64,
    attempt=3,
    code="storage_unavailable",
    not_before="2026-11-24T10:00:00.000000Z",
)


def test_a_note_verifies_as_it_was_made() -> None:
    KEY.verify("default", NOTE, KEY.mac("default", NOTE))


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
        KEY.verify("default", replace(NOTE, **change), KEY.mac("default", NOTE))


def test_a_note_is_for_one_deployment() -> None:
    with pytest.raises(SignatureError):
        KEY.verify("other", NOTE, KEY.mac("default", NOTE))


def test_each_event_key_has_a_retry_key_of_its_own() -> None:
    other = SigningKey.from_seed(bytes(32)).retry_key()
    with pytest.raises(SignatureError):
        KEY.verify("default", NOTE, other.mac("default", NOTE))


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
    assert from_base64(KEY.mac("default", NOTE)) == expected


@settings(max_examples=25)
@given(st.text(max_size=50) | st.binary(max_size=40).map(to_base64))
def test_whatever_the_mac_only_signature_errors_come_out(mac: str) -> None:
    with pytest.raises(SignatureError):
        KEY.verify("default", NOTE, mac)


def test_a_note_that_no_label_can_hold_verifies_under_nothing() -> None:
    odd = replace(NOTE, code="a\0b")
    with pytest.raises(ValueError, match="zero byte"):
        KEY.mac("default", odd)
    with pytest.raises(SignatureError):
        KEY.verify("default", odd, KEY.mac("default", NOTE))
