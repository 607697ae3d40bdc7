"""Starts and ends `tools.servers.oidc_provider_server`, a sign-in provider, as a process."""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    scratch_folder,
)

if TYPE_CHECKING:
    from types import TracebackType

_ROOT = Path(__file__).parents[2]
_READY_TIMEOUT_S = 60.0


class OidcProviderProcess:
    """The provider with these people: their claims by their subject."""

    def __init__(self, people: dict[str, dict[str, Any]], *, redirect_uri: str = "") -> None:
        self._people = people
        self._redirect_uri = redirect_uri
        self._folder = scratch_folder("oidc-provider")
        self._port = free_port()
        self._process: ServerProcess | None = None
        self.secret = secrets.token_hex(16)
        self.issuer = f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start it, and wait until it accepts connections.

        Raises:
            ServerError: it exited or was not ready in time.
        """
        self._process = ServerProcess(
            [sys.executable, "-m", "tools.servers.oidc_provider_server", f"--port={self._port}"],
            env={
                **os.environ,
                "PYTHONPATH": str(_ROOT),
                "OIDC_PEOPLE": json.dumps(self._people),
                "OIDC_CLIENT_SECRET": self.secret,
                "OIDC_REDIRECT_URI": self._redirect_uri,
            },
            scratch=self._folder,
            log=self._folder / "output.log",
            grace_s=0,
        )
        self._process.wait_until(
            lambda: accepts_tcp(self._port), what="the provider", timeout_s=_READY_TIMEOUT_S
        )
        return self

    def stop(self) -> None:
        """End the process; `start` starts it again on the same port, with new keys."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def set_faults(self, **faults: Any) -> None:
        """What it does wrong from now on; nothing without arguments."""
        self._post("/test/faults", faults)

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self._post("/test/rotate", {})

    def _post(self, path: str, document: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310  # a loopback address
            self.issuer + path, json.dumps(document).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # as above
            response.read()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        remove_scratch(self._folder)
