"""Addresses of pages, and what an address asks for (SPEC 16.2). Pure.

An address is a person's or a bookmark's: what is malformed in it is the default.
"""

from typing import TypeVar, cast, get_args
from urllib.parse import quote, urlencode

from starlette.datastructures import QueryParams

from keyturn_workers.console.model.rows import SweepRef

_T = TypeVar("_T", bound=str)
ALL: str = "_all"
"""What stands for `*`, all projects, in a path."""
_MAX_TEXT = 1024
_MAX_PAGE = 1_000_000


def project_path(project: str) -> str:
    """The page of a project."""
    return f"/projects/{quote(project, safe='')}"


def sweep_path(sweep: SweepRef) -> str:
    """The page of a sweep or rotation."""
    project = ALL if sweep.project == "*" else sweep.project
    return f"/sweeps/{quote(project, safe='')}/{quote(sweep.sweep_id, safe='')}"


def address(path: str, params: QueryParams, **changed: object) -> str:
    """A path with these parameters; what is empty or None is left out."""
    kept = {name: value for name, value in params.items() if name not in changed}
    named = kept | {name: str(value) for name, value in changed.items() if value is not None}
    query = urlencode({name: value for name, value in named.items() if value})
    return f"{path}?{query}" if query else path


def text_of(params: QueryParams, name: str) -> str:
    """What a person typed."""
    return params.get(name, "").strip()[:_MAX_TEXT]


def page_of(params: QueryParams) -> int:
    """The number of a page, from 1."""
    value = params.get("page", "")
    if not (value.isascii() and value.isdigit()):
        return 1
    return min(max(int(value[:9]), 1), _MAX_PAGE)


def choice_of(params: QueryParams, name: str, literal: object, default: _T) -> _T:
    """One of the values of a `Literal`."""
    value = params.get(name)
    return cast("_T", value) if value in get_args(literal) else default
