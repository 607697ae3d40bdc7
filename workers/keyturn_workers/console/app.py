"""The console's application: all routes (SPEC 16.2, 16.3)."""

from collections.abc import Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from keyturn_workers.console.context import ConsoleContext
from keyturn_workers.console.pages import (
    audit,
    codes,
    dead,
    keys,
    now,
    projects,
    queues,
    requests,
    rotation,
    sweeps,
)
from keyturn_workers.console.rendering.templates import (
    http_error_page,
    server_error_page,
    static_files,
)

_PAGES = (now, projects, requests, sweeps, rotation, keys, dead, queues, audit, codes)


class SignedIn(Protocol):
    """The sign-in that the application needs."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The routes of sign-in and sign-out."""
        ...

    @property
    def middleware(self) -> Sequence[Middleware]:
        """The middleware, from outermost to innermost."""
        ...


async def _healthz(_request: Request) -> Response:
    """Answer while the process does; this reveals nothing about the broker and control workers."""
    return PlainTextResponse("ok\n")


def create_app(context: ConsoleContext, auth: SignedIn) -> Starlette:
    """Make the application."""
    app = Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/static/{name:path}", static_files().serve),
            *(route for page in _PAGES for route in page.routes),
            *auth.routes,
        ],
        middleware=list(auth.middleware),
        exception_handlers={HTTPException: http_error_page, Exception: server_error_page},
    )
    # A redirect to the address without its slash would lead to http://, also behind a proxy.
    app.router.redirect_slashes = False
    app.state.console = context
    return app
