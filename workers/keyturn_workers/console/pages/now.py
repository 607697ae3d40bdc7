"""*Now*: problems that need a person, and the rate of work (SPEC 16.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import parse_time
from keyturn.messages.events import StatusReported
from keyturn.messages.status import AttentionStatus, QueueStatus, TotalsStatus
from keyturn.topology import NOTIFICATIONS, UNSIGNED_DEAD_QUEUE
from keyturn_workers.console.ask import Query, filled
from keyturn_workers.console.context import ATTENTION, QUEUES, ask, context_of
from keyturn_workers.console.prometheus import History
from keyturn_workers.console.rendering import charts
from keyturn_workers.console.rendering.templates import REFRESH_S, render
from keyturn_workers.console.rendering.words import Badge
from keyturn_workers.core.wording import plural

SPANS_H: Final = (1, 6, 24)
_CHARTS: Final = (
    ("Uploads stored per minute", "stored", "accent"),
    ("Requests refused per minute", "refused", "bad"),
)
_SWEEPS: Final = 10
_CODES: Final = 8
_MINUTES: Final = 60
_LOOKS: Final = {
    "act": Badge("bad", "Act now"),
    "soon": Badge("warn", "Soon"),
    "info": Badge("busy", "For your information"),
}
_KINDS: Final = {"queue_unserved": "Queues without a worker", "backlog_grows": "Queues that grow"}
"""Kinds of problems whose rule does not read as words."""
_PROJECTS: Final = Query("projects", limit=1)
_RUNNING: Final = Query("sweeps", filter=filled(state="running"), limit=_SWEEPS)
_WORKERS: Final = Query("workers")
_TOTALS: Final = Query("totals")


@dataclass(frozen=True, slots=True)
class Card:
    """The problems of one kind; `title` is shown if there are several `rows`."""

    rule: str
    severity: str
    title: str
    rows: Sequence[AttentionStatus]


async def show(request: Request) -> Response:
    """Answer `GET /`."""
    prometheus = context_of(request).prometheus
    spans = SPANS_H if prometheus is not None else SPANS_H[:1]
    hours = next((h for h in spans if request.query_params.get("hours") == str(h)), spans[0])
    wanted = [_PROJECTS, _RUNNING, _WORKERS, ATTENTION, QUEUES]
    if prometheus is None:
        wanted.append(_TOTALS)
    projects, running, workers, attention, queues, *totals = await ask(request, *wanted)
    if prometheus is not None:
        history, history_at = await prometheus.read(hours), None
    else:
        history, history_at = _of_totals(totals[0].report), totals[0]
    present = [
        row for row in (workers.report and workers.report.workers) or () if not row.is_missing
    ]
    rows = (queues.report and queues.report.queues) or ()
    return render(
        request,
        "now.html",
        refresh_s=REFRESH_S,
        attention=attention,
        cards=cards((attention.report and attention.report.attention) or (), rows),
        looks=_LOOKS,
        projects=projects,
        running=running,
        workers=workers,
        workers_present=sum(not row.is_stopping for row in present),
        queues=queues,
        backlog=sum(row.depth or 0 for row in rows if row.queue != NOTIFICATIONS),
        dead=sum(row.dead or 0 for row in rows),
        hours=hours,
        spans=spans,
        charts=[
            (charts.bars(title, series, kind=kind), history.totals[name])
            for title, name, kind in _CHARTS
            if (series := history.series.get(name))
        ],
        codes=history.codes[:_CODES],
        history=history,
        history_at=history_at,
    )


def cards(items: Sequence[AttentionStatus], queues: Sequence[QueueStatus]) -> list[Card]:
    """Return one card for each kind of problem, the most urgent first, as the items are."""
    kinds: dict[str, list[AttentionStatus]] = {}
    for item in items:
        kinds.setdefault(item.rule, []).append(item)
    return [
        Card(rule, rows[0].severity, _title(rule, len(rows), queues), rows)
        for rule, rows in kinds.items()
    ]


def _title(rule: str, count: int, queues: Sequence[QueueStatus]) -> str:
    dead = sum(row.dead or 0 for row in queues if row.queue != UNSIGNED_DEAD_QUEUE)
    if rule == "dead_letters" and dead:
        return f"{plural(dead, 'dead letter')}, {count} codes"
    return f"{_KINDS.get(rule) or rule.replace('_', ' ').capitalize()}: {count}"


def _of_totals(report: StatusReported | None) -> History:
    """Return the last hour, by the worker reports that a control worker remembers."""
    rows = (report and report.totals) or ()
    if report is None or not rows:
        return History()
    last = parse_time(report.at).replace(second=0, microsecond=0)
    by_minute = {parse_time(row.at).replace(second=0, microsecond=0): row for row in rows}
    minutes = [last - timedelta(minutes=ago) for ago in range(_MINUTES, -1, -1)]
    series = {
        "stored": _series(by_minute, minutes, ("uploads",)),
        "refused": _series(by_minute, minutes, ("uploads_refused", "control_refused")),
    }
    totals = {name: sum(value for _, value in points) for name, points in series.items()}
    return History(parse_time(report.at), series, totals)


def _series(
    rows: dict[datetime, TotalsStatus], minutes: Sequence[datetime], names: Sequence[str]
) -> list[charts.Point]:
    return [
        (at, float(sum(getattr(rows[at], name) for name in names)) if at in rows else 0.0)
        for at in minutes
    ]


routes = [Route("/", show)]
