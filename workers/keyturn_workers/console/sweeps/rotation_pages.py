"""The rotation of a project's key: a fresh key shown once, then published (SPEC 8.1, 16.2).

1. A page says what a rotation does. It has the button that makes a key.
2. The answer to that button shows the key. Nothing else ever does: not a reload, not the history
   of the browser. Pressed again, it makes another key, and the first one is dropped.
3. The form below the key publishes it, once it was saved and the project's id was typed. It names
   the generation that the page showed, so that of two rotations from two pages one is refused.

A key that was shown and never published opens nothing.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.actions.fresh_keys import KEY_LIFE_S, FreshKey
from keyturn_workers.console.actions.rules import is_confirmed
from keyturn_workers.console.model.rows import ProjectRow
from keyturn_workers.console.sweeps.forms import (
    Operator,
    TooManyActionsError,
    actions_of,
    expired_page,
    new_token,
    operator_of,
    outcome_page,
    project_of_path,
    read_form,
    read_token,
    too_many,
)
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.rendering import render

_MAKE = "rotation-key"
_PUBLISH = "rotation"


def _project_row(request: Request, project: str) -> ProjectRow | None:
    row: ProjectRow | None = context_of(request).model.project(project)
    return row


async def show(request: Request) -> Response:
    """What a rotation does, and the button that makes a key."""
    operator_of(request)
    project = project_of_path(request)
    return render(
        request,
        "actions/rotate.html",
        project=project,
        row=_project_row(request, project),
        token=new_token(request, _MAKE, project),
        life_s=KEY_LIFE_S,
    )


async def make_key(request: Request) -> Response:
    """A fresh key, in this answer alone."""
    operator = operator_of(request)
    project = project_of_path(request)
    token = read_token(request, await read_form(request), _MAKE)
    row = _project_row(request, project)
    if token is None or token.subject != (project,):
        return expired_page(request, _path(project))
    if row is None or row.generation is None:
        return render(
            request,
            "actions/rotate.html",
            status_code=409,
            project=project,
            row=row,
            token=new_token(request, _MAKE, project),
            life_s=KEY_LIFE_S,
        )
    fresh = actions_of(request).fresh_keys.make(operator.session_id, project, row.generation)
    return _key_page(request, operator, fresh, shown=True)


async def publish(request: Request) -> Response:
    """Publish the key that was shown last, once."""
    operator = operator_of(request)
    project = project_of_path(request)
    form = await read_form(request)
    actions = actions_of(request)
    token = read_token(request, form, _PUBLISH)
    if token is None or token.subject != (project,):
        return expired_page(request, _path(project))
    if (known := actions.get(token.request_id)) is not None:
        return outcome_page(known)
    fresh = actions.fresh_keys.find(token.request_id, operator.session_id)
    if fresh is None:
        return expired_page(request, _path(project))
    problems = _problems(form, project)
    if problems:
        return _key_page(request, operator, fresh, shown=False, problems=problems)
    actions.fresh_keys.drop(fresh.rotation_id)
    try:
        action = await actions.rotate(
            operator.person,
            fresh.rotation_id,
            project,
            api_key=fresh.api_key,
            expected_generation=fresh.expected_generation,
        )
    except TooManyActionsError as exc:
        raise too_many() from exc
    return outcome_page(action)


def _problems(form: dict[str, str], project: str) -> dict[str, str]:
    problems = {}
    if form.get("saved") != "yes":
        problems["saved"] = "Save the key first: it is not shown again."
    if not is_confirmed(form.get("typed", ""), project):
        problems["typed"] = "This is not the project's id."
    return problems


def _key_page(
    request: Request,
    operator: Operator,
    fresh: FreshKey,
    *,
    shown: bool,
    problems: dict[str, str] | None = None,
) -> Response:
    forms = actions_of(request).forms
    return render(
        request,
        "actions/fresh_key.html",
        status_code=422 if problems else 200,
        project=fresh.project,
        generation=fresh.expected_generation,
        api_key=fresh.api_key.get_secret_value() if shown else None,
        problems=problems or {},
        life_s=KEY_LIFE_S,
        token=forms.make(
            operator.session_id, _PUBLISH, fresh.project, request_id=fresh.rotation_id
        ),
        again=new_token(request, _MAKE, fresh.project),
    )


def _path(project: str) -> str:
    return f"/projects/{project}/rotate"


routes = [
    Route("/projects/{project}/rotate", show),
    Route("/projects/{project}/rotate/key", make_key, methods=["POST"]),
    # A reload of the answer to the form, without sending it again.
    Route("/projects/{project}/rotate/key", show),
    Route("/projects/{project}/rotate", publish, methods=["POST"]),
]
