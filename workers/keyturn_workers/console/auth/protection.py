"""Protection of every request and response, and the access log (SPEC 16.3).

The checks, in order: the host is the console's own, except for probes and static files; an unsafe
request comes from a page of the console, is a small form and carries the token of its session; a
person is signed in. Only paths in `open_paths` need no session.

A page of another site can make a browser send requests here, with cookies if it is "same site":
another port of this machine, or another name below the same domain. And an attacker's name can
resolve to this machine (DNS rebinding). So the host must be one of the console's own, and an unsafe
request must come from a page of one of these origins.
"""

import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn_workers.console.auth.person import CSRF_FIELD, SESSION_SCOPE, Session
from keyturn_workers.console.auth.sessions import COOKIE, Sessions
from keyturn_workers.process.http_server.client_connection import ClientGoneError, read_body

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
# A path of this site: no host after `//`, no backslash, which browsers read as a slash.
_LOCAL: Final = re.compile(r"/(?:[^/\\\x00-\x20\x7f-\x9f][^\\\x00-\x20\x7f-\x9f]*)?")
_LOCAL_MAX_CHARACTERS: Final = 1000
_COOKIE_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HOME: Final = "/"


@dataclass(frozen=True, slots=True)
class OwnOrigins:
    """The origins under which this console may be used.

    `public` is the origin as browsers see it; `hosts` and `origins` are the allowed values of
    `Host` and `Origin`.
    """

    public: str
    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, public_url: str, port: int, scheme: str = "http") -> Self:
        """Return the origins for a public URL, and for this machine on the console's own port."""
        local = {f"{host}:{port}" for host in _LOOPBACK}
        return cls(
            public_url,
            frozenset(local | {urlsplit(public_url).netloc}),
            frozenset({f"{scheme}://{host}" for host in local} | {public_url}),
        )

    def is_own_host(self, host: str | None) -> bool:
        """Return whether a `Host` header names this console."""
        return host is not None and host.lower() in self.hosts

    def is_own_page(self, headers: Mapping[str, str]) -> bool:
        """Return whether an unsafe request comes from a page of this console.

        Browsers send `Origin` with each one; a page without an origin sends `null`.
        """
        origin = headers.get("origin")
        if origin is not None:
            return origin in self.origins
        return headers.get("sec-fetch-site") == "same-origin"

    def page_of(self, referer: str | None) -> str:
        """Return the path of the page that a request came from, if it is the console's."""
        if referer is None:
            return HOME
        try:
            parts = urlsplit(referer)
        except ValueError:
            return HOME
        if f"{parts.scheme}://{parts.netloc}" not in self.origins:
            return HOME
        return local_path(f"{parts.path}?{parts.query}" if parts.query else parts.path)


def without_odd_cookies(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    r"""Return the headers without cookies whose names are not plain.

    Browsers accept a name with `__Host-` only from this host. But Starlette strips blanks around
    names, also `\x85` and `\xa0`: with one of these, another host of the domain could set such a
    name.
    """
    return [
        (name, _plain_cookies(value) if name == b"cookie" else value) for name, value in headers
    ]


def _plain_cookies(value: bytes) -> bytes:
    pairs = (pair.strip(b" ") for pair in value.split(b";"))
    return b"; ".join(pair for pair in pairs if _COOKIE_NAME.fullmatch(pair.partition(b"=")[0]))


def local_path(target: str | None) -> str:
    """Return the path and query to open after the sign-in; `/` unless the target is local."""
    if target is None or len(target) > _LOCAL_MAX_CHARACTERS:
        return HOME
    return target if _LOCAL.fullmatch(target) else HOME


_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_ALWAYS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_CACHE_CONTROL: Final = "Cache-Control"
_HSTS: Final = "max-age=31536000"


class SecurityHeaders:
    """ASGI middleware that adds security headers. A response may set its own `Cache-Control`."""

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        self._headers = {**_ALWAYS, **({"Strict-Transport-Security": _HSTS} if is_https else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault(_CACHE_CONTROL, "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


MAX_BODY_BYTES: Final = 256 * 1024
SIGN_IN: Final = "/sign-in"
_HEALTH: Final = "/healthz"
_STATIC: Final = "/static/"
_FORM: Final = "application/x-www-form-urlencoded"
_BODY_TIMEOUT_S: Final = 15.0
ErrorPage = Callable[[Request, Exception], Awaitable[Response]]


def cookie_header(name: str, value: str) -> str:
    """Return a cookie as `__Host-` requires; it ends with the browser's session."""
    return f"{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax"


class Protection:
    """ASGI middleware between the server and the pages."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        origins: OwnOrigins,
        open_paths: frozenset[str],
        error_page: ErrorPage,
    ) -> None:
        """Serve `app` behind the checks.

        `open_paths` need no session; neither do static files and `/healthz`.
        """
        self._app = app
        self._sessions = sessions
        self._origins = origins
        self._open_paths = open_paths
        self._error_page = error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = without_odd_cookies(scope["headers"])
        request = Request(scope, receive)
        cookie = request.cookies.get(COOKIE)
        session = self._sessions.read(cookie)
        if session is not None:
            scope[SESSION_SCOPE] = session
        try:
            checked = await self._check(request, session)
        except HTTPException as refused:
            page = await self._error_page(request, refused)
            await page(scope, receive, send)
            return
        except ClientGoneError:
            return
        if isinstance(checked, Response):
            await checked(scope, receive, send)
        elif cookie is None or session is None:
            await self._app(scope, checked, send)
        else:
            await self._app(scope, checked, self._renewing(request, cookie, send))

    async def _check(self, request: Request, session: Session | None) -> Receive | Response:
        """Return where the application reads the body, or the response to a signed-out caller."""
        path, headers = request.scope["path"], request.headers
        is_public = path == _HEALTH or path.startswith(_STATIC)
        if not is_public and not self._origins.is_own_host(headers.get("host")):
            raise HTTPException(400, f"The address of this console is {self._origins.public}.")
        is_open = is_public or path in self._open_paths
        is_safe = request.method in SAFE_METHODS
        if not is_safe and not self._origins.is_own_page(headers):
            raise HTTPException(403, "This request does not come from a page of the console.")
        if session is None and not is_open:
            return self._to_sign_in(request)
        if is_safe:
            return request.receive
        body = await _read_form(request)
        if session is not None and not is_open:
            await _check_token(request, body, session)
        return _replay(body, request.receive)

    def _to_sign_in(self, request: Request) -> Response:
        if "hx-request" in request.headers:
            # The browser would follow a redirect and put the sign-in page into a part of the page.
            return PlainTextResponse("signed out\n", 401, {"HX-Refresh": "true"})
        if request.method in SAFE_METHODS:
            query = request.url.query
            target = f"{request.url.path}?{query}" if query else request.url.path
        else:
            target = self._origins.page_of(request.headers.get("referer"))
        url = SIGN_IN if target == HOME else f"{SIGN_IN}?next={quote(target, safe='/')}"
        return RedirectResponse(url, HTTPStatus.SEE_OTHER)

    def _renewing(self, request: Request, cookie: str, send: Send) -> Send:
        """Renew the cookie after a person's action, but not after the page's own refresh."""
        renewed = None if "hx-request" in request.headers else self._sessions.renew(cookie)
        if renewed is None or request.scope["path"].startswith(_STATIC):
            return send

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if not _sets_session(headers):
                    headers.append("Set-Cookie", cookie_header(COOKIE, renewed))
            await send(message)

        return send_with_cookie


def _sets_session(headers: MutableHeaders) -> bool:
    return any(each.startswith(f"{COOKIE}=") for each in headers.getlist("set-cookie"))


async def _read_form(request: Request) -> bytes:
    """Return the body of a form.

    Raises:
        HTTPException: it is too large, or not a form of the console's pages.
        ClientGoneError: it does not arrive.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise HTTPException(413, "The form is too large.")
    media_type = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise HTTPException(415, "The console accepts only forms.")
    pieces, size = [], 0
    async for piece in read_body(request.receive, _BODY_TIMEOUT_S):
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, "The form is too large.")
        pieces.append(piece)
    return b"".join(pieces)


async def _check_token(request: Request, body: bytes, session: Session) -> None:
    async with Request(request.scope, _replay(body, request.receive)).form() as form:
        token = form.get(CSRF_FIELD)
    if not isinstance(token, str) or not hmac.compare_digest(token.encode(), session.csrf.encode()):
        raise HTTPException(403, "This form belongs to another session. Open its page again.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Yield the body once more, then the connection's own messages."""
    is_sent = False

    async def receive_again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


_MAX_PATH_CHARACTERS: Final = 500
_QUIET_PATHS: Final = ("/static/", "/healthz")
_CANCELED: Final = 499

_log = structlog.get_logger()


class AccessLog:
    """ASGI middleware that writes a log line, outside of the one that identifies the person."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _CANCELED

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _write(scope, status, time.perf_counter() - started)


def _write(scope: Scope, status: int, took_s: float) -> None:
    session = scope.get(SESSION_SCOPE)
    path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
    write = _log.debug if _is_quiet(scope) else _log.info
    write(
        "request",
        person=None if session is None else session.person.name,
        method=scope["method"],
        path=path.partition("?")[0][:_MAX_PATH_CHARACTERS],
        status=int(status),  # an `HTTPStatus` shows as more than its number
        took_ms=round(took_s * 1000, 1),
    )


def _is_quiet(scope: Scope) -> bool:
    if scope["method"] not in SAFE_METHODS:
        return False
    return scope["path"].startswith(_QUIET_PATHS) or "hx-request" in Headers(scope=scope)
