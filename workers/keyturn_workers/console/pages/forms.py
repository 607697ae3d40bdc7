"""Common parts of the pages of actions: forms, their tokens, and paths (SPEC 16.3)."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from keyturn.identifiers import is_uuid
from keyturn_workers.console.actions import REQUEST_TYPES, Action, Actions
from keyturn_workers.console.auth.person import session_of
from keyturn_workers.console.context import context_of
from keyturn_workers.console.form_tokens import FORM_LIFE_S, FormExpiredError, FormToken
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import render, see_other
from keyturn_workers.process.code_help import code_help

TOKEN_FIELD: Final = "form"  # noqa: S105 - the name of a field


def actions_of(request: Request) -> Actions:
    """Return the actions of this console."""
    return context_of(request).actions


def new_token(request: Request, purpose: str, *subject: str, request_id: str | None = None) -> str:
    """Return a token for a form on this page; by default with the id of a new request."""
    return actions_of(request).forms.make(
        session_of(request).id, purpose, *subject, request_id=request_id
    )


def read_token(
    request: Request, form: Mapping[str, str], purpose: str, *, life_s: int = FORM_LIFE_S
) -> FormToken | None:
    """Return the content of a form's token; None if the form can no longer be served."""
    try:
        return actions_of(request).forms.read(
            form.get(TOKEN_FIELD, ""), session_of(request).id, purpose, life_s=life_s
        )
    except FormExpiredError:
        return None


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, without files."""
    fields = await request.form(max_files=0)
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def project_of_path(request: Request, *, all_allowed: bool = False) -> str:
    """Return the project that the path names.

    Raises:
        HTTPException: 404, it names none.
    """
    project = words.project_of_segment(request.path_params["project"])
    if project is None or (project == "*" and not all_allowed):
        raise HTTPException(404)
    return project


def id_of_path(request: Request, name: str) -> str:
    """Return the id that the path names.

    Raises:
        HTTPException: 404, it is not an id.
    """
    value: str = request.path_params[name]
    if not is_uuid(value):
        raise HTTPException(404)
    return value


def outcome_page(action: Action) -> Response:
    """Redirect to the page with the outcome of the request."""
    if action.kind == "sweep":
        return see_other(words.sweep_path(action.project, action.request_id))
    return see_other(f"/actions/{action.request_id}")


def outcome_values(request: Request, action: Action | None) -> dict[str, Any]:
    """Return the values for the template of an outcome."""
    context = context_of(request)
    return {
        "action": action,
        "may_repeat": action is not None and actions_of(request).may_repeat(action.request_id),
        "help": code_help(action.code) if action is not None and action.code else None,
        "publisher": context.publisher_name,
        "request_type": REQUEST_TYPES[action.kind] if action is not None else "",
    }


def expired_page(request: Request, back: str) -> Response:
    """Return the page for a form that can no longer be served. Nothing was published."""
    return render(request, "actions/expired.html", status_code=409, back=back)


def is_confirmed(typed: str, phrase: str) -> bool:
    """Return whether the phrase was typed; blanks around it do not count, case does."""
    return typed.strip() == phrase.strip() and bool(phrase.strip())
