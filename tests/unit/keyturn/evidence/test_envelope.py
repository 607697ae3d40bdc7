"""A file of evidence is DSSE with one spelling, and others can verify it (SPEC 15.1)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # documented there

from keyturn.crypto import SigningKey, from_base64, to_base64
from keyturn.errors import (
    EvidenceError,
    ForgedEvidenceError,
    MalformedEvidenceError,
    UnknownEventKeyError,
)
from keyturn.evidence import MAX_EVIDENCE_BYTES, MAX_ORIGINS, digest, parse, sign
from tests.unit.keyturn.evidence.shared import (
    FIRST_KEY,
    ORIGIN,
    PUBLIC_KEYS,
    SECOND_KEY,
    statement,
)

FILE = sign(statement(), FIRST_KEY)
SIGNATURE = json.loads(FILE)["signatures"][0]


def rewritten(**changes: Any) -> bytes:
    """The file's envelope with other fields, in the same spelling."""
    fields = {**json.loads(FILE), **changes}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def flipped(text: str) -> str:
    """The same base64 with one bit of its first byte changed."""
    data = from_base64(text)
    return to_base64(bytes([data[0] ^ 1]) + data[1:])


def their_key(key: SigningKey) -> SSlibKey:
    """A public key as securesystemslib takes it."""
    public = key.verify_key().public_bytes.hex()
    return SSlibKey(key.id, "ed25519", "ed25519", {"public": public})


def test_an_independent_verifier_reads_a_file() -> None:
    envelope = Envelope.from_dict(json.loads(FILE))
    accepted = envelope.verify([their_key(FIRST_KEY)], 1)
    assert list(accepted) == [FIRST_KEY.id]
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert json.loads(envelope.payload)["subject"][0]["name"] == "default/acme"


@pytest.mark.parametrize(
    ("envelope", "key"),
    [
        (rewritten(payload=flipped(json.loads(FILE)["payload"])), FIRST_KEY),
        (rewritten(payloadType="application/vnd.in-toto+jsoN"), FIRST_KEY),
        (
            rewritten(
                signatures=[
                    {
                        "keyid": FIRST_KEY.id,
                        "sig": flipped(json.loads(FILE)["signatures"][0]["sig"]),
                    }
                ]
            ),
            FIRST_KEY,
        ),
        (FILE, SECOND_KEY),
    ],
)
def test_an_independent_verifier_refuses_what_was_changed(envelope: bytes, key: SigningKey) -> None:
    with pytest.raises(VerificationError):
        Envelope.from_dict(json.loads(envelope)).verify([their_key(key)], 1)


def test_a_file_reads_back_and_verifies() -> None:
    evidence = parse(FILE)
    evidence.verify(PUBLIC_KEYS)
    assert evidence.statement == statement()
    assert evidence.predicate == statement().predicate
    assert (evidence.key_id, evidence.envelope) == (FIRST_KEY.id, FILE)
    assert evidence.digest == digest(FILE) == hashlib.sha256(FILE).hexdigest()


def test_the_same_statement_signed_twice_is_the_same_file() -> None:
    assert sign(statement(), FIRST_KEY) == FILE


def test_a_changed_statement_or_signature_is_forged() -> None:
    other = json.loads(sign(statement(generation=4), SECOND_KEY))
    sig = SIGNATURE["sig"]
    for envelope in (
        rewritten(payload=other["payload"]),
        rewritten(signatures=[{"keyid": FIRST_KEY.id, "sig": flipped(sig)}]),
        rewritten(signatures=[{"keyid": SECOND_KEY.id, "sig": sig}]),
        rewritten(signatures=[{"keyid": FIRST_KEY.id, "sig": ""}]),
    ):
        with pytest.raises(ForgedEvidenceError):
            parse(envelope).verify(PUBLIC_KEYS)


def test_an_events_signature_is_none_of_a_file() -> None:
    evidence = parse(FILE)
    sig = FIRST_KEY.sign_event("default", evidence.payload)
    with pytest.raises(ForgedEvidenceError):
        parse(rewritten(signatures=[{"keyid": FIRST_KEY.id, "sig": sig}])).verify(PUBLIC_KEYS)


def test_a_key_that_is_not_given_is_unknown() -> None:
    with pytest.raises(UnknownEventKeyError):
        parse(FILE).verify([SECOND_KEY.verify_key()])
    with pytest.raises(UnknownEventKeyError):
        parse(FILE).verify([])


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        FILE + b"\n",
        b" " + FILE,
        json.dumps(json.loads(FILE)).encode(),
        rewritten(more=1),
        rewritten(payload=json.loads(FILE)["payload"] + "\n"),
        rewritten(payload="!"),
        rewritten(payloadType="application/json"),
        rewritten(signatures=[]),
        rewritten(signatures=[SIGNATURE, SIGNATURE]),
        rewritten(signatures=[{**SIGNATURE, "more": 1}]),
        rewritten(signatures=[{"sig": SIGNATURE["sig"]}]),
        rewritten(signatures=SIGNATURE),
        rewritten(payload=None),
        FILE.replace(b'"signatures"', b'"payload":"","signatures"'),
        b'{"payload":"' + b"A" * MAX_EVIDENCE_BYTES + b'"}',
    ],
)
def test_a_file_has_one_spelling(envelope: bytes) -> None:
    with pytest.raises(MalformedEvidenceError):
        parse(envelope)


def test_a_file_with_as_many_requests_and_keys_as_there_can_be_is_read() -> None:
    """Otherwise no sweep of its project could end any more."""
    asked = {**ORIGIN, "publisher": "p" * 32}
    uses = [{"keyid": f"{number:016}", "last": "c" * 64, "retired": True} for number in range(256)]
    made = statement(origins=[asked] * MAX_ORIGINS, origin_count=2**53 - 1, event_keys=uses)
    assert parse(sign(made, FIRST_KEY)).statement == made


def test_a_large_file_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: bytes) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr("keyturn.evidence.envelope.load_json", never)
    with pytest.raises(MalformedEvidenceError, match="larger"):
        parse(FILE + b" " * MAX_EVIDENCE_BYTES)


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_no_flipped_byte_is_accepted(position: int, mask: int) -> None:
    changed = bytearray(FILE)
    changed[position] ^= mask
    with pytest.raises(EvidenceError):
        parse(bytes(changed)).verify(PUBLIC_KEYS)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_the_bytes_only_evidence_errors_come_out(data: bytes) -> None:
    with pytest.raises(MalformedEvidenceError):
        parse(data)
