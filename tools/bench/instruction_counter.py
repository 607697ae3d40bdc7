"""An upload worker that counts its Python instructions.

`python -m tools.bench.instruction_counter FILE` counts from SIGUSR1 to SIGUSR2 (counting slows the
worker down), and writes the number to FILE when it ends. The CPU time of an upload depends on
everything else that the machine does; the number of instructions hardly does. Native code, such as
cryptography, and other threads, such as the exporter's, are not counted.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from keyturn_workers.settings import WorkerSettings
from keyturn_workers.tracing import open_tracing
from keyturn_workers.worker.logging import configure
from keyturn_workers.worker.process import run_worker

if TYPE_CHECKING:
    from types import FrameType

BEGIN: Final = signal.SIGUSR1
END: Final = signal.SIGUSR2


class InstructionCounter:
    """Counts the instructions of one thread while it is active."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self, *_: object) -> None:
        """Count what is called from now on in this thread."""
        self.count = 0
        sys.settrace(self._call)

    def end(self, *_: object) -> None:
        """Stop counting."""
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            self.count += 1
        return self._step


def main() -> None:
    """Serve until SIGTERM, then write the number."""
    settings = WorkerSettings.read()
    configure(settings.log_format, settings.log_level)
    counter = InstructionCounter()
    signal.signal(BEGIN, counter.begin)
    signal.signal(END, counter.end)
    try:
        with open_tracing(settings, "keyturn-worker-upload") as parts:
            uvloop.run(run_worker(settings, frozenset({"upload"}), parts))
    finally:
        counter.end()
        Path(sys.argv[1]).write_text(str(counter.count))


if __name__ == "__main__":
    main()
