"""*Queues and workers*: the workers, and how far each queue is behind (SPEC 16.2)."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.messages.status import WorkerStatus
from keyturn.topology import NOTIFICATIONS
from keyturn_workers.console.ask import Query, page_of
from keyturn_workers.console.context import QUEUES, ask
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import REFRESH_S, render

_PAGE_ROWS: Final = 200
_COMPARED: Final[tuple[tuple[str, Callable[[WorkerStatus], Hashable]], ...]] = (
    ("version", lambda row: row.version),
    ("lease", lambda row: f"{row.lease_s} s"),
    ("active master key", lambda row: row.active_master_key),
    ("master keys", lambda row: ", ".join(sorted(row.master_keys))),
    ("event keys", lambda row: ", ".join(sorted(row.event_keys))),
    ("intake keys", lambda row: ", ".join(sorted(row.intake_keys))),
)


async def show(request: Request) -> Response:
    """Answer `GET /queues`."""
    params = request.query_params
    query = Query("workers", page=words.page_of(params), limit=_PAGE_ROWS)
    queues, workers = await ask(request, QUEUES, query)
    report = workers.report
    rows = (report and report.workers) or ()
    return render(
        request,
        "queues.html",
        refresh_s=REFRESH_S,
        queues=queues,
        notifications=NOTIFICATIONS,
        workers=workers,
        page=report and page_of(report, rows, query),
        differences=differences([row for row in rows if is_present(row)]),
        url=lambda number: words.address("/queues", params, page=number),
    )


def is_present(row: WorkerStatus) -> bool:
    """Return whether a worker works, as far as is known."""
    return not (row.is_missing or row.is_stopping)


def differences(workers: Sequence[WorkerStatus]) -> list[str]:
    """Return the settings that must be the same everywhere but differ between workers, in words."""
    found = []
    for name, value_of in _COMPARED:
        hosts: defaultdict[Hashable, set[str]] = defaultdict(set)
        for row in workers:
            hosts[value_of(row)].add(f"{'+'.join(row.roles)} on {row.host}")
        if len(hosts) > 1:
            parts = [f"{value} ({_some(names)})" for value, names in sorted(hosts.items(), key=str)]
            found.append(f"The {name} differs: {'; '.join(parts)}.")
    return found


def _some(names: set[str], limit: int = 3) -> str:
    shown = sorted(names)
    left = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {left} more" if left > 0 else "")


routes = [Route("/queues", show)]
