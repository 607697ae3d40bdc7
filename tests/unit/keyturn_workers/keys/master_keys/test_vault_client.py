"""Requests to Vault: with a token that it accepts, bounded, and with no secret in an error."""

from __future__ import annotations

import asyncio
import gzip
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.keys.master_keys.vault_client import (
    Login,
    LoginAuth,
    TokenAuth,
    VaultClient,
    VaultHttp,
    VaultResponse,
    header_value,
    open_auth,
)
from keyturn_workers.process.settings import KmsSettings
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import (
    KEY_PATH,
    TOKEN,
    FakeVault,
    fake_vault,
    settings,
)
from tests.unit.keyturn_workers.keys.master_keys.fakes import Clock
from tools.harness.loopback import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RENEW = "auth/token/renew-self"
LOOKUP = "auth/token/lookup-self"
LOGIN = "auth/approle/login"
APPROLE = {"vault_role_id": "role", "vault_secret_id": "credential"}

SECRET = Secret(TOKEN.encode())
BODY = {"input": "a" * 44}


@asynccontextmanager
async def _http(url: str, **values: object) -> AsyncIterator[VaultHttp]:
    http = VaultHttp(url, settings(**values).vault)
    try:
        yield http
    finally:
        await http.aclose()


async def _failure(url: str, **values: object) -> str:
    """The error's text; nothing of the request is in it, nor in its traceback."""
    async with _http(url, **values) as http, asyncio.timeout(30):
        with pytest.raises(KmsUnavailableError) as caught:
            await http.call("POST", "transit/x", token=SECRET, body=BODY)
    shown = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in shown
    assert BODY["input"] not in shown
    assert "\n" not in caught.value.detail
    assert caught.value.__context__ is None, "an error of aiohttp can hold the request"
    return caught.value.detail


async def test_a_request_has_token_and_namespace() -> None:
    async with fake_vault() as vault, _http(vault.url, vault_namespace="team/a") as http:
        await http.call("GET", "transit/keys/m1", token=SECRET)
        sent = vault.headers[0]
    assert sent["X-Vault-Token"] == TOKEN
    assert sent["X-Vault-Namespace"] == "team/a"
    assert sent["Accept-Encoding"] == "identity"


async def test_a_redirect_is_not_followed() -> None:
    async with fake_vault() as vault, fake_vault() as other:

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{other.url}/v1/transit/x"})

        vault.respond = redirect
        assert "redirects" in await _failure(vault.url)
        assert other.requests == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (f"<h1>Welcome, {TOKEN}</h1>".encode(), {"Content-Type": "text/html"}),
        (b"[1]", {}),
        (b"[" * 60_000, {}),
        (gzip.compress(b'{"data": {}}'), {"Content-Encoding": "gzip"}),
    ],
    ids=["html", "list", "deep", "compressed"],
)
async def test_a_response_that_is_no_plain_json_object_is_refused(
    body: bytes, headers: dict[str, str]
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    async with fake_vault() as vault:
        vault.respond = respond
        assert "not a JSON object" in await _failure(vault.url)


async def test_a_large_response_is_cut_off() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 64 * 2**20:
            await response.write(b" " * 2**16)
            sent += 2**16
        return response

    async with fake_vault() as vault:
        vault.respond = endless
        assert "too large" in await _failure(vault.url)
    assert sent < 32 * 2**20


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not valid HTTP"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data":', ""),
    ],
)
async def test_what_is_not_http_or_cut_is_refused(sent: bytes, text: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    async with loopback_server(serve) as url:
        assert text in await _failure(url)


async def test_a_server_that_is_not_there_is_reported() -> None:
    async with fake_vault() as vault:
        url = vault.url
    assert await _failure(url) == "Vault cannot be reached"


@pytest.mark.parametrize("repeat", [True, False])
async def test_a_lost_connection_is_repeated_once_where_that_is_harmless(*, repeat: bool) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with loopback_server(serve) as url, _http(url) as http:
        if repeat:
            assert (await http.call("POST", "x")).status == 200
        else:
            with pytest.raises(KmsUnavailableError, match="was lost"):
                await http.call("POST", "x", repeat=False)
    assert connections == (2 if repeat else 1)


async def test_more_callers_than_the_limit_of_concurrency_all_get_through() -> None:
    """A full pool would let busy callers overtake waiting ones for as long as they are busy."""
    release = asyncio.Event()
    waiting = 0

    async def respond(_: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        if waiting == 8:
            release.set()
        await release.wait()
        return web.json_response({})

    async with fake_vault() as vault, _http(vault.url, kms_concurrency=1) as http:
        vault.respond = respond
        async with asyncio.timeout(30):
            await asyncio.gather(*(http.call("POST", "x") for _ in range(8)))


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "does not exist"),
        (429, "standby"),
        (472, "disaster recovery"),
        (473, "performance standby"),
        (503, "sealed"),
        (418, "unexpected"),
    ],
)
def test_each_status_is_explained(status: int, text: str) -> None:
    failure = VaultResponse(status, {}).failure()
    assert f"Vault responded with {status}" in failure.detail
    assert text in failure.detail


def test_a_responses_repr_shows_no_body() -> None:
    assert TOKEN not in repr(VaultResponse(200, {"auth": {"client_token": TOKEN}}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0e6f7c1e-5b0c", "0e6f7c1e-5b0c"), ("a\nb", None), ("a" * 65, None), (7, None), (None, None)],
)
def test_a_request_id_is_an_id_or_nothing(value: object, expected: str | None) -> None:
    assert VaultResponse(200, {"request_id": value}).request_id == expected


def test_malformed_sections_are_empty() -> None:
    assert VaultResponse(200, {"data": ["x"]}).section("data") == {}
    assert not VaultResponse(400, {"errors": "x", "warnings": [1]}).says("x")
    assert VaultResponse(400, {"errors": ["a phrase"]}).says("phrase")


@pytest.mark.parametrize("value", ["", " \n", "a b", "a\r\nX-Evil: 1", "a\x00", "ä"])
def test_what_would_break_a_header_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        header_value(value)
    assert header_value(" token\n") == "token"


def test_a_malformed_namespace_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="KEYTURN_VAULT_NAMESPACE is malformed"):
        VaultHttp("http://127.0.0.1:1", settings(vault_namespace="a\nb").vault)


def test_a_file_without_certificates_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "absent"):
        with pytest.raises(SettingsError, match="KEYTURN_VAULT_CA_FILE"):
            VaultHttp("https://127.0.0.1:1", settings(vault_ca_file=tmp_path / name).vault)


# Tokens: renewed ahead of their end, and replaced once they are refused.


class Reader:
    """A credential that a test changes."""

    def __init__(self, value: str = "credential") -> None:
        self.value = value

    def read(self) -> Secret:
        return Secret(self.value.encode())


@asynccontextmanager
async def _login_auth(
    vault: FakeVault, clock: Clock, reader: Reader | None = None
) -> AsyncIterator[LoginAuth]:
    http = VaultHttp(vault.url, settings().vault)
    login = Login(
        path=LOGIN,
        fields={"role_id": "role"},
        credential_field="secret_id",
        read=(reader or Reader()).read,
        refusal="refuses the login",
    )
    try:
        yield LoginAuth(http, login, clock)
    finally:
        await http.aclose()


async def test_a_token_is_read_again_for_each_call_and_after_it_was_refused() -> None:
    reader = Reader("first")
    auth = TokenAuth(reader.read)
    first = await auth.token()
    assert first == Secret(b"first")
    assert await auth.replace(first) is None
    failure = auth.refusal("refused")
    assert (failure.detail, failure.has_new_credential()) == ("refused", False)
    reader.value = "second"
    assert failure.has_new_credential()
    assert await auth.replace(first) == await auth.token() == Secret(b"second")


async def test_many_calls_share_one_login() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        tokens = await asyncio.gather(*(auth.token() for _ in range(16)))
    assert tokens == [Secret(b"s.login-1")] * 16
    assert vault.requests == [("POST", LOGIN, {"role_id": "role", "secret_id": "credential"})]


async def test_a_token_is_renewed_after_two_thirds_of_its_life() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        clock.now_s += 2399
        assert await auth.token() == first
        assert vault.paths() == [LOGIN]
        clock.now_s += 2
        assert await asyncio.gather(*(auth.token() for _ in range(16))) == [first] * 16
        assert vault.paths() == [LOGIN, RENEW]
        clock.now_s += 2399
        assert await auth.token() == first
    assert vault.paths() == [LOGIN, RENEW]


@pytest.mark.parametrize(
    ("change", "waits_s", "paths"),
    [
        # It has nearly reached its longest life.
        ({"renewed_lease_s": 600}, 2401, [LOGIN, RENEW, LOGIN]),
        ({"renewable": False}, 2401, [LOGIN, LOGIN]),
        # It may not renew itself.
        ({"tokens": set()}, 2401, [LOGIN, RENEW, LOGIN]),
        # It has expired.
        ({}, 3600, [LOGIN, LOGIN]),
    ],
)
async def test_a_token_that_cannot_be_renewed_is_replaced_by_a_login(
    change: dict[str, object], waits_s: int, paths: list[str]
) -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        vault.renewable = bool(change.get("renewable", True))
        await auth.token()
        for name, value in change.items():
            setattr(vault, name, value)
        clock.now_s += waits_s
        assert await auth.token() == Secret(b"s.login-2")
    assert vault.paths() == paths


async def test_while_a_renewal_fails_the_token_is_used_to_its_end() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        vault.tokens.clear()
        vault.credential = "changed"
        clock.now_s += 2401
        assert await auth.token() == first
        attempts = len(vault.requests)
        assert await auth.token() == first
        assert len(vault.requests) == attempts, "not on each call"
        clock.now_s += 1200
        with pytest.raises(KmsRefusedError, match="refuses the login"):
            await auth.token()


async def test_a_token_without_an_end_is_kept() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        vault.lease_s = 0
        await auth.token()
        clock.now_s += 10**9
        await auth.token()
    assert vault.logins == 1


async def test_many_calls_whose_token_is_refused_share_one_login() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        refused = await auth.token()
        vault.tokens.clear()
        found = await asyncio.gather(*(auth.replace(refused) for _ in range(16)))
    assert found == [Secret(b"s.login-2")] * 16
    assert vault.logins == 2


async def test_calls_that_wait_for_a_login_that_is_refused_do_not_repeat_it() -> None:
    reader = Reader("wrong")
    async with fake_vault() as vault, _login_auth(vault, Clock(), reader) as auth:
        for logins in (1, 2):
            outcomes = await asyncio.gather(
                *(auth.token() for _ in range(16)), return_exceptions=True
            )
            assert all("refuses the login" in str(outcome) for outcome in outcomes)
            assert vault.logins == logins
        assert isinstance(outcomes[0], KmsRefusedError)
        assert not outcomes[0].has_new_credential()
        reader.value = "credential"
        assert outcomes[0].has_new_credential()
        assert await auth.token() == Secret(b"s.login-3")


async def test_a_late_refusal_of_an_earlier_token_does_not_end_the_present_one() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        first = await auth.token()
        vault.tokens.clear()
        second = await auth.replace(first)
        assert await auth.replace(first) == second == await auth.token()
    assert vault.logins == 2


@pytest.mark.parametrize(
    ("valid", "login", "after"),
    [
        (True, "works", "s.login-2"),  # with a policy that the role has got meanwhile
        (True, "refused", "s.login-1"),
        (True, "fails", "s.login-1"),
        (False, "works", "s.login-2"),
        (False, "refused", None),
        (False, "fails", None),
    ],
)
async def test_a_login_that_fails_does_not_end_a_token_that_is_valid(
    *, valid: bool, login: str, after: str | None
) -> None:
    """A token may not use one path; the keys of all others need it."""
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        assert await auth.replace(first) is None
        clock.now_s += 301
        if not valid:
            vault.tokens.clear()
        if login == "refused":
            vault.credential = "used up"

        async def respond(request: web.Request) -> web.StreamResponse:
            is_failure = login == "fails" and request.path.endswith("/login")
            return await _sealed(request) if is_failure else vault.answer(request)

        vault.respond = respond
        if after is None:
            with pytest.raises(KmsUnavailableError):
                await auth.replace(first)
            return
        assert await auth.replace(first) == (None if after == "s.login-1" else Secret(b"s.login-2"))
        assert await auth.token() == Secret(after.encode())
        assert await auth.replace(await auth.token()) is None
    assert vault.paths().count(LOGIN) == 2, "not once for each refusal"


async def test_a_server_that_fails_is_no_refusal_of_the_login() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        vault.respond = _sealed
        with pytest.raises(KmsUnavailableError, match="503"):
            await auth.token()
        vault.respond = None
        assert await auth.token() == Secret(b"s.login-1")


async def _sealed(_: web.Request) -> web.Response:
    return web.json_response({"errors": ["Vault is sealed"]}, status=503)


@pytest.mark.parametrize(
    "auth",
    [
        None,
        {"client_token": "", "lease_duration": 60, "renewable": True},
        {"client_token": "a\nb", "lease_duration": 60, "renewable": True},
        {"client_token": "s.1", "lease_duration": "long", "renewable": True},
        {"client_token": 7, "lease_duration": 60, "renewable": True},
    ],
)
async def test_a_login_without_a_usable_token_is_refused(auth: object) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response({"auth": auth})

    async with fake_vault() as vault, _login_auth(vault, Clock()) as login_auth:
        vault.respond = respond
        with pytest.raises(KmsUnavailableError, match="has no token"):
            await login_auth.token()


# A request with its token, in bounded time.


@asynccontextmanager
async def _client(vault: FakeVault, **values: object) -> AsyncIterator[VaultClient]:
    made = settings(**values)
    client = VaultClient(vault.url, made.vault, timeout_s=made.kms_timeout_s)
    try:
        yield client
    finally:
        await client.aclose()


async def test_nothing_is_contacted_before_the_first_call() -> None:
    async with fake_vault() as vault, _client(vault, **APPROLE):
        pass
    assert vault.requests == []


async def test_a_session_that_cannot_authenticate_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="KEYTURN_VAULT_TOKEN"):
        VaultClient("http://127.0.0.1:1", KmsSettings().vault, timeout_s=5)


async def test_after_a_refusal_a_call_logs_in_and_is_sent_again() -> None:
    async with fake_vault() as vault, _client(vault, **APPROLE) as client:
        await client.call("GET", KEY_PATH)
        vault.tokens.clear()
        assert (await client.call("GET", KEY_PATH)).status == 200
    assert vault.paths() == [LOGIN, KEY_PATH, KEY_PATH, LOOKUP, LOGIN, KEY_PATH]


async def test_after_a_refusal_a_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with fake_vault() as vault, _client(vault, vault_token_file=file) as client:
        vault.tokens = {"s.second"}

        async def replace(request: web.Request) -> web.StreamResponse:
            file.write_text("s.second")
            return vault.answer(request)

        vault.respond = replace
        assert (await client.call("GET", KEY_PATH)).status == 200


@pytest.mark.parametrize(
    ("values", "paths"),
    [({}, [KEY_PATH]), (APPROLE, [LOGIN, KEY_PATH, LOOKUP])],
)
async def test_a_refused_token_is_not_sent_again_at_once(
    values: dict[str, str], paths: list[str]
) -> None:
    """A login that succeeds, with a policy that is missing, costs one look at the token."""
    breaker = CircuitBreaker(CallLimits())
    async with fake_vault() as vault, _client(vault, **values) as client:
        vault.may_read = False
        for _ in range(10):
            with pytest.raises(KmsRefusedError, match=f"revoked, or may not use {KEY_PATH}"):
                await breaker.call(lambda: client.call("GET", KEY_PATH))
    assert vault.paths() == paths


async def test_a_refusal_that_is_an_answer_says_nothing_about_the_token() -> None:
    async with fake_vault() as vault, _client(vault) as client:
        vault.may_read = False
        assert (await client.call_once("GET", KEY_PATH)).status == 403
        vault.may_read = True
        assert (await client.call("GET", KEY_PATH)).status == 200


@pytest.mark.parametrize("slow", [LOGIN, KEY_PATH])
async def test_a_call_ends_in_time_with_its_login(slow: str) -> None:
    async with fake_vault() as vault, _client(vault, kms_timeout_s=0.2, **APPROLE) as client:
        release = asyncio.Event()

        async def respond(request: web.Request) -> web.StreamResponse:
            if request.path.endswith(slow):
                await release.wait()
            return vault.answer(request)

        vault.respond = respond
        async with asyncio.timeout(30):
            with pytest.raises(KmsUnavailableError, match=r"did not respond in 0\.2 s"):
                await client.call("GET", KEY_PATH)
        release.set()
        vault.respond = None
        assert (await client.call("GET", KEY_PATH)).status == 200, "the next call is not blocked"


# The one way to authenticate that the settings name.


@asynccontextmanager
async def _auth(vault: FakeVault, **values: object) -> AsyncIterator[TokenAuth | LoginAuth]:
    http = VaultHttp(vault.url, settings().vault)
    try:
        yield open_auth(http, settings(**values).vault)
    finally:
        await http.aclose()


def _open(**values: object) -> TokenAuth | LoginAuth:
    made = KmsSettings.model_validate(values).vault
    return open_auth(VaultHttp("http://127.0.0.1:1", made), made)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"vault_token": "t", "vault_token_file": "/f"},
        {"vault_token": "t", "vault_role_id": "r", "vault_secret_id": "s"},
        {"vault_token_file": "/f", "vault_kubernetes_role": "r"},
    ],
)
def test_not_exactly_one_way_is_a_settings_error_that_names_all(values: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        _open(**values)
    for name in ("TOKEN", "TOKEN_FILE", "ROLE_ID", "KUBERNETES_ROLE"):
        assert f"KEYTURN_VAULT_{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vault_role_id": "r"}, "exactly one of KEYTURN_VAULT_SECRET_ID"),
        (
            {"vault_role_id": "r", "vault_secret_id": "s", "vault_secret_id_file": "/f"},
            "exactly one of KEYTURN_VAULT_SECRET_ID",
        ),
        ({"vault_token": "t", "vault_secret_id": "s"}, "KEYTURN_VAULT_ROLE_ID is missing"),
        ({"vault_token": "two words"}, "KEYTURN_VAULT_TOKEN is malformed"),
        (
            {"vault_role_id": "r", "vault_secret_id": "s\ns"},
            "KEYTURN_VAULT_SECRET_ID is malformed",
        ),
        (
            {"vault_kubernetes_role": "r", "vault_auth_mount": "../sys"},
            "KEYTURN_VAULT_AUTH_MOUNT is malformed",
        ),
        (
            {"vault_kubernetes_role": "r", "vault_auth_mount": "a b"},
            "KEYTURN_VAULT_AUTH_MOUNT is malformed",
        ),
    ],
)
def test_an_incomplete_or_malformed_way_is_named(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        _open(**values)
    assert "words" not in str(caught.value)


async def test_a_token_is_sent_as_it_is() -> None:
    auth = _open(vault_token=" s.token\n")
    assert isinstance(auth, TokenAuth)
    assert await auth.token() == Secret(b"s.token")


async def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = _open(vault_token_file=file)
    with pytest.raises(KmsUnavailableError, match=r"VAULT_TOKEN_FILE .* \(No such file"):
        await auth.token()
    file.write_text("")
    with pytest.raises(KmsUnavailableError, match="not one word of printable ASCII"):
        await auth.token()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KmsUnavailableError, match="not one word of printable ASCII"):
        await auth.token()
    file.write_text("s.first\n")
    assert await auth.token() == Secret(b"s.first")
    file.write_text("s.other\n")
    assert await auth.token() == Secret(b"s.other")


async def test_approle_sends_role_and_secret_id() -> None:
    async with (
        fake_vault() as vault,
        _auth(vault, vault_role_id="role", vault_secret_id="credential") as auth,
    ):
        assert await auth.token() == Secret(b"s.login-1")
    expected = {"role_id": "role", "secret_id": "credential"}
    assert vault.requests == [("POST", "auth/approle/login", expected)]


async def test_a_secret_id_file_is_read_at_each_login(tmp_path: Path) -> None:
    file = tmp_path / "secret-id"
    file.write_text("wrong")
    async with (
        fake_vault() as vault,
        _auth(vault, vault_role_id="role", vault_secret_id_file=file) as auth,
    ):
        with pytest.raises(KmsRefusedError, match="check KEYTURN_VAULT_ROLE_ID"):
            await auth.token()
        file.write_text("credential")
        assert await auth.token() == Secret(b"s.login-2")


async def test_kubernetes_sends_role_and_service_account_token(tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.write_text("credential")
    async with (
        fake_vault() as vault,
        _auth(
            vault,
            vault_kubernetes_role="keyturn",
            vault_kubernetes_token_file=file,
            vault_auth_mount="/clusters/eu/",
        ) as auth,
    ):
        assert isinstance(auth, LoginAuth)
        assert await auth.token() == Secret(b"s.login-1")
        file.write_text("expired")
        vault.tokens.clear()
        with pytest.raises(KmsRefusedError, match="check KEYTURN_VAULT_KUBERNETES_ROLE"):
            await auth.replace(Secret(b"s.login-1"))
    expected = {"role": "keyturn", "jwt": "credential"}
    assert vault.requests[0] == ("POST", "auth/clusters/eu/login", expected)
