"""Enrollment, and the rotation of a project's key: a fresh key shown once, then published.

1. A page explains the enrollment or rotation. It has the button that makes a key.
2. Only the response to that button shows the key: not a reload, not the browser's history.
   Pressed again, it makes another key, and the first one is dropped.
3. The form below the key publishes it, once it was saved and the project's id was typed. That of a
   rotation names the generation that the page showed, so that of two rotations from two pages one
   is refused.

A key that was shown and never published opens nothing (SPEC 6.5, 8.1, 16.2).
"""

from functools import partial
from typing import Final, Literal

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

Kind = Literal["enrollment", "rotation"]
VERBS: Final[dict[Kind, str]] = {"enrollment": "enroll", "rotation": "rotate"}


async def _known(request: Request, project: str) -> tuple[Answer, ProjectStatus | None]:
    (answer,) = await ask(request, Query("projects", project))
    return answer, next(iter((answer.report and answer.report.projects) or ()), None)


def _is_possible(kind: Kind, row: ProjectStatus | None) -> bool:
    """Return whether a worker could accept it, as far as is known."""
    if kind == "enrollment":
        return row is None
    return row is not None and row.generation is not None and row.erased_at is None


async def _explanation(
    request: Request, kind: Kind, project: str, status_code: int = 200
) -> Response:
    answer, row = await _known(request, project)
    return render(
        request,
        f"actions/{VERBS[kind]}.html",
        status_code=status_code,
        project=project,
        answer=answer,
        row=row,
        is_possible=_is_possible(kind, row),
        token=new_token(request, f"{kind}-key", project),
    )


async def show(request: Request, *, kind: Kind) -> Response:
    """Explain the enrollment or rotation, with the button that makes a key."""
    require_operate(request)
    project = project_of_path(request)
    return await _explanation(request, kind, project)


async def make_key(request: Request, *, kind: Kind) -> Response:
    """Make a key, and show it in this response only."""
    require_operate(request)
    project = project_of_path(request)
    token = read_token(request, await read_form(request), f"{kind}-key")
    if token is None or token.subject != (project,):
        return expired_page(request, _path(kind, project))
    _, row = await _known(request, project)
    if not _is_possible(kind, row):
        return await _explanation(request, kind, project, 409)
    generation = None if row is None else row.generation
    fresh = actions_of(request).fresh_keys.make(session_of(request).id, project, generation)
    return _key_page(request, kind, fresh, shown=True)


async def publish(request: Request, *, kind: Kind) -> Response:
    """Publish the key that was shown last, once."""
    person = require_operate(request)
    project = project_of_path(request)
    form = await read_form(request)
    actions = actions_of(request)
    token = read_token(request, form, kind)
    if token is None or token.subject != (project,):
        return expired_page(request, _path(kind, project))
    if (known := actions.get(token.request_id)) is not None:
        return outcome_page(known)
    fresh = actions.fresh_keys.find(token.request_id, session_of(request).id)
    if fresh is None:
        return expired_page(request, _path(kind, project))
    problems = _problems(form, project)
    if problems:
        return _key_page(request, kind, fresh, shown=False, form=form, problems=problems)
    actions.fresh_keys.drop(fresh.request_id)
    action = Action(
        fresh.request_id,
        kind,
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
    kind: Kind,
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
        path=_path(kind, fresh.project),
        token=new_token(request, kind, fresh.project, request_id=fresh.request_id),
        again=new_token(request, f"{kind}-key", fresh.project),
    )


def _path(kind: Kind, project: str) -> str:
    return f"/projects/{project}/{VERBS[kind]}"


routes = [
    Route(f"/projects/{{project}}/{verb}{path}", partial(endpoint, kind=kind), methods=[method])
    for kind, verb in VERBS.items()
    for method, path, endpoint in (
        ("GET", "", show),
        ("POST", "/key", make_key),
        # A reload of the response to the form, without sending it again.
        ("GET", "/key", show),
        ("POST", "", publish),
    )
]
