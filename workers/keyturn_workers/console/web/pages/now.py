"""*Now*: what needs a person, and whether work gets done (SPEC 16.2)."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.model.rows import Severity, SweepQuery
from keyturn_workers.console.web import charts
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render


@dataclass(frozen=True, slots=True)
class Look:
    """How a severity is shown: the kind of its badge, and the words on it."""

    kind: str
    words: str


SPANS_H: Final = (1, 6, 24)
_BUCKETS: Final = 61  # the minutes of an hour, and the one that is not over
_CHARTS: Final = (
    ("Uploads stored per minute", "stored", "accent"),
    ("Requests refused per minute", "rejected", "bad"),
)
_SWEEPS: Final = 10
_CODES: Final = 8
LOOKS: Final[dict[Severity, Look]] = {
    "act": Look("bad", "Act now"),
    "soon": Look("warn", "Soon"),
    "info": Look("busy", "For your information"),
}


async def show(request: Request) -> Response:
    """Answer `GET /`."""
    model = context_of(request).model
    hours = next((h for h in SPANS_H if request.query_params.get("hours") == str(h)), SPANS_H[0])
    since = model.now() - timedelta(hours=hours)
    return render(
        request,
        "now.html",
        topics=("now",),
        overview=model.overview(),
        items=model.attention(),
        looks=LOOKS,
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


routes = [Route("/", show)]
