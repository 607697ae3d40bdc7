"""Secrets that publishers seal to the workers: KEKs, transport keys and sessions (SPEC 3.2). Pure.

Errors must never contain a secret.
"""

from collections.abc import Mapping
from typing import Final

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.cobblestone import open_sealed
from keyturn.crypto.intake import IntakeKey
from keyturn.errors import BadSealError, SealError, UnknownIntakeKeyError
from keyturn.messages.requests import SealedKey, SealedSecret

_SECRET_BYTES: Final = 32


def open_secret(sealed: SealedSecret, info: bytes, intake_keys: Mapping[str, IntakeKey]) -> bytes:
    """The 32 bytes that a publisher sealed to an intake key.

    Raises:
        UnknownIntakeKeyError: this worker does not have that intake key.
        BadSealError: it does not open for this request, or opens to another length.
    """
    return open_with(held_intake_key(sealed, intake_keys), from_base64(sealed.ciphertext), info)


def held_intake_key(sealed: SealedSecret, intake_keys: Mapping[str, IntakeKey]) -> IntakeKey:
    """The intake key that a sealed secret names.

    Raises:
        UnknownIntakeKeyError: this worker does not have it.
    """
    key = intake_keys.get(sealed.intake_key)
    if key is None:
        raise UnknownIntakeKeyError(sealed.intake_key)
    return key


def open_with(key: IntakeKey, ciphertext: bytes, info: bytes) -> bytes:
    """The 32 bytes that a publisher sealed to this intake key: a secret, or a session's secret.

    Raises:
        BadSealError: it does not open for this request, or opens to another length.
    """
    try:
        secret = key.open(ciphertext, info)
    except SealError as exc:
        raise BadSealError("the sealed secret does not open for this request") from exc
    return _of_right_length(secret)


def open_under_session(session_secret: bytes, sealed: SealedKey, info: bytes) -> bytes:
    """The transport key that a publisher sealed under a session's secret.

    Raises:
        BadSealError: it does not open for this upload, or opens to another length.
    """
    try:
        key = open_sealed(session_secret, info, from_base64(sealed.ciphertext))
    except SealError as exc:
        raise BadSealError("the sealed secret does not open under its session") from exc
    return _of_right_length(key)


def _of_right_length(secret: bytes) -> bytes:
    if len(secret) != _SECRET_BYTES:
        raise BadSealError("the sealed secret is not 32 bytes")
    return secret
