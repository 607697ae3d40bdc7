"""Signatures of requests, events, marks and evidence: Ed25519 (SPEC 5.5, 6.3, 6.7, 15.1).

A request's signature covers the publisher's name, an event's does not; their labels differ, so that
neither is ever valid as the other, as a batch of events, as a mark, or as the signature of a DSSE
envelope. Labels bind requests, events and marks to one deployment, the subject binds evidence.
Verification raises, and never returns a bool that a caller could forget to check. It must never
parse a body: the bytes are verified before anything interprets them.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret
from keyturn.crypto.labels import label
from keyturn.crypto.retry_mac import RetryKey
from keyturn.errors import SignatureError

_KEY_ID_BYTES: Final = 8
_RETRY_KEY_BYTES: Final = 32


class SigningKey:
    """A publisher's key, or the deployment's event key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """Read an Ed25519 seed of 32 bytes (RFC 8032).

        Raises:
            ValueError: the seed has another length.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    @property
    def id(self) -> str:
        """The key's name in the header `keyturn-event-key`: 16 hex digits (SPEC 6.10)."""
        return _key_id(self.public_bytes)

    def sign_request(self, deployment: str, publisher: str, body: bytes) -> str:
        """Return the header `keyturn-signature` of a request, in base64 (SPEC 6.3)."""
        return to_base64(self._key.sign(_request(deployment, publisher) + body))

    def sign_event(self, deployment: str, body: bytes) -> str:
        """Return the header `keyturn-signature` of an event, in base64 (SPEC 6.7)."""
        return to_base64(self._key.sign(_event(deployment) + body))

    def sign_events(self, deployment: str, body: bytes) -> str:
        """Return the header `keyturn-signature` of a batch of events, in base64 (SPEC 6.7)."""
        return to_base64(self._key.sign(_events(deployment) + body))

    def sign_mark(self, deployment: str, body: bytes) -> str:
        """Return the header `keyturn-signature` of a keyring's mark, in base64 (SPEC 5.5)."""
        return to_base64(self._key.sign(_mark(deployment) + body))

    def sign_dsse(self, payload_type: str, payload: bytes) -> bytes:
        """Return the signature of a DSSE envelope, 64 bytes (SPEC 15.1)."""
        return self._key.sign(_dsse(payload_type, payload))

    def verify_key(self) -> "VerifyKey":
        """Return the public half."""
        return VerifyKey(self._key.public_key())

    def retry_key(self) -> RetryKey:
        """Return the key of the notes on retries, derived from this event key's seed (SPEC 6.3)."""
        hkdf = HKDF(SHA256(), _RETRY_KEY_BYTES, b"", b"keyturn/v1/retry-key")
        return RetryKey(Secret(hkdf.derive(self._key.private_bytes_raw())))


class VerifyKey:
    """The public half of a `SigningKey`."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def from_bytes(cls, data: bytes) -> "VerifyKey":
        """Read an Ed25519 public key of 32 bytes.

        Raises:
            ValueError: `data` is not such a key.
        """
        return cls(Ed25519PublicKey.from_public_bytes(data))

    @property
    def public_bytes(self) -> bytes:
        """The 32 bytes that `from_bytes` reads."""
        return self._key.public_bytes_raw()

    @property
    def id(self) -> str:
        """The id of the `SigningKey` whose public half this is."""
        return _key_id(self.public_bytes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VerifyKey):
            return NotImplemented
        return self.public_bytes == other.public_bytes

    def __hash__(self) -> int:
        return hash(self.public_bytes)

    def verify_request(
        self, deployment: str, publisher: str, body: bytes, signature_b64: str
    ) -> None:
        """Verify that `publisher` signed `body` for this deployment.

        Raises:
            SignatureError: it did not, or the signature is not 64 bytes in base64.
        """
        try:
            self._key.verify(from_base64(signature_b64), _request(deployment, publisher) + body)
        # ValueError: not base64, or a publisher's name that no label can contain.
        except (InvalidSignature, ValueError) as exc:
            raise SignatureError from exc

    def verify_event(self, deployment: str, body: bytes, signature_b64: str) -> None:
        """Verify that this deployment signed `body` as an event.

        Raises:
            SignatureError: it did not, or the signature is not 64 bytes in base64.
        """
        try:
            self._key.verify(from_base64(signature_b64), _event(deployment) + body)
        except (InvalidSignature, ValueError) as exc:
            raise SignatureError from exc

    def verify_events(self, deployment: str, body: bytes, signature_b64: str) -> None:
        """Verify that this deployment signed `body` as a batch of events.

        Raises:
            SignatureError: it did not, or the signature is not 64 bytes in base64.
        """
        try:
            self._key.verify(from_base64(signature_b64), _events(deployment) + body)
        except (InvalidSignature, ValueError) as exc:
            raise SignatureError from exc

    def verify_mark(self, deployment: str, body: bytes, signature_b64: str) -> None:
        """Verify that this deployment signed `body` as a keyring's mark.

        Raises:
            SignatureError: it did not, or the signature is not 64 bytes in base64.
        """
        try:
            self._key.verify(from_base64(signature_b64), _mark(deployment) + body)
        except (InvalidSignature, ValueError) as exc:
            raise SignatureError from exc

    def verify_dsse(self, payload_type: str, payload: bytes, signature: bytes) -> None:
        """Verify the signature of a DSSE envelope around this payload.

        Raises:
            SignatureError: it is not this key's.
        """
        try:
            self._key.verify(signature, _dsse(payload_type, payload))
        except InvalidSignature as exc:
            raise SignatureError from exc


class EventVerifier:
    """Verifies events of one deployment by any of its public event keys (SPEC 6.7, 6.10).

    Args:
        deployment: The installation that events must be signed for.
        keys: The deployment's public event keys: the current one, and any earlier or later ones.
    """

    def __init__(self, deployment: str, keys: Iterable[VerifyKey]) -> None:
        self._deployment = deployment
        self._keys = tuple((key.id, key) for key in keys)

    def is_signed(self, body: bytes, signature_b64: str, key_id: str = "") -> bool:
        """Return whether one of the keys signed `body` as one event.

        The key named by `key_id` is tried first.
        """
        return self._any_key(VerifyKey.verify_event, body, signature_b64, key_id)

    def is_batch_signed(self, body: bytes, signature_b64: str, key_id: str = "") -> bool:
        """Return whether one of the keys signed `body` as a batch of events; as `is_signed`."""
        return self._any_key(VerifyKey.verify_events, body, signature_b64, key_id)

    def _any_key(
        self,
        verify: Callable[[VerifyKey, str, bytes, str], None],
        body: bytes,
        signature_b64: str,
        key_id: str,
    ) -> bool:
        for _, key in sorted(self._keys, key=lambda item: item[0] != key_id):
            with suppress(SignatureError):
                verify(key, self._deployment, body, signature_b64)
                return True
        return False


class MarkVerifier:
    """Verifies marks of one deployment by any of its public event keys (SPEC 5.5, 6.10).

    Args:
        deployment: The installation that marks must be signed for.
        keys: The deployment's public event keys.
    """

    def __init__(self, deployment: str, keys: Iterable[VerifyKey]) -> None:
        self._deployment = deployment
        self._keys = tuple((key.id, key) for key in keys)

    def signer(self, body: bytes, signature_b64: str, key_id: str = "") -> str | None:
        """Return the id of the key that signed `body`, or None; `key_id`'s key is tried first."""
        for name, key in sorted(self._keys, key=lambda item: item[0] != key_id):
            with suppress(SignatureError):
                key.verify_mark(self._deployment, body, signature_b64)
                return name
        return None


def _key_id(public_bytes: bytes) -> str:
    # Only a hint of which key to try first: it is not signed.
    return hashlib.sha256(public_bytes).digest()[:_KEY_ID_BYTES].hex()


def _request(deployment: str, publisher: str) -> bytes:
    return label("keyturn/v1/request", deployment, publisher) + b"\0"


def _event(deployment: str) -> bytes:
    return label("keyturn/v1/event", deployment) + b"\0"


def _events(deployment: str) -> bytes:
    return label("keyturn/v1/events", deployment) + b"\0"


def _mark(deployment: str) -> bytes:
    return label("keyturn/v1/mark", deployment) + b"\0"


def _dsse(payload_type: str, payload: bytes) -> bytes:
    # The pre-authentication encoding of DSSE v1: lengths first, so that nothing can be shifted.
    encoded = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(encoded), encoded, len(payload), payload)
