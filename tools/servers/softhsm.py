"""A private SoftHSM behind a unix socket, from Debian's packages: an HSM that can be away.

The HSM of tests (SPEC 2.2). SoftHSM alone is a library that works on files, and is never away. So
`p11-kit server` runs it, and processes load `p11-kit-client.so`, which forwards each call to that
server: to them, killing the server is an HSM that was unplugged.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import sys
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil

from tools.servers import packages
from tools.servers.process import PrivateServer, run_program

MODULE: Final = Path("/usr/lib/softhsm/libsofthsm2.so")
"""SoftHSM itself, for a process that works on the token's files."""
CLIENT: Final = Path(f"/usr/lib/{platform.machine()}-linux-gnu/pkcs11/p11-kit-client.so")
"""What Keyturn loads."""
PACKAGES: Final = {
    "softhsm2-util": "softhsm2",
    "p11-kit": "p11-kit",
    str(CLIENT): "p11-kit-modules",
}
TOKEN: Final = "keyturn"  # its label

_CONFIG: Final = """\
directories.tokendir = {folder}/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""


class SoftHsm(PrivateServer):
    """One token, `keyturn`, with a random PIN. A context manager: it runs during the block.

    Raises:
        packages.MissingPackagesError: SoftHSM or p11-kit is missing and cannot be installed.
    """

    def __init__(self) -> None:
        packages.ensure(PACKAGES)
        super().__init__("softhsm")
        self._socket = self._folder / "p11"
        self._so_pin = secrets.token_hex(8)
        self.pin = secrets.token_hex(8)
        self.pin_file = self._folder / "pin"
        (self._folder / "tokens").mkdir()
        (self._folder / "softhsm2.conf").write_text(_CONFIG.format(folder=self._folder))
        self.pin_file.write_text(f"{self.pin}\n")
        self.add_token(TOKEN)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that uses the token: where it is, and the PIN's file."""
        return {
            "P11_KIT_SERVER_ADDRESS": f"unix:path={self._socket}",
            "KEYTURN_PKCS11_MODULE": str(CLIENT),
            "KEYTURN_PKCS11_PIN_FILE": str(self.pin_file),
        }

    @property
    def direct_env(self) -> dict[str, str]:
        """The environment of a process that loads SoftHSM itself (`MODULE`)."""
        return {"SOFTHSM2_CONF": str(self._folder / "softhsm2.conf")}

    def uri(self, label: str, *, token: str = TOKEN) -> str:
        """The URI of a key by its label."""
        return f"pkcs11:token={quote(token)};object={quote(label)}"

    def set_pin(self, label: str, pin: str) -> None:
        """Give a token another PIN, as its security officer does, and restart the server.

        SoftHSM reads the PIN's check value only when it is initialized.
        """
        self.stop()
        script = (
            "import sys, pkcs11; module, label, so_pin, pin = sys.argv[1:];"
            "token = pkcs11.lib(module).get_token(token_label=label);"
            "token.open(rw=True, so_pin=so_pin).init_pin(pin)"
        )
        run_program(
            "the change of the PIN",
            [sys.executable, "-c", script, str(MODULE), label, self._so_pin, pin],
            {"PATH": os.defpath, **self.direct_env},
        )
        self.start()

    def add_token(self, label: str, *, pin: str | None = None) -> None:
        """Initialize one more token, with `pin` or the first one's PIN."""
        made = ("softhsm2-util", "--init-token", "--free", "--label", label)
        pins = ("--so-pin", self._so_pin, "--pin", pin or self.pin)
        run_program("softhsm2-util", [*made, *pins], {"PATH": os.defpath, **self.direct_env})

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Raises:
            ServerError: it exited or was not ready in time.
        """
        # A killed server leaves its socket.
        self._socket.unlink(missing_ok=True)
        server = ("p11-kit", "server", "--foreground", "--name", str(self._socket))
        self._launch(
            "p11-kit server",
            [*server, "--provider", str(MODULE), "pkcs11:"],
            {"PATH": os.defpath, **self.direct_env},
            self._accepts,
        )

    def suspend(self) -> None:
        """Let every call hang, and every new connection too, until `resume`."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """End `suspend`."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        return psutil.Process(self._process.reaper_pid).children(recursive=True)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
            return True
