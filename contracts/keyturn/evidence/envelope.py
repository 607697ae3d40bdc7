"""A file of evidence: a DSSE envelope with one signature (SPEC 15.1). Pure.

The digest of a file covers all its bytes, so each statement and signature has exactly one encoding:
the one that `sign` writes. Any other spelling of the same envelope is malformed. A bucket writer
could otherwise make a second file from a signed one, with another digest.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.signatures import SigningKey, VerifyKey
from keyturn.errors import (
    ForgedEvidenceError,
    MalformedEvidenceError,
    MalformedRequestError,
    SignatureError,
    UnknownEventKeyError,
)
from keyturn.evidence.statement import ErasurePredicate, Predicate, Statement, canonical_json
from keyturn.messages.json_text import load_json

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_EVIDENCE_BYTES: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """A file of evidence as read; `verify` checks that it is genuine.

    Attributes:
        statement: The content.
        key_id: The id of the event key that signed it, by its own claim.
        digest: Its name in the next evidence, the keyring and the event of the end.
        envelope: The file's bytes.
        payload: The signed bytes.
        signature: The signature, 64 bytes.
    """

    statement: Statement
    key_id: str
    digest: str
    envelope: bytes
    payload: bytes
    signature: bytes

    @property
    def predicate(self) -> Predicate | ErasurePredicate:
        """The proof of a rotation or a sweep, or what the stores said at an erasure."""
        return self.statement.predicate

    @property
    def proof(self) -> Predicate:
        """The proof of a rotation or a sweep.

        Raises:
            TypeError: this is evidence of an erasure.
        """
        return self.statement.proof

    def verify(self, keys: Iterable[VerifyKey]) -> None:
        """Verify the signature, but not the place in a chain: see `verify_chain`.

        Raises:
            UnknownEventKeyError: none of the keys has the id that the file names.
            ForgedEvidenceError: the signature is not by that key.
        """
        key = next((key for key in keys if key.id == self.key_id), None)
        if key is None:
            raise UnknownEventKeyError("signed by an unknown event key")
        try:
            key.verify_dsse(PAYLOAD_TYPE, self.payload, self.signature)
        except SignatureError as exc:
            raise ForgedEvidenceError("the signature does not verify") from exc


def sign(statement: Statement, key: SigningKey) -> bytes:
    """Return the bytes of a file of evidence, signed by this event key."""
    payload = statement.to_payload()
    return _encode(payload, key.id, key.sign_dsse(PAYLOAD_TYPE, payload))


def digest(envelope: bytes) -> str:
    """Return a file's name in the chain, the keyring and events: SHA-256 in hex."""
    return hashlib.sha256(envelope).hexdigest()


def parse(envelope: bytes) -> Evidence:
    """Read a file of evidence, without verifying its signature.

    Raises:
        MalformedEvidenceError: `sign` cannot have written this file.
    """
    if len(envelope) > MAX_EVIDENCE_BYTES:
        raise MalformedEvidenceError(f"larger than {MAX_EVIDENCE_BYTES} bytes")
    try:
        match load_json(envelope):
            case {"payload": str(body), "signatures": [{"keyid": str(key_id), "sig": str(sig)}]}:
                payload, signature = from_base64(body), from_base64(sig)
                is_canonical = _encode(payload, key_id, signature) == envelope
            case _:
                is_canonical = False
    except (MalformedRequestError, ValueError):
        raise MalformedEvidenceError("not a DSSE envelope in strict JSON") from None
    if not is_canonical:
        raise MalformedEvidenceError("not a DSSE envelope with one signature as Keyturn writes it")
    statement = Statement.from_payload(payload)
    return Evidence(statement, key_id, digest(envelope), envelope, payload, signature)


def _encode(payload: bytes, key_id: str, signature: bytes) -> bytes:
    return canonical_json(
        {
            "payload": to_base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key_id, "sig": to_base64(signature)}],
        }
    )
