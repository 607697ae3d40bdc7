"""What a request passes before a page serves it: its host, its origin, its form, its session."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from keyturn.crypto import Secret
from keyturn_workers.console.auth import csrf_token, person_of, protection
from keyturn_workers.console.auth.protection import MAX_BODY_BYTES, Protection
from keyturn_workers.console.auth.requests import OwnOrigins
from keyturn_workers.console.auth.sessions import COOKIE, Account, Sessions
from keyturn_workers.console.auth.signed_out import SignedOut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from httpx2 import Response as ClientResponse
    from starlette.requests import Request
    from starlette.responses import Response

_URL: Final = "https://console.example.com"
_KIM: Final = Account("password", "kim", "kim", "operate", "stamp")


async def _page(request: Request) -> Response:
    return PlainTextResponse(f"{person_of(request).name} {csrf_token(request)}")


async def _change(request: Request) -> Response:
    form = await request.form()
    return PlainTextResponse(f"changed {form.get('what')}")


async def _open(request: Request) -> Response:
    del request
    return PlainTextResponse("open")


async def _events(request: Request) -> Response:
    del request

    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"data: now\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(forever(), media_type="text/event-stream")


async def _error_page(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"refused: {error.detail}", error.status_code)


@dataclass
class _Console:
    """An application with all kinds of routes, and one session."""

    now: float = 1_000_000.0
    has_account: bool = True
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: Sessions = field(init=False)
    cookie: str = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(
            Secret(b"k" * 32),
            lambda *_: "stamp" if self.has_account else None,
            SignedOut(None),
            session_s=1000,
            idle_s=100,
            clock=lambda: self.now,
        )
        self.cookie = self.sessions.begin(_KIM)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", _page),
                Route("/projects", _page),
                Route("/change", _change, methods=["POST", "DELETE"]),
                Route("/sign-in", _open, methods=["GET", "POST"]),
                Route("/static/a.css", _open),
                Route("/healthz", _open),
                Route("/events", _events),
            ],
            middleware=[
                Middleware(
                    Protection,
                    sessions=self.sessions,
                    origins=OwnOrigins.of(_URL, 8090),
                    open_paths=frozenset({"/sign-in"}),
                    error_page=_error_page,
                    stopping=self.stopping,
                )
            ],
        )

    @property
    def csrf(self) -> str:
        session = self.sessions.read(self.cookie)
        assert session is not None
        return session.csrf

    def request(
        self, method: str, path: str, *, signed_in: bool = True, **options: Any
    ) -> ClientResponse:
        headers = options.pop("headers", {})
        if signed_in:
            headers = {"Cookie": f"{COOKIE}={self.cookie}", **headers}
        with TestClient(self.app, base_url=_URL, follow_redirects=False) as client:
            return client.request(method, path, headers=headers, **options)

    def change(self, *, origin: str | None = _URL, **options: Any) -> ClientResponse:
        headers = {**({} if origin is None else {"Origin": origin}), **options.pop("headers", {})}
        data = options.pop("data", {"csrf": self.csrf, "what": "it"})
        return self.request("POST", "/change", headers=headers, data=data, **options)


@pytest.fixture
def console() -> _Console:
    return _Console()


def test_a_session_opens_the_pages(console: _Console) -> None:
    response = console.request("GET", "/projects")
    assert response.text == f"kim {console.csrf}"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/", "/sign-in"),
        ("/projects", "/sign-in?next=/projects"),
        ("/projects?text=a%26b&page=2", "/sign-in?next=/projects%3Ftext%3Da%2526b%26page%3D2"),
        ("//evil.example/a", "/sign-in?next=//evil.example/a"),
        ("/nowhere", "/sign-in?next=/nowhere"),
    ],
)
def test_without_one_every_path_leads_to_the_sign_in(
    console: _Console, path: str, target: str
) -> None:
    """Also those that do not exist. Where it leads back to is checked there."""
    response = console.request("GET", f"{_URL}{path}", signed_in=False)
    assert (response.status_code, response.headers["location"]) == (303, target)


def test_a_part_of_a_page_does_not_become_the_sign_in(console: _Console) -> None:
    for path, headers in (("/projects", {"HX-Request": "true"}), ("/events", {})):
        response = console.request("GET", path, signed_in=False, headers=headers)
        assert response.status_code == 401
        assert response.headers["hx-refresh"] == "true"


def test_a_form_without_a_session_leads_back_to_its_page(console: _Console) -> None:
    headers = {"Referer": f"{_URL}/projects?page=2"}
    response = console.change(signed_in=False, headers=headers)
    assert response.headers["location"] == "/sign-in?next=/projects%3Fpage%3D2"


@pytest.mark.parametrize("path", ["/sign-in", "/static/a.css", "/healthz"])
def test_little_is_open(console: _Console, path: str) -> None:
    assert console.request("GET", path, signed_in=False).text == "open"


def test_only_its_own_names_reach_a_page(console: _Console) -> None:
    for host, status in (
        ("console.example.com", 200),
        ("localhost:8090", 200),
        ("evil.example", 400),
        ("127.0.0.1:9000", 400),
    ):
        assert console.request("GET", "/", headers={"Host": host}).status_code == status
    assert _URL in console.request("GET", "/", headers={"Host": "evil.example"}).text
    # Probes ask by address, and the page that says so has a style.
    for path in ("/healthz", "/static/a.css"):
        assert console.request("GET", path, headers={"Host": "10.0.0.7:8090"}).text == "open"


def test_a_form_of_a_page_changes_something(console: _Console) -> None:
    assert console.change().text == "changed it"
    assert console.change(origin=None, headers={"Sec-Fetch-Site": "same-origin"}).text == (
        "changed it"
    )


@pytest.mark.parametrize(
    "origin",
    [None, "null", "https://evil.example", "http://127.0.0.1:9000", f"{_URL}.evil.example"],
)
def test_another_origin_changes_nothing(console: _Console, origin: str | None) -> None:
    """Even with the right token."""
    response = console.change(origin=origin)
    assert response.status_code == 403
    assert "does not come from a page of the console" in response.text


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "PROPFIND"])
def test_every_unsafe_method_is_checked(console: _Console, method: str) -> None:
    assert console.request(method, "/change").status_code == 403


@pytest.mark.parametrize("token", [None, "", "a", "é"])
def test_a_form_without_the_token_changes_nothing(console: _Console, token: str | None) -> None:
    data = {"what": "it"} if token is None else {"what": "it", "csrf": token}
    response = console.change(data=data)
    assert response.status_code == 403
    assert "another session" in response.text


def test_the_token_of_another_session_changes_nothing(console: _Console) -> None:
    other = console.sessions.read(console.sessions.begin(_KIM))
    assert other is not None
    assert console.change(data={"csrf": other.csrf, "what": "it"}).status_code == 403


def test_only_small_forms_are_read(console: _Console) -> None:
    large = {"csrf": console.csrf, "what": "x" * MAX_BODY_BYTES}
    assert console.change(data=large).status_code == 413
    assert console.change(data={}, files={"csrf": console.csrf}).status_code == 415
    json = {"Content-Type": "application/json"}
    assert console.change(data=None, content=b"{}", headers=json).status_code == 415


def test_a_body_without_a_length_is_bounded_too(console: _Console) -> None:
    pieces = iter([b"what=it&csrf="] + [b"x" * 65536] * 5)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert console.change(data=None, content=pieces, headers=form).status_code == 413


def test_actions_renew_the_cookie_and_refreshes_do_not(console: _Console) -> None:
    console.now += 50
    for path, headers in (("/", {"HX-Request": "true"}), ("/static/a.css", {})):
        assert "set-cookie" not in console.request("GET", path, headers=headers).headers
    renewed = console.request("GET", "/").headers["set-cookie"]
    assert renewed.startswith(f"{COOKIE}=")
    assert renewed.endswith("; Path=/; Secure; HttpOnly; SameSite=Lax")
    console.cookie = renewed.partition(";")[0].partition("=")[2]
    console.now += 99
    assert console.request("GET", "/").status_code == 200


@pytest.mark.parametrize("how", ["signed out", "removed", "ended", "stopped"])
async def test_a_stream_of_events_ends_with_its_session(
    console: _Console, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protection, "CHECK_S", 0.01)
    sent: list[Any] = []
    started = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message)
        started.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    headers = [(b"host", b"localhost:8090"), (b"cookie", f"{COOKIE}={console.cookie}".encode())]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/events"}
    scope |= {"headers": headers, "query_string": b"", "root_path": "", "scheme": "http"}
    serving = asyncio.ensure_future(console.app(scope, receive, send))
    async with asyncio.timeout(5):
        await started.wait()
        match how:
            case "signed out":
                session = console.sessions.read(console.cookie)
                assert session is not None
                console.sessions.end(session)
            case "removed":
                console.has_account = False
            case "ended":
                console.now += 1000
            case _:
                console.stopping.set()
        await serving
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_cookie_that_another_host_can_set_is_none(console: _Console) -> None:
    """Browsers protect `__Host-` names, but not those with a blank that Starlette removes."""
    cookie = b"\x0b" + f"{COOKIE}={console.cookie}".encode()
    for planted in (cookie, b"other=1; " + cookie):
        response = console.request("GET", "/projects", signed_in=False, headers={"Cookie": planted})
        assert response.headers["location"] == "/sign-in?next=/projects"
    own = f"other=1;{COOKIE}={console.cookie}; ".encode()
    both = console.request("GET", "/projects", signed_in=False, headers={"Cookie": own + cookie})
    assert both.text == f"kim {console.csrf}"
