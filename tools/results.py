"""The results of long runs as data, and the tables that are made from them (docs/operations).

    python -m tools.results check chaos make chaos    run a command, and note how it ended
    python -m tools.results bench FILE …              take over what the bench wrote as JSON
    python -m tools.results page                      write the tables of the page again

`results.json` is of one release: what an earlier one left is dropped with the first new result.
A failed check is noted like any other, and its exit status is passed on.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.bench.figures import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ROOT: Final = Path(__file__).parents[1]
DATA: Final = _ROOT / "docs" / "operations" / "results.json"
PAGE: Final = _ROOT / "docs" / "operations" / "results.md"
_MET: Final = {True: "yes", False: "**no**", None: "-"}


def read(path: Path, release: str) -> dict[str, Any]:
    """The data of this release; empty if there is none, or only that of another one."""
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if data.get("release") == release:
        return data
    return {"release": release, "checks": {}, "bench": {}}


def run_check(data: dict[str, Any], name: str, command: Sequence[str]) -> int:
    """Run a command and note how it ended; returns its exit status."""
    began = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    data["checks"][name] = {
        "command": shlex.join(command),
        **_when(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "passed": status == 0,
    }
    return status


def take_bench(data: dict[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    """Replace the bench's rows by those of these documents, of which no row may occur twice.

    Raises:
        ValueError: a row occurs twice.
    """
    rows = [row for document in measured for row in document["rows"]]
    names = [(row["figure"], row["server"], row["against"], row["unit"]) for row in rows]
    if len(set(names)) != len(names):
        raise ValueError("a figure was measured twice")
    notes = [note for document in measured for note in document["notes"]]
    data["bench"] = {**_when(), "notes": notes, "rows": rows}


def _when() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=_ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {"on": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip()}


def tables(data: Mapping[str, Any]) -> dict[str, str]:
    """The text between the markers of the page, by name."""
    return {
        "checks": "\n".join(_checks(data["release"], data["checks"])),
        "bench": "\n".join(_bench(data["release"], data["bench"])),
    }


def _checks(release: str, checks: Mapping[str, Any]) -> Iterator[str]:
    if not checks:
        yield f"None has been run for {release} yet."
        return
    yield "| check | command | on | commit | minutes | passed |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, check in sorted(checks.items()):
        yield (
            f"| {name} | `{check['command']}` | {check['on']} | {check['commit']} "
            f"| {check['minutes']:g} | {_MET[check['passed']]} |"
        )


def _bench(release: str, bench: Mapping[str, Any]) -> Iterator[str]:
    if not bench:
        yield f"It has not been run for {release} yet."
        return
    yield f"Measured with {release} on {bench['on']}, commit {bench['commit']}."
    yield ""
    yield "| figure | ours | theirs | ratio | aim | met |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in bench["rows"]:
        theirs = f"{_spread(row['theirs'])}, {row['against']}" if row["theirs"] else "-"
        ratio = _spread(row["ratio"]) if row["ratio"] else "-"
        yield (
            f"| {row['figure']} ({row['server']}) | {_spread(row['ours'])} {row['unit']} "
            f"| {theirs} | {ratio} | {row['aim'] or '-'} | {_MET[row['met']]} |"
        )
    yield ""
    yield from (f"- {note}" for note in bench["notes"])


def _spread(spread: Mapping[str, Any]) -> str:
    """The median, and the range where there is one."""
    low, high = number(spread["min"]), number(spread["max"])
    return number(spread["median"]) + ("" if low == high else f" ({low}\N{EN DASH}{high})")


def placed(page: str, data: Mapping[str, Any]) -> str:
    """The page with the tables of this data.

    Raises:
        ValueError: the page has not exactly one place for each table.
    """
    for name, text in tables(data).items():
        marked = re.compile(
            rf"(<!-- results: begin {name} -->\n).*?(<!-- results: end {name} -->)", re.DOTALL
        )
        found = marked.findall(page)
        if len(found) != 1:
            raise ValueError(f"{len(found)} places for the table {name}")
        before, _, rest = page.partition(found[0][0])
        page = f"{before}{found[0][0]}{text}\n{found[0][1]}{rest.partition(found[0][1])[2]}"
    return page


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__)
    commands = parser.add_subparsers(dest="do", required=True)
    check = commands.add_parser("check")
    check.add_argument("name")
    check.add_argument("command", nargs=argparse.REMAINDER)
    commands.add_parser("bench").add_argument("files", nargs="+", type=Path)
    commands.add_parser("page")
    given = parser.parse_args(argv)
    data, status = read(DATA, version("keyturn-workers")), 0
    if given.do == "check":
        status = run_check(data, given.name, given.command)
    elif given.do == "bench":
        take_bench(data, [json.loads(file.read_text()) for file in given.files])
    DATA.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(placed(PAGE.read_text(), data))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
