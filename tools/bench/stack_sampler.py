"""A worker or gateway that samples its own stack: `python -m tools.bench.stack_sampler FILE ROLE`.

A timer of the process's CPU time interrupts it every few milliseconds, so that waiting
costs nothing and counts for nothing. For a separate round, which is never timed. It also
counts the records that it reads from the storage. On SIGUSR1 it begins anew, so that its start
does not count; on SIGTERM it ends as always, and what was seen is written to FILE.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from keyturn_workers.gateway.server import run_gateway
from keyturn_workers.settings import GatewaySettings, WorkerSettings
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.worker.logging import configure
from keyturn_workers.worker.process import run_worker
from tools.bench.layers import shares

if TYPE_CHECKING:
    from types import FrameType

    from keyturn_workers.storage import ObjectHead

_INTERVAL_S = 0.002
_DEPTH = 60


class Sampler:
    """Counts stacks of file names on SIGPROF."""

    def __init__(self) -> None:
        self.stacks: Counter[tuple[str, ...]] = Counter()
        self.lines: Counter[str] = Counter()
        self.reads = 0

    def start(self) -> None:
        """Begin; only the main thread can."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._begin)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def count_reads(self) -> None:
        """Count from now on what `S3Storage.read` reads."""
        read = S3Storage.read

        async def counted(storage: S3Storage, key: str, **limits: int) -> tuple[ObjectHead, bytes]:
            self.reads += 1
            return await read(storage, key, **limits)

        S3Storage.read = counted  # type: ignore[method-assign,assignment]

    def _begin(self, _number: int, _frame: FrameType | None) -> None:
        self.stacks.clear()
        self.lines.clear()
        self.reads = 0

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        # Built-in checks count for their caller.
        while frame is not None and frame.f_code.co_filename.startswith("<"):
            frame = frame.f_back
        if frame is not None:
            self.lines[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1
        while frame is not None and len(stack) < _DEPTH:
            stack.append(frame.f_code.co_filename)
            frame = frame.f_back
        self.stacks[tuple(stack)] += 1


def main() -> None:
    """Serve the role until SIGTERM, then write the samples."""
    role = sys.argv[2]
    settings = GatewaySettings.read() if role == "gateway" else WorkerSettings.read()
    configure(settings.log_format, settings.log_level)
    sampler = Sampler()
    sampler.count_reads()
    sampler.start()
    try:
        if isinstance(settings, GatewaySettings):
            uvloop.run(run_gateway(settings))
        else:
            uvloop.run(run_worker(settings, frozenset({role})))
    finally:
        sampler.stop()
        found = {
            "layers": shares(sampler.stacks),
            "functions": dict(sampler.lines.most_common(60)),
            "reads": sampler.reads,
        }
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
