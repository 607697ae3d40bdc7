"""*Projects*, filtered and sorted, and *Project*: its keyring, sweeps and evidence (SPEC 16.2)."""

from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import is_project
from keyturn.messages.status import PROJECT_STATES, STATUS_ORDERS, EvidenceStatus
from keyturn_workers.console.ask import PAGE_ROWS, Query, filled, page_of
from keyturn_workers.console.context import ask
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import REFRESH_S, render

PATH: Final = "/projects"
_ORDERS: Final = STATUS_ORDERS["projects"]
_STATES: Final = {
    "": "Any",
    "ok": "Keyring readable",
    "attention": "Needs attention",
    "sweeping": "Sweep under way",
    "never_proven": "Never proven",
    "earlier_keks": "Holds earlier keys",
    "old_key": "API key older than a year",
    "plaintext": "May hold plaintext",
    "customer_key": "Has a customer key",
    "waits_for_key": "Waits for its customer key",
    "erased": "Erased",
}
_MASTER_KEYS: Final = Query("master_keys")
_SWEEPS: Final = 50
_AUDIT_ROWS: Final = 20
_DSSE: Final = "application/vnd.dsse.envelope.v1+json"


@dataclass(frozen=True, slots=True)
class SortLink:
    """The address that sorts by a column; reversed if the table is already sorted by it."""

    url: str
    is_now: bool
    descending: bool


async def show_all(request: Request) -> Response:
    """Answer `GET /projects`."""
    params = request.query_params
    text = words.text_of(params, "text")
    state = words.choice_of(params, "state", PROJECT_STATES, "")
    master_key = words.text_of(params, "master_key")
    sort = words.choice_of(params, "sort", _ORDERS, _ORDERS[0])
    is_descending = params.get("order") == "desc"
    query = Query(
        "projects",
        filter=filled(text=text, state=state, master_key=master_key),
        order=f"-{sort}" if is_descending else sort,
        page=words.page_of(params),
        limit=PAGE_ROWS,
    )
    answer, keys = await ask(request, query, _MASTER_KEYS)
    report = answer.report

    def sort_link(name: str) -> SortLink:
        is_now = name == sort
        order = "desc" if is_now and not is_descending else None
        url = words.address(PATH, params, sort=name, order=order, page=None)
        return SortLink(url, is_now, is_descending)

    return render(
        request,
        "projects.html",
        refresh_s=REFRESH_S,
        answer=answer,
        page=report and page_of(report, report.projects, query),
        text=text,
        state=state,
        master_key=master_key,
        sort=sort,
        is_descending=is_descending,
        states=list(_STATES.items()),
        master_keys=[row.master_key for row in (keys.report and keys.report.master_keys) or ()],
        is_filtered=bool(query.filter),
        sorts={name: sort_link(name) for name in _ORDERS},
        url=lambda number: words.address(PATH, params, page=number),
    )


async def show(request: Request) -> Response:
    """Answer `GET /projects/{project}`."""
    name = request.path_params["project"]
    if not is_project(name):
        raise HTTPException(404, f"“{name}” is not the id of a project.")
    answer, sweeps, evidence, audit = await ask(
        request,
        Query("projects", name),
        Query("sweeps", name, limit=_SWEEPS),
        Query("evidence", name),
        Query("audit", filter=filled(project=name), limit=_AUDIT_ROWS),
    )
    rows = answer.report and answer.report.projects
    row = next(iter(rows or ()), None)
    if answer.report is not None and row is None:
        raise HTTPException(404, f"There is no project “{name}”.")
    return render(
        request,
        "project.html",
        refresh_s=REFRESH_S,
        name=name,
        answer=answer,
        project=row,
        is_contradicted=row is not None and row.mark in ("rolled_back", "removed", "unknown"),
        sweeps=sweeps,
        evidence=evidence,
        audit=audit,
    )


async def download_evidence(request: Request) -> Response:
    """Answer `GET /projects/{project}/evidence/{digest}`: the DSSE envelope as stored."""
    name = request.path_params["project"]
    if not is_project(name):
        raise HTTPException(404)
    (answer,) = await ask(request, Query("evidence", name))
    for file in (answer.report and answer.report.evidence_files) or ():
        if file.digest == request.path_params["digest"] and file.envelope is not None:
            headers = {"Content-Disposition": f'attachment; filename="{file_name(file)}"'}
            return Response(file.envelope, media_type=_DSSE, headers=headers)
    if answer.report is None:
        raise HTTPException(503, answer.problem or "The evidence has not been read yet.")
    raise HTTPException(404, "There is no such evidence.")


def file_name(file: EvidenceStatus) -> str:
    """Return the name below the project's evidence in the bucket, after the project's own."""
    return f"{file.project}-{file.generation}-{file.sweep_id}.json"


routes = [
    Route(PATH, show_all),
    Route("/projects/{project}", show),
    Route("/projects/{project}/evidence/{digest}", download_evidence),
]
