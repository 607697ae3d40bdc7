"""A worker or gateway that samples its own stack: `python -m tools.bench.stack_sampler FILE ROLE`.

A timer of the process's CPU time interrupts it every few milliseconds, so that waiting
costs nothing and counts for nothing. For a separate round, which is never timed. On SIGUSR1 it
begins anew, so that its start does not count; on SIGTERM it ends as always, and what was seen is
written to FILE: stacks with their number, and the sixty functions that were seen most often.
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
from keyturn_workers.pipeline.worker.process import run_worker
from keyturn_workers.process.logging import configure
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings

if TYPE_CHECKING:
    from types import FrameType

_INTERVAL_S = 0.002
_DEPTH = 60


class Sampler:
    """Counts stacks of file names on SIGPROF."""

    def __init__(self) -> None:
        self.stacks: Counter[tuple[str, ...]] = Counter()
        self.lines: Counter[str] = Counter()

    def start(self) -> None:
        """Begin; only the main thread can."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._begin)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _begin(self, _number: int, _frame: FrameType | None) -> None:
        self.stacks.clear()
        self.lines.clear()

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
    sampler.start()
    try:
        if isinstance(settings, GatewaySettings):
            uvloop.run(run_gateway(settings))
        else:
            uvloop.run(run_worker(settings, frozenset({role})))
    finally:
        sampler.stop()
        found = {
            "stacks": list(sampler.stacks.items()),
            "functions": dict(sampler.lines.most_common(60)),
        }
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
