"""How a process authenticates with a Vault or OpenBao server (SPEC 2.2, 2.6, 11)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from keyturn.crypto.keys import Secret

KUBERNETES_TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class MasterKeyCredentials:
    """The credentials that give access to master keys, or to the cluster of this pod.

    The server of a store could use them there, so no store is ever sent one.
    """

    files: tuple[Path, ...] = ()
    values: tuple[Secret, ...] = ()

    def include_file(self, path: str | Path) -> bool:
        """Return True if this is one of the files, by any name, or has one of the credentials."""
        if os.path.realpath(path) in map(os.path.realpath, self.files):
            return True
        content = _content(path)
        return content is not None and self.include(content)

    def include(self, credential: Secret) -> bool:
        """Return True if this is one of the credentials. Files are read each time."""
        return credential in (*self.values, *map(_content, self.files))


def _content(path: str | Path) -> Secret | None:
    try:
        content = Path(path).read_bytes().strip()
    except (OSError, ValueError):  # such as a file that does not exist yet
        return None
    return Secret(content) if content else None


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Exactly one of a token, a token file, AppRole and Kubernetes; and the CA's certificates.

    `setting` returns how errors name a field, such as `token_file`: master keys have environment
    variables, and each store of customer keys has fields of its own. `auth_mount` is the path of
    the auth method; `approle` or `kubernetes` if unset. What a file has that is among
    `never_sent` is not sent.
    """

    setting: Callable[[str], str]
    never_sent: MasterKeyCredentials = MasterKeyCredentials()
    token: SecretStr | None = None
    token_file: str | Path | None = None
    role_id: str | None = None
    secret_id: SecretStr | None = None
    secret_id_file: str | Path | None = None
    kubernetes_role: str | None = None
    kubernetes_token_file: str | Path | None = None
    auth_mount: str | None = None
    namespace: str | None = None
    ca_file: str | Path | None = None
