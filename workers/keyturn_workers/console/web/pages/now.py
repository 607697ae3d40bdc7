"""*Now*: what needs a person, and whether work gets done (SPEC 16.2)."""

from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.model.rows import AttentionItem, Severity, SweepQuery
from keyturn_workers.console.web import charts
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render

SPANS_H: Final = (1, 6, 24)
_BUCKETS: Final = 61  # the minutes of an hour, and the one that is not over
_CHARTS: Final = (
    ("Uploads stored per minute", "stored", "accent"),
    ("Requests refused per minute", "rejected", "bad"),
)
_SWEEPS: Final = 10
_CODES: Final = 8
_SEVERITIES: Final[tuple[tuple[Severity, str], ...]] = (
    ("act", "Act now"),
    ("soon", "Soon"),
    ("info", "For your information"),
)


async def show(request: Request) -> Response:
    """Answer `GET /`."""
    model = context_of(request).model
    hours = next((h for h in SPANS_H if request.query_params.get("hours") == str(h)), SPANS_H[0])
    since = model.now() - timedelta(hours=hours)
    items = model.attention()
    return render(
        request,
        "now.html",
        topics=("now",),
        overview=model.overview(),
        groups=_grouped(items),
        hours=hours,
        spans=SPANS_H,
        charts=[
            (
                charts.bars(title, model.series(name, since, _BUCKETS), kind=kind),
                model.history.total(name, since),
            )
            for title, name, kind in _CHARTS
        ],
        codes=list(model.history.codes(since).items())[:_CODES],
        sweeps=model.sweeps(SweepQuery(state="running", size=_SWEEPS)),
    )


def _grouped(
    items: tuple[AttentionItem, ...],
) -> list[tuple[Severity, str, list[AttentionItem]]]:
    groups = [
        (severity, words, [item for item in items if item.severity == severity])
        for severity, words in _SEVERITIES
    ]
    return [group for group in groups if group[2]]


routes = [Route("/", show)]
