"""How a process authenticates with a Vault or OpenBao server (SPEC 2.2, 2.6, 11)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

KUBERNETES_TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Exactly one of a token, a token file, AppRole and Kubernetes; and the CA's certificates.

    `setting` returns how errors name a field, such as `token_file`: master keys have environment
    variables, and each store of customer keys has fields of its own. `auth_mount` is the path of
    the auth method; `approle` or `kubernetes` if unset.
    """

    setting: Callable[[str], str]
    token: SecretStr | None = None
    token_file: str | Path | None = None
    role_id: str | None = None
    secret_id: SecretStr | None = None
    secret_id_file: str | Path | None = None
    kubernetes_role: str | None = None
    kubernetes_token_file: str | Path = KUBERNETES_TOKEN_FILE
    auth_mount: str | None = None
    namespace: str | None = None
    ca_file: str | Path | None = None
