"""What became of a request: published, accepted, refused, or not known (SPEC 6.7, 16.2)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.sweeps.forms import (
    actions_of,
    id_of_path,
    operator_of,
    outcome_path,
    outcome_values,
)
from keyturn_workers.console.web.rendering import render, see_other


async def show(request: Request) -> Response:
    """One request. One from before a restart is only in the audit trail."""
    request_id = id_of_path(request, "request_id")
    action = actions_of(request).get(request_id)
    if action is None:
        return render(request, "actions/unknown.html", status_code=404, request_id=request_id)
    # Nothing changes below an answer.
    topics = () if action.is_final else ("sweeps",)
    return render(request, "actions/action.html", topics=topics, **outcome_values(request, action))


async def repeat(request: Request) -> Response:
    """Publish a request again under its id."""
    operator = operator_of(request)
    request_id = id_of_path(request, "request_id")
    action = await actions_of(request).repeat(operator.person, request_id)
    if action is None:
        return render(request, "actions/unknown.html", status_code=404, request_id=request_id)
    return see_other(outcome_path(action))


routes = [
    Route("/actions/{request_id}", show),
    Route("/actions/{request_id}/repeat", repeat, methods=["POST"]),
]
