"""The one way to authenticate to Vault or OpenBao that the settings name (SPEC 11)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn.settings import PREFIX
from keyturn_workers.master_keys.vault_auth import (
    CredentialReader,
    Login,
    LoginAuth,
    TokenAuth,
    VaultAuth,
)
from keyturn_workers.master_keys.vault_http import VaultHttp, header_value
from keyturn_workers.settings import KmsSettings

_MOUNT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def open_auth(http: VaultHttp, settings: KmsSettings) -> VaultAuth:
    """Return the one way to authenticate that the settings name. Contacts nothing.

    Raises:
        SettingsError: none or several are named, or one is incomplete or malformed.
    """
    ways = {
        "VAULT_TOKEN": settings.vault_token,
        "VAULT_TOKEN_FILE": settings.vault_token_file,
        "VAULT_ROLE_ID": settings.vault_role_id,
        "VAULT_KUBERNETES_ROLE": settings.vault_kubernetes_role,
    }
    if sum(value is not None for value in ways.values()) != 1:
        names = ", ".join(PREFIX + name for name in ways)
        raise SettingsError(f"a vault: master key needs exactly one of {names}")
    if settings.vault_role_id is None and (
        settings.vault_secret_id or settings.vault_secret_id_file
    ):
        raise SettingsError(f"{PREFIX}VAULT_ROLE_ID is missing beside the secret id")
    if settings.vault_token is not None:
        return TokenAuth(_Given.of("VAULT_TOKEN", settings.vault_token.get_secret_value()))
    if settings.vault_token_file is not None:
        return TokenAuth(_SecretFile("VAULT_TOKEN_FILE", settings.vault_token_file))
    if settings.vault_role_id is not None:
        return LoginAuth(http, _approle(settings, settings.vault_role_id))
    return LoginAuth(http, _kubernetes(settings, settings.vault_kubernetes_role or ""))


@dataclass(frozen=True, slots=True)
class _Given:
    value: Secret

    @classmethod
    def of(cls, setting: str, text: str) -> "_Given":
        try:
            return cls(Secret(header_value(text).encode()))
        except ValueError as exc:
            raise SettingsError(f"{PREFIX}{setting} is malformed: {exc}") from None

    def read(self) -> Secret:
        return self.value


class _SecretFile:
    """A file that others renew: Vault Agent, a secrets operator, Kubernetes."""

    def __init__(self, setting: str, path: Path) -> None:
        self._setting = setting
        self._path = path

    def read(self) -> Secret:
        # Small, local, and in the page cache: a change in the same tick of a clock is seen too.
        try:
            return Secret(header_value(self._path.read_text(encoding="ascii")).encode())
        except OSError as exc:
            reason = f"cannot be read ({type(exc).__name__})"
        except ValueError:
            reason = "is not one word of printable ASCII"
        raise KmsUnavailableError(f"the file that {PREFIX}{self._setting} names {reason}")


def _approle(settings: KmsSettings, role_id: str) -> Login:
    given, file = settings.vault_secret_id, settings.vault_secret_id_file
    if (given is None) == (file is None):
        raise SettingsError(
            f"{PREFIX}VAULT_ROLE_ID needs exactly one of {PREFIX}VAULT_SECRET_ID and "
            f"{PREFIX}VAULT_SECRET_ID_FILE"
        )
    reader: CredentialReader
    if given is not None:
        reader = _Given.of("VAULT_SECRET_ID", given.get_secret_value())
    else:
        reader = _SecretFile("VAULT_SECRET_ID_FILE", file or Path())
    return Login(
        path=f"auth/{_auth_mount(settings, 'approle')}/login",
        fields={"role_id": role_id},
        credential_field="secret_id",
        reader=reader,
        refusal=(
            f"Vault refuses the AppRole login: check {PREFIX}VAULT_ROLE_ID, and that the secret id "
            "is not expired"
        ),
    )


def _kubernetes(settings: KmsSettings, role: str) -> Login:
    return Login(
        path=f"auth/{_auth_mount(settings, 'kubernetes')}/login",
        fields={"role": role},
        credential_field="jwt",
        reader=_SecretFile("VAULT_KUBERNETES_TOKEN_FILE", settings.vault_kubernetes_token_file),
        refusal=(
            f"Vault refuses the Kubernetes login: check {PREFIX}VAULT_KUBERNETES_ROLE, and the "
            "service accounts that this role is bound to"
        ),
    )


def _auth_mount(settings: KmsSettings, default: str) -> str:
    mount = (settings.vault_auth_mount or default).strip("/")
    if not _MOUNT.fullmatch(mount):
        raise SettingsError(
            f"{PREFIX}VAULT_AUTH_MOUNT is malformed: not the path of an auth method"
        )
    return mount
