"""Worker, gateway and console processes for tests: the real commands, their logs and signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from keyturn.topology import AUDIT_RECORDED
from tools.harness.fork_server import ForkedProcess, ForkServer, can_fork
from tools.harness.known_storage import known_capabilities
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 180
_LOG_TIMEOUT_S = 60
_LAST_LINES = 20
_STOP_TIMEOUT_S = 30
_KEYTURN = (sys.executable, "-m", "keyturn_workers")


def peak_bytes(pid: int) -> int:
    """A process's peak of resident memory, as the kernel counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclass
class WorkerProcess:
    """A running worker; `lines` is its log so far."""

    process: asyncio.subprocess.Process | ForkedProcess
    lines: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: asyncio.Task[None] | None = None

    async def logged(self, text: str, *, after: int = 0, timeout_s: float = _LOG_TIMEOUT_S) -> str:
        """Wait for the first log line with this text; the first `after` lines are skipped.

        Records of the audit trail are skipped too, unless asked for: they name a request before
        it is answered.
        """
        skipped = None if AUDIT_RECORDED in text else f'"{AUDIT_RECORDED}"'
        async with asyncio.timeout(timeout_s), self._changed:
            while True:
                for line in self.lines[after:]:
                    if text in line and not (skipped and skipped in line):
                        return line
                after = max(after, len(self.lines))
                if self.process.returncode is not None and self._reader and self._reader.done():
                    status = self.process.returncode
                    raise AssertionError(f"worker ended with status {status}: {self.lines[-20:]}")
                await self._changed.wait()

    async def started(self, text: str, *, timeout_s: float = _START_TIMEOUT_S) -> str:
        """Wait for the log line that says that the process is ready.

        Raises:
            ServerError: it takes too long, or the process has ended; the message has the last
                lines of the log.
        """
        try:
            return await self.logged(text, timeout_s=timeout_s)
        except (TimeoutError, AssertionError) as exc:
            status = self.process.returncode
            end = (
                f"within {timeout_s:g} s" if status is None else f"before its exit status {status}"
            )
            last = "\n".join(self.lines[-_LAST_LINES:]) or "(nothing)"
            raise ServerError(
                f"a new process did not log {text!r} {end}. Its last lines:\n{last}"
            ) from exc

    async def ended(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> int:
        """Wait for the process to exit; returns its exit status."""
        async with asyncio.timeout(timeout_s):
            status = await self.process.wait()
            if self._reader is not None:
                await self._reader
            return status

    async def stopped(self, *, timeout_s: float = _LOG_TIMEOUT_S) -> None:
        """Wait until a signal has stopped the process: it exists, but does not run."""
        seen = psutil.Process(self.process.pid)
        async with asyncio.timeout(timeout_s):
            while True:
                if seen.status() == psutil.STATUS_STOPPED:
                    return
                await asyncio.sleep(0.05)

    async def terminate(self) -> int:
        """Send SIGTERM, and wait for the exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = await self.ended()
        if status != 0:
            print("\n".join(self.lines[-40:]))  # pytest shows this if the test fails
        return status

    async def kill(self) -> None:
        """Send SIGKILL, and wait for the exit."""
        self.process.kill()
        await self.ended()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._changed:
                self.lines.append(line.decode().rstrip())
                self._changed.notify_all()
        await self.process.wait()
        async with self._changed:
            self._changed.notify_all()


@dataclass
class GatewayProcess(WorkerProcess):
    """A running gateway or console, and its address."""

    host: str = ""
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{self.scheme}://{self.host}:{self.port}"


_fork_server: ForkServer | None = None


@contextmanager
def forking() -> Iterator[None]:
    """While this is open, fork this checkout's processes from one that has imported everything."""
    global _fork_server  # noqa: PLW0603  # one for this process
    _fork_server = ForkServer()
    try:
        yield
    finally:
        _fork_server.close()
        _fork_server = None


async def _start(
    env: dict[str, str], *command: str, measures: bool = True, reads_output: bool = False
) -> asyncio.subprocess.Process | ForkedProcess:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}
    if _fork_server is not None and command[:2] == (sys.executable, "-m") and can_fork(env):
        capabilities = None if measures else await known_capabilities(env)
        return await _fork_server.start(
            command[2],
            command[3:],
            env,
            _ROOT,
            capabilities=capabilities,
            reads_output=reads_output,
        )
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=_ROOT,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if reads_output else None,
        stderr=asyncio.subprocess.PIPE,
    )


@dataclass(frozen=True)
class Ended:
    """The exit status of a command, its standard output and its standard error."""

    status: int
    output: str
    errors: str


async def run_command(env: dict[str, str], *arguments: str, timeout_s: float = 60) -> Ended:
    """Run `keyturn ARGUMENTS` to its end, without input.

    Raises:
        TimeoutError: it did not end in time, and was killed.
    """
    process = await _start(env, *_KEYTURN, *arguments, reads_output=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            return Ended(await process.wait(), output.decode(), errors.decode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _kill_if_running(running: WorkerProcess) -> None:
    if running.process.returncode is None:
        running.process.kill()
    await running.ended()


@asynccontextmanager
async def worker(
    env: dict[str, str],
    role: str = "all",
    *,
    module: str = "keyturn_workers",
    program: tuple[str, ...] | None = None,
    arguments: tuple[str, ...] = (),
    ready: bool = True,
) -> AsyncIterator[WorkerProcess]:
    """Run `keyturn worker ROLE`, wait until it is ready, and kill it afterwards.

    `program` replaces this checkout's `keyturn`. With `ready=False`, the worker measures its
    storage even if its capabilities are known (see `known_storage`).
    """
    command = (*(program or (sys.executable, "-m", module)), "worker", role, *arguments)
    running = WorkerProcess(await _start(env, *command, measures=not ready))
    running._reader = asyncio.create_task(running._read())
    try:
        if ready:
            await running.started("worker started")
        yield running
    finally:
        await _kill_if_running(running)


@asynccontextmanager
async def gateway(
    env: dict[str, str],
    *,
    program: tuple[str, ...] = _KEYTURN,
    ready: bool = True,
) -> AsyncIterator[GatewayProcess]:
    """Run `keyturn gateway`, wait until it listens, and kill it afterwards.

    With `ready=False` there is no wait, and the address stays unknown.
    """
    async with _listening(env, (*program, "gateway"), "gateway started", ready=ready) as running:
        yield running


@asynccontextmanager
async def console(
    env: dict[str, str],
    *,
    program: tuple[str, ...] = _KEYTURN,
    ready: bool = True,
) -> AsyncIterator[GatewayProcess]:
    """Run `keyturn console`, wait until it listens, and kill it afterwards; `ready` as above."""
    async with _listening(env, (*program, "console"), "console started", ready=ready) as running:
        yield running


@asynccontextmanager
async def _listening(
    env: dict[str, str], command: tuple[str, ...], started: str, *, ready: bool
) -> AsyncIterator[GatewayProcess]:
    running = GatewayProcess(await _start(env, *command))
    running._reader = asyncio.create_task(running._read())
    try:
        if ready:
            line = json.loads(await running.started(started))
            running.host, running.port = line["host"], line["port"]
            running.scheme = line["scheme"]
        yield running
    finally:
        await _kill_if_running(running)
