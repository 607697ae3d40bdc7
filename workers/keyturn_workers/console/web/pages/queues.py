"""*Queues and workers*: whether requests are served, by whom, and how far behind (SPEC 16.2)."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.model.rows import WorkerRow
from keyturn_workers.console.web import charts
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render

_COMPARED: Final[tuple[tuple[str, Callable[[WorkerRow], Hashable]], ...]] = (
    ("version", lambda row: row.version),
    ("lease", lambda row: f"{row.lease_s} s"),
    ("active master key", lambda row: row.active_master_key),
    ("master keys", lambda row: ", ".join(sorted(row.master_keys))),
    ("event keys", lambda row: ", ".join(sorted(row.event_keys))),
    ("intake keys", lambda row: ", ".join(sorted(row.intake_keys))),
)
_SOURCES: Final = {
    "events": "Events, as they happen",
    "history": "Events of the past",
    "reports": "Reports to this console",
    "workers": "Workers' reports",
    "audit": "Audit trail",
    "queues": "Queues of the broker",
    "status": "Inventory, by control workers",
}


async def show(request: Request) -> Response:
    """Answer `GET /queues`."""
    model = context_of(request).model
    workers = model.workers()
    queues = model.queues()
    present = [row for row in workers if row.is_present]
    return render(
        request,
        "queues.html",
        topics=("queues", "workers"),
        queues=queues,
        workers=workers,
        differences=differences(present),
        courses={
            row.queue: charts.sparkline(
                [(at, float(depth)) for at, depth in model.queue_depths(row.queue)]
            )
            for row in queues
        },
        sources=_SOURCES,
    )


def differences(workers: Sequence[WorkerRow]) -> list[str]:
    """In which settings workers differ that must be the same everywhere, in words."""
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
