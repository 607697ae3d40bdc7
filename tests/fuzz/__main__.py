"""`python -m tests.fuzz`: mutate what comes from outside, print a table, name what was found.

Exit status 1 where anything was found. `--replay FILE` takes one input again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from tests.fuzz import coverage_guided, events, harness, live_workers, requests, valid_messages
from tests.fuzz.cases import Case
from tests.fuzz.harnesses import ALL
from tests.fuzz.watch import Report, Watch
from tools.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNTS: Final = {"requests": 100_000, "events": 20_000, "live": 5_000}
_PARTS: Final = (*_COUNTS, *ALL)
_AT_RANDOM: Final = 20_000
_SECONDS: Final = 60
_SHOWN_OUTCOMES: Final = 6


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz Keyturn.")
    parser.add_argument(
        "--only",
        default=",".join(_PARTS),
        metavar="PART,PART",
        help=f"some of {', '.join(_PARTS)}",
    )
    parser.add_argument("--seed", type=int, help="what all is drawn from; the time by default")
    parser.add_argument("--count", type=int, help=f"inputs of a part; {_COUNTS} by default")
    parser.add_argument(
        "--seconds", type=int, default=_SECONDS, help=f"of a harness, guided; {_SECONDS} by default"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input of the part named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    given = parser.parse_args(argv)
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(_PARTS):
        parser.error(f"--only knows {', '.join(_PARTS)}, not {', '.join(sorted(unknown))}")
    if given.replay and (len(given.only) != 1 or given.only == ["live"]):
        parser.error("--replay wants --only with the one part (of live, use requests)")
    if given.seed is None:
        given.seed = int(time.time())
    return given


def _run(part: str, given: argparse.Namespace) -> Report:
    count = given.count or _COUNTS.get(part, _AT_RANDOM)
    match part:
        case "requests":
            return requests.run(given.seed, count)
        case "events":
            return events.run(given.seed, count)
        case "live":
            with Servers("ceph") as servers:
                deployment = valid_messages.deployment(
                    servers.amqp_url, servers.s3, servers.new_bucket()
                )
                return live_workers.run(deployment, given.seed, count)
    if not coverage_guided.is_there():
        return harness.at_random(ALL[part], given.seed, count)
    return coverage_guided.run(part, given.seed, given.seconds)


def _replay(part: str, file: Path) -> Report:
    data = file.read_bytes()
    if part == "requests":
        return asyncio.run(requests.replay(Case.load(data)))
    if part == "events":
        return events.replay(data)
    watch = Watch(part, 0)
    harness.one(watch, ALL[part], data)
    return watch.finish()


def _reports(given: argparse.Namespace) -> Iterator[Report]:
    if given.replay:
        yield _replay(given.only[0], given.replay)
        return
    for part in given.only:
        yield _run(part, given)


def _table(reports: list[Report], seed: int) -> Table:
    table = Table(title=f"fuzzed, seed {seed}", title_justify="left")
    for name in ("part", "inputs", "slowest, ms", "memory, MiB", "outcomes", "findings"):
        table.add_column(name, justify="left" if name in ("part", "outcomes") else "right")
    for report in reports:
        outcomes = report.outcomes.most_common()
        shown = "\n".join(f"{count:>7,} {name}" for name, count in outcomes[:_SHOWN_OUTCOMES])
        rest = sum(count for _, count in outcomes[_SHOWN_OUTCOMES:])
        before, after = report.rss_mib
        table.add_row(
            report.part,
            f"{report.inputs:,}",
            f"{report.slowest_ms:.0f}" if report.slowest_ms else "-",
            f"{before} → {after}" if before else f"{after or '-'}",
            shown
            + (f"\n{rest:>7,} in {len(outcomes) - _SHOWN_OUTCOMES} more ways" if rest else ""),
            str(len(report.findings)),
            end_section=True,
        )
    return table


def main(argv: list[str]) -> int:
    """Run what was asked for; gives the exit status."""
    given = _arguments(argv)
    console = Console()
    reports = []
    for report in _reports(given):
        reports.append(report)
        console.print(f"{report.part}: {report.inputs:,} inputs, {len(report.findings)} findings")
    console.print(_table(reports, given.seed))
    if given.json:
        given.json.write_text(json.dumps([report.as_json() for report in reports], indent=1))
    found = [(report, one) for report in reports for one in report.findings]
    for report, one in found:
        part = report.part.removesuffix(", guided").replace("live", "requests")
        console.print(f"FOUND in {report.part}: {one.what}", markup=False, highlight=False)
        command = f'make fuzz ARGS="--only {part} --replay {one.file}"'
        console.print(f"  again: {command}" if one.file else "", markup=False, highlight=False)
    if found:
        console.print(
            f'all of it: make fuzz ARGS="--only {",".join(given.only)} --seed {given.seed}"'
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
