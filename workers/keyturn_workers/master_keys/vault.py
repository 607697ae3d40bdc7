"""Master keys in the transit engine of HashiCorp Vault or OpenBao (SPEC 2.2, 11).

A key of type `hmac` whose value is the PRK is the master key. Its version is sent with each request
and checked in each response: a key that was rotated inside still derives what it derived.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from keyturn.crypto import Secret, expand_message, from_base64, to_base64
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import VaultUri
from keyturn_workers.master_keys.port import Derivation, KeyDescription, KmsRefusedError
from keyturn_workers.master_keys.vault_http import VaultResponse
from keyturn_workers.master_keys.vault_session import VaultSession
from keyturn_workers.settings import KmsSettings

_KEK_BYTES: Final = 32
_KEY_TYPE: Final = "hmac"
_OK: Final = 200
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
# HMAC under no project's info: it shows whether the token may derive at all.
_PROBE: Final = b"keyturn/v1/probe"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

# What both servers say with a status of 400, and what it means here.
_REFUSALS: Final = {
    "encryption key not found": "{key} does not exist",
    "key version does not exist": "{key} has no version {version}",
    "no such key version": "version {version} of {key} is below its min_decryption_version",
    "version is too old": "version {version} of {key} is below its min_encryption_version",
    "soft-deleted": "{key} is deleted, but can be restored",
}


class VaultMasterKey:
    """One version of a transit key of type `hmac`.

    Args:
        uri: The key.
        settings: How to authenticate, and the limits.

    Raises:
        SettingsError: not exactly one way to authenticate is set, or a setting is malformed.
    """

    provider = "vault"

    def __init__(self, uri: VaultUri, settings: KmsSettings) -> None:
        self._uri = uri
        self._path = f"{uri.mount}/keys/{uri.key}"
        self._session = VaultSession(uri.address, settings)

    async def derive(self, info: bytes) -> Derivation:
        """Ask for one HMAC; see `MasterKey`."""
        body = {"input": to_base64(expand_message(info)), "key_version": self._uri.version}
        path = f"{self._uri.mount}/hmac/{self._uri.key}/sha2-256"
        response = await self._session.call("POST", path, body)
        if response.status != _OK:
            raise self._failure(response)
        return Derivation(self._mac(response), response.request_id)

    async def describe(self) -> KeyDescription:
        """Read the key's configuration; see `MasterKey`.

        A token that may only derive gets a description of what is known without reading, and a
        warning.
        """
        response = await self._session.call_once("GET", self._path)
        if response.status == _FORBIDDEN:
            # The token, or its policy? The call raises if it is the token.
            await self.derive(_PROBE)
            response = await self._session.call_once("GET", self._path)
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
        await self._session.aclose()

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
    """What is wrong with a key's configuration, one line each."""
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
