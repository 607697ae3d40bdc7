"""A console starts on right settings without its broker, and ends in order (SPEC 11, 16)."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import structlog

from keyturn.errors import SettingsError
from keyturn_workers.console.server import open_console, run_console
from keyturn_workers.console.settings import ConsoleSettings, is_loopback, is_private, url_of
from keyturn_workers.core.errors import AddressError
from tests.unit.keyturn_workers.console.console_env import console_settings
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_S3 = S3Server("http://127.0.0.1:1", "access", "s3-secret", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://kim:amqp-secret@127.0.0.1/", _S3, "bucket")
_CONSOLE = {
    "KEYTURN_CONSOLE_SESSION_KEY": base64.b64encode(b"k" * 32).decode(),
    "KEYTURN_CONSOLE_PASSWORD_FILE": "/etc/keyturn/passwords",
}
_OIDC = {
    "KEYTURN_CONSOLE_OIDC_ISSUER": "https://sso.example.com/realms/ops/",
    "KEYTURN_CONSOLE_OIDC_CLIENT_ID": "keyturn",
}


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text("")
    return path


@pytest.fixture
def logged() -> Iterator[asyncio.Queue[dict[str, Any]]]:
    """The log lines, and all as before afterwards."""
    lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def take(_: Any, __: str, fields: Any) -> Any:
        lines.put_nowait(dict(fields))
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    structlog.configure(processors=[take])
    yield lines
    structlog.configure(processors=before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.slow
async def test_without_a_broker_its_pages_are_served(passwords: Path) -> None:
    async with open_console(console_settings(passwords), 8090) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8090"
        ) as client:
            assert (await client.get("/healthz")).text == "ok\n"
            page = await client.get("/sign-in")
            away = await client.get("/projects")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=/projects")


@pytest.mark.slow
async def test_a_signal_ends_it(passwords: Path, logged: asyncio.Queue[dict[str, Any]]) -> None:
    running = asyncio.create_task(run_console(console_settings(passwords)))
    async with asyncio.timeout(10):
        while (line := await logged.get())["event"] != "console started":
            pass
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{line['port']}/healthz")).text == "ok\n"
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    while (line := logged.get_nowait())["event"] != "console stopped":
        pass


async def test_what_it_cannot_do_stops_the_start(passwords: Path, tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(AddressError, match="change KEYTURN_CONSOLE_PORT"):
        await run_console(console_settings(passwords, CONSOLE_PORT=str(port)))
    taken.close()
    await taken.wait_closed()
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE"):
        await run_console(console_settings(tmp_path / "missing"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (_DEPLOYMENT.publisher_env() | _CONSOLE).items():
        if "S3" not in name:  # the console reads nothing of the bucket
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)


def _read(monkeypatch: pytest.MonkeyPatch, **more: str | None) -> ConsoleSettings:
    for name, value in more.items():
        if value is None:
            monkeypatch.delenv(f"KEYTURN_{name}", raising=False)
        else:
            monkeypatch.setenv(f"KEYTURN_{name}", value)
    return ConsoleSettings.read()


def test_a_password_file_and_a_session_key_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _read(monkeypatch)
    assert settings.console_port == 8090
    assert settings.console_session_key.reveal() == b"k" * 32
    assert settings.console_oidc_issuer is None


def test_roles_are_lists_and_the_issuer_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash at its end counts: the provider's tokens have it or not."""
    for name, value in _OIDC.items():
        monkeypatch.setenv(name, value)
    settings = _read(
        monkeypatch, CONSOLE_OIDC_VIEW_ROLES='["staff", "audit"]', CONSOLE_PASSWORD_FILE=None
    )
    assert settings.console_oidc_issuer == _OIDC["KEYTURN_CONSOLE_OIDC_ISSUER"]
    assert settings.console_oidc_view_roles == ("staff", "audit")
    assert settings.console_oidc_operate_roles == ("operate",)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"CONSOLE_SESSION_KEY": None}, "KEYTURN_CONSOLE_SESSION_KEY is missing"),
        ({"CONSOLE_SESSION_KEY": "c2hvcnQ="}, "CONSOLE_SESSION_KEY is malformed: not the base64"),
        ({"CONSOLE_OIDC_ISSUER": "https://sso.example.com"}, "CONSOLE_OIDC_CLIENT_ID must be set"),
        ({"CONSOLE_OIDC_ISSUER": "http://sso.example.com"}, "must be an https:// URL"),
        ({"CONSOLE_OIDC_ISSUER": "sso.example.com"}, "not an https:// URL"),
        ({"CONSOLE_PUBLIC_URL": "http://console.example.com"}, "must be an https:// URL"),
        ({"CONSOLE_PUBLIC_URL": "https://example.com/console"}, "without a path"),
        ({"CONSOLE_HOST": "192.0.2.7"}, "CONSOLE_PUBLIC_URL is missing"),
        ({"CONSOLE_OIDC_SCOPES": "profile"}, "must contain openid"),
        ({"CONSOLE_OIDC_VIEW_ROLES": "view"}, "not a JSON list of names"),
        ({"CONSOLE_OIDC_VIEW_ROLES": "[1]"}, "not a JSON list of names"),
        ({"CONSOLE_COLOR": "#ff0000"}, "KEYTURN_CONSOLE_COLOR must be 'teal', 'blue'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], line: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        _read(monkeypatch, **changed)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8090", "http://localhost", "http://[::1]:1", "https://c.example.com"]
)
def test_plain_http_is_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert _read(monkeypatch, CONSOLE_PUBLIC_URL=f"{url}/").console_public_url == url


def test_addresses_are_compared_as_addresses() -> None:
    assert is_loopback("127.9.9.9")
    assert not is_loopback("127.0.0.1.example.com")
    assert url_of("::1", 80) == "http://[::1]:80"
    assert url_of("127.0.0.1", 8090) == "http://127.0.0.1:8090"


def test_only_web_addresses_are_private() -> None:
    assert is_private("https://sso.example.com/end")
    assert is_private("http://localhost/end")
    assert not is_private("http://sso.example.com/end")
    assert not is_private("javascript://localhost/%0aalert(1)")
