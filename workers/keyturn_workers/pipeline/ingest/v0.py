"""Objects of the earlier system (v0), opened for an import (SPEC 17.6). Pure.

Such an object names no place: its wraps and its body are bound to nothing, and its body commits to
no key. So an import opens it whole, and what it stores is a new object like any other.
"""

from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.keys import DEK_BYTES, KEK_BYTES, Kek, Secret
from keyturn.errors import CorruptObjectError, MalformedRequestError, NoUsableWrapError, SealError
from keyturn.messages.json_text import load_json
from keyturn.metadata import ALGO, DEK_ADMIN, DEK_USER, OWN_PREFIX

MAX_BYTES: Final = 64 * 1024**2
"""The largest stored body that is opened: it is held in memory."""
AT_ONCE: Final = 4
"""How many such bodies an import holds in memory at once."""

_ALGORITHM: Final = "AES-256-GCM"
_NAMES: Final = frozenset({ALGO, DEK_USER, DEK_ADMIN})
_NONCE_BYTES: Final = 12
_OVERHEAD_BYTES: Final = _NONCE_BYTES + 16


def parse_key(text: str) -> Kek:
    """Return the KEK in a key file, or the user KEK of its API key and pepper.

    Raises:
        ValueError: the text is not ``{"kek": …}`` or ``{"api_key": …, "pepper": …}``; the error
            repeats none of it.
    """
    try:
        match load_json(text.encode()):
            case {"kek": str(encoded), **rest} if not rest:
                kek = from_base64(encoded)
                if len(kek) == KEK_BYTES:
                    return Secret(kek)
            case {"api_key": str(api_key), "pepper": str(pepper), **rest} if api_key and not rest:
                return user_kek(api_key, pepper)
    except (MalformedRequestError, ValueError):
        pass
    raise ValueError(
        'a v0 key file is JSON: {"kek": "base64 of 32 bytes"}, or {"api_key": "…", "pepper": "…"}'
    )


def user_kek(api_key: str, pepper: str) -> Kek:
    """Return the user KEK of an API key, which has no form to check."""
    info = b"acontext envelope encryption user KEK"
    kek = HKDF(SHA256(), KEK_BYTES, b"acontext-user-kek", info)
    return Secret(kek.derive((api_key + pepper).encode()))


def is_v0(metadata: Mapping[str, str]) -> bool:
    """Check if this is the metadata of an object of the earlier system."""
    own = {name for name in metadata if name.startswith(OWN_PREFIX)}
    return metadata.get(ALGO) == _ALGORITHM and own <= _NAMES


def open_object(kek: Kek, metadata: Mapping[str, str], body: bytes) -> bytes:
    """Return the plaintext of an object that either of its wraps opens.

    Raises:
        NoUsableWrapError: neither wrap opens under this KEK.
        CorruptObjectError: a wrap is unreadable, both open to different DEKs, or the body does not
            open.
    """
    wraps = [_wrap(metadata, name) for name in (DEK_USER, DEK_ADMIN) if metadata.get(name)]
    deks = {dek for wrap in wraps if (dek := _open_wrap(kek, wrap)) is not None}
    if not deks:
        raise NoUsableWrapError("no wrap of this object opens under the key of --v0-key-file")
    if len(deks) > 1:
        raise CorruptObjectError("the wraps hold different DEKs")
    try:
        return _open(deks.pop(), body)
    except SealError as exc:
        raise CorruptObjectError("the body does not open under the DEK of its wraps") from exc


def _wrap(metadata: Mapping[str, str], name: str) -> bytes:
    try:
        return from_base64(metadata[name])
    except ValueError as exc:
        raise CorruptObjectError(f"{name} is not base64") from exc


def _open_wrap(kek: Kek, wrap: bytes) -> bytes | None:
    try:
        dek = _open(kek.reveal(), wrap)
    except SealError:
        return None
    return dek if len(dek) == DEK_BYTES else None


def _open(key: bytes, sealed: bytes) -> bytes:
    if len(sealed) < _OVERHEAD_BYTES:
        raise SealError
    nonce, ciphertext = sealed[:_NONCE_BYTES], memoryview(sealed)[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, None)
    except InvalidTag as exc:
        raise SealError from exc
