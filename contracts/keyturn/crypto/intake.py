"""The intake key: publishers seal secrets to the workers with HPKE (SPEC 2.5, 3.2, 6.4, 6.5).

HPKE base mode (RFC 9180) with MLKEM768-X25519 (0x647a), HKDF-SHA256 and AES-256-GCM. All context
goes into `info`; `aad` is empty; the result is `enc ‖ ciphertext`. Base mode authenticates no
sender: the signature does (`keyturn.crypto.signatures`). It must raise only `SealError` for bytes
from the broker.
"""

import hashlib
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from keyturn.crypto.labels import label
from keyturn.errors import SealError

KekPurpose: TypeAlias = Literal["enroll", "rotation"]
"""The purpose of a sealed KEK."""

INTAKE_SEED_BYTES: Final = 32
INTAKE_PUBLIC_BYTES: Final = 1184 + 32

_MLKEM_SEED_BYTES: Final = 64
_MLKEM_PUBLIC_BYTES: Final = 1184


def upload_info(upload_id: str, project: str, object_key: str) -> bytes:
    """Return the HPKE `info` of an upload's transport key (SPEC 6.4)."""
    return label("keyturn/v1/intake", "upload", upload_id, project, object_key)


def session_info(deployment: str, publisher: str) -> bytes:
    """Return the HPKE `info` of the secret of a publisher's sealing session (SPEC 3.2)."""
    return label("keyturn/v1/session", deployment, publisher)


def kek_info(purpose: KekPurpose, request_id: str, project: str) -> bytes:
    """Return the HPKE `info` of a KEK in a request (SPEC 6.5)."""
    return label("keyturn/v1/intake", purpose, request_id, project)


class IntakePublicKey:
    """The public half, which publishers hold."""

    def __init__(self, mlkem: MLKEM768PublicKey, x25519: X25519PublicKey) -> None:
        self._mlkem = mlkem
        self._x25519 = x25519
        self._key = MLKEM768X25519PublicKey(mlkem, x25519)

    @classmethod
    def from_bytes(cls, data: bytes) -> "IntakePublicKey":
        """Read ML-KEM-768 encapsulation key (1184 bytes) ‖ X25519 public key (32).

        Raises:
            ValueError: `data` is not such a key.
        """
        if len(data) != INTAKE_PUBLIC_BYTES:
            raise ValueError("an intake public key is 1216 bytes long")
        mlkem = MLKEM768PublicKey.from_public_bytes(data[:_MLKEM_PUBLIC_BYTES])
        return cls(mlkem, X25519PublicKey.from_public_bytes(data[_MLKEM_PUBLIC_BYTES:]))

    @property
    def public_bytes(self) -> bytes:
        """The 1216 bytes that `from_bytes` reads."""
        return self._mlkem.public_bytes_raw() + self._x25519.public_bytes_raw()

    def seal(self, plaintext: bytes, info: bytes) -> bytes:
        """Return `enc ‖ ciphertext` of `plaintext`, 1136 bytes longer, for the key's holder.

        Raises:
            SealError: the public key has low order; no honest holder has such a key.
        """
        try:
            return _suite().encrypt(plaintext, self._key, info=info)
        except ValueError as exc:
            raise SealError from exc


class IntakeKey:
    """The workers' half. Store its seed: the key itself has no serialization."""

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public_key = IntakePublicKey(mlkem.public_key(), x25519.public_key())

    @classmethod
    def from_seed(cls, seed: bytes) -> "IntakeKey":
        """Expand a seed of 32 bytes by SHAKE256: 64 for ML-KEM-768, 32 for X25519 (SPEC 2.5).

        Raises:
            ValueError: the seed has another length.
        """
        if len(seed) != INTAKE_SEED_BYTES:
            raise ValueError("an intake seed is 32 bytes long")
        expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + 32)
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:]),
        )

    @property
    def public_bytes(self) -> bytes:
        """The public half, 1216 bytes."""
        return self.public_key.public_bytes

    def open(self, ciphertext: bytes, info: bytes) -> bytes:
        """Return the plaintext that `IntakePublicKey.seal` sealed with the same `info`.

        Raises:
            SealError: it does not open, whatever the bytes are.
        """
        try:
            return _suite().decrypt(ciphertext, self._key, info=info)
        # Today every failure is InvalidTag; elsewhere, as in `seal`, the library reports bad shares
        # by ValueError, and the sender of the bytes must not learn which one it is.
        except (InvalidTag, ValueError) as exc:
            raise SealError from exc


def _suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
