"""`python -m tools.chaos [chaos|load|capacity]`: one of the profiles, on private servers.

The profile `chaos` exits with 0 if every check holds, with 1 if one fails, and with 2 if the
servers did not start.
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

from tools.chaos import capacity, drain
from tools.chaos.checks import run_checks
from tools.chaos.plan import make_plan
from tools.chaos.run import run
from tools.servers import Servers
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from tools.chaos.plan import Plan

_SHOWN = 12


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="random seed of the run (default: a fresh one)")
    parser.add_argument(
        "--uploads", type=int, default=3000, help="number of uploads (default: 3000)"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=600, help="time limit of the run (default: 600)"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for schedule, logs, metrics, disks and report"
    )
    parser.add_argument("--schedule", action="store_true", help="only print the schedule")
    return parser.parse_args(argv)


def print_schedule(plan: Plan) -> None:
    """One line per action."""
    print(f"seed {plan.seed}: {plan.count} uploads in {len(plan.load.order)} publishes")
    for action in plan.actions:
        details = action.shown()
        rest = ", ".join(f"{name} {value}" for name, value in details.items() if name != "at")
        print(f"  after {action.at:>5} confirmed: {rest}")


def print_report(found: dict[str, list[str]], counts: dict[str, object], again: str) -> bool:
    """Print the report; returns whether every check holds."""
    print(json.dumps(counts, indent=2))
    for name, broken in found.items():
        print(f"{'FAILED' if broken else 'holds '}  {name}")
        for line in broken[:_SHOWN]:
            print(f"        {line}")
        if len(broken) > _SHOWN:
            print(f"        and {len(broken) - _SHOWN} more")
    holds = not any(found.values())
    print(f"{'all checks hold' if holds else 'CHECKS FAILED'}; repeat with: {again}")
    return holds


def _go(given: argparse.Namespace, plan: Plan, folder: Path, again: str) -> int:
    (folder / "schedule.json").write_text(json.dumps(plan.shown(), indent=1))
    began = time.monotonic()
    with Servers("ceph", environ={}) as servers:
        assert servers.rabbitmq is not None
        running = run(plan, servers.rabbitmq, servers.s3, folder, timeout_s=given.timeout_s)
        evidence = uvloop.run(running)
        found = run_checks(evidence)
    evidence.counts["seconds in total"] = round(time.monotonic() - began, 1)
    (folder / "report.json").write_text(
        json.dumps({"seed": plan.seed, "counts": evidence.counts, "broken": found}, indent=1)
    )
    return 0 if print_report(found, evidence.counts, again) else 1


def chaos(argv: list[str]) -> int:
    """Plan and run, then check and report."""
    given = _arguments(argv)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    plan = make_plan(seed, given.uploads)
    print_schedule(plan)
    if given.schedule:
        return 0
    again = f'make chaos ARGS="--seed {seed} --uploads {given.uploads}"'
    folder = given.keep or Path(tempfile.mkdtemp(prefix="keyturn-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _go(given, plan, folder, again)
    except (ServerError, MissingPackagesError) as exc:
        print(exc, file=sys.stderr)
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"stopped; repeat with: {again}", file=sys.stderr)
        return 1
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


PROFILES = {"chaos": chaos, "load": drain.main, "capacity": capacity.main}


def main(argv: list[str]) -> int:
    """Run the profile that the first argument names, by default `chaos`."""
    # On SIGTERM it still stops everything that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Connection losses and unsigned messages are intended: what libraries log of them is noise.
    for name in ("aiormq", "keyturn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited")
    if argv and argv[0] in PROFILES:
        return PROFILES[argv[0]](argv[1:])
    return chaos(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
