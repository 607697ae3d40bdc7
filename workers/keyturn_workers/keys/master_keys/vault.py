"""Master keys in the transit engine of HashiCorp Vault or OpenBao (SPEC 2.2, 11).

A key of type `hmac` whose value is the PRK is the master key. Its version is sent with each request
and checked in each response: a key that was rotated inside Vault still derives the same KEKs. A new
key is imported or generated, and cannot be exported.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret, expand_message
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import VaultUri
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription, KmsRefusedError
from keyturn_workers.keys.master_keys.vault_client import VaultClient, VaultResponse
from keyturn_workers.process.settings import KmsSettings

_KEK_BYTES: Final = 32
_KEY_TYPE: Final = "hmac"
_OK: Final = 200
_NO_CONTENT: Final = 204
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
# An HMAC under no project's info shows if the token may derive at all.
_PROBE: Final = b"keyturn/v1/probe"
# At the first import the server generates its wrapping key of 4096 bits, which takes seconds.
_NEW_KEY_TIMEOUT_S: Final = 60.0
_NEW_KEY: Final = {"type": "hmac", "exportable": False, "allow_plaintext_backup": False}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

# Both servers' phrases with a status of 400, and their meanings.
_REFUSALS: Final = {
    "encryption key not found": "{key} does not exist",
    "key version does not exist": "{key} has no version {version}",
    "no such key version": "version {version} of {key} is below its min_decryption_version",
    "version is too old": "version {version} of {key} is below its min_encryption_version",
    "soft-deleted": "{key} is deleted, but can be restored",
}


class VaultMasterKey:
    """One version of a transit key of type `hmac`.

    Raises:
        SettingsError: not exactly one way to authenticate is set, or a setting is malformed.
    """

    provider = "vault"

    def __init__(self, uri: VaultUri, settings: KmsSettings) -> None:
        self._uri = uri
        self._path = _path(uri)
        self._client = VaultClient(uri.address, settings.vault, timeout_s=settings.kms_timeout_s)

    async def derive(self, info: bytes) -> Derivation:
        """Request one HMAC; see `MasterKey`."""
        body = {"input": to_base64(expand_message(info)), "key_version": self._uri.version}
        path = f"{self._uri.mount}/hmac/{self._uri.key}/sha2-256"
        response = await self._client.call("POST", path, body)
        if response.status != _OK:
            raise self._failure(response)
        return Derivation(self._mac(response), response.request_id)

    async def describe(self) -> KeyDescription:
        """Read the key's configuration; see `MasterKey`.

        A token that may only derive gets a partial description and a warning.
        """
        response = await self._client.call_once("GET", self._path)
        if response.status == _FORBIDDEN:
            # Is it the token or its policy? This call raises if it is the token.
            await self.derive(_PROBE)
            response = await self._client.call_once("GET", self._path)
        if response.status == _FORBIDDEN:
            return self._description(
                {}, [f"the token may not read {self._path}: its properties are not checked"]
            )
        if response.status == _NOT_FOUND:
            raise KmsRefusedError(f"{self._path} does not exist")
        if response.status != _OK:
            raise response.failure()
        key = response.section("data")
        if key.get("type") != _KEY_TYPE:
            raise KmsRefusedError(f"{self._path} is not a key of type {_KEY_TYPE}")
        return self._description(key, _warnings(key, self._uri.version))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _failure(self, response: VaultResponse) -> KmsUnavailableError:
        key = f"{self._uri.mount}/{self._uri.key}"
        if response.status == _BAD_REQUEST:
            for phrase, text in _REFUSALS.items():
                if response.says(phrase):
                    return KmsRefusedError(text.format(key=key, version=self._uri.version))
        return response.failure()

    def _mac(self, response: VaultResponse) -> Secret:
        value = response.section("data").get("hmac")
        prefix = f"vault:v{self._uri.version}:"
        if not isinstance(value, str) or not value.startswith(prefix):
            raise KmsUnavailableError(
                f"Vault's response is not from version {self._uri.version} of the key"
            )
        try:
            mac = from_base64(value.removeprefix(prefix))
        except ValueError:
            mac = b""
        if len(mac) != _KEK_BYTES:
            raise KmsUnavailableError("Vault's response is not an HMAC-SHA256")
        return Secret(mac)

    def _description(self, key: Mapping[str, object], warnings: list[str]) -> KeyDescription:
        url = urlsplit(self._uri.address)
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            warnings.append("the address is http: the network can read the token and the KEKs")
        period = key.get("auto_rotate_period")
        return KeyDescription(
            self.provider,
            self._uri.location,
            version=str(self._uri.version),
            exportable=_either(_flag(key, "exportable"), _flag(key, "allow_plaintext_backup")),
            automatic_rotation=period > 0 if isinstance(period, int) else None,
            imported=_flag(key, "imported_key"),
            warnings=tuple(warnings),
        )


def _warnings(key: Mapping[str, object], version: int) -> list[str]:
    """The problems of a key's configuration, one line each."""
    found = [
        text
        for name, text in (
            (
                "exportable",
                "the key can be exported: anyone who can export it can decrypt everything",
            ),
            ("allow_plaintext_backup", "the key can be backed up in plaintext"),
            ("deletion_allowed", "the key can be deleted: without it, nothing can be decrypted"),
            ("soft_deleted", "the key is deleted, but can be restored"),
        )
        if key.get(name) is True
    ]
    if key.get("auto_rotate_period"):
        found.append("the key is rotated automatically: set auto_rotate_period to 0")
    found += [
        f"version {version} is below the key's {name}: it cannot be used"
        for name in ("min_decryption_version", "min_encryption_version", "min_available_version")
        if _number(key, name) > version
    ]
    if _number(key, "latest_version") < version:
        found.append(f"the key has no version {version}")
    return found


def _flag(key: Mapping[str, object], name: str) -> bool | None:
    value = key.get(name)
    return value if isinstance(value, bool) else None


def _either(first: bool | None, second: bool | None) -> bool | None:  # noqa: FBT001  # a connective
    return None if first is None and second is None else bool(first or second)


def _number(key: Mapping[str, object], name: str) -> int:
    value = key.get(name)
    return value if isinstance(value, int) else 0


# New keys.


async def import_prk(uri: VaultUri, settings: KmsSettings, prk: Secret) -> None:
    """Import a master key's PRK as a new transit key, which cannot be exported or rotated.

    The PRK is encrypted to the server's wrapping key, in addition to TLS.

    Raises:
        ValueError: the key exists, or the URI does not pin version 1.
        KmsUnavailableError: the server refused or did not respond. After a lost connection the key
            may exist.
        SettingsError: as `VaultClient`.
    """
    async with _client_for_new_key(uri, settings) as client:
        response = await client.call("GET", f"{uri.mount}/wrapping_key")
        if response.status != _OK:
            raise response.failure()
        wrapped = _wrap(prk, response.section("data").get("public_key"))
        body = {
            **_NEW_KEY,
            "ciphertext": to_base64(wrapped),
            "hash_function": "SHA256",
            "allow_rotation": False,
        }
        await _create(client, uri, f"{_path(uri)}/import", body)


async def generate_key(uri: VaultUri, settings: KmsSettings) -> None:
    """Generate a transit key of 32 bytes that cannot be exported.

    Raises:
        ValueError: as `import_prk`.
        KmsUnavailableError: as `import_prk`.
        SettingsError: as `VaultClient`.
    """
    async with _client_for_new_key(uri, settings) as client:
        await _create(client, uri, _path(uri), {**_NEW_KEY, "key_size": 32})


def _path(uri: VaultUri) -> str:
    return f"{uri.mount}/keys/{uri.key}"


@asynccontextmanager
async def _client_for_new_key(uri: VaultUri, settings: KmsSettings) -> AsyncIterator[VaultClient]:
    """Open a client after checking that the key does not exist."""
    if uri.version != 1:
        raise ValueError("a new key has version 1: the URI must end with ?version=1")
    timeout_s = max(settings.kms_timeout_s, _NEW_KEY_TIMEOUT_S)
    client = VaultClient(uri.address, settings.vault, timeout_s=timeout_s)
    try:
        response = await client.call("GET", _path(uri))
        if response.status == _OK:
            raise _exists(uri)
        if response.status != _NOT_FOUND:
            raise response.failure()
        yield client
    finally:
        await client.aclose()


async def _create(
    client: VaultClient, uri: VaultUri, path: str, body: Mapping[str, object]
) -> None:
    response = await client.call("POST", path, body, repeat=False)
    # Another client created the key meanwhile: an import is then refused, but a request to
    # generate returns the other key.
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
