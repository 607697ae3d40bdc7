"""*Sweeps* and *Sweep*: progress, counts, failures and what to do about them (SPEC 8.6, 16.2).

Names of failed objects are untrusted: those that failed as foreign may contain any character.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from keyturn import evidence
from keyturn.errors import CodedError, EvidenceError, PublisherError
from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn.messages.events import StatusReported
from keyturn.messages.status import SWEEP_STATES, FailureStatus, SweepStatus
from keyturn_workers.console.ask import PAGE_ROWS, Answer, Query, filled, page_of
from keyturn_workers.console.context import ask, context_of
from keyturn_workers.console.pages.forms import (
    actions_of,
    id_of_path,
    outcome_values,
    project_of_path,
)
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import REFRESH_S, render

PATH: Final = "/sweeps"
_FILE_ROWS: Final = 200
# At the first request a worker reads on in the background, and reports that it has not finished.
_FIRST_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 1.0
_NOT_ALL: Final = "# not all failures: a control worker did not read all of them\r\n"
_RUNNING_REFRESH_S: Final = 2
_STATES: Final = {
    "": "Any",
    "running": "Running",
    "not_clean": "Ended, not clean",
    "done": "Ended",
    "failed": "Failed",
}
_KINDS: Final = {"": "Any", "rotation": "Rotations", "sweep": "Sweeps", "erasure": "Erasures"}
# A spreadsheet reads a cell with such a start as a formula; some read full-width signs so, too.
_FORMULA_STARTS: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)


async def show_all(request: Request) -> Response:
    """Answer `GET /sweeps`: running ones first."""
    params = request.query_params
    text = words.text_of(params, "text")
    state = words.choice_of(params, "state", SWEEP_STATES, "")
    kind = words.choice_of(params, "kind", tuple(_KINDS), "")
    parts = params.get("parts") == "yes"
    project = words.text_of(params, "project")
    query = Query(
        "sweeps",
        project if is_project(project) else ALL_PROJECTS,
        filter=filled(text=text, state=state, kind=kind, parts=parts),
        page=words.page_of(params),
        limit=PAGE_ROWS,
    )
    (answer,) = await ask(request, query)
    report = answer.report
    return render(
        request,
        "sweeps/sweeps.html",
        refresh_s=REFRESH_S,
        answer=answer,
        page=report and page_of(report, report.sweeps, query),
        text=text,
        state=state,
        kind=kind,
        parts=parts,
        project=project,
        states=list(_STATES.items()),
        kinds=list(_KINDS.items()),
        is_filtered=bool(query.filter or project),
        url=lambda number: words.address(PATH, params, page=number),
    )


async def show(request: Request) -> Response:
    """Answer `GET /sweeps/{project}/{sweep_id}`; also of one that no worker has begun yet.

    An unknown one may have been requested elsewhere a moment ago: the page looks again.
    """
    project = project_of_path(request, all_allowed=True)
    sweep_id = id_of_path(request, "sweep_id")
    params = request.query_params
    query = Query(
        "sweep", project, sweep_id, page=words.page_of(params, "parts_page"), limit=PAGE_ROWS
    )
    code, text = words.text_of(params, "code"), words.text_of(params, "text")
    failed_query = _failures_query(project, sweep_id, code, text, words.page_of(params), PAGE_ROWS)
    wanted = [query, failed_query]
    if project != ALL_PROJECTS:
        wanted.append(Query("evidence", project))
    answer, failed, *held = await ask(request, *wanted)
    row, parts = _sweep_of(answer.report, project, sweep_id)
    action = actions_of(request).get(sweep_id)
    if action is not None and action.project != project:
        action = None
    path = words.sweep_path(project, sweep_id)
    is_running = row is None or row.status == "running"
    is_unknown = row is None and answer.report is not None and action is None
    return render(
        request,
        "sweeps/sweep.html",
        status_code=404 if is_unknown else 200,
        refresh_s=_RUNNING_REFRESH_S if is_running else REFRESH_S,
        project=project,
        sweep_id=sweep_id,
        answer=answer,
        row=row,
        parts=parts,
        parts_page=answer.report and page_of(answer.report, parts, query),
        parts_url=lambda number: words.address(path, params, parts_page=number) + "#parts",
        path=path,
        proof=_proof(held[0], row) if held and row is not None else None,
        failed=failed,
        failed_page=failed.report and page_of(failed.report, failed.report.failures, failed_query),
        codes=(failed.report and failed.report.codes) or (),
        code=code,
        text=text,
        url=lambda number: words.address(path, params, page=number) + "#failures",
        again=_again_query(row) if row is not None else "",
        taken=urlencode({"code": code, "text": text}),
        **outcome_values(request, action),
    )


async def failures_text(request: Request) -> Response:
    """Return the matching failures, a line each, to copy."""
    return await _file(request, as_text, "text/plain; charset=utf-8")


async def failures_csv(request: Request) -> Response:
    """Return the matching failures, for a spreadsheet."""
    name = f"failures-{id_of_path(request, 'sweep_id')}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return await _file(request, as_csv, "text/csv", headers)


async def _file(
    request: Request,
    write: Callable[[Iterable[FailureStatus]], str],
    media_type: str,
    headers: dict[str, str] | None = None,
) -> Response:
    """Stream all pages of matching failures, one after the other as they are read."""
    project = project_of_path(request, all_allowed=True)
    sweep_id = id_of_path(request, "sweep_id")
    code, text = (words.text_of(request.query_params, name) for name in ("code", "text"))

    async def read(number: int) -> StatusReported:
        query = _failures_query(project, sweep_id, code, text, number, _FILE_ROWS)
        try:
            answer = await context_of(request).asker.read(query)
        except (PublisherError, CodedError) as exc:
            raise HTTPException(503, "The failures cannot be read now.") from exc
        if not isinstance(answer, StatusReported) or answer.code is not None:
            raise HTTPException(503, f"The failures cannot be read now ({answer.code}).")
        return answer

    async def read_first() -> StatusReported:
        """Return the first page, once all failures were read or a worker cannot hold them all."""
        for _ in range(_FIRST_TRIES):
            answer = await read(1)
            if answer.is_complete:
                break
            await asyncio.sleep(_FIRST_PAUSE_S)
        return answer

    async def pages(first: StatusReported) -> AsyncIterator[str]:
        yield (_CSV_HEAD if write is as_csv else "") + write(first.failures or ())
        is_complete = bool(first.is_complete)
        # An unreadable page ends the connection, so that no file looks complete.
        for number in range(2, -(-(first.total or 0) // _FILE_ROWS) + 1):
            page = await read(number)
            is_complete = is_complete and bool(page.is_complete)
            yield write(page.failures or ())
        if not is_complete:
            yield _NOT_ALL

    return StreamingResponse(pages(await read_first()), media_type=media_type, headers=headers)


def _failures_query(
    project: str, sweep_id: str, code: str, text: str, page: int, limit: int
) -> Query:
    is_code = code.isascii() and code.replace("_", "").isalnum()
    chosen = filled(code=code if is_code else "", text=text)
    return Query("failures", project, sweep_id, filter=chosen, page=page, limit=limit)


def _sweep_of(
    report: StatusReported | None, project: str, sweep_id: str
) -> tuple[SweepStatus | None, tuple[SweepStatus, ...]]:
    """Return the sweep, and its parts if it is one of all projects."""
    rows = (report and report.sweeps) or ()
    row = next((row for row in rows if (row.project, row.sweep_id) == (project, sweep_id)), None)
    return row, tuple(each for each in rows if each is not row)


def as_text(rows: Iterable[FailureStatus]) -> str:
    """Return a line each: code, project, key, separated by tabs; unprintable text is escaped."""
    return "".join(f"{row.code}\t{row.project}\t{_printable(row.key or '')}\n" for row in rows)


_CSV_HEAD: Final = "project,key,code\r\n"


def as_csv(rows: Iterable[FailureStatus]) -> str:
    """Return RFC 4180. A cell that looks like a formula begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out).writerows((row.project, _cell(row.key or ""), row.code) for row in rows)
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _printable(text: str) -> str:
    return "".join(
        one if one.isprintable() and one != "\\" else one.encode("unicode_escape").decode()
        for one in text
    )


def _again_query(row: SweepStatus) -> str:
    """Return the query of the form that starts the same sweep again."""
    fields = {"scope": "all"} if row.project == ALL_PROJECTS else {"project": row.project}
    fields |= {"encrypt_plaintext": "yes"} if row.encrypt_plaintext else {}
    fields |= {"repair": "yes"} if row.repair else {}
    fields |= {"master_key": row.master_key} if row.master_key else {}
    return urlencode(fields)


def _proof(held: Answer, row: SweepStatus) -> evidence.Predicate | None:
    """Return the statement of this sweep's evidence, if a control worker reported it."""
    for file in (held.report and held.report.evidence_files) or ():
        if row.evidence is None or file.digest != row.evidence or file.envelope is None:
            continue
        try:
            read = evidence.parse(file.envelope.encode())
        except EvidenceError:
            return None
        # The digest belongs to the signed event or to the record of the end.
        if read.digest == row.evidence and isinstance(read.predicate, evidence.Predicate):
            return read.predicate
    return None


routes = [
    Route(PATH, show_all),
    Route("/sweeps/{project}/{sweep_id}", show),
    Route("/sweeps/{project}/{sweep_id}/failures.txt", failures_text),
    Route("/sweeps/{project}/{sweep_id}/failures.csv", failures_csv),
]
