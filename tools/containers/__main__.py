"""`python -m tools.containers image compose`: builds the images and runs them for real.

Uses the Docker engine that is there. Without one, as root on Debian, it starts a private one and
removes all of it afterwards. Where that is impossible it says why, and exits 0; with `--require`,
or `KEYTURN_REQUIRE_CONTAINERS=1`, it exits 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.containers.compose_test import ComposeTest
from tools.containers.container import CheckFailedError, Report
from tools.containers.engine import (
    CannotRunError,
    DockerError,
    Engine,
    PrivateEngine,
    find_engine,
    install,
    leave_mounts,
    leave_network,
)
from tools.containers.image_test import ImageTest
from tools.containers.images import Images, copy_sources
from tools.servers.process import remove_scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TESTS: Final = ("image", "compose")
REQUIRE: Final = "KEYTURN_REQUIRE_CONTAINERS"


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder on disk: images are large, and /tmp may be memory."""
    folder = Path(tempfile.mkdtemp(prefix="keyturn-containers-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        remove_scratch(folder)


class _Session:
    """The engine, the images, and then the tests."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.project = folder / "clone"

    def engine_with_images(self) -> Engine:
        """Find or start an engine, and build the images."""
        copy_sources(self.project)
        if (given := find_engine()) is not None:
            images = Images(given, self.project, self._folder)
            self._stack.callback(images.remove)
            images.provide()
            return given
        install()
        leave_mounts()
        folder = self._folder / "engine"
        private = PrivateEngine(folder)
        self._stack.callback(private.remove)
        private.start(bridge=False)
        Images(private.engine, self.project, folder).provide()
        # From here on nothing is fetched: what runs is alone in a network of its own.
        private.stop()
        leave_network()
        private.start(bridge=True)
        return private.engine


def run(tests: Sequence[str]) -> None:
    with scratch() as folder, ExitStack() as stack:
        started = time.monotonic()
        session = _Session(folder, stack)
        engine = session.engine_with_images()
        kind = "a private engine" if engine.is_private else "the engine that is there"
        print(f"images built on {kind} in {time.monotonic() - started:.0f} s", flush=True)
        for test in _TESTS:
            if test in tests:
                report = Report(f"{test}-test")
                try:
                    if test == "image":
                        ImageTest(engine, session.project, folder, report).run()
                    else:
                        ComposeTest(engine, session.project, report).run()
                finally:
                    report.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.containers")
    parser.add_argument("tests", nargs="+", choices=_TESTS, metavar="TEST", help="image, compose")
    parser.add_argument("--require", action="store_true", help="fail where it cannot run")
    options = parser.parse_args(arguments)
    tests = options.tests
    try:
        run(tests)
    except CannotRunError as exc:
        required = options.require or os.environ.get(REQUIRE, "") not in ("", "0")
        names = " and ".join(f"{test}-test" for test in tests)
        print(f"{names} {'cannot run' if required else 'skipped'}: {exc}", flush=True)
        return 1 if required else 0
    except (CheckFailedError, DockerError) as exc:
        print(exc, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
