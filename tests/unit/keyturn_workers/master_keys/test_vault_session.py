"""A request is sent with a token that the server accepts, in bounded time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.vault_session import VaultSession
from keyturn_workers.settings import KmsSettings
from tests.unit.keyturn_workers.master_keys.fake_vault import (
    KEY_PATH,
    TOKEN,
    FakeVault,
    denied,
    fake_vault,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web

LOGIN = "auth/approle/login"
APPROLE = {"vault_role_id": "role", "vault_secret_id": "credential"}


@asynccontextmanager
async def _session(vault: FakeVault, **values: object) -> AsyncIterator[VaultSession]:
    session = VaultSession(vault.url, settings(**values))
    try:
        yield session
    finally:
        await session.aclose()


async def test_nothing_is_contacted_before_the_first_call() -> None:
    async with fake_vault() as vault, _session(vault, **APPROLE):
        pass
    assert vault.requests == []


async def test_a_session_that_cannot_authenticate_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="KEYTURN_VAULT_TOKEN"):
        VaultSession("http://127.0.0.1:1", KmsSettings())


async def test_after_a_refusal_a_call_logs_in_and_is_sent_again() -> None:
    async with fake_vault() as vault, _session(vault, **APPROLE) as session:
        await session.call("GET", KEY_PATH)
        vault.tokens.clear()
        assert (await session.call("GET", KEY_PATH)).status == 200
    assert vault.paths() == [LOGIN, KEY_PATH, KEY_PATH, LOGIN, KEY_PATH]


async def test_after_a_refusal_a_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with fake_vault() as vault, _session(vault, vault_token_file=file) as session:
        vault.tokens = {"s.second"}

        async def replace(request: web.Request) -> web.StreamResponse:
            file.write_text("s.second")
            return vault.answer(request)

        vault.respond = replace
        assert (await session.call("GET", KEY_PATH)).status == 200


async def test_a_refused_token_is_not_sent_again_at_once() -> None:
    async with fake_vault() as vault, _session(vault) as session:
        vault.tokens.clear()
        for _ in range(10):
            with pytest.raises(KmsRefusedError, match="expired or revoked, or may not use"):
                await session.call("GET", KEY_PATH)
    assert vault.paths() == [KEY_PATH]


async def test_a_token_that_is_accepted_after_a_refusal_is_used_at_once() -> None:
    """Two calls at once, of which a server that was not ready refused one."""
    async with fake_vault() as vault, _session(vault) as session:
        both, refused = asyncio.Event(), asyncio.Event()

        async def respond(request: web.Request) -> web.StreamResponse:
            if len(vault.requests) == 1:
                await both.wait()
                return denied()
            both.set()
            await refused.wait()
            return vault.answer(request)

        vault.respond = respond
        first = asyncio.create_task(session.call("GET", KEY_PATH))
        second = asyncio.create_task(session.call("GET", KEY_PATH))
        async with asyncio.timeout(30):
            done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            assert isinstance(done.pop().exception(), KmsRefusedError)
            refused.set()
            await asyncio.wait((first, second))
        vault.respond = None
        assert (await session.call("GET", KEY_PATH)).status == 200


async def test_a_fresh_token_that_is_refused_too_ends_the_logins() -> None:
    async with fake_vault() as vault, _session(vault, **APPROLE) as session:
        vault.may_read = False
        for _ in range(10):
            with pytest.raises(KmsRefusedError, match=f"may not use {KEY_PATH}"):
                await session.call("GET", KEY_PATH)
    assert vault.paths() == [LOGIN, KEY_PATH, LOGIN, KEY_PATH]


async def test_a_refusal_that_is_an_answer_says_nothing_about_the_token() -> None:
    async with fake_vault() as vault, _session(vault) as session:
        vault.may_read = False
        assert (await session.call_once("GET", KEY_PATH)).status == 403
        vault.may_read = True
        assert (await session.call("GET", KEY_PATH)).status == 200


@pytest.mark.parametrize("slow", [LOGIN, KEY_PATH])
async def test_a_call_ends_in_time_with_its_login(slow: str) -> None:
    async with fake_vault() as vault, _session(vault, kms_timeout_s=0.2, **APPROLE) as session:
        release = asyncio.Event()

        async def respond(request: web.Request) -> web.StreamResponse:
            if request.path.endswith(slow):
                await release.wait()
            return vault.answer(request)

        vault.respond = respond
        async with asyncio.timeout(30):
            with pytest.raises(KmsUnavailableError, match=r"did not respond in 0\.2 s"):
                await session.call("GET", KEY_PATH)
        release.set()
        vault.respond = None
        assert (await session.call("GET", KEY_PATH)).status == 200, "the next call is not blocked"
