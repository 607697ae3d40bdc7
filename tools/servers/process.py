"""Private servers: the owner's side of their processes, free ports and scratch folders.

For the private servers of tests, demo and bench. It never signals a process by name: a server is
ended through the pipe to the reaper that started it.
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
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

SCRATCH = "KEYTURN_TEST_SCRATCH"
"""The variable that names the folder of scratch folders."""

# Four processes' servers take about 2 GiB; nothing else may run short of memory because of them.
_MEMORY_BYTES = 8 * 2**30
_REAPER = Path(__file__).with_name("reaper.py")
_LOG_TAIL_BYTES = 4000


class ServerError(Exception):
    """A private server did not start or exited; the message includes the end of its log."""


def scratch_folder(name: str) -> Path:
    """A new private folder with a short path (unix sockets allow 107 bytes).

    It is in the folder that `KEYTURN_TEST_SCRATCH` names, else in the system's for temporary files.
    """
    return Path(tempfile.mkdtemp(prefix=f"keyturn-{name}-", dir=os.environ.get(SCRATCH) or None))


def memory_folder(
    shared: Path = Path("/dev/shm"),  # noqa: S108 - a private folder is made in it
    memory: Path = Path("/proc/meminfo"),
) -> Path | None:
    """A folder in memory for scratch folders: no fsync waits there; None without enough space.

    Args:
        shared: A file system in memory, which containers often make small.
        memory: The kernel's figures, in KiB.
    """
    try:
        free = shutil.disk_usage(shared).free
        lines = memory.read_text().splitlines()
    except OSError:
        return None
    available = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return shared if min(free, *available) >= _MEMORY_BYTES else None


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


_FIRST_PORT = 20_000
_PORTS = 12_000
_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback port that is free now, and that this process has not been given before.

    It is below the kernel's ephemeral range, so that no outgoing connection uses it while its
    server restarts. Between this call and its server's start, another process of pytest-xdist
    must not take it: each has a share of its own.
    """
    shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        offset = random.randrange(_PORTS // shares)  # noqa: S311 - no secret, only spread
        port = _FIRST_PORT + share * (_PORTS // shares) + offset
        if port in _given_ports and len(_given_ports) < _PORTS // shares // 2:
            continue
        _given_ports.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def accepts_tcp(port: int) -> bool:
    """Whether this loopback port accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def run_program(
    what: str,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    timeout_s: float | None = 60,
    error: type[Exception] = ServerError,
) -> str:
    """Run a program to its end, and return its output.

    Raises:
        ServerError: it failed, or took too long; or another `error`. The text has the end of its
            output, but not its arguments, which may contain secrets.
    """
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise error(f"{what} took longer than {timeout_s} s") from None
    if done.returncode != 0:
        raise error(f"{what} failed:\n{(done.stdout + done.stderr)[-_LOG_TAIL_BYTES:]}")
    return done.stdout


class ServerProcess:
    """One server under `reaper.py`.

    Args:
        command: The server's command line.
        env: The server's complete environment.
        scratch: Its data folder; the reaper removes it if the owner dies.
        log: The file to which its output is appended.
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
        reaper = [sys.executable, "-I", "-S", str(_REAPER)]
        options = ["--scratch", str(scratch), "--grace-s", str(grace_s), "--", *command]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*reaper, *options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                # Ctrl-C at a terminal reaches only the owner, which ends its servers in order.
                start_new_session=True,
            )

    @property
    def reaper_pid(self) -> int:
        """The process id of the reaper, the server's parent."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_s: float = 60) -> None:
        """Poll `ready` until it returns true.

        Raises:
            ServerError: the server exited, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise ServerError(f"{what} ended while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{what} was not ready in {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server itself."""
        children = Path(f"/proc/{self.reaper_pid}/task/{self.reaper_pid}/children")
        for server in children.read_text().split():
            os.kill(int(server), number)

    def log_tail(self) -> str:
        """The end of the server's output."""
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def has_logged(self, text: str) -> bool:
        """Whether the server's output so far contains this text."""
        return text.encode() in self._log.read_bytes()

    def end(self) -> None:
        """End the server gracefully; waits until it and its descendants are gone."""
        self._tell(b"end\n" if self._grace_s else b"kill\n")

    def kill(self) -> None:
        """Kill the server with SIGKILL; waits until it and its descendants are gone."""
        self._tell(b"kill\n")

    def _tell(self, word: bytes) -> None:
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            # A broken pipe: it has exited.
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe.fileno(), word)
            # Closed only after the exit: to the reaper a closed pipe means that the owner died.
            self._process.wait()
            pipe.close()
        self._process.wait()


class PrivateServer(ABC):
    """A server of one process, with a port and a scratch folder of its own. A context manager.

    A subclass defines `start`, which calls `_launch`. After `stop` it can be started again, with
    what it keeps in its folder; `close` removes that too.

    Args:
        name: A short name for its folder.
        grace_s: Seconds between SIGTERM and SIGKILL at `stop`; 0 kills at once.
    """

    def __init__(self, name: str, *, grace_s: float = 0) -> None:
        self._folder = scratch_folder(name)
        self._grace_s = grace_s
        self._port = free_port()
        self._starts = 0
        self._process: ServerProcess | None = None

    @abstractmethod
    def start(self) -> object:
        """Start it, and wait until it serves.

        Raises:
            ServerError: it exited or was not ready in time.
        """

    def stop(self) -> None:
        """End the process; does nothing if it is not running."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def close(self) -> None:
        """Kill the process and remove its data; does nothing if it never ran."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        remove_scratch(self._folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _launch(
        self,
        what: str,
        command: Sequence[str],
        env: Mapping[str, str],
        ready: Callable[[], bool] | None = None,
        *,
        timeout_s: float = 60,
    ) -> None:
        """Start the process, and wait until `ready`; by default, until its port accepts."""
        self._starts += 1
        self._process = ServerProcess(
            command,
            env=env,
            scratch=self._folder,
            log=self._folder / f"output-{self._starts}.log",
            grace_s=self._grace_s,
        )
        self._process.wait_until(
            ready or (lambda: accepts_tcp(self._port)), what=what, timeout_s=timeout_s
        )

    def _launch_module(self, what: str, module: str, **env: str) -> None:
        """Start a module of this repository that serves on `--port`."""
        root = str(Path(__file__).parents[2])
        self._launch(
            what,
            [sys.executable, "-m", module, f"--port={self._port}"],
            {**os.environ, "TMPDIR": str(self._folder), "PYTHONPATH": root, **env},
        )
