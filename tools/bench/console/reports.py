"""What control workers do for consoles: inventories, their own reports, and rotations meanwhile.

| figure | what it is |
| --- | --- |
| an inventory, cold | all keyrings, a page of 1,000 each, by a worker that has read none of them |
| the same, unchanged | again, each page with the digest that is known |
| own reports | CPU time of one, by a worker that does nothing else |
| a rotation in a flood | from its request to `rotation.accepted`, behind census pages |

The sides take turns in one run.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyturn.crypto import new_api_key
from keyturn.messages import RotationAccepted, StatusReported
from keyturn.publisher import Publisher
from keyturn.settings import NamedIntakeKey, PublisherSettings
from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.processes import BenchError, worker
from tools.bench.rotation.delay_proxy import delay_proxy
from tools.harness import console_projects
from tools.harness.console import PUBLISHER, ConsoleDeployment

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.processes import Running

_PAGE: Final = 1000
_REPORTS: Final = 200
_REPORT_INTERVAL_S: Final = 0.05
# As many as one worker holds; further ones are answered at once.
_FLOOD: Final = 8
_ROTATIONS: Final = 5
_TIMEOUT_S: Final = 120
_HOUR_S: Final = 3600
_INTERVAL_S: Final = 15


def publisher_settings(deployment: ConsoleDeployment) -> PublisherSettings:
    """The console's own, as a publisher."""
    return PublisherSettings(
        deployment=deployment.name,
        amqp_url=deployment.amqp_url,
        publisher_name=PUBLISHER,
        publisher_key=deployment.console_key,
        intake_public_key=NamedIntakeKey("main", deployment.intake.public_key),
        event_public_key=deployment.event_key.verify_key(),
    )


@dataclass(frozen=True)
class _Inventory:
    """One walk through all keyrings."""

    seconds: float
    cpu_s: float
    rows: int
    known: dict[str | None, str]


async def measure(
    deployment: ConsoleDeployment, scratch: Path, *, projects: int, rounds: int
) -> list[Row]:
    """All rows."""
    await console_projects.put_keyrings(deployment, console_projects.names(projects))
    rows = await _inventories(deployment, scratch, projects, rounds)
    rows += await _rotations(deployment, scratch, rounds)
    rows.append(await _own_reports(deployment, scratch, rounds))
    return rows


# Inventories.


async def _inventories(
    deployment: ConsoleDeployment, scratch: Path, projects: int, rounds: int
) -> list[Row]:
    cold, warm = list[_Inventory](), list[_Inventory]()
    async with Publisher.open(publisher_settings(deployment)) as publisher:
        for turn in range(rounds):
            log = scratch / f"reports-{turn}.log"
            async with worker(deployment.worker_env(), log, "control") as running:
                cold.append(await _inventory(publisher, running))
                warm.append(await _inventory(publisher, running, cold[-1].known))
        requests = await _requests(deployment, scratch, publisher)
    if cold[0].rows != projects or any(each.rows for each in warm):
        raise BenchError("an inventory has other rows than there are projects")
    name, server = f"an inventory of {projects:,} projects", deployment.s3.kind
    figures = [
        ("", "s", [each.seconds for each in cold], [each.seconds for each in warm]),
        (", CPU time of the worker", "s", [each.cpu_s for each in cold], [e.cpu_s for e in warm]),
        (", requests to the storage", "requests", [requests[0]], [requests[1]]),
    ]
    return [
        Row(
            f"{name}, unchanged{what}",
            server,
            unit,
            Spread(tuple(second)),
            Spread(tuple(first)),
            "the first one",
            lower_is_better(second, first),
        )
        for what, unit, first, second in figures
    ]


async def _inventory(
    publisher: Publisher, running: Running, known: dict[str | None, str] | None = None
) -> _Inventory:
    """Read all pages, each with the digest that is known of it."""
    began, cpu_s = time.perf_counter(), running.cpu_s()
    rows, digests, after = 0, dict[str | None, str](), None
    while True:
        digest = None if known is None else known.get(after)
        page = await _report(publisher, after=after, known=digest)
        rows += len(page.projects or ())
        digests[after] = page.digest or ""
        if page.next is None:
            break
        after = page.next
    return _Inventory(time.perf_counter() - began, running.cpu_s() - cpu_s, rows, digests)


async def _report(publisher: Publisher, *, after: str | None, known: str | None) -> StatusReported:
    request_id = await publisher.status("projects", limit=_PAGE, after=after, known=known)
    event = await publisher.wait(request_id, timeout_s=_TIMEOUT_S)
    if not isinstance(event, StatusReported) or event.code is not None:
        raise BenchError(f"no report: {event!r}")
    return event


async def _requests(
    deployment: ConsoleDeployment, scratch: Path, publisher: Publisher
) -> tuple[float, float]:
    """How many requests the storage gets for the first inventory, and for the next one."""
    async with (
        delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
        worker(
            deployment.worker_env(S3_ENDPOINT_URL=between.url), scratch / "counted.log", "control"
        ) as running,
    ):
        await between.seen()
        known = (await _inventory(publisher, running)).known
        first = await between.seen()
        await _inventory(publisher, running, known)
        second = await between.seen()
    return first.requests, second.requests


# Rotations.


async def _rotations(deployment: ConsoleDeployment, scratch: Path, rounds: int) -> list[Row]:
    """The time from a rotation's request to its acceptance, with and without a flood."""
    alone, flooded = list[float](), list[float]()
    project = console_projects.names(1)[0]
    log = scratch / "flooded.log"
    async with (
        worker(deployment.worker_env(), log, "control"),
        Publisher.open(publisher_settings(deployment)) as publisher,
    ):
        await _rotate(publisher, project)
        for _ in range(rounds * _ROTATIONS):
            alone.append(1000 * await _rotate(publisher, project))
            flood = await asyncio.gather(
                *(publisher.status("objects", limit=_PAGE) for _ in range(_FLOOD))
            )
            flooded.append(1000 * await _rotate(publisher, project))
            await asyncio.gather(*(publisher.wait(each, timeout_s=_TIMEOUT_S) for each in flood))
    return [
        Row(
            f"a rotation accepted behind {_FLOOD} census pages of {_PAGE:,}",
            deployment.s3.kind,
            "ms",
            Spread(tuple(flooded)),
            Spread(tuple(alone)),
            "without them",
            lower_is_better(flooded, alone),
        )
    ]


async def _rotate(publisher: Publisher, project: str) -> float:
    began = time.perf_counter()
    rotation_id = await publisher.rotate(project, api_key=new_api_key())
    event = await publisher.wait(rotation_id, timeout_s=_TIMEOUT_S)
    if not isinstance(event, RotationAccepted):
        raise BenchError(f"not accepted: {event!r}")
    return time.perf_counter() - began


# Own reports.


async def _own_reports(deployment: ConsoleDeployment, scratch: Path, rounds: int) -> Row:
    """What the reports of one process cost in an hour, by far more of them in a short time."""
    costs = []
    for turn in range(rounds):
        idle = await _idle_cpu_s(deployment, scratch / f"idle-{turn}.log", _HOUR_S)
        busy = await _idle_cpu_s(deployment, scratch / f"busy-{turn}.log", _REPORT_INTERVAL_S)
        costs.append((busy - idle) / _REPORTS * _HOUR_S / _INTERVAL_S)
    return Row(
        f"own reports of one process, every {_INTERVAL_S} s",
        deployment.s3.kind,
        "CPU seconds an hour",
        Spread(tuple(costs)),
    )


async def _idle_cpu_s(deployment: ConsoleDeployment, log: Path, interval_s: float) -> float:
    """CPU time of a worker that does nothing else while `_REPORTS` reports would come."""
    env = deployment.worker_env(WORKER_REPORT_INTERVAL_S=str(interval_s))
    async with worker(env, log, "upload") as running:
        await asyncio.sleep(1)
        before = running.cpu_s()
        await asyncio.sleep(_REPORTS * _REPORT_INTERVAL_S)
        return running.cpu_s() - before
