"""*Projects*: all of them, filtered and sorted (SPEC 16.2)."""

from dataclasses import dataclass
from typing import Final, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.model.rows import ProjectQuery, ProjectSort, ProjectState
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.links import address, choice_of, page_of, text_of
from keyturn_workers.console.web.rendering import render

PATH: Final = "/projects"
_STATES: Final[dict[ProjectState, str]] = {
    "any": "Any",
    "ok": "Keyring readable",
    "attention": "Needs attention",
    "sweeping": "Sweep under way",
    "never_proven": "Never proven",
    "earlier_keks": "Holds earlier keys",
    "old_key": "API key older than a year",
    "plaintext": "May hold plaintext",
}


@dataclass(frozen=True, slots=True)
class SortLink:
    """The address that sorts by a column; the other way round if it is sorted by it now."""

    url: str
    is_now: bool
    descending: bool


async def show(request: Request) -> Response:
    """Answer `GET /projects`."""
    params = request.query_params
    master_key = text_of(params, "master_key") or None
    query = ProjectQuery(
        text=text_of(params, "text"),
        state=choice_of(params, "state", ProjectState, "any"),
        sort=choice_of(params, "sort", ProjectSort, "project"),
        descending=params.get("order") == "desc",
        page=page_of(params),
        master_key=master_key,
    )
    model = context_of(request).model
    return render(
        request,
        "projects.html",
        topics=("projects",),
        query=query,
        page=model.projects(query),
        states=list(_STATES.items()),
        master_keys=[row.master_key for row in model.master_keys()],
        is_filtered=bool(query.text or query.state != "any" or master_key),
        sorts={name: _sort_link(request, query, name) for name in get_args(ProjectSort)},
        url=lambda number: address(PATH, params, page=number),
    )


def _sort_link(request: Request, query: ProjectQuery, name: ProjectSort) -> SortLink:
    is_now = query.sort == name
    order = "desc" if is_now and not query.descending else None
    url = address(PATH, request.query_params, sort=name, order=order, page=None)
    return SortLink(url, is_now, query.descending)


routes = [Route(PATH, show)]
