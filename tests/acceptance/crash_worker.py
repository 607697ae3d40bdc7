"""A worker that kills itself at a named point.

`python -m tests.acceptance.crash_worker worker ROLE --point P`

For the promise that nothing is lost (SPEC 6.2, 7.1, 8.5). The real worker is patched from outside
and kills its own process with SIGKILL, so that no handler, buffer or `finally` gets a last word;
the product itself holds no hook for any of this. It must never be imported by anything but its
tests.
"""

from __future__ import annotations

import argparse
import os
import signal

import uvloop

from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.worker import process
from keyturn_workers.pipeline.worker.wiring import ALL_ROLES
from keyturn_workers.process.logging import configure
from keyturn_workers.process.settings import WorkerSettings
from tests.acceptance import points
from tests.acceptance.sweep_points import SWEEP_POINTS
from tools.harness.known_storage import assume

POINTS = points.POINTS | SWEEP_POINTS


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(prog="crashing")
    parser.add_argument("command", choices=["worker"])
    parser.add_argument("role", choices=[*ALL_ROLES, "all"])
    parser.add_argument("--point", choices=POINTS, required=True)
    parser.add_argument("--conditional-completion", action="store_true")
    arguments = parser.parse_args()
    settings = WorkerSettings.read()
    configure(settings.log_format, settings.log_level)
    # A real measurement would already reach many of the crash points.
    assume(Capabilities(conditional_completion=arguments.conditional_completion))
    POINTS[arguments.point].install(_die)
    roles = ALL_ROLES if arguments.role == "all" else frozenset({arguments.role})
    uvloop.run(process.run_worker(settings, roles))


if __name__ == "__main__":
    main()
