"""The console's application: all routes, and errors as pages (SPEC 16.2, 16.3)."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from keyturn_workers.console import dead, sweeps
from keyturn_workers.console.web.context import ConsoleContext
from keyturn_workers.console.web.errors import http_error_page, server_error_page
from keyturn_workers.console.web.pages import audit, now, project, projects, queues
from keyturn_workers.console.web.rendering import static_files
from keyturn_workers.console.web.reports import Reports
from keyturn_workers.console.web.sse import Live


async def _healthz(_request: Request) -> Response:
    """Whether the process answers: of its feeds and the broker it says nothing."""
    return PlainTextResponse("ok\n")


def create_app(context: ConsoleContext) -> Starlette:
    """Make the application."""
    live = Live(context.model.changes, context.feeds.viewing)
    app = Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/static/{name:path}", static_files().serve),
            Route("/events", live.serve),
            *now.routes,
            *projects.routes,
            *project.routes,
            *queues.routes,
            *audit.routes,
            *sweeps.routes,
            *dead.routes,
            *context.auth.routes,
        ],
        middleware=list(context.auth.middleware),
        exception_handlers={HTTPException: http_error_page, Exception: server_error_page},
    )
    # A redirect to the address without its slash would be to http://, also behind a proxy.
    app.router.redirect_slashes = False
    app.state.console = context
    app.state.live = live
    app.state.reports = Reports()
    return app
