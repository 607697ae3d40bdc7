"""Starting a sweep: its form, and the confirmation of what cannot be undone (SPEC 8.6, 16.2).

The confirmation has the token of the form that it follows, so both together publish once.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn_workers.console.actions import SweepOptions
from keyturn_workers.console.actions.rules import (
    confirmation_phrase,
    is_confirmed,
    needs_confirmation,
)
from keyturn_workers.console.sweeps.forms import (
    TOKEN_FIELD,
    TooManyActionsError,
    actions_of,
    expired_page,
    new_token,
    operator_of,
    outcome_page,
    read_form,
    read_token,
    too_many,
)
from keyturn_workers.console.web import sweep_words
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render

_SWEEP = "sweep"


async def show_start(request: Request) -> Response:
    """The form of a sweep, filled from the query where a page links to it."""
    operator_of(request)
    return _start_form(request, dict(request.query_params), {})


async def start(request: Request) -> Response:
    """Start the sweep, or ask for its confirmation where it needs one."""
    operator = operator_of(request)
    form = await read_form(request)
    token = read_token(request, form, _SWEEP)
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
    phrase = confirmation_phrase(project)
    if needs_confirmation(project, options) and not is_confirmed(form.get("typed", ""), phrase):
        return _confirmation(request, form, project, options)
    try:
        action = await actions_of(request).start_sweep(
            operator.person, token.request_id, project, options
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
    return [row.master_key for row in context_of(request).model.master_keys() if row.is_held]


def _start_form(request: Request, form: dict[str, str], problems: dict[str, str]) -> Response:
    return render(
        request,
        "actions/start_sweep.html",
        status_code=422 if problems else 200,
        form=form,
        problems=problems,
        master_keys=_held(request),
        token=new_token(request, _SWEEP),
    )


def _confirmation(
    request: Request, form: dict[str, str], project: str, options: SweepOptions
) -> Response:
    """What the sweep will do, to be confirmed; a problem where something else was typed."""
    phrase = confirmation_phrase(project)
    problem = f"Type “{phrase}” to confirm." if "typed" in form else ""
    return render(
        request,
        "actions/confirm_sweep.html",
        status_code=422 if problem else 200,
        form=form,
        project=sweep_words.project_words(project),
        options=options,
        phrase=phrase,
        problem=problem,
        token=form[TOKEN_FIELD],
    )


routes = [
    Route("/sweeps/new", show_start),
    Route("/sweeps/new", start, methods=["POST"]),
]
