"""One exchange with a server that may be anything: bounded, not redirected, no secret in errors."""

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
from keyturn_workers.master_keys.vault_http import VaultHttp, VaultResponse, header_value
from tests.unit.keyturn_workers.master_keys.fake_vault import TOKEN, fake_vault, settings
from tools.harness.loopback_server import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = Secret(TOKEN.encode())
BODY = {"input": "a" * 44}


@asynccontextmanager
async def _http(url: str, **values: object) -> AsyncIterator[VaultHttp]:
    http = VaultHttp(url, settings(**values))
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


async def _html(_: web.Request) -> web.Response:
    return web.Response(text=f"<h1>Welcome, {TOKEN}</h1>", content_type="text/html")


async def _list(_: web.Request) -> web.Response:
    return web.json_response([1])


async def _deep(_: web.Request) -> web.Response:
    return web.Response(body=b"[" * 60_000)


async def _compressed(_: web.Request) -> web.Response:
    body = gzip.compress(b'{"data": {}}')
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("respond", [_html, _list, _deep, _compressed])
async def test_a_response_that_is_no_plain_json_object_is_refused(respond: object) -> None:
    async with fake_vault() as vault:
        vault.respond = respond  # type: ignore[assignment]  # one of the above
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


async def test_what_is_not_http_is_refused() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    async with loopback_server(serve) as url:
        assert "not valid HTTP" in await _failure(url)


async def test_a_body_that_is_cut_is_refused() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data":')
        writer.close()

    async with loopback_server(serve) as url:
        await _failure(url)


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
    assert f"Vault answered {status}" in failure.detail
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


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    assert header_value(" token\n") == "token"


def test_a_malformed_namespace_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="KEYTURN_VAULT_NAMESPACE is malformed"):
        VaultHttp("http://127.0.0.1:1", settings(vault_namespace="a\nb"))


def test_a_file_without_certificates_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "absent"):
        with pytest.raises(SettingsError, match="KEYTURN_VAULT_CA_FILE"):
            VaultHttp("https://127.0.0.1:1", settings(vault_ca_file=tmp_path / name))
