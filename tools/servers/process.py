"""A server process behind its guard, seen from the owner's side; free ports and scratch folders.

For the private servers of tests, demo and bench. Never signals anything by name: a server is
ended through the pipe to the guard that started it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_GUARD = Path(__file__).with_name("guard.py")
_LOG_TAIL_BYTES = 4000


class ServerError(Exception):
    """A private server did not start, or ended on its own; says what its log says."""


def scratch_folder(name: str) -> Path:
    """A new folder, only for this user, with a short path (unix sockets allow 107 bytes)."""
    return Path(tempfile.mkdtemp(prefix=f"keyturn-{name}-"))


def remove_scratch(folder: Path) -> None:
    """Removes a scratch folder; one that is gone already is fine."""
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A loopback port that nothing listens on now.

    From below the kernel's ephemeral range, so that no outgoing connection takes it while its
    server restarts.
    """
    while True:
        port = random.randint(20_000, 32_000)  # noqa: S311 - no secret, only spread
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def accepts_tcp(port: int) -> bool:
    """Whether something accepts a connection on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class GuardedProcess:
    """One server under `guard.py`.

    Args:
        command: What to run.
        env: The server's whole environment.
        scratch: Folder of its data, removed by the guard should the owner die.
        log: File that its output is appended to.
        grace_s: Seconds between SIGTERM and SIGKILL at `end`; 0 kills at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        scratch: Path,
        log: Path,
        grace_s: float,
    ) -> None:
        self._log = log
        self._grace_s = grace_s
        guard = [sys.executable, "-I", "-S", str(_GUARD)]
        options = ["--scratch", str(scratch), "--grace-s", str(grace_s), "--", *command]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*guard, *options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                # Ctrl-C at a terminal reaches the owner alone, which ends its servers in order.
                start_new_session=True,
            )

    @property
    def guard_pid(self) -> int:
        """The guard's process id; the server is its child."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_s: float = 60) -> None:
        """Asks `ready` again and again until it says yes.

        Raises:
            ServerError: the server ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise ServerError(f"{what} ended while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{what} was not ready in {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self) -> str:
        """The last of what the server wrote."""
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def end(self) -> None:
        """Ends the server gracefully and waits until it and all below it are gone."""
        self._tell(b"end\n" if self._grace_s else b"kill\n")

    def kill(self) -> None:
        """Kills the server with SIGKILL and waits until it and all below it are gone."""
        self._tell(b"kill\n")

    def _tell(self, word: bytes) -> None:
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            # A broken pipe: it ended on its own.
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe.fileno(), word)
            # Closed only after its end: the guard takes a closed pipe for the owner's death.
            self._process.wait()
            pipe.close()
        self._process.wait()
