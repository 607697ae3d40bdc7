"""The pages that sign in and out, through the whole application (SPEC 16.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx2
import pytest
from argon2 import PasswordHasher
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from keyturn.errors import SettingsError
from keyturn_workers.console.auth import passwords
from keyturn_workers.console.auth.auth import Auth
from keyturn_workers.console.auth.link import LINK_S, SignInLink
from keyturn_workers.console.auth.passwords import (
    ATTEMPTS_PER_NAME,
    PasswordFile,
    User,
    format_users,
)
from keyturn_workers.console.auth.sessions import COOKIE
from keyturn_workers.console.auth.sign_in import PRE_COOKIE, Accounts
from tests.unit.keyturn_workers.console.console_env import CLIENT_SECRET, console_settings
from tools.harness.console_client import forms_of
from tools.harness.console_data import MadeUp
from tools.harness.console_preview import preview_app
from tools.servers.oidc_provider import Faults, OidcProvider

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.routing import BaseRoute


_URL: Final = "https://console.example.com"
_ISSUER: Final = "https://sso.example.com"
_PASSWORD: Final = "correct horse battery"
_PEOPLE: Final[dict[str, dict[str, Any]]] = {
    "7": {"preferred_username": "kim", "roles": "operate"},
    "8": {"preferred_username": "<b>lee</b>", "roles": ["secret-role"], "email": "lee@example.com"},
}


@dataclass
class _Browser:
    """A console with a password file and a provider, and a browser without a script."""

    client: TestClient
    provider: OidcProvider
    transport: httpx2.ASGITransport

    def sign_in(self, name: str, password: str, target: str = "") -> httpx2.Response:
        page = self.client.get(f"/sign-in?next={target}" if target else "/sign-in")
        (form,) = forms_of(page.text)
        return self.client.post(
            form.action,
            data={**form.fields, "name": name, "password": password},
            headers={"Origin": _URL},
        )

    async def by_provider(self, subject: str, target: str = "") -> httpx2.Response:
        begun = self.client.get(f"/sign-in/provider{target}")
        assert begun.status_code == 303, begun.text
        async with httpx2.AsyncClient(transport=self.transport) as http:
            back = await http.get(f"{begun.headers['location']}&person={subject}")
        parts = urlsplit(back.headers["location"])
        return self.client.get(f"{parts.path}?{parts.query}")

    def is_signed_in(self) -> bool:
        return self.client.get("/nowhere").status_code == 404


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[_Browser]:
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    path = tmp_path / "passwords"
    path.write_text(format_users({"kim": User("kim", "view", hasher.hash(_PASSWORD))}))
    provider = OidcProvider(_ISSUER, f"{_URL}/sign-in/callback", CLIENT_SECRET, _PEOPLE)
    transport = httpx2.ASGITransport(app=provider.app)
    auth = Auth(
        console_settings(path, _ISSUER), _URL, 8090, hasher=hasher, provider_transport=transport
    )
    app = auth.protect(preview_app(MadeUp(), auth=auth))
    with TestClient(app, base_url=_URL, follow_redirects=False) as client:
        yield _Browser(client, provider, transport)


def test_a_password_signs_in_and_out(browser: _Browser) -> None:
    with capture_logs() as logs:
        answer = browser.sign_in("kim", _PASSWORD, "/nowhere")
    assert (answer.status_code, answer.headers["location"]) == (303, "/nowhere")
    assert "Secure; HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
    assert PRE_COOKIE not in browser.client.cookies
    assert browser.is_signed_in()
    assert [line["event"] for line in logs if line["log_level"] == "info"].count("signed in") == 1
    copy = browser.client.cookies[COOKIE]
    page = browser.client.get("/nowhere")
    form = next(form for form in forms_of(page.text) if form.action == "/sign-out")
    out = browser.client.post(form.action, data=form.fields, headers={"Origin": _URL})
    assert out.headers["location"] == "/signed-out"
    assert COOKIE not in browser.client.cookies
    assert "Sign in again" in browser.client.get("/signed-out").text
    browser.client.cookies.set(COOKIE, copy, domain="console.example.com")
    assert not browser.is_signed_in()


@pytest.mark.parametrize("name", ["kim", "lee", _PASSWORD])
def test_a_refusal_says_the_same_for_every_name(browser: _Browser, name: str) -> None:
    """And no log line has what may be a password in the wrong field."""
    with capture_logs() as logs:
        answer = browser.sign_in(name, "wrong")
    assert answer.status_code == 403
    assert "The name or the password is wrong." in answer.text
    assert "wrong" not in answer.text.replace("password is wrong", "")
    (refused,) = [line for line in logs if line["event"] == "sign-in refused"]
    assert refused["name"] == ("kim" if name == "kim" else None)
    assert _PASSWORD not in str(logs)
    assert not browser.is_signed_in()


def test_guessing_is_slowed_down(browser: _Browser) -> None:
    for _ in range(ATTEMPTS_PER_NAME):
        assert browser.sign_in("kim", "guess").status_code == 403
    answer = browser.sign_in("kim", _PASSWORD)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "15")
    assert "Too many attempts" in answer.text


def test_a_form_of_another_browser_signs_nobody_in(browser: _Browser) -> None:
    """A page elsewhere could sign a victim in with the attacker's account otherwise."""
    page = browser.client.get("/sign-in")
    (form,) = forms_of(page.text)
    browser.client.cookies.clear()
    fields = {**form.fields, "name": "kim", "password": _PASSWORD}
    answer = browser.client.post("/sign-in", data=fields, headers={"Origin": _URL})
    assert answer.status_code == 403
    assert "has expired" in answer.text
    assert not browser.is_signed_in()


def test_a_cookie_that_was_planted_is_replaced_at_the_sign_in(browser: _Browser) -> None:
    browser.sign_in("kim", _PASSWORD)
    planted = browser.client.cookies[COOKIE]
    browser.client.cookies.clear()
    browser.sign_in("kim", _PASSWORD)
    assert browser.client.cookies[COOKIE] != planted


def test_who_is_signed_in_needs_no_form(browser: _Browser) -> None:
    browser.sign_in("kim", _PASSWORD)
    for target in ("/projects", "//evil.example", "https://evil.example"):
        answer = browser.client.get("/sign-in", params={"next": target})
        assert answer.status_code == 303
        assert answer.headers["location"] == ("/projects" if target == "/projects" else "/")


async def test_the_provider_signs_in(browser: _Browser) -> None:
    answer = await browser.by_provider("7", "?next=/nowhere?a=b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/nowhere?a=b")
    assert browser.is_signed_in()
    page = browser.client.get("/nowhere")
    assert "kim (7)" in page.text
    assert "operate" in page.text
    assert PRE_COOKIE not in browser.client.cookies
    assert f"{_ISSUER}/logout" in browser.client.get("/signed-out").text


async def test_the_provider_leads_to_no_other_site(browser: _Browser) -> None:
    answer = await browser.by_provider("7", "?next=//evil.example/")
    assert answer.headers["location"] == "/"


async def test_without_a_role_the_page_says_which_claim_was_looked_at(
    browser: _Browser,
) -> None:
    with capture_logs() as logs:
        answer = await browser.by_provider("8")
    assert answer.status_code == 403
    assert ">roles<" in answer.text
    assert ">email<" in answer.text
    assert "secret-role" not in answer.text
    assert "lee@example.com" not in answer.text
    assert "<b>lee</b>" not in answer.text
    assert "secret-role" not in str(logs)
    assert not browser.is_signed_in()


async def test_a_refused_response_is_a_page(browser: _Browser) -> None:
    browser.provider.faults = Faults(algorithm="none")
    answer = await browser.by_provider("7")
    assert answer.status_code == 403
    assert "its ID token is not valid" in answer.text
    assert not browser.is_signed_in()


def test_a_provider_that_is_away_is_a_page(browser: _Browser) -> None:
    browser.provider.faults = Faults(status=503)
    with capture_logs() as logs:
        answer = browser.client.get("/sign-in/provider")
    assert answer.status_code == 502
    assert "The provider responded with status 503." in answer.text
    assert [line["log_level"] for line in logs if line["event"] == "provider failed"] == ["error"]
    assert "Sign in with single sign-on" in browser.client.get("/sign-in").text


_LOCAL_URL = "http://127.0.0.1:8090"
_CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class _Local:
    """A console on a loopback address with an empty password file; requests keep no cookies."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        path.write_text("")
        self.auth = self.auth_of_new_process()
        self.link = self.auth.new_link() or ""
        app = self.auth.protect(preview_app(MadeUp(), auth=self.auth))
        self._client = TestClient(app, base_url=_LOCAL_URL, follow_redirects=False)

    def auth_of_new_process(self) -> Auth:
        link = SignInLink(clock=lambda: self.now)
        return Auth(console_settings(self.path), _LOCAL_URL, 8090, link=link, hasher=_CHEAP)

    def request(self, url: str, method: str = "GET", **headers: str) -> httpx2.Response:
        self._client.cookies.clear()
        return self._client.request(method, url, headers=headers)

    def cookie(self, answer: httpx2.Response) -> str:
        (cookie,) = [
            each
            for each in answer.headers.get_list("set-cookie")
            if each.startswith(f"{COOKIE}=") and "Secure; HttpOnly; SameSite=Lax" in each
        ]
        return cookie.partition(";")[0]


@pytest.fixture
def local(tmp_path: Path) -> _Local:
    return _Local(tmp_path / "passwords")


def test_the_link_signs_in_once_and_its_token_is_in_no_log_or_address(local: _Local) -> None:
    token = local.link.partition("?token=")[2]
    assert len(token) == 43  # 32 bytes
    with capture_logs() as logs:
        page = local.request("/sign-in")
        answer = local.request(local.link)
        again = local.request(local.link)
    assert "Open the link" in page.text
    assert "Password" not in page.text
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    shown = local.request("/nowhere", Cookie=local.cookie(answer))
    assert shown.status_code == 404
    assert "one-time link" in shown.text
    assert "operate" in shown.text
    assert again.status_code == 403
    assert "was used before" in again.text
    assert f"{COOKIE}=" not in again.headers["set-cookie"]
    assert token not in str(logs) + page.text + again.text + str(answer.headers)
    # In the browser that is signed in, a second click leads on.
    second = local.request(local.link, Cookie=local.cookie(answer))
    assert (second.status_code, second.headers["location"]) == (303, "/")


def test_a_link_is_used_up_by_nothing_but_a_sign_in(local: _Local) -> None:
    """Not by a preview, a wrong token, or a page whose name resolves to this machine."""
    assert local.request(local.link, "HEAD").status_code == 403
    assert local.request(local.link, "POST", Origin=_LOCAL_URL).status_code == 405
    assert local.request(local.link[:-1]).status_code == 403
    assert local.request("/sign-in/link").status_code == 403
    assert local.request(local.link, Host="attacker.example.com:8090").status_code == 400
    assert local.request(local.link).status_code == 303


def test_a_link_ends_after_an_hour_and_with_a_newer_one(local: _Local) -> None:
    newer = local.auth.new_link() or ""
    assert local.request(local.link).status_code == 403
    local.now = LINK_S
    assert local.request(newer).status_code == 403
    assert local.request(local.auth.new_link() or "").status_code == 303


def test_the_first_account_ends_the_link_and_its_sessions_for_good(
    local: _Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_CHECK_S", 0)
    cookie, unused = local.cookie(local.request(local.link)), local.auth.new_link() or ""
    local.path.write_text(format_users({"kim": User("kim", "view", _CHEAP.hash("one"))}))
    assert local.request("/nowhere", Cookie=cookie).status_code == 303
    assert "Password" in local.request(unused).text
    local.path.write_text("")
    assert local.request(unused).status_code == 403
    assert local.request("/nowhere", Cookie=cookie).status_code == 303
    assert local.auth.new_link() is None


def test_sessions_of_a_link_end_with_its_process(local: _Local) -> None:
    name, _, cookie = local.cookie(local.request(local.link)).partition("=")
    assert name == COOKIE
    assert local.auth.sessions.read(cookie) is not None
    assert local.auth_of_new_process().sessions.read(cookie) is None


def test_with_accounts_there_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_CHECK_S", 0)
    path = tmp_path / "passwords"
    path.write_text(format_users({"kim": User("kim", "view", _CHEAP.hash("one"))}))
    by_password = Auth(console_settings(path), _LOCAL_URL, 8090, link=SignInLink(), hasher=_CHEAP)
    path.write_text("")  # nor once the last of them is removed
    by_provider = Auth(
        console_settings(path, "https://sso.example.com"), _LOCAL_URL, 8090, link=SignInLink()
    )
    for auth in (by_password, by_provider):
        assert auth.new_link() is None
        assert "/sign-in/link" not in _paths(list(auth.routes))


def test_without_any_way_to_sign_in_it_does_not_start() -> None:
    with pytest.raises(SettingsError, match="PASSWORD_FILE is missing"):
        Auth(console_settings(None), _LOCAL_URL, 8090)
    assert Auth(console_settings(None), _LOCAL_URL, 8090, link=SignInLink()).new_link()


def _paths(routes: list[BaseRoute]) -> set[str]:
    return {route.path for route in routes if hasattr(route, "path")}


@pytest.mark.slow
def test_a_way_to_sign_in_that_is_not_set_has_no_route(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("")
    by_password = Auth(console_settings(path), _LOCAL_URL, 8090)
    assert _paths(list(by_password.routes)) == {"/sign-in", "/sign-out", "/signed-out"}
    by_provider = Auth(console_settings(None, "https://sso.example.com"), _LOCAL_URL, 8090)
    assert "/sign-in/callback" in _paths(list(by_provider.routes))
    posts = [route for route in by_provider.routes if "POST" in getattr(route, "methods", ())]
    assert _paths(list(posts)) == {"/sign-out"}


def test_a_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE"):
        Auth(console_settings(tmp_path / "missing"), _LOCAL_URL, 8090)


def test_a_user_is_stamped_by_role_and_password(tmp_path: Path) -> None:
    path, now = tmp_path / "passwords", [0.0]
    kim = User("kim", "view", _CHEAP.hash("one"))
    path.write_text(format_users({"kim": kim}))
    accounts = Accounts(console_settings(path), PasswordFile(path, clock=lambda: now[0]))
    account = accounts.of_user(kim)
    assert (account.kind, account.name, account.role) == ("password", "kim", "view")
    assert accounts.stamp_of("password", "kim", "view") == account.stamp
    assert accounts.stamp_of("password", "kim", "operate") is None
    assert accounts.stamp_of("password", "lee", "view") is None
    assert accounts.stamp_of("oidc", "kim", "view") is None
    assert accounts.is_user("kim")
    path.write_text(format_users({"kim": User("kim", "view", _CHEAP.hash("two"))}))
    now[0] = 2
    assert accounts.stamp_of("password", "kim", "view") not in (None, account.stamp)


def test_an_account_of_the_provider_is_stamped_by_its_settings(tmp_path: Path) -> None:
    issuer = "https://sso.example.com"
    first = Accounts(console_settings(None, issuer), None)
    account = first.of_claims({"sub": "7", "roles": ["operate"]})
    assert account is not None
    assert (account.kind, account.id, account.role) == ("oidc", "7", "operate")
    assert first.stamp_of("oidc", "7", "operate") == account.stamp
    assert not first.is_user("7")
    for changed in (
        console_settings(None, f"{issuer}/other"),
        console_settings(None, issuer, CONSOLE_OIDC_CLIENT_ID="other"),
        console_settings(None, issuer, CONSOLE_OIDC_OPERATE_ROLES='["admin"]'),
    ):
        assert Accounts(changed, None).stamp_of("oidc", "7", "operate") != account.stamp
    assert first.of_claims({"sub": "8", "roles": ["other"]}) is None
    path = tmp_path / "passwords"
    path.write_text("")
    without = Accounts(console_settings(path), PasswordFile(path))
    assert without.of_claims({"sub": "7", "roles": ["operate"]}) is None
