"""Starts and ends `tools.servers.moto_server`, moto's S3 in a separate process.

The quick storage of the demo and of functional tests (SPEC 10). This module does not import moto,
which takes a second. Tests of races must use a real server instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    scratch_folder,
)
from tools.servers.s3 import S3Server

_ROOT = Path(__file__).parents[2]
_READY_TIMEOUT_S = 60.0


class MotoServer:
    """The server; its data is lost when it ends."""

    def __init__(self) -> None:
        self._folder = scratch_folder("moto")
        self._port = free_port()
        self._process: ServerProcess | None = None
        self.server = S3Server.private(self._port, "moto")

    def start(self) -> S3Server:
        """Start it, and wait until it accepts connections.

        Raises:
            ServerError: it exited or was not ready in time.
        """
        self._process = ServerProcess(
            [sys.executable, "-m", "tools.servers.moto_server", "--port", str(self._port)],
            env={**os.environ, "TMPDIR": str(self._folder), "PYTHONPATH": str(_ROOT)},
            scratch=self._folder,
            log=self._folder / "output.log",
            grace_s=0,
        )
        self._process.wait_until(
            lambda: accepts_tcp(self._port), what="moto", timeout_s=_READY_TIMEOUT_S
        )
        return self.server

    def stop(self) -> None:
        """End it; does nothing if it never ran."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        remove_scratch(self._folder)
