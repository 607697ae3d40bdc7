"""Processes of the bench: the real commands and the bare loops, and what they use.

A worker's log goes to a file, as it would to a journal: reading it through a pipe would
take CPU time from what is measured. Every wait is bounded.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import psutil

from tools.bench.figures import Rate
from tools.harness.process import peak_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.chaos.fault_proxy import FaultProxy

_ROOT = Path(__file__).parents[2]
_START_S = 60
_STOP_S = 60
_BARE_S = 180
_TIMED_S = 600
_LOOK_S = 0.02
_SHOWN = 4000


class BenchError(Exception):
    """A measurement could not be made."""


@dataclass(frozen=True)
class Running:
    """A process that serves; `usage` looks at it from outside."""

    process: asyncio.subprocess.Process
    usage: psutil.Process
    log: Path

    def cpu_s(self) -> float:
        """User and system time so far, in seconds."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        """What is in memory now."""
        return int(self.usage.memory_info().rss)

    def forget_peak(self) -> None:
        """Let the kernel count the peak from now on; some do not allow it."""
        with suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The kernel's own peak of resident memory."""
        return peak_bytes(self.process.pid)


def _environment(env: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}


@asynccontextmanager
async def worker(
    env: dict[str, str], log: Path, role: str = "upload", *, samples: Path | None = None
) -> AsyncIterator[Running]:
    """Run `keyturn worker ROLE` until the block ends, ready to serve.

    Args:
        env: Its complete environment.
        log: Where its log goes.
        role: Which worker.
        samples: Where given, the worker samples its own stack, and writes there.

    Raises:
        BenchError: it ended by itself, or was not ready in time.
    """
    module = (
        ["keyturn_workers", "worker", role]
        if samples is None
        else ["tools.bench.stack_sampler", str(samples), role]
    )
    async with serving(env, log, module, ready="worker started") as running:
        if samples is not None:
            sample_from_now(running)
        yield running


def sample_from_now(running: Running) -> None:
    """Let a sampled process forget what its start took."""
    running.process.send_signal(signal.SIGUSR1)


@asynccontextmanager
async def serving(
    env: dict[str, str], log: Path, module: list[str], *, ready: str
) -> AsyncIterator[Running]:
    """Run a module with its arguments until the block ends, once its log says `ready`.

    Args:
        env: Its complete environment.
        log: Where its log goes.
        module: The module, and its arguments.
        ready: What its log says.

    Raises:
        BenchError: it ended by itself, or was not ready in time.
    """
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *module,
            cwd=_ROOT,
            env=_environment(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=out,
        )
    try:
        await _ready(process, log, ready)
        yield Running(process, psutil.Process(process.pid), log)
    finally:
        await _end(process)


async def _ready(process: asyncio.subprocess.Process, log: Path, ready: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                if ready in _text(log):
                    return
                await asyncio.sleep(_LOOK_S)
    raise BenchError(f"{ready!r} was not said:\n{_text(log)}")


def _text(log: Path) -> str:
    """The log of a process that has hardly begun."""
    return log.read_text()[-_SHOWN:]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def printed(env: dict[str, str], module: str, *arguments: str, stdin_text: str = "") -> Any:
    """Run one of the bench's modules; returns the JSON that it printed.

    `stdin_text` goes to its standard input.

    Raises:
        BenchError: it failed, or took too long.
    """
    name = " ".join((module, *arguments[:1]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=_ROOT,
        env=_environment(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_BARE_S):
            out, err = await process.communicate(stdin_text.encode())
    except TimeoutError as exc:
        process.kill()
        await process.wait()
        raise BenchError(f"{name} took longer than {_BARE_S} s") from exc
    if process.returncode != 0:
        raise BenchError(f"{name} failed:\n{err.decode()[-_SHOWN:]}")
    return json.loads(out)


def timed(command: list[str], env: dict[str, str], units: float) -> tuple[Rate, float]:
    """The rate of a process that moves so many units, and its peak memory in MiB.

    Raises:
        BenchError: it failed, or took too long.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    overdue = Timer(_TIMED_S, process.kill)
    overdue.start()
    said = process.stderr.read()
    overdue.cancel()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - began
    if process.returncode != 0:
        raise BenchError(f"{command[0]} failed:\n{said.decode()[-_SHOWN:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Rate(units / wall_s, 1000 * cpu_s / units), usage.ru_maxrss / 1024


async def bare(env: dict[str, str], what: str, prefix: str, **bounds: int) -> Rate:
    """Run one of `tools.bench.bare`'s loops; errors as `printed`."""
    options = [text for name, value in bounds.items() for text in (f"--{name}", str(value))]
    return Rate.reported(await printed(env, "tools.bench.bare", what, prefix, *options))


@dataclass(frozen=True)
class Traffic:
    """What went through a proxy: requests, those of them to objects, and bytes of responses.

    Those of the probe do not count: a process makes them once, when it starts.
    """

    requests: int
    to_objects: int
    received_bytes: int

    @classmethod
    def take(cls, between: FaultProxy) -> Traffic:
        """What went through since the last time."""
        to_objects = (count for kind, count in between.seen.items() if kind.endswith(" object"))
        requests = between.seen.total() - between.seen["doctor"]
        found = cls(requests, sum(to_objects), between.received_bytes)
        between.seen.clear()
        between.received_bytes = 0
        return found
