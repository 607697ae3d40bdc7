"""The delete of an object (SPEC 8.7): for good, so its key is typed twice."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import check_object_key
from keyturn_workers.console.sweeps.forms import (
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
from keyturn_workers.console.web.rendering import render

_PURPOSE = "delete"
_PATH = "/projects/{project}/delete"


async def show(request: Request) -> Response:
    """The form."""
    operator_of(request)
    key = request.query_params.get("key", "")
    return _form(request, project_of_path(request), {"key": key}, {})


async def delete(request: Request) -> Response:
    """Publish the delete, if the key was typed twice."""
    operator = operator_of(request)
    project = project_of_path(request)
    form = await read_form(request)
    token = read_token(request, form, _PURPOSE)
    if token is None or token.subject != (project,):
        return expired_page(request, _PATH.format(project=project))
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    if problems := _problems(form):
        return _form(request, project, form, problems)
    try:
        action = await actions_of(request).delete(
            operator.person, token.request_id, project, form["key"]
        )
    except TooManyActionsError as exc:
        raise too_many() from exc
    return outcome_page(action)


def _problems(form: dict[str, str]) -> dict[str, str]:
    problems = {}
    key = form.get("key", "")
    try:
        check_object_key(key)
    except ValueError as exc:
        problems["key"] = f"Not an object key: {exc}."
    if form.get("typed", "") != key:
        problems["typed"] = "This is not the same key. Blanks count."
    return problems


def _form(
    request: Request, project: str, form: dict[str, str], problems: dict[str, str]
) -> Response:
    return render(
        request,
        "actions/delete.html",
        status_code=422 if problems else 200,
        project=project,
        key=form.get("key", ""),
        problems=problems,
        token=new_token(request, _PURPOSE, project),
    )


routes = [Route(_PATH, show), Route(_PATH, delete, methods=["POST"])]
