"""The upload workers of a run: real processes, started, told to stop, replaced.

Each has its log in a file of its own, which stays after its end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.bench.processes import BenchError, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.load.uploads import Uploads

_STOP_S = 90
_SERVED_S = 60
_SLOWEST_PER_S = 40
_LOOK_S = 0.5


@dataclass
class Crew:
    """Workers that serve `keyturn.upload`; `running` are those of now."""

    env: Mapping[str, str]
    folder: Path
    _stack: AsyncExitStack
    running: list[Running] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)
    """Of those that were told to stop: the kernel's peak of their memory."""

    async def start(self, count: int = 1) -> None:
        """Start so many more, all at once; they serve when this returns."""
        first = len(self.logs)
        self.logs += [self.folder / f"worker-{n}.log" for n in range(first, first + count)]
        starting = [
            self._stack.enter_async_context(worker(dict(self.env), log))
            for log in self.logs[first:]
        ]
        self.running += await asyncio.gather(*starting)

    async def stop(self, *which: Running) -> None:
        """SIGTERM to these at once, or to all, and wait for their ends.

        Raises:
            BenchError: one did not end in time, or not with status 0.
        """
        told = which or tuple(self.running)
        for each in told:
            self.peaks_bytes.append(each.peak_bytes())
            each.process.send_signal(signal.SIGTERM)
        for each in told:
            self.running.remove(each)
            try:
                async with asyncio.timeout(_STOP_S):
                    status = await each.process.wait()
            except TimeoutError as exc:
                raise BenchError(f"{each.log.name}: did not end in {_STOP_S} s") from exc
            if status != 0:
                raise BenchError(f"{each.log.name}: ended with status {status}")

    async def served_all(self, uploads: Uploads) -> None:
        """Wait until each upload was acknowledged: an empty queue says nothing of what they hold.

        Raises:
            BenchError: it took too long.
        """
        wait_s = _SERVED_S + uploads.count / _SLOWEST_PER_S
        until = time.perf_counter() + wait_s
        while len({line["upload_id"] for line in self.served()}) < uploads.count:
            if time.perf_counter() > until:
                raise BenchError(f"not every upload was acknowledged in {wait_s:.0f} s")
            await asyncio.sleep(_LOOK_S)

    def served(self) -> list[dict[str, Any]]:
        """The log lines of all uploads that any of them served to its end."""
        lines = [line for log in self.logs for line in log.read_text().splitlines()]
        told = [json.loads(line) for line in lines if '"upload.stored"' in line]
        return [line for line in told if line["event"] == "upload.stored"]


@asynccontextmanager
async def crew(env: Mapping[str, str], folder: Path) -> AsyncIterator[Crew]:
    """No workers yet; those that run at the block's end are told to stop."""
    async with AsyncExitStack() as stack:
        yield Crew(env, folder, stack)
