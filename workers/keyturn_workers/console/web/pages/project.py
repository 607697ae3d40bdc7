"""*Project*: one project's keyring, sweeps and evidence (SPEC 16.2)."""

from datetime import timedelta
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import is_project
from keyturn.messages import EvidenceStatus
from keyturn_workers.console.model.rows import AuditQuery, EvidenceView, ProjectQuery, ProjectRow
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render
from keyturn_workers.console.web.reports import reports_of

_AUDIT_ROWS: Final = 20
_FRESH: Final = timedelta(minutes=5)
_DSSE: Final = "application/vnd.dsse.envelope.v1+json"
_ANY: Final = ProjectQuery(size=1)


async def show(request: Request) -> Response:
    """Answer `GET /projects/{project}`."""
    model = context_of(request).model
    name = request.path_params["project"]
    row = model.project(name)
    if not is_project(name) or (row is None and model.projects(_ANY).is_complete):
        raise HTTPException(404, f"The console knows no project “{name}”.")
    evidence = model.evidence(name)
    _want(request, name, row, evidence)
    if row is None:
        raise HTTPException(404, f"The console does not know the project “{name}” yet.")
    return render(
        request,
        "project.html",
        topics=("projects", "sweeps", "audit"),
        project=row,
        sweeps=model.project_sweeps(name),
        evidence=evidence,
        records=model.audit(AuditQuery(project=name, size=_AUDIT_ROWS)),
    )


def _want(request: Request, name: str, row: ProjectRow | None, evidence: EvidenceView) -> None:
    """Ask for what the page lacks, or shows as of long ago."""
    reports, context = reports_of(request), context_of(request)
    oldest = context.model.now() - _FRESH
    if row is None or row.as_of is None or row.as_of < oldest:
        reports.want(("project", name), lambda: context.feeds.request_project(name))
    # By its digest in the keyring: the newest file is missing.
    is_behind = row is not None and row.evidence not in {None, *(f.digest for f in evidence.files)}
    if evidence.as_of is None or not evidence.is_complete or is_behind:
        reports.want(("evidence", name), lambda: context.feeds.request_evidence(name))


async def download_evidence(request: Request) -> Response:
    """Answer `GET /projects/{project}/evidence/{digest}`: the DSSE envelope as stored."""
    model = context_of(request).model
    evidence = model.evidence(request.path_params["project"])
    for file in evidence.files:
        if file.digest == request.path_params["digest"] and file.envelope is not None:
            headers = {"Content-Disposition": f'attachment; filename="{file_name(file)}"'}
            return Response(file.envelope, media_type=_DSSE, headers=headers)
    raise HTTPException(404, "The console holds no such evidence.")


def file_name(file: EvidenceStatus) -> str:
    """The name below the project's evidence in the bucket, after the project's own."""
    return f"{file.project}-{file.generation}-{file.sweep_id}.json"


routes = [
    Route("/projects/{project}", show),
    Route("/projects/{project}/evidence/{digest}", download_evidence),
]
