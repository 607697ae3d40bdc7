"""LocalStack's and MiniStack's S3 on loopback, from PyPI: for `make doctor`.

They show how other S3 servers behave (SPEC 10); Keyturn's tests do not use them. Each runs in a
locked environment of its own, with its default settings for S3. Other settings keep it on loopback
and in its scratch folder, and keep it from using a container engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    scratch_folder,
)
from tools.servers.python_environment import locked_python
from tools.servers.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_READY_TIMEOUT_S = 90.0


class Emulator:
    """A server in one process; its data is deleted when it is stopped.

    Args:
        name: Its environment below `environments/`.
        module: What `python -m` runs.
        settings: Its own variables, for its scratch folder, its port and its keys.
    """

    def __init__(
        self, name: str, module: str, settings: Callable[[Path, int, S3Server], Mapping[str, str]]
    ) -> None:
        self._name = name
        self._module = module
        self._folder = scratch_folder(name)
        self._port = free_port()
        self._process: ServerProcess | None = None
        self.server = S3Server.private(self._port, name)
        self.environment = {
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "SERVICES": "s3",
            # MiniStack removes containers from any engine that it finds.
            "DOCKER_HOST": f"unix://{self._folder}/no-engine",
            **settings(self._folder, self._port, self.server),
        }

    def start(self) -> S3Server:
        """Start it, and wait until it accepts connections.

        Raises:
            MissingPackagesError: its environment cannot be created here.
            ServerError: it exited or was not ready in time.
        """
        self._process = ServerProcess(
            [str(locked_python(self._name)), "-m", self._module],
            env=self.environment,
            scratch=self._folder,
            log=self._folder / "output.log",
            grace_s=0,
        )
        self._process.wait_until(
            lambda: accepts_tcp(self._port), what=self._name, timeout_s=_READY_TIMEOUT_S
        )
        return self.server

    def stop(self) -> None:
        """End it; does nothing if it never ran."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        remove_scratch(self._folder)


def localstack() -> Emulator:
    """LocalStack, which accepts any credentials."""
    return Emulator("localstack", "localstack.runtime.main", _localstack_settings)


def ministack() -> Emulator:
    """MiniStack, which accepts query-signed requests only with the keys in its environment."""
    return Emulator("ministack", "ministack", _ministack_settings)


def _localstack_settings(folder: Path, port: int, _server: S3Server) -> Mapping[str, str]:
    return {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "FILESYSTEM_ROOT": str(folder / "root"),
        "EAGER_SERVICE_LOADING": "1",
        # No DNS server on port 53, no usage statistics, no downloads.
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "SKIP_INFRA_DOWNLOADS": "1",
    }


def _ministack_settings(folder: Path, port: int, server: S3Server) -> Mapping[str, str]:
    return {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "S3_DATA_DIR": str(folder / "objects"),
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        # Other services would listen, too.
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
    }
