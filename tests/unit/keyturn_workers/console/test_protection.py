"""What a request passes before a page serves it: its host, its origin, its form, its session."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from keyturn.crypto import Secret
from keyturn_workers.console.auth.person import (
    SESSION_SCOPE,
    Forbidden,
    Person,
    Role,
    Session,
    person_of,
    require_operate,
    session_of,
)
from keyturn_workers.console.auth.protection import (
    MAX_BODY_BYTES,
    AccessLog,
    OwnOrigins,
    Protection,
    SecurityHeaders,
    local_path,
    without_odd_cookies,
)
from keyturn_workers.console.auth.sessions import COOKIE, Account, Sessions, SignedOut

if TYPE_CHECKING:
    from httpx2 import Response as ClientResponse
    from starlette.responses import Response


_URL: Final = "https://console.example.com"
_KIM: Final = Account("password", "kim", "kim", "operate", "stamp")


async def _page(request: Request) -> Response:
    return PlainTextResponse(f"{person_of(request).name} {session_of(request).csrf}")


async def _change(request: Request) -> Response:
    form = await request.form()
    return PlainTextResponse(f"changed {form.get('what')}")


async def _open(request: Request) -> Response:
    del request
    return PlainTextResponse("open")


async def _error_page(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"refused: {error.detail}", error.status_code)


@dataclass
class _Console:
    """An application with all kinds of routes, and one session."""

    now: float = 1_000_000.0
    has_account: bool = True
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
            ],
            middleware=[
                Middleware(
                    Protection,
                    sessions=self.sessions,
                    origins=OwnOrigins.of(_URL, 8090),
                    open_paths=frozenset({"/sign-in"}),
                    error_page=_error_page,
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
    for path, headers in (("/projects", {"HX-Request": "true"}),):
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


def test_a_cookie_that_another_host_can_set_is_none(console: _Console) -> None:
    """Browsers protect `__Host-` names, but not those with a blank that Starlette removes."""
    cookie = b"\x0b" + f"{COOKIE}={console.cookie}".encode()
    for planted in (cookie, b"other=1; " + cookie):
        response = console.request("GET", "/projects", signed_in=False, headers={"Cookie": planted})
        assert response.headers["location"] == "/sign-in?next=/projects"
    own = f"other=1;{COOKIE}={console.cookie}; ".encode()
    both = console.request("GET", "/projects", signed_in=False, headers={"Cookie": own + cookie})
    assert both.text == f"kim {console.csrf}"


_PROXIED = OwnOrigins.of("https://console.example.com", 8090)


@pytest.mark.parametrize(
    "host",
    [
        "console.example.com",
        "CONSOLE.example.com",
        "127.0.0.1:8090",
        "localhost:8090",
        "[::1]:8090",
    ],
)
def test_the_public_host_and_this_machine_are_its_own(host: str) -> None:
    assert _PROXIED.is_own_host(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "console.example.com:8090",
        "console.example.com.evil.example",
        "127.0.0.1:9000",
        "127.0.0.1",
        "127.0.0.1:8090@evil.example",
    ],
)
def test_another_name_for_this_machine_is_refused(host: str | None) -> None:
    """An attacker's name can resolve to it (DNS rebinding)."""
    assert not _PROXIED.is_own_host(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://console.example.com"},
        {"origin": "http://127.0.0.1:8090"},
        {"sec-fetch-site": "same-origin"},
        {"origin": "https://console.example.com", "sec-fetch-site": "same-origin"},
    ],
)
def test_its_own_pages_may_change_something(headers: dict[str, str]) -> None:
    assert _PROXIED.is_own_page(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "null", "sec-fetch-site": "same-origin"},
        {"origin": "https://evil.example"},
        {"origin": "http://console.example.com"},
        {"origin": "https://console.example.com.evil.example"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
    ],
)
def test_pages_of_other_origins_may_not(headers: dict[str, str]) -> None:
    assert not _PROXIED.is_own_page(headers)


@pytest.mark.parametrize("path", ["/", "/projects", "/sweeps/_all/1?view=all&page=2", "/a%2Fb"])
def test_a_path_of_this_site_is_gone_back_to(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "projects",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "/a\\b",
        "\\\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\n//evil.example",
        " /projects",
        "/a b",
        "/" + "a" * 1000,
    ],
)
def test_no_other_site_is_gone_to(path: str | None) -> None:
    assert local_path(path) == "/"


def test_after_a_form_one_goes_back_to_its_page() -> None:
    page_of = _PROXIED.page_of
    assert page_of("https://console.example.com/projects/acme?tab=1") == "/projects/acme?tab=1"
    assert page_of("http://localhost:8090/keys") == "/keys"
    assert page_of("https://evil.example/projects") == "/"
    assert page_of(None) == "/"
    assert page_of("http://[") == "/"


@pytest.mark.parametrize("blank", [b"\xa0", b"\x85", b"\x0b", b"\t", b"\xe2\x80\x80"])
def test_only_cookies_with_plain_names_are_read(blank: bytes) -> None:
    headers = [(b"host", b"a"), (b"cookie", b"a=1;" + blank + b"__Host-b=2; __Host-b=3;c")]
    assert without_odd_cookies(headers) == [(b"host", b"a"), (b"cookie", b"a=1; __Host-b=3; c")]


async def _fails(_: Request) -> Response:
    raise RuntimeError("as expected")


async def _kept(_: Request) -> Response:
    headers = {"Cache-Control": "public, max-age=1", "Content-Security-Policy": "default-src *"}
    return PlainTextResponse("x", headers=headers)


def _client(*, is_https: bool) -> TestClient:
    app = Starlette(routes=[Route("/fails", _fails), Route("/kept", _kept)])
    return TestClient(SecurityHeaders(app, is_https=is_https), raise_server_exceptions=False)


def test_errors_have_them_too() -> None:
    for path, status in (("/fails", 500), ("/nowhere", 404), ("/kept", 200)):
        response = _client(is_https=True).get(path)
        assert response.status_code == status
        policy = response.headers["content-security-policy"].split("; ")
        assert policy == [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_nothing_is_kept_unless_a_response_says_so() -> None:
    client = _client(is_https=False)
    assert client.get("/nowhere").headers["cache-control"] == "no-store"
    assert client.get("/kept").headers["cache-control"] == "public, max-age=1"


def test_plain_http_on_this_machine_promises_no_tls() -> None:
    assert "strict-transport-security" not in _client(is_https=False).get("/kept").headers


async def _logged_page(request: Request) -> Response:
    request.scope[SESSION_SCOPE] = Session("i", Person("kim", "view", "password:kim"), "c", 1)
    return PlainTextResponse("x", HTTPStatus.CREATED)


async def _logged_failure(_: Request) -> Response:
    raise RuntimeError("as expected")


_APP = AccessLog(
    Starlette(
        routes=[
            Route("/fails", _logged_failure),
            Route("/{path:path}", _logged_page, methods=["GET", "POST"]),
        ]
    )
)


def _logged(method: str, path: str, **headers: str) -> dict[str, object]:
    with capture_logs() as logs:
        TestClient(_APP, raise_server_exceptions=False).request(method, path, headers=headers)
    (line,) = logs
    assert line.pop("took_ms") >= 0
    return dict(line)


def test_a_line_says_who_asked_for_what() -> None:
    assert _logged("POST", "/projects/acme?token=secret") == {
        "event": "request",
        "log_level": "info",
        "person": "kim",
        "method": "POST",
        "path": "/projects/acme",
        "status": 201,
    }


def test_a_status_is_a_number() -> None:
    assert f"{_logged('GET', '/acme')['status']!r}" == "201"


def test_control_characters_stay_escaped() -> None:
    assert _logged("GET", "/a%0a%1b[31mb")["path"] == "/a%0a%1b[31mb"


def test_a_failure_is_a_line_too() -> None:
    line = _logged("GET", "/fails")
    assert (line["status"], line["person"]) == (500, None)


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/static/a.css", {}), ("/healthz", {}), ("/", {"HX-Request": "true"})],
)
def test_what_pages_ask_for_by_themselves_is_for_debugging(
    path: str, headers: dict[str, str]
) -> None:
    assert _logged("GET", path, **headers)["log_level"] == "debug"
    assert _logged("POST", path, **headers)["log_level"] == "info"


def _request(role: Role) -> Request:
    session = Session("id", Person("kim", role, "password:kim"), "token", 1e10)
    return Request({"type": "http", SESSION_SCOPE: session})


def test_a_route_knows_the_person_and_their_token() -> None:
    request = _request("view")
    assert person_of(request).name == "kim"
    assert session_of(request).csrf == "token"


def test_only_the_role_operate_may_change_something() -> None:
    assert require_operate(_request("operate")).may_operate
    with pytest.raises(Forbidden) as refused:
        require_operate(_request("view"))
    assert refused.value.status_code == 403


def test_a_route_that_is_not_protected_logged_failure() -> None:
    with pytest.raises(RuntimeError, match="not protected"):
        person_of(Request({"type": "http"}))
