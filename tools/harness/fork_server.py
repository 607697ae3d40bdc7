"""Starts `keyturn` processes without the two seconds of CPU time that their imports cost.

The server is a process that has imported all that a worker, a gateway and a console import, and
forks one of them on request. The forked process reads its own settings, arguments and environment,
and ends with its own exit status or signal. Tests of imports, of startup times or of an installed
program start a real process instead.

    python -m tools.harness.fork_server FILE_DESCRIPTOR
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pydantic import SecretStr

from keyturn.settings import S3Settings
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.s3 import open_storage
from tools.harness.known_storage import assume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROOT: Final = Path(__file__).parents[2]
_REQUEST_BYTES: Final = 1 << 17
_IMPORTED: Final = (
    "keyturn_workers.cli.app",
    "keyturn_workers.cli.console",
    "keyturn_workers.cli.serve",
    "keyturn_workers.cli.serve",
    "keyturn_workers.console.server",
    "keyturn_workers.gateway.server",
    "keyturn_workers.worker.process",
    "keyturn_workers.worker.wiring",
)
# The interpreter reads these when it starts, so a process with one of them cannot be forked.
_INTERPRETER_VARIABLES: Final = ("PYTHON", "LD_")


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a forked process behaves with this environment as one that is started with it."""
    return hasattr(os, "pidfd_open") and not any(
        name.startswith(_INTERPRETER_VARIABLES) for name in env
    )


class ForkServerError(Exception):
    """The server ended without reporting how a process ended."""


@dataclass
class ForkedProcess:
    """The counterpart of `asyncio.subprocess.Process` for a child of the server.

    Attributes:
        pid: The process id.
        stderr: What it writes to its standard error.
        returncode: Its exit status, or the signal that ended it as a negative number; None until
            it has ended.
    """

    pid: int
    stderr: asyncio.StreamReader
    _waiting: asyncio.Task[int]

    @property
    def returncode(self) -> int | None:
        return self._waiting.result() if self._waiting.done() else None

    async def wait(self) -> int:
        """Wait for its end; returns `returncode`."""
        return await asyncio.shield(self._waiting)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts the server with the first process; `close` ends the server and all of them."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    async def start(
        self,
        module: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        capabilities: Capabilities | None = None,
    ) -> ForkedProcess:
        """Run `python -m MODULE ARGUMENTS` with this environment in this folder.

        With `capabilities`, a worker assumes them, and does not measure its storage.
        """
        if self._control is None:
            self._start_server()
        assert self._control is not None
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        reading, writing = os.pipe()
        request = {
            "module": module,
            "arguments": list(arguments),
            "env": dict(env),
            "cwd": str(cwd),
            "capabilities": None if capabilities is None else asdict(capabilities),
        }
        try:
            await asyncio.to_thread(
                socket.send_fds,
                self._control,
                [json.dumps(request).encode()],
                [1, writing, theirs.fileno()],
            )
        finally:
            os.close(writing)
            theirs.close()
        stderr = asyncio.StreamReader(limit=_REQUEST_BYTES)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(reading, "rb", 0)
        )
        pid = int(await loop.sock_recv(ours, 32))
        return ForkedProcess(pid, stderr, asyncio.create_task(_status(ours)))

    def _start_server(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tools.harness.fork_server", str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End the server and all that it started."""
        if self._control is not None and self._server is not None:
            self._control.close()
            self._server.wait(timeout=30)
            self._control = None


async def _status(connection: socket.socket) -> int:
    with connection:
        number = await asyncio.get_running_loop().sock_recv(connection, 32)
    if not number:
        raise ForkServerError("the fork server ended before this process did")
    return int(number)


class _Server:
    """The parent of all forked processes. In each child, `serve` returns what to run."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        # Keyed by a descriptor that becomes readable when the process ends.
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> dict[str, Any]:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._report(key.fd)
                elif (request := self._receive()) is not None:
                    return request

    def _receive(self) -> dict[str, Any] | None:
        body, descriptors, _, _ = socket.recv_fds(self._control, _REQUEST_BYTES, 3)
        if not body:
            self._end()
        stdout, stderr, answer_fd = descriptors
        answer = socket.socket(fileno=answer_fd)
        pid = os.fork()
        if pid == 0:
            answer.close()
            self._leave()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)
        if pid == 0:
            request: dict[str, Any] = json.loads(body)
            return request
        ended = os.pidfd_open(pid)
        self._running[ended] = (pid, answer)
        self._selector.register(ended, selectors.EVENT_READ)
        _send(answer, pid)
        return None

    def _report(self, ended: int) -> None:
        pid, answer = self._running.pop(ended)
        self._selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        with answer:
            _send(answer, os.waitstatus_to_exitcode(status))

    def _leave(self) -> None:
        """In a child, close what belongs to the server."""
        self._selector.close()
        self._control.close()
        for ended, (_, answer) in self._running.items():
            os.close(ended)
            answer.close()

    def _end(self) -> NoReturn:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        sys.exit(0)


def _send(answer: socket.socket, number: int) -> None:
    # The test may have ended, and no longer waits for this.
    with contextlib.suppress(BrokenPipeError):
        answer.send(str(number).encode())


async def _read_descriptions() -> None:
    """Trigger the storage client's lazy imports, and load AWS's description of S3."""
    settings = S3Settings(
        s3_endpoint_url="http://127.0.0.1:9",
        s3_access_key_id="none",
        s3_secret_access_key=SecretStr("none"),
        s3_bucket="none",
    )
    async with open_storage(settings):
        pass


def main() -> None:
    """Serve until the other end is closed; in a child, run the requested module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _IMPORTED:
        import_module(name)
    asyncio.run(_read_descriptions())
    # Otherwise a collection in a child would touch these objects, and copy their pages.
    gc.collect()
    gc.freeze()
    request = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv.clear()
    sys.argv.extend([request["module"], *request["arguments"]])
    if request["capabilities"] is not None:
        assume(Capabilities(**request["capabilities"]))
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
