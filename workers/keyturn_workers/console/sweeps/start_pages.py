"""Starting a sweep: a dry run first, then the sweep for real (SPEC 8.6, 16.2).

A sweep for real is started from the page of an ended dry run alone, and takes its project and its
options from there. So it is the same sweep that was counted, and the server checks its age.
"""

from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn_workers.console.actions import SweepOptions
from keyturn_workers.console.actions.rules import (
    again_query,
    confirmation_phrase,
    dry_run_problem,
    is_confirmed,
    needs_confirmation,
    options_of,
)
from keyturn_workers.console.model.rows import MasterKeyRow, SweepRow, SweepView
from keyturn_workers.console.sweeps.forms import (
    TooManyActionsError,
    actions_of,
    expired_page,
    id_of_path,
    new_token,
    operator_of,
    outcome_page,
    project_of_path,
    read_form,
    read_token,
    too_many,
)
from keyturn_workers.console.web import sweep_words
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render

_DRY_RUN = "dry-run"
_RUN = "sweep"


async def show_start(request: Request) -> Response:
    """The form of a dry run, filled from the query where a page links to it."""
    operator_of(request)
    return _start_form(request, dict(request.query_params), {})


async def start(request: Request) -> Response:
    """Start a dry run. It changes nothing, so that nothing is typed for it."""
    operator = operator_of(request)
    form = await read_form(request)
    token = read_token(request, form, _DRY_RUN)
    if token is None:
        return expired_page(request, "/sweeps/new")
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    if problems := _problems(request, form):
        return _start_form(request, form, problems)
    project = ALL_PROJECTS if form.get("scope") == "all" else form["project"].strip()
    options = SweepOptions(
        master_key=form.get("master_key") or None,
        encrypt_plaintext="encrypt_plaintext" in form,
        repair="repair" in form,
    )
    try:
        action = await actions_of(request).start_sweep(
            operator.person, token.request_id, project, options, dry_run=True
        )
    except TooManyActionsError as exc:
        raise too_many() from exc
    return outcome_page(action)


async def show_run(request: Request) -> Response:
    """What the sweep for real will do, and to how many objects."""
    operator_of(request)
    return _run_form(request, _dry_run(request), "")


async def run(request: Request) -> Response:
    """Start the sweep for real, if its dry run allows it and it was confirmed."""
    operator = operator_of(request)
    row = _dry_run(request)
    form = await read_form(request)
    token = read_token(request, form, _RUN)
    if token is None or token.subject != (row.project, row.sweep_id):
        return expired_page(request, f"{sweep_words.sweep_path(row.project, row.sweep_id)}/run")
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    options = options_of(row)
    if options is None or dry_run_problem(row, datetime.now(UTC)) is not None:
        return _run_form(request, row, "")
    phrase = confirmation_phrase(row.project)
    if needs_confirmation(row.project, options) and not is_confirmed(form.get("typed", ""), phrase):
        return _run_form(request, row, f"Type “{phrase}” to confirm.")
    try:
        action = await actions_of(request).start_sweep(
            operator.person, token.request_id, row.project, options, dry_run=False
        )
    except TooManyActionsError as exc:
        raise too_many() from exc
    return outcome_page(action)


def _problems(request: Request, form: dict[str, str]) -> dict[str, str]:
    problems = {}
    if form.get("scope") not in ("project", "all"):
        problems["scope"] = "Choose a project, or all."
    if form.get("scope") == "project" and not is_project(form.get("project", "").strip()):
        problems["project"] = "Not a project's id."
    if (key := form.get("master_key")) and key not in _held(request):
        problems["master_key"] = "The workers do not hold this master key."
    return problems


def _held(request: Request) -> list[str]:
    keys: tuple[MasterKeyRow, ...] = context_of(request).model.master_keys()
    return [row.master_key for row in keys if row.is_held]


def _start_form(request: Request, form: dict[str, str], problems: dict[str, str]) -> Response:
    return render(
        request,
        "actions/start_sweep.html",
        status_code=422 if problems else 200,
        form=form,
        problems=problems,
        master_keys=_held(request),
        token=new_token(request, _DRY_RUN),
    )


def _dry_run(request: Request) -> SweepRow:
    project = project_of_path(request, all_allowed=True)
    view: SweepView | None = context_of(request).model.sweep(
        id_of_path(request, "sweep_id"), project
    )
    if view is None:
        raise HTTPException(404)
    return view.row


def _run_form(request: Request, row: SweepRow, problem: str) -> Response:
    options = options_of(row)
    obstacle = dry_run_problem(row, datetime.now(UTC))
    return render(
        request,
        "actions/run_sweep.html",
        status_code=409 if obstacle else 422 if problem else 200,
        row=row,
        path=sweep_words.sweep_path(row.project, row.sweep_id),
        project=sweep_words.project_words(row.project),
        options=options,
        change=sweep_words.change(row),
        obstacle=obstacle,
        again=again_query(row),
        problem=problem,
        phrase=confirmation_phrase(row.project)
        if options is not None and needs_confirmation(row.project, options)
        else None,
        token=new_token(request, _RUN, row.project, row.sweep_id),
    )


routes = [
    Route("/sweeps/new", show_start),
    Route("/sweeps/new", start, methods=["POST"]),
    Route("/sweeps/{project}/{sweep_id}/run", show_run),
    Route("/sweeps/{project}/{sweep_id}/run", run, methods=["POST"]),
]
