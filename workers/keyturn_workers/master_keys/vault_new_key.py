"""New transit keys in Vault or OpenBao: imported or generated, and not exportable (SPEC 2.2)."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keyturn.crypto import Secret, to_base64
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import VaultUri
from keyturn_workers.master_keys.vault_session import VaultSession
from keyturn_workers.settings import KmsSettings

_OK: Final = 200
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
# At the first import the server generates its wrapping key of 4096 bits, which takes seconds.
_TIMEOUT_S: Final = 60.0
_PROPERTIES: Final = {"type": "hmac", "exportable": False, "allow_plaintext_backup": False}


async def import_prk(uri: VaultUri, settings: KmsSettings, prk: Secret) -> None:
    """Import a master key's PRK as a new transit key, which cannot be exported or rotated.

    The PRK is encrypted to the server's wrapping key, beyond TLS.

    Raises:
        ValueError: the key exists, or the URI does not pin version 1.
        KmsUnavailableError: the server refused or did not respond. After a lost connection the key
            may exist.
        SettingsError: as `VaultSession`.
    """
    async with _session_for_new_key(uri, settings) as session:
        response = await session.call("GET", f"{uri.mount}/wrapping_key")
        if response.status != _OK:
            raise response.failure()
        wrapped = _wrap(prk, response.section("data").get("public_key"))
        body = {
            **_PROPERTIES,
            "ciphertext": to_base64(wrapped),
            "hash_function": "SHA256",
            "allow_rotation": False,
        }
        await _create(session, uri, f"{_path(uri)}/import", body)


async def generate_key(uri: VaultUri, settings: KmsSettings) -> None:
    """Generate a transit key of 32 bytes that cannot be exported.

    Raises:
        ValueError: as `import_prk`.
        KmsUnavailableError: as `import_prk`.
        SettingsError: as `VaultSession`.
    """
    async with _session_for_new_key(uri, settings) as session:
        await _create(session, uri, _path(uri), {**_PROPERTIES, "key_size": 32})


def _path(uri: VaultUri) -> str:
    return f"{uri.mount}/keys/{uri.key}"


@asynccontextmanager
async def _session_for_new_key(uri: VaultUri, settings: KmsSettings) -> AsyncIterator[VaultSession]:
    """Open a session, once it is clear that the key does not exist."""
    if uri.version != 1:
        raise ValueError("a new key has version 1: the URI must end with ?version=1")
    timeout_s = max(settings.kms_timeout_s, _TIMEOUT_S)
    session = VaultSession(uri.address, settings, timeout_s=timeout_s)
    try:
        response = await session.call("GET", _path(uri))
        if response.status == _OK:
            raise _exists(uri)
        if response.status != _NOT_FOUND:
            raise response.failure()
        yield session
    finally:
        await session.aclose()


async def _create(
    session: VaultSession, uri: VaultUri, path: str, body: Mapping[str, object]
) -> None:
    response = await session.call("POST", path, body, repeat=False)
    # Made by another since it was looked up: an import is refused then, but generating answers
    # with the other's key.
    if response.says("existing key") or response.says("already existed"):
        raise _exists(uri)
    if response.status not in (_OK, _NO_CONTENT):
        raise response.failure()


def _exists(uri: VaultUri) -> ValueError:
    return ValueError(f"{_path(uri)} exists already; nothing was changed")


def _wrap(prk: Secret, public_key: object) -> bytes:
    """Wrap a key as transit imports it: an AES key by RSA-OAEP, then the key by AES-KWP."""
    try:
        wrapping_key = load_pem_public_key(str(public_key).encode())
    except ValueError:
        wrapping_key = None
    if not isinstance(wrapping_key, RSAPublicKey):
        raise KmsUnavailableError("Vault's wrapping key is not an RSA key")
    aes_key = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    return wrapping_key.encrypt(aes_key, oaep) + aes_key_wrap_with_padding(aes_key, prk.reveal())
