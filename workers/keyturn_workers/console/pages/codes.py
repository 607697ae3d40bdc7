"""*Codes*: what each code means, and what to do about it (SPEC 12, 16.2)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.console.rendering.templates import render
from keyturn_workers.process.code_help import CODES


async def show(request: Request) -> Response:
    """Answer `GET /codes`, with an anchor for each code."""
    return render(request, "codes.html", codes=sorted(CODES.items()))


routes = [Route("/codes", show)]
