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
    """Sign-in, as the application needs it."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """`/sign-in`, `/sign-out` and what belongs to them."""
        ...

    @property
    def middleware(self) -> Sequence[Middleware]:
        """From outermost to innermost."""
        ...


async def _healthz(_request: Request) -> Response:
    """Whether the process answers: of the broker and of control workers it says nothing."""
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
    # A redirect to the address without its slash would be to http://, also behind a proxy.
    app.router.redirect_slashes = False
    app.state.console = context
    return app
