"""The tables of docs/operations/capacity.md, made from `measured.json` and `checked.json`.

Each is between two comments with its name, and replaces the text there.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.figures import number
from tools.capacity import check
from tools.capacity.check import FULL
from tools.capacity.plan import CapacityRequest, reads, rotation, size, uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.capacity.check import Compared
    from tools.capacity.measured import Measured, Operation

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations" / "capacity.md"
ASKS = (
    CapacityRequest(1e6, 1),
    CapacityRequest(1e6, 24),
    CapacityRequest(1e9, 24),
    CapacityRequest(1e9, 24 * 7),
    CapacityRequest(1e9, 24 * 30),
)
SIZES = (4 * 2**10, 64 * 2**10, 256 * 2**10, 2**20, 16 * 2**20)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs(measured: Measured) -> str:
    """CPU time an object by size, the servers' own time, and requests."""
    named: list[tuple[str, Operation]] = [
        ("upload, inline", measured.upload),
        ("upload, staged", measured.staged),
        ("rotation, writing", measured.writing),
        ("rotation, proving", measured.proving),
        ("download", measured.read),
    ]
    return _table(
        ["of one object", "CPU, ms", "own time, ms", "writes", "reads"],
        [
            [
                name,
                ", ".join(f"{number(at.cpu_ms)} ({size(at.size_bytes)})" for at in one.cpu),
                number(one.own_ms),
                number(one.writes),
                number(one.reads),
            ]
            for name, one in named
        ],
    )


def broker(measured: Measured) -> str:
    """What an upload costs the broker."""
    units = {
        "message_bytes": "bytes of a request besides its body",
        "event_bytes": "bytes of its event in the stream",
        "disk_factor": "bytes of disk for each byte that waits",
        "memory_factor": "bytes of memory for each byte that waits",
        "cpu_ms": "CPU of the broker an upload, ms",
        "publisher_cpu_ms": "CPU of the publisher an upload, ms",
    }
    values = asdict(measured.broker)
    rows = [[text, number(values[name])] for name, text in units.items()]
    rows.append(["requests of a page besides its objects'", number(measured.page_requests)])
    return _table(["broker, and pages", "measured"], rows)


def plans(measured: Measured) -> str:
    """Processes for a million and a billion objects."""
    parts: list[tuple[str, Callable[[Measured, CapacityRequest], list[tuple[str, str]]]]] = [
        ("Uploads of 4 KiB", uploads),
        ("A rotation of one project", rotation),
        ("Downloads of 4 KiB", reads),
    ]
    head = ["", *(f"{ask.objects:,.0f} in {ask.hours:g} h" for ask in ASKS)]
    made = []
    for title, answers in parts:
        columns = [answers(measured, ask) for ask in ASKS]
        rows = [[same[0][0], *(value for _, value in same)] for same in zip(*columns, strict=True)]
        made.append(f"**{title}**\n\n{_table(head, rows)}")
    return "\n\n".join(made)


def by_size(measured: Measured) -> str:
    """A million in an hour, by size."""
    rows = []
    for size_bytes in SIZES:
        ask = CapacityRequest(1e6, 1, size_bytes)
        up, down = dict(uploads(measured, ask)), dict(reads(measured, ask))
        rows.append(
            [
                size(size_bytes),
                up["one worker"],
                up["upload workers"],
                up["all at once would take"],
                down["one gateway"],
                down["gateways"],
                down["network, each way"],
            ]
        )
    head = ["size", "one worker", "workers", "backlog", "one gateway", "gateways", "network"]
    return _table(head, rows)


def compared(rows: Sequence[Compared]) -> str:
    """Predicted against seen."""
    head = [
        "",
        "added latency",
        "workers",
        "predicted /s",
        "seen /s",
        "error",
        "cores busy",
        "counts",
    ]
    return _table(
        head,
        [
            [
                row.operation,
                f"{row.delay_ms} ms",
                str(row.workers),
                number(row.predicted),
                number(row.seen),
                f"{row.error:+.0%}",
                f"{row.busy:.0%}",
                "yes" if row.claimed else f"no (above {FULL:.0%})",
            ]
            for row in rows
        ],
    )


def claim(rows: Sequence[Compared]) -> str:
    """One sentence about the errors."""
    claimed = [row for row in rows if row.claimed]
    if not claimed:
        return f"None of {len(rows)} rows left the cores room: nothing is claimed."
    errors = sorted(abs(row.error) for row in claimed)
    return (
        f"Of {len(rows)} rows {len(claimed)} left the cores room; there the prediction was off by "
        f"{errors[len(errors) // 2]:.0%} in the middle and {errors[-1]:.0%} at most."
    )


def filled(text: str, measured: Measured, rows: Sequence[Compared]) -> str:
    """The document with every table made anew.

    Raises:
        ValueError: a table has no place in it.
    """
    tables = {
        "costs": costs(measured),
        "broker": broker(measured),
        "plans": plans(measured),
        "by-size": by_size(measured),
        "compared": compared(rows),
        "claim": claim(rows),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{begin} has no place")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def write(measured: Measured) -> None:
    """Make the document's tables from the two files."""
    _, rows = check.committed()
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), measured, rows))
