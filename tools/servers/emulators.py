"""LocalStack's and MiniStack's S3 on loopback, from PyPI: for `make doctor`.

They show how other S3 servers behave (SPEC 10). Keyturn's tests do not use them, except
LocalStack's KMS where it is installed. Each runs in a locked environment of its own, with its
default settings for S3. Other settings keep it on loopback and in its scratch folder, and keep it
from using a container engine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.servers.packages import CACHE, MissingPackagesError
from tools.servers.process import PrivateServer, run_program
from tools.servers.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_READY_TIMEOUT_S = 90.0
_ROOT: Final = Path(__file__).parents[2]
PROJECTS: Final = Path(__file__).with_name("environments")
"""A folder for each locked environment, which uv creates below `.scratch`."""


class Emulator(PrivateServer):
    """A server in one process; its data is deleted when it is stopped.

    Args:
        name: Its environment below `environments/`.
        module: What `python -m` runs.
        settings: Its own variables, for its scratch folder, its port and its keys.
    """

    def __init__(
        self, name: str, module: str, settings: Callable[[Path, int, S3Server], Mapping[str, str]]
    ) -> None:
        super().__init__(name)
        self._name = name
        self._module = module
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
        command = [str(locked_python(self._name)), "-m", self._module]
        self._launch(self._name, command, self.environment, timeout_s=_READY_TIMEOUT_S)
        return self.server


def localstack(services: str = "s3") -> Emulator:
    """LocalStack, with these services of AWS alone; it accepts any credentials."""
    emulator = Emulator("localstack", "localstack.runtime.main", _localstack_settings)
    emulator.environment["SERVICES"] = services
    return emulator


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


def locked_python(name: str) -> Path:
    """The interpreter of an environment, which is created or updated from its lock file.

    Args:
        name: Its folder below `environments/`.

    Raises:
        MissingPackagesError: it cannot be created here; the text says why.
    """
    own = _ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None:
        raise MissingPackagesError("uv is missing: `make doctor` installs it")
    folder = CACHE / name
    run_program(
        f"the installation of {name}",
        [uv, "sync", "--locked", "--quiet", "--project", str(PROJECTS / name)],
        {**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)},
        timeout_s=None,
        error=MissingPackagesError,
    )
    return folder / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether `locked_python` has created an environment: for what is not worth its download."""
    return (CACHE / name / "bin" / "python").is_file()


def installed_version(name: str, package: str) -> str:
    """The version of a package in an environment that `locked_python` created."""
    script = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    python = str(CACHE / name / "bin" / "python")
    return run_program(f"Python of {name}", [python, "-c", script, package], os.environ).strip()
