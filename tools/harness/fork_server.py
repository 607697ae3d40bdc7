"""Starts `keyturn` processes without the two seconds of CPU time that their imports cost.

The fork server of `multiprocessing` imports all that a worker, a gateway and a console import
(`tools.harness.preloaded`), and forks one of them on request. The forked process reads its own
settings, arguments and environment, and ends with its own exit status or signal. Tests of imports,
of startup times or of an installed program start a real process instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.harness.known_storage import assume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from keyturn_workers.core.storage_values import Capabilities

_ROOT: Final = Path(__file__).parents[2]
_PRELOADED: Final = "tools.harness.preloaded"
_LINE_BYTES: Final = 1 << 17
_PR_SET_PDEATHSIG: Final = 1
# The interpreter reads these when it starts, so a process with one of them cannot be forked.
_INTERPRETER_VARIABLES: Final = ("PYTHON", "LD_")


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a forked process behaves with this environment as one that is started with it."""
    return not any(name.startswith(_INTERPRETER_VARIABLES) for name in env)


@dataclass
class ForkedProcess:
    """The counterpart of `asyncio.subprocess.Process` for a forked process.

    Attributes:
        pid: The process id.
        stderr: What it writes to its standard error.
        stdout: What it writes to its standard output, if that was asked for.
    """

    pid: int
    stderr: asyncio.StreamReader
    stdout: asyncio.StreamReader | None
    _process: BaseProcess
    _loop: asyncio.AbstractEventLoop
    _ended: asyncio.Event
    _status: int | None = None

    @property
    def returncode(self) -> int | None:
        """Its exit status, or its signal as a negative number; None until it has ended."""
        if self._status is None:
            self._status = self._process.exitcode
        return self._status

    async def wait(self) -> int:
        """Wait for its end; returns `returncode`."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def finish(self) -> None:
        """Wait for its end, without the loop, and release what it needed."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._status = self._process.exitcode
        self._process.close()
        self._ended.set()

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
    """Starts the server with the first process; `close` ends all processes.

    The processes of `multiprocessing` are started and looked at by one thread only: two that ask
    at the same time how one ended can be told another exit status.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOADED])
        self._running: list[ForkedProcess] = []

    async def start(
        self,
        module: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        capabilities: Capabilities | None = None,
        reads_output: bool = False,
    ) -> ForkedProcess:
        """Run `python -m MODULE ARGUMENTS` with this environment in this folder.

        With `capabilities`, a worker assumes them, and does not measure its storage. With
        `reads_output`, its standard output is read, too.
        """
        outputs = (1, 2) if reads_output else (2,)
        pipes = {fd: multiprocessing.Pipe(duplex=False) for fd in outputs}
        streams = {fd: await _stream(reading) for fd, (reading, _) in pipes.items()}
        process = self._context.Process(
            target=_run,
            args=(
                {fd: writing for fd, (_, writing) in pipes.items()},
                module,
                list(arguments),
                dict(env),
                str(cwd),
                capabilities,
            ),
        )
        # The server finds what it preloads only from here, and says nothing where it does not.
        with chdir(_ROOT):
            process.start()
        for _, writing in pipes.values():
            writing.close()
        assert process.pid is not None
        loop = asyncio.get_running_loop()
        forked = ForkedProcess(
            process.pid, streams[2], streams.get(1), process, loop, asyncio.Event()
        )
        self._running.append(forked)

        def end() -> None:
            forked.finish()
            self._running.remove(forked)

        loop.add_reader(process.sentinel, end)
        return forked

    def close(self) -> None:
        """End all that it started."""
        for each in self._running:
            each.kill()
            each.finish()
        self._running.clear()


async def _stream(reading: Connection) -> asyncio.StreamReader:
    """What a process writes into the other end of this pipe."""
    with reading:
        pipe = os.fdopen(os.dup(reading.fileno()), "rb", 0)
    stream = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), pipe
    )
    return stream


def _run(
    outputs: dict[int, Connection],
    module: str,
    arguments: list[str],
    env: dict[str, str],
    cwd: str,
    capabilities: Capabilities | None,
) -> None:
    """In a forked process: become `python -m MODULE ARGUMENTS`."""
    # The fork server ends with the process that uses it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    assert _PRELOADED in sys.modules
    for fd, output in outputs.items():
        with output:
            os.dup2(output.fileno(), fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv.clear()
    sys.argv.extend([module, *arguments])
    if capabilities is not None:
        assume(capabilities)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
