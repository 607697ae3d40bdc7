"""Starts and ends `tools.servers.moto_server`, moto's S3 in a separate process.

The quick storage of the demo and of functional tests (SPEC 10). This module does not import moto,
which takes a second. Tests of races must use a real server instead.
"""

from __future__ import annotations

from tools.servers.process import PrivateServer
from tools.servers.s3 import S3Server


class MotoServer(PrivateServer):
    """The server; its data is lost when it ends."""

    def __init__(self) -> None:
        super().__init__("moto")
        self.server = S3Server.private(self._port, "moto")

    def start(self) -> S3Server:
        """As `PrivateServer.start`; returns where it is."""
        self._launch_module("moto", "tools.servers.moto_server")
        return self.server
