"""Objects as the earlier system wrote them (SPEC 17.6)."""

from __future__ import annotations

import os
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyturn.crypto import Secret, to_base64

V0_KEK: Final = Secret(bytes([9]) * 32)


def v0_seal(key: bytes, plaintext: bytes) -> bytes:
    """A body under its DEK, or a wrap under a KEK."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, None)


def v0_metadata(*, user: bytes | None = None, admin: bytes | None = None) -> dict[str, str]:
    """The metadata with these DEKs wrapped under `V0_KEK`; without one, its wrap is empty."""
    wraps = {"enc-dek-user": user, "enc-dek-admin": admin}
    return {
        "enc-algo": "AES-256-GCM",
        **{
            name: "" if dek is None else to_base64(v0_seal(V0_KEK.reveal(), dek))
            for name, dek in wraps.items()
        },
    }
