"""What each request passes before a page serves it (SPEC 16.3).

In this order: the host is the console's own, except for probes and static files; an unsafe request
comes from a page of the console, is a small form and carries the token of its session; a person is
signed in. A route needs no session only if its path is in `open_paths`.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn_workers.console.auth.person import CSRF_FIELD, SESSION_SCOPE, Session
from keyturn_workers.console.auth.requests import (
    HOME,
    SAFE_METHODS,
    OwnOrigins,
    without_odd_cookies,
)
from keyturn_workers.console.auth.sessions import COOKIE, Sessions
from keyturn_workers.http_server.client_connection import ClientGoneError, read_body

MAX_BODY_BYTES: Final = 256 * 1024
SIGN_IN: Final = "/sign-in"
_HEALTH: Final = "/healthz"
_STATIC: Final = "/static/"
_EVENTS: Final = "/events"
_FORM: Final = "application/x-www-form-urlencoded"
_BODY_TIMEOUT_S: Final = 15.0
CHECK_S: Final = 1.0
"""How often a stream of events looks whether its session has ended."""
ErrorPage = Callable[[Request, Exception], Awaitable[Response]]


def cookie_header(name: str, value: str) -> str:
    """A cookie as `__Host-` asks for; it ends with the browser's session."""
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
        stopping: asyncio.Event,
    ) -> None:
        """Take what decides.

        Args:
            app: The pages.
            sessions: Reads cookies.
            origins: Where the console may be used.
            open_paths: Served without a session, as are static files and `/healthz`.
            error_page: Makes the page of an `HTTPException`.
            stopping: Set once the process is to end: streams of events then do.
        """
        self._app = app
        self._sessions = sessions
        self._origins = origins
        self._open_paths = open_paths
        self._error_page = error_page
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
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
        elif scope["path"] == _EVENTS:
            await self._stream(scope, checked, send, cookie)
        else:
            await self._app(scope, checked, self._renewing(request, cookie, send))

    async def _check(self, request: Request, session: Session | None) -> Receive | Response:
        """What the application reads the body from, or the answer of who is not signed in."""
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
        if "hx-request" in request.headers or request.scope["path"] == _EVENTS:
            # A redirect would be followed, and the sign-in page put into a part of the page.
            return PlainTextResponse("signed out\n", 401, {"HX-Refresh": "true"})
        if request.method in SAFE_METHODS:
            query = request.url.query
            target = f"{request.url.path}?{query}" if query else request.url.path
        else:
            target = self._origins.page_of(request.headers.get("referer"))
        url = SIGN_IN if target == HOME else f"{SIGN_IN}?next={quote(target, safe='/')}"
        return RedirectResponse(url, HTTPStatus.SEE_OTHER)

    def _renewing(self, request: Request, cookie: str, send: Send) -> Send:
        """Write the cookie again after a person's action, not for what a page asks by itself."""
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

    async def _stream(self, scope: Scope, receive: Receive, send: Send, cookie: str) -> None:
        """Serve events until their session ends, or the process does."""
        is_open = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_open
            await send(message)
            is_open = bool(message.get("more_body", message["type"] == "http.response.start"))

        serving = asyncio.ensure_future(self._app(scope, receive, send_and_note))
        ending = asyncio.ensure_future(self._ended(cookie))
        try:
            await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
        finally:
            for task in (serving, ending):
                task.cancel()
            await asyncio.gather(serving, ending, return_exceptions=True)
        if is_open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ended(self, cookie: str) -> None:
        while self._sessions.read(cookie) is not None:
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue
            return


def _sets_session(headers: MutableHeaders) -> bool:
    return any(each.startswith(f"{COOKIE}=") for each in headers.getlist("set-cookie"))


async def _read_form(request: Request) -> bytes:
    """The body of a form.

    Raises:
        HTTPException: it is too large, or no form that pages of the console send.
        ClientGoneError: it does not arrive.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise HTTPException(413, "The form is too large.")
    media_type = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise HTTPException(415, "The console reads only forms.")
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
    """Yields the body once more, then what happens to the connection."""
    is_sent = False

    async def receive_again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
