"""The rotation of a project's key: a fresh key shown once, then published (SPEC 8.1, 16.2).

1. A page explains the rotation. It has the button that makes a key.
2. Only the response to that button shows the key: not a reload, not the browser's history.
   Pressed again, it makes another key, and the first one is dropped.
3. The form below the key publishes it, once it was saved and the project's id was typed. It names
   the generation that the page showed, so that of two rotations from two pages one is refused.

A key that was shown and never published opens nothing.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.messages.status import ProjectStatus
from keyturn_workers.console.actions import Action
from keyturn_workers.console.ask import Answer, Query
from keyturn_workers.console.auth.person import require_operate, session_of
from keyturn_workers.console.context import ask
from keyturn_workers.console.form_tokens import KEY_LIFE_S, FreshKey
from keyturn_workers.console.pages.forms import (
    actions_of,
    expired_page,
    is_confirmed,
    new_token,
    outcome_page,
    project_of_path,
    read_form,
    read_token,
)
from keyturn_workers.console.rendering.templates import render

_MAKE = "rotation-key"
_PUBLISH = "rotation"


async def _known(request: Request, project: str) -> tuple[Answer, ProjectStatus | None]:
    (answer,) = await ask(request, Query("projects", project))
    return answer, next(iter((answer.report and answer.report.projects) or ()), None)


async def _explanation(request: Request, project: str, status_code: int = 200) -> Response:
    answer, row = await _known(request, project)
    return render(
        request,
        "actions/rotate.html",
        status_code=status_code,
        project=project,
        answer=answer,
        row=row,
        token=new_token(request, _MAKE, project),
        life_s=KEY_LIFE_S,
    )


async def show(request: Request) -> Response:
    """Explain the rotation, with the button that makes a key."""
    require_operate(request)
    project = project_of_path(request)
    return await _explanation(request, project)


async def make_key(request: Request) -> Response:
    """Make a key, and show it in this response only."""
    require_operate(request)
    project = project_of_path(request)
    token = read_token(request, await read_form(request), _MAKE)
    if token is None or token.subject != (project,):
        return expired_page(request, _path(project))
    _, row = await _known(request, project)
    if row is None or row.generation is None or row.erased_at is not None:
        return await _explanation(request, project, 409)
    fresh = actions_of(request).fresh_keys.make(session_of(request).id, project, row.generation)
    return _key_page(request, fresh, shown=True)


async def publish(request: Request) -> Response:
    """Publish the key that was shown last, once."""
    person = require_operate(request)
    project = project_of_path(request)
    form = await read_form(request)
    actions = actions_of(request)
    token = read_token(request, form, _PUBLISH)
    if token is None or token.subject != (project,):
        return expired_page(request, _path(project))
    if (known := actions.get(token.request_id)) is not None:
        return outcome_page(known)
    fresh = actions.fresh_keys.find(token.request_id, session_of(request).id)
    if fresh is None:
        return expired_page(request, _path(project))
    problems = _problems(form, project)
    if problems:
        return _key_page(request, fresh, shown=False, form=form, problems=problems)
    actions.fresh_keys.drop(fresh.rotation_id)
    action = Action(
        fresh.rotation_id,
        "rotation",
        project,
        person.name,
        expected_generation=fresh.expected_generation,
    )
    return outcome_page(await actions.request(action, api_key=fresh.api_key))


def _problems(form: dict[str, str], project: str) -> dict[str, str]:
    problems = {}
    if form.get("saved") != "yes":
        problems["saved"] = "Save the key first: it is not shown again."
    if not is_confirmed(form.get("typed", ""), project):
        problems["typed"] = "This is not the project's id."
    return problems


def _key_page(
    request: Request,
    fresh: FreshKey,
    *,
    shown: bool,
    form: dict[str, str] | None = None,
    problems: dict[str, str] | None = None,
) -> Response:
    return render(
        request,
        "actions/fresh_key.html",
        status_code=422 if problems else 200,
        project=fresh.project,
        generation=fresh.expected_generation,
        api_key=fresh.api_key.get_secret_value() if shown else None,
        is_saved=(form or {}).get("saved") == "yes",
        problems=problems or {},
        life_s=KEY_LIFE_S,
        token=new_token(request, _PUBLISH, fresh.project, request_id=fresh.rotation_id),
        again=new_token(request, _MAKE, fresh.project),
    )


def _path(project: str) -> str:
    return f"/projects/{project}/rotate"


routes = [
    Route("/projects/{project}/rotate", show),
    Route("/projects/{project}/rotate/key", make_key, methods=["POST"]),
    # A reload of the response to the form, without sending it again.
    Route("/projects/{project}/rotate/key", show),
    Route("/projects/{project}/rotate", publish, methods=["POST"]),
]
