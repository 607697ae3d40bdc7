"""The upload workers of a run: real processes that are started, stopped and replaced.

Each logs to its own file, which remains after the process ended.
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
class WorkerPool:
    """Workers that serve `keyturn.upload`; `running` are the present ones."""

    env: Mapping[str, str]
    folder: Path
    _stack: AsyncExitStack
    running: list[Running] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)
    """Peak memory of the stopped workers, as the kernel reports it."""

    async def start(self, count: int = 1) -> None:
        """Start `count` more workers concurrently; they serve when this returns."""
        first = len(self.logs)
        self.logs += [self.folder / f"worker-{n}.log" for n in range(first, first + count)]
        starting = [
            self._stack.enter_async_context(worker(dict(self.env), log))
            for log in self.logs[first:]
        ]
        self.running += await asyncio.gather(*starting)

    async def stop(self, *which: Running) -> None:
        """Send SIGTERM to these workers, by default to all, and wait until they exit.

        Raises:
            BenchError: one did not exit in time, or not with status 0.
        """
        stopping = which or tuple(self.running)
        for each in stopping:
            self.peaks_bytes.append(each.peak_bytes())
            each.process.send_signal(signal.SIGTERM)
        for each in stopping:
            self.running.remove(each)
            try:
                async with asyncio.timeout(_STOP_S):
                    status = await each.process.wait()
            except TimeoutError as exc:
                raise BenchError(f"{each.log.name}: did not exit within {_STOP_S} s") from exc
            if status != 0:
                raise BenchError(f"{each.log.name}: exited with status {status}")

    async def wait_until_all_served(self, uploads: Uploads) -> None:
        """Wait until each upload is acknowledged: an empty queue does not show unacknowledged ones.

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
        """The log lines of all uploads that the workers have stored."""
        lines = [line for log in self.logs for line in log.read_text().splitlines()]
        reports = [json.loads(line) for line in lines if '"upload.stored"' in line]
        return [line for line in reports if line["event"] == "upload.stored"]


@asynccontextmanager
async def worker_pool(env: Mapping[str, str], folder: Path) -> AsyncIterator[WorkerPool]:
    """An empty pool; workers that still run at the end of the block are stopped."""
    async with AsyncExitStack() as stack:
        yield WorkerPool(env, folder, stack)
