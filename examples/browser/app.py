"""The backend of a page that shows a project's files. It holds the API key, which no browser gets.

    KEYTURN_GATEWAY_URL=http://127.0.0.1:8080 KEYTURN_API_KEY=… KEYTURN_PROJECT=acme \
        python examples/browser/app.py

The page uses the TypeScript client, with this backend in place of the gateway: `/files/v1/…` are
the gateway's own paths. A request passes if its session is valid, its project is the user's, and
it is one of the few that the page needs. Then the backend adds the API key. File contents are not
among them: the page uses links to open and upload files, directly at the gateway.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients/typescript/dist/esm"  # made by `npm run build`

OBJECTS = "/files/v1/projects/{project}/objects"
SESSION_S = 8 * 3600
LINK_MAX_S = 7 * 24 * 3600  # how long a link may live that this page's users ask for
UPLOAD_LINK_S = 600  # the page uploads as soon as it has the link
UPLOAD_MAX_BYTES = 5 * 2**30  # of one file
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
SENT = frozenset({"content-type", "prefer"})
RETURNED = frozenset({"content-type", "etag", "last-modified", "accept-ranges", "retry-after"})
METADATA = "x-keyturn-meta-"


# --- Replace this: who may see which project ----------------------------------------------------


@dataclass(frozen=True)
class User:
    """A person, and the project whose files this person sees."""

    name: str
    project: str
    api_key: str


# Use your application's own sign-in, and the place where it keeps API keys.
DEMO_PASSWORD = os.environ.get("DEMO_PASSWORD") or secrets.token_urlsafe(9)
DEMO_USER = User("demo", os.environ["KEYTURN_PROJECT"], os.environ["KEYTURN_API_KEY"])


def find_user(name: str, password: str) -> User | None:
    """Return the user if the password is right."""
    if name == DEMO_USER.name and secrets.compare_digest(password.encode(), DEMO_PASSWORD.encode()):
        return DEMO_USER
    return None


# --- Sessions -----------------------------------------------------------------------------------

sessions: dict[str, tuple[User, float]] = {}


def session_user(request: Request) -> User | None:
    """Return who sent this request, by its cookie."""
    user, until = sessions.get(request.cookies.get("session", ""), (None, 0.0))
    return user if time.monotonic() < until else None


async def session(request: Request) -> Response:
    """Sign in, sign out, or say who is signed in."""
    if request.method == "DELETE":
        sessions.pop(request.cookies.get("session", ""), None)
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        response.delete_cookie("session")
        return response
    if request.method == "GET":
        return described(session_user(request))
    sent = await read_json(request)
    user = find_user(str(sent.get("name")), str(sent.get("password")))
    if user is None:
        return problem(HTTPStatus.UNAUTHORIZED, "The name or the password is wrong.")
    for expired in [one for one, (_, until) in sessions.items() if until <= time.monotonic()]:
        del sessions[expired]
    token = secrets.token_urlsafe(32)
    sessions[token] = (user, time.monotonic() + SESSION_S)
    response = described(user)
    secure = request.url.scheme == "https"
    response.set_cookie("session", token, httponly=True, samesite="strict", secure=secure)
    return response


def described(user: User | None) -> Response:
    """Return what the page may know of its user, or null."""
    return JSONResponse(user and {"name": user.name, "project": user.project})


# --- Files: the gateway's own paths, with the API key added --------------------------------------


async def files(request: Request) -> Response:
    """Forward a request to the gateway, and return its response."""
    user = session_user(request)
    if user is None:
        return problem(HTTPStatus.UNAUTHORIZED, "Sign in first.", code="unauthorized")
    if request.path_params["project"] != user.project:
        return problem(HTTPStatus.NOT_FOUND, "There is no such project.", code="not_found")
    # A server between here and the gateway may resolve such segments.
    if {".", ".."} & set(request.path_params.get("key", "").split("/")):
        return problem(HTTPStatus.BAD_REQUEST, "The name is not valid.", code="malformed_request")
    body: bytes | None = None
    if request.method == "POST":
        link = link_request(await read_json(request))
        if link is None:
            detail = "This page makes no such links."
            return problem(HTTPStatus.FORBIDDEN, detail, code="not_permitted")
        body = json.dumps(link).encode()
    try:
        return await to_gateway(request, user, body)
    except (aiohttp.ClientError, TimeoutError):
        return problem(HTTPStatus.BAD_GATEWAY, "The file store does not respond.")


def link_request(sent: Mapping[str, object]) -> dict[str, object] | None:
    """Return the body of a request for a link, or None if this page has no use for it."""
    if sent.get("method") == "PUT":
        return upload_link_request(sent)
    expires_s = sent.get("expires_s", 3600)
    known = sent.keys() <= {"expires_s", "inline", "kind"}
    if not known or sent.get("kind", "object") != "object":
        return None
    if not isinstance(expires_s, int) or expires_s > LINK_MAX_S:
        return None
    return {"expires_s": expires_s, "inline": sent.get("inline", False)}


def upload_link_request(sent: Mapping[str, object]) -> dict[str, object] | None:
    """Return the body of a request for an upload link: for a file of this size and type alone."""
    max_bytes = sent.get("max_bytes")
    known = sent.keys() <= {"method", "max_bytes", "content_type"}
    if not known or not isinstance(max_bytes, int) or max_bytes > UPLOAD_MAX_BYTES:
        return None
    return {**sent, "expires_s": UPLOAD_LINK_S}


async def to_gateway(request: Request, user: User, body: bytes | None) -> Response:
    """Send the request to the gateway with the user's API key; return the response."""
    headers = chosen(request.headers, SENT) | {"Authorization": f"Bearer {user.api_key}"}
    # The path as it was sent, with every character encoded as it was.
    path = request.scope["raw_path"].decode("ascii").removeprefix("/files")
    query = request.scope["query_string"].decode("ascii")
    url = URL(request.app.state.gateway_url + path + (query and f"?{query}"), encoded=True)
    http: aiohttp.ClientSession = request.app.state.http
    async with http.request(
        request.method, url, headers=headers, data=body, allow_redirects=False
    ) as answer:
        content = await answer.read()  # small: at most one page of a list
        if answer.status == HTTPStatus.UNAUTHORIZED:
            # Not the user's fault, and the page must not ask for a password.
            detail = "The file store refuses this application's API key."
            return problem(HTTPStatus.BAD_GATEWAY, detail)
        returned = chosen(answer.headers, RETURNED)
        if request.method == "HEAD" and "content-length" in answer.headers:
            returned["content-length"] = answer.headers["content-length"]
        return Response(content, answer.status, returned)


def chosen(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """Return the headers of these names, and the caller's metadata."""
    lowered = {name.lower(): value for name, value in headers.items()}
    return {n: v for n, v in lowered.items() if n in names or n.startswith(METADATA)}


# --- The rest -----------------------------------------------------------------------------------


def problem(status: HTTPStatus, detail: str, code: str | None = None) -> Response:
    """Return an error in the gateway's own form (RFC 9457)."""
    fields = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail}
    body = fields | ({"code": code} if code else {})
    return JSONResponse(body, status, media_type="application/problem+json")


async def read_json(request: Request, limit: int = 4096) -> dict[str, object]:
    """Return a small JSON object, or an empty one if the body is anything else."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            return {}
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class Protection:
    """Refuses changes requested by other sites' pages, and limits what this page may load."""

    def __init__(self, app: ASGIApp, gateway_origin: str) -> None:
        self._app = app
        policy = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": f"'self' {gateway_origin}",
            "img-src": f"'self' {gateway_origin}",
            "media-src": gateway_origin,
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        self._headers = {
            "content-security-policy": "; ".join(f"{n} {v}" for n, v in policy.items()),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if scope["method"] in ("GET", "HEAD") or is_same_origin(Headers(scope=scope)):
            await self._app(scope, receive, protected)
        else:
            refused = problem(HTTPStatus.FORBIDDEN, "Another site's page sent this request.")
            await refused(scope, receive, protected)


def is_same_origin(headers: Headers) -> bool:
    """Whether a page of this very host sent the request: browsers send Origin with each change."""
    return urlsplit(headers.get("origin", "")).netloc == headers.get("host")


def create_app(gateway_url: str, public_url: str) -> Starlette:
    """Return the application.

    Args:
        gateway_url: Where this backend reaches the gateway.
        public_url: Where browsers reach it: what links begin with.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as http:
            app.state.http = http
            yield

    async def page(_: Request) -> Response:
        return FileResponse(HERE / "static/index.html")

    origin = "{0.scheme}://{0.netloc}".format(urlsplit(public_url))
    app = Starlette(
        routes=[
            Route("/", page),
            Route("/session", session, methods=["GET", "POST", "DELETE"]),
            Route(OBJECTS, files, methods=["GET"]),
            Route(OBJECTS + "/{key:path}/links", files, methods=["POST"]),
            Route(OBJECTS + "/{key:path}", files, methods=["HEAD", "DELETE"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
            Mount("/keyturn", StaticFiles(directory=CLIENT)),
        ],
        middleware=[Middleware(Protection, gateway_origin=origin)],
        lifespan=lifespan,
    )
    app.state.gateway_url = gateway_url.rstrip("/")
    return app


def main() -> None:
    if not CLIENT.is_dir():
        sys.exit("first build the TypeScript client: see README.md next to this file")
    gateway_url = os.environ["KEYTURN_GATEWAY_URL"]
    public_url = os.environ.get("KEYTURN_GATEWAY_PUBLIC_URL") or gateway_url
    print(f"sign in as {DEMO_USER.name} with the password {DEMO_PASSWORD}", flush=True)
    uvicorn.run(create_app(gateway_url, public_url), port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
