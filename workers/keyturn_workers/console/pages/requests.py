"""Forms that publish a request, and its outcome: sweeps and deletes (SPEC 6.7, 8.6, 8.7).

The confirmation of a sweep has the same token as the form before it, so both together publish once.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import ALL_PROJECTS, check_object_key, is_project
from keyturn_workers.console.actions import Action
from keyturn_workers.console.ask import Query
from keyturn_workers.console.auth.person import require_operate
from keyturn_workers.console.context import ask
from keyturn_workers.console.pages.forms import (
    TOKEN_FIELD,
    actions_of,
    expired_page,
    id_of_path,
    is_confirmed,
    new_token,
    outcome_page,
    outcome_values,
    project_of_path,
    read_form,
    read_token,
)
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import render
from keyturn_workers.core.sweep_options import SweepOptions

ALL_PROJECTS_PHRASE: Final = "all projects"
_SWEEP: Final = "sweep"
_DELETE: Final = "delete"
_DELETE_PATH: Final = "/projects/{project}/delete"
_MASTER_KEYS: Final = Query("master_keys")
_UNANSWERED_REFRESH_S: Final = 2


async def show_start(request: Request) -> Response:
    """Show the form of a sweep, filled from the query if a page links to it."""
    require_operate(request)
    return await _start_form(request, dict(request.query_params), {})


async def start(request: Request) -> Response:
    """Start the sweep, or ask for a confirmation if it needs one."""
    person = require_operate(request)
    form = await read_form(request)
    token = read_token(request, form, _SWEEP)
    if token is None:
        return expired_page(request, "/sweeps/new")
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    if problems := await _start_problems(request, form):
        return await _start_form(request, form, problems)
    project = ALL_PROJECTS if form.get("scope") == "all" else form["project"].strip()
    options = SweepOptions(
        master_key=form.get("master_key") or None,
        encrypt_plaintext="encrypt_plaintext" in form,
        repair="repair" in form,
    )
    phrase = ALL_PROJECTS_PHRASE if project == ALL_PROJECTS else project
    if needs_confirmation(project, options) and not is_confirmed(form.get("typed", ""), phrase):
        problem = f"Type “{phrase}” to confirm." if "typed" in form else ""
        return render(
            request,
            "actions/confirm_sweep.html",
            status_code=422 if problem else 200,
            form=form,
            project=words.project_words(project),
            options=options,
            phrase=phrase,
            problem=problem,
            token=form[TOKEN_FIELD],
        )
    action = Action(token.request_id, "sweep", project, person.name, options=options)
    return outcome_page(await actions_of(request).request(action))


def needs_confirmation(project: str, options: SweepOptions) -> bool:
    """Return whether no later sweep undoes this one, or it affects everything."""
    return (
        project == ALL_PROJECTS
        or options.encrypt_plaintext
        or options.repair
        or options.master_key is not None
    )


async def _start_problems(request: Request, form: dict[str, str]) -> dict[str, str]:
    problems = {}
    if form.get("scope") not in ("project", "all"):
        problems["scope"] = "Choose a project, or all."
    if form.get("scope") == "project" and not is_project(form.get("project", "").strip()):
        problems["project"] = "Not a project id: use lower-case letters, digits and hyphens."
    if (key := form.get("master_key")) and key not in await _held(request):
        problems["master_key"] = "The workers do not hold this master key, as far as is known."
    return problems


async def _held(request: Request) -> list[str]:
    (answer,) = await ask(request, _MASTER_KEYS)
    return [row.master_key for row in (answer.report and answer.report.master_keys) or ()]


async def _start_form(request: Request, form: dict[str, str], problems: dict[str, str]) -> Response:
    return render(
        request,
        "actions/start_sweep.html",
        status_code=422 if problems else 200,
        form=form,
        problems=problems,
        master_keys=await _held(request),
        token=new_token(request, _SWEEP),
    )


async def show_delete(request: Request) -> Response:
    """Show the form of a delete."""
    require_operate(request)
    key = request.query_params.get("key", "")
    return _delete_form(request, project_of_path(request), {"key": key}, {})


async def delete(request: Request) -> Response:
    """Publish the delete: it is permanent, so the object key is typed twice."""
    person = require_operate(request)
    project = project_of_path(request)
    form = await read_form(request)
    token = read_token(request, form, _DELETE)
    if token is None or token.subject != (project,):
        return expired_page(request, _DELETE_PATH.format(project=project))
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    if problems := _delete_problems(form):
        return _delete_form(request, project, form, problems)
    action = Action(token.request_id, "delete", project, person.name, object_key=form["key"])
    return outcome_page(await actions_of(request).request(action))


def _delete_problems(form: dict[str, str]) -> dict[str, str]:
    problems = {}
    key = form.get("key", "")
    try:
        check_object_key(key)
    except ValueError as exc:
        problems["key"] = f"Not an object key: {exc}."
    if form.get("typed", "") != key:
        problems["typed"] = "This is not the same key. Spaces count."
    return problems


def _delete_form(
    request: Request, project: str, form: dict[str, str], problems: dict[str, str]
) -> Response:
    return render(
        request,
        "actions/delete.html",
        status_code=422 if problems else 200,
        project=project,
        key=form.get("key", ""),
        problems=problems,
        token=new_token(request, _DELETE, project),
    )


async def show_outcome(request: Request) -> Response:
    """Show one request. One from before a restart is only in the audit trail."""
    request_id = id_of_path(request, "request_id")
    action = actions_of(request).get(request_id)
    if action is None:
        return render(request, "actions/unknown.html", status_code=404, request_id=request_id)
    # An answered request does not change.
    refresh_s = 0 if action.is_final else _UNANSWERED_REFRESH_S
    return render(
        request, "actions/action.html", refresh_s=refresh_s, **outcome_values(request, action)
    )


async def repeat(request: Request) -> Response:
    """Publish a request again under its id."""
    person = require_operate(request)
    request_id = id_of_path(request, "request_id")
    action = await actions_of(request).repeat(person, request_id)
    if action is None:
        return render(request, "actions/unknown.html", status_code=404, request_id=request_id)
    return outcome_page(action)


# `/sweeps/new` is not the page of a sweep: it has one segment less.
routes = [
    Route("/sweeps/new", show_start),
    Route("/sweeps/new", start, methods=["POST"]),
    Route(_DELETE_PATH, show_delete),
    Route(_DELETE_PATH, delete, methods=["POST"]),
    Route("/actions/{request_id}", show_outcome),
    Route("/actions/{request_id}/repeat", repeat, methods=["POST"]),
]
