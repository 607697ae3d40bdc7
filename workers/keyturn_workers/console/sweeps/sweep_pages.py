"""*Sweeps* and *Sweep*: progress, counts, failures and what to do about them (SPEC 8.6, 16.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from keyturn import evidence
from keyturn.errors import EvidenceError
from keyturn_workers.console.actions.rules import again_query
from keyturn_workers.console.model.rows import (
    EvidenceView,
    FailureRow,
    Page,
    RateSample,
    SweepQuery,
    SweepView,
)
from keyturn_workers.console.sweeps import failures
from keyturn_workers.console.sweeps.forms import (
    actions_of,
    id_of_path,
    outcome_values,
    page_number,
    project_of_path,
)
from keyturn_workers.console.sweeps.reports import want_sweep
from keyturn_workers.console.web import charts, sweep_words
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.links import address, choice_of, page_of, text_of
from keyturn_workers.console.web.rendering import render

State = Literal["any", "requested", "running", "done", "failed", "rejected", "not_clean"]
Kind = Literal["any", "rotation", "sweep"]
_STATES: Final[dict[State, str]] = {
    "any": "Any",
    "running": "Running",
    "not_clean": "Ended, not clean",
    "done": "Ended",
    "failed": "Stopped",
    "rejected": "Refused",
    "requested": "Requested",
}
_KINDS: Final[dict[Kind, str]] = {"any": "Any", "rotation": "Rotations", "sweep": "Sweeps"}
_MIN_SAMPLES: Final = 3
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Proof:
    """The dates of a proof, as its evidence says them, by the storage's clock."""

    turned_at: str
    proven_from: str
    proven_to: str
    late_writes_refused: bool
    digest: str


async def show_all(request: Request) -> Response:
    """Answer `GET /sweeps`: those that are under way first."""
    params = request.query_params
    query = SweepQuery(
        text=text_of(params, "text"),
        project=text_of(params, "project") or None,
        state=choice_of(params, "state", State, "any"),
        kind=choice_of(params, "kind", Kind, "any"),
        page=page_of(params),
        parts=params.get("parts") == "yes",
    )
    is_filtered = query != SweepQuery(page=query.page)
    return render(
        request,
        "sweeps/sweeps.html",
        topics=("sweeps",),
        query=query,
        page=context_of(request).model.sweeps(query),
        states=list(_STATES.items()),
        kinds=list(_KINDS.items()),
        is_filtered=is_filtered,
        words=sweep_words,
        url=lambda number: address("/sweeps", params, page=number),
    )


async def show(request: Request) -> Response:
    """Answer `GET /sweeps/{project}/{sweep_id}`; also of one that no worker has begun yet."""
    context = context_of(request)
    project = project_of_path(request, all_allowed=True)
    sweep_id = id_of_path(request, "sweep_id")
    view: SweepView | None = context.model.sweep(sweep_id, project)
    action = actions_of(request).get(sweep_id)
    if action is not None and action.project != project:
        action = None
    want_sweep(request, project, sweep_id, view)
    if view is None and action is None:
        raise HTTPException(404, "The console knows no such sweep. Its record may be gone.")
    params = request.query_params
    proof = _proof(context.model.evidence(project), view) if view is not None else None
    lacks_proof = view is not None and view.row.evidence is not None and proof is None
    return render(
        request,
        "sweeps/sweep.html",
        # Evidence that arrives is news of its project.
        topics=("sweeps", "projects") if lacks_proof else ("sweeps",),
        project=project,
        sweep_id=sweep_id,
        view=view,
        words=sweep_words,
        path=sweep_words.sweep_path(project, sweep_id),
        chart=_chart(view.samples) if view is not None else None,
        proof=proof,
        failed=_failures(view, params.get("code", ""), text_of(params, "text"), request),
        codes=failures.by_code(view.failures) if view is not None else (),
        code=params.get("code", ""),
        text=text_of(params, "text"),
        url=lambda number: address(request.url.path, params, page=number) + "#failures",
        again=again_query(view.row) if view is not None else "",
        taken=urlencode({"code": params.get("code", ""), "text": text_of(params, "text")}),
        **outcome_values(request, action),
    )


async def failures_text(request: Request) -> Response:
    """The failures that match, a line each, to copy."""
    rows = _matching(request)
    return PlainTextResponse(failures.as_text(rows), media_type=_TEXT)


async def failures_csv(request: Request) -> Response:
    """The failures that match, for a spreadsheet."""
    name = f"failures-{id_of_path(request, 'sweep_id')}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    rows = _matching(request)
    return PlainTextResponse(failures.as_csv(rows), headers=headers, media_type="text/csv")


def _matching(request: Request) -> tuple[FailureRow, ...]:
    project = project_of_path(request, all_allowed=True)
    view: SweepView | None = context_of(request).model.sweep(
        id_of_path(request, "sweep_id"), project
    )
    if view is None:
        raise HTTPException(404)
    params = request.query_params
    return failures.matching(view.failures, params.get("code", ""), text_of(params, "text"))


def _failures(
    view: SweepView | None, code: str, text: str, request: Request
) -> Page[FailureRow] | None:
    if view is None or not view.failures:
        return None
    return failures.page_of(view, code, text, page_number(request))


def _chart(samples: Sequence[RateSample]) -> charts.Chart | None:
    """The rate between each two samples; None while there are too few."""
    rates = [
        (later.at, max(0.0, later.objects_done - earlier.objects_done) / seconds)
        for earlier, later in pairwise(samples)
        if (seconds := (later.at - earlier.at).total_seconds()) > 0
    ]
    if len(rates) < _MIN_SAMPLES:
        return None
    return charts.line("Objects per second", rates)


def _date(text: str) -> str:
    """A date of the evidence in words of the pages; the fraction of a second if it has one."""
    return text.replace("T", " ").removesuffix("Z").removesuffix(".000000")


def _proof(held: EvidenceView, view: SweepView) -> Proof | None:
    """The dates in the evidence of this sweep, if the console holds it."""
    digest = view.row.evidence
    for file in held.files:
        if digest is None or file.digest != digest or file.envelope is None:
            continue
        try:
            read = evidence.parse(file.envelope.encode())
        except EvidenceError:
            return None
        # The digest is that of the signed event or record of the end.
        if read.digest != digest:
            return None
        said = read.statement.predicate
        return Proof(
            _date(said.turned_at),
            _date(said.proven_from),
            _date(said.proven_to),
            said.late_writes_refused,
            digest,
        )
    return None


routes = [
    Route("/sweeps", show_all),
    Route("/sweeps/{project}/{sweep_id}", show),
    Route("/sweeps/{project}/{sweep_id}/failures.txt", failures_text),
    Route("/sweeps/{project}/{sweep_id}/failures.csv", failures_csv),
]
