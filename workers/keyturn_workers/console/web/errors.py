"""Errors as pages in the same shell (SPEC 16.2)."""

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from keyturn_workers.console.web.rendering import render

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Text:
    title: str
    what: str
    remedy: str


_TEXTS: Final = {
    400: _Text(
        "This request is malformed",
        "The console cannot read it. Nothing was changed.",
        "Go back, reload the page and try again.",
    ),
    403: _Text(
        "Not allowed",
        "Your role does not permit this, or the form has expired. Nothing was changed.",
        "If you sent a form, reload its page and send it again. Actions need the role “operate”.",
    ),
    404: _Text(
        "Not found",
        "There is no such page, or what it showed is gone.",
        "Check the address, or start from a page in the navigation.",
    ),
    405: _Text(
        "Method not allowed",
        "This address does not take that kind of request. Nothing was changed.",
        "Open the page again and use its form.",
    ),
    413: _Text(
        "This form is too large",
        "The console does not read it. Nothing was changed.",
        "Enter less text.",
    ),
    415: _Text(
        "This is not a form",
        "The console reads only the forms of its own pages. Nothing was changed.",
        "Open the page again and use its form.",
    ),
    503: _Text(
        "Not available now",
        "A part that this page needs does not answer.",
        "Try again in a moment. The page “Now” shows what is unavailable.",
    ),
}
_UNKNOWN: Final = _Text(
    "Something went wrong",
    "The console failed while it made this page.",
    "Try again. The console's log holds the error.",
)


async def http_error_page(request: Request, error: Exception) -> Response:
    """The page of an `HTTPException`; its `detail` is shown where it says more than its status."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    text = _TEXTS.get(status, _UNKNOWN)
    detail = error.detail if isinstance(error, HTTPException) else ""
    if detail == HTTPStatus(status).phrase:
        detail = ""
    return render(
        request,
        "error.html",
        status_code=status,
        headers=headers,
        status=status,
        text=text,
        detail=detail,
    )


async def server_error_page(request: Request, error: Exception) -> Response:
    """The page of an error that nothing expected. Its text stays in the log."""
    # uvicorn would log it, but its messages are off: they contain paths.
    _log.error("a request failed", exc_info=error)
    return await http_error_page(request, error)
