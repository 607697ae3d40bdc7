"""*Master keys*: what depends on each, and the way to another one (SPEC 8.1, 16.2)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import ALL_PROJECTS
from keyturn_workers.console.model.rows import SweepQuery
from keyturn_workers.console.sweeps.forms import operator_of
from keyturn_workers.console.sweeps.key_rotation import key_rotation, key_use
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render, see_other


async def show(request: Request) -> Response:
    """Answer `GET /keys`."""
    model = context_of(request).model
    keys = model.master_keys()
    sweeps = model.sweeps(SweepQuery(project=ALL_PROJECTS, kind="sweep")).rows
    counted = model.complete_census()
    return render(
        request,
        "keys/keys.html",
        topics=("master_keys", "sweeps", "workers"),
        keys=keys,
        uses={row.master_key: key_use(row.counts) for row in keys},
        census=model.census(),
        counted=counted,
        rotation=key_rotation(keys, model.workers(), sweeps, counted),
    )


async def count(request: Request) -> Response:
    """Count what depends on each key, in the background. It changes nothing in the bucket."""
    operator = operator_of(request)
    context_of(request).feeds.census(operator.person.name)
    return see_other("/keys#census")


async def cancel(request: Request) -> Response:
    """Stop counting; what was counted so far stays."""
    operator_of(request)
    context_of(request).feeds.cancel_census()
    return see_other("/keys#census")


routes = [
    Route("/keys", show),
    Route("/keys/count", count, methods=["POST"]),
    Route("/keys/count/cancel", cancel, methods=["POST"]),
]
