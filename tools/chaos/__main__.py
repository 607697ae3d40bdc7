"""`python -m tools.chaos --seed N`: one run of faults on private servers, told as a report.

Exit status 0 where every check holds, 1 where one fails, 2 where the servers did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from tools.chaos.checks import judge
from tools.chaos.run import run
from tools.chaos.schedule import make_plan
from tools.servers import Servers
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from tools.chaos.schedule import Plan

_SHOWN = 12


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of everything random; a fresh one by default")
    parser.add_argument("--uploads", type=int, default=3000, help="how many (default: 3000)")
    parser.add_argument("--server", choices=("ceph", "moto"), default="ceph")
    parser.add_argument("--timeout-s", type=float, default=600, help="to settle (default: 600)")
    parser.add_argument("--keep", type=Path, help="keep schedule, logs, metrics, disks and report")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and do nothing")
    return parser.parse_args()


def print_schedule(plan: Plan) -> None:
    """A line an action, storms in brief."""
    print(f"seed {plan.seed}: {plan.count} uploads in {len(plan.load.order)} sendings")
    for action in plan.actions:
        told = action.shown()
        rest = ", ".join(f"{name} {value}" for name, value in told.items() if name != "at")
        print(f"  after {action.at:>5} confirmed: {rest}")


def print_report(found: dict[str, list[str]], counts: dict[str, object], again: str) -> bool:
    """The report; whether every check holds."""
    print(json.dumps(counts, indent=2))
    for name, broken in found.items():
        print(f"{'FAILED' if broken else 'holds '}  {name}")
        for line in broken[:_SHOWN]:
            print(f"        {line}")
        if len(broken) > _SHOWN:
            print(f"        and {len(broken) - _SHOWN} more")
    holds = not any(found.values())
    print(f"{'all hold' if holds else 'BROKEN'}; again: {again}")
    return holds


def _go(said: argparse.Namespace, plan: Plan, folder: Path, again: str) -> int:
    (folder / "schedule.json").write_text(json.dumps(plan.shown(), indent=1))
    began = time.monotonic()
    with Servers(said.server, environ={}) as servers:
        assert servers.rabbitmq is not None
        running = run(plan, servers.rabbitmq, servers.s3, folder, timeout_s=said.timeout_s)
        evidence = uvloop.run(running)
        found = judge(evidence)
    evidence.counts["seconds in all"] = round(time.monotonic() - began, 1)
    (folder / "report.json").write_text(
        json.dumps({"seed": plan.seed, "counts": evidence.counts, "broken": found}, indent=1)
    )
    return 0 if print_report(found, evidence.counts, again) else 1


def main() -> int:
    """Plan, run, check."""
    said = _arguments()
    # What was started here ends with it, however it is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Losses are what it is about: aio-pika's tracebacks of them say nothing new.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited")
    seed = random.SystemRandom().randrange(10**6) if said.seed is None else said.seed
    plan = make_plan(seed, said.uploads)
    print_schedule(plan)
    if said.schedule:
        return 0
    again = f'make chaos ARGS="--seed {seed} --uploads {said.uploads} --server {said.server}"'
    folder = said.keep or Path(tempfile.mkdtemp(prefix="keyturn-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _go(said, plan, folder, again)
    except (ServerError, MissingPackagesError) as exc:
        print(exc, file=sys.stderr)
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"stopped; again: {again}", file=sys.stderr)
        return 1
    finally:
        if said.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
