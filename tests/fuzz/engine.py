"""The coverage-guided engine's own process: atheris (libFuzzer) over one harness.

    python -m tests.fuzz.engine HARNESS -max_total_time=60 -seed=1 CORPUS

Everything behind the harness's name is libFuzzer's; a file in place of the corpus is run once.
What is to be seen must be imported by the engine: nothing of ours is imported before it.
"""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_SEEN: Final = ["keyturn", "keyturn_workers", "pamqp", "aio_pika.message", "email", "json.decoder"]


def main(arguments: list[str]) -> None:
    """Fuzz until the time is over, or something is found."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=_SEEN):
        harnesses: Any = import_module("tests.fuzz.harnesses")
        watch: Any = import_module("tests.fuzz.watch")
    harness = harnesses.ALL[arguments[1]]
    folder = Path(arguments[-1])
    if folder.is_dir():
        for data in harness.seeds():
            name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            (folder / name).write_bytes(data)

    def taken_s(data: bytes) -> float:
        clock = watch.Clock()
        harness.run(data)
        passed_s: float = clock.passed_s()
        return passed_s

    def one(data: bytes) -> None:
        # Instrumented it is slower; and one that is slow must be slow again.
        limit_s = 2 * watch.MAX_CPU_S
        if taken_s(data) > limit_s and taken_s(data) > limit_s:
            raise TimeoutError(f"more than {limit_s} s of CPU for {len(data)} bytes")

    atheris.Setup([arguments[0], *arguments[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
