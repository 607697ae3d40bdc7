"""Tokens are renewed ahead of their end, and what was refused is not tried again and again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.vault_auth import Login, LoginAuth, TokenAuth
from keyturn_workers.master_keys.vault_http import VaultHttp
from tests.unit.keyturn_workers.master_keys.fake_vault import (
    Clock,
    FakeVault,
    fake_vault,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RENEW = "auth/token/renew-self"
LOGIN = "auth/approle/login"


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
    http = VaultHttp(vault.url, settings())
    login = Login(
        path=LOGIN,
        fields={"role_id": "role"},
        credential_field="secret_id",
        reader=reader or Reader(),
        refusal="refuses the login",
    )
    try:
        yield LoginAuth(http, login, clock)
    finally:
        await http.aclose()


async def test_a_token_is_read_again_for_each_call() -> None:
    reader = Reader("first")
    auth = TokenAuth(reader, Clock())
    assert await auth.token() == Secret(b"first")
    reader.value = "second"
    assert await auth.token() == Secret(b"second")


async def test_a_refused_token_has_no_other_until_it_is_replaced() -> None:
    reader = Reader("first")
    auth = TokenAuth(reader, Clock())
    refused = await auth.token()
    assert await auth.replace(refused) is None
    assert auth.refused(refused, "refused").detail == "refused"
    with pytest.raises(KmsRefusedError, match="refused"):
        await auth.token()
    reader.value = "second"
    assert await auth.token() == Secret(b"second")


async def test_a_token_that_is_replaced_while_its_call_is_sent_is_used_at_once() -> None:
    reader = Reader("first")
    auth = TokenAuth(reader, Clock())
    refused = await auth.token()
    reader.value = "second"
    assert await auth.replace(refused) == Secret(b"second")


async def test_what_was_accepted_ends_the_backoff() -> None:
    auth = TokenAuth(Reader(), Clock())
    auth.refused(await auth.token(), "refused")
    auth.accepted()
    assert await auth.token() == Secret(b"credential")


async def test_many_calls_share_one_login() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        tokens = await asyncio.gather(*(auth.token() for _ in range(16)))
    assert tokens == [Secret(b"s.login-1")] * 16
    assert vault.requests == [("POST", LOGIN, {"role_id": "role", "secret_id": "credential"})]


async def test_a_token_is_renewed_after_two_thirds_of_its_life() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        clock.now += 2399
        assert await auth.token() == first
        assert vault.paths() == [LOGIN]
        clock.now += 2
        assert await asyncio.gather(*(auth.token() for _ in range(16))) == [first] * 16
        assert vault.paths() == [LOGIN, RENEW]
        clock.now += 2399
        assert await auth.token() == first
    assert vault.paths() == [LOGIN, RENEW]


async def test_a_token_near_its_longest_life_is_replaced_by_a_login() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        vault.renewed_lease_s = 600
        await auth.token()
        clock.now += 2401
        assert await auth.token() == Secret(b"s.login-2")
    assert vault.paths() == [LOGIN, RENEW, LOGIN]


async def test_a_token_that_cannot_be_renewed_is_replaced_by_a_login() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        vault.renewable = False
        await auth.token()
        clock.now += 2401
        assert await auth.token() == Secret(b"s.login-2")
    assert vault.paths() == [LOGIN, LOGIN]


async def test_a_token_that_may_not_renew_itself_is_replaced_by_a_login() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        await auth.token()
        vault.tokens.clear()
        clock.now += 2401
        assert await auth.token() == Secret(b"s.login-2")


async def test_while_a_renewal_fails_the_token_is_used_to_its_end() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        vault.tokens.clear()
        vault.credential = "changed"
        clock.now += 2401
        assert await auth.token() == first
        attempts = len(vault.requests)
        assert await auth.token() == first
        assert len(vault.requests) == attempts, "not on each call"
        clock.now += 1200
        with pytest.raises(KmsRefusedError, match="refuses the login"):
            await auth.token()


async def test_an_expired_token_is_not_used() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        await auth.token()
        clock.now += 3600
        assert await auth.token() == Secret(b"s.login-2")
    assert vault.paths() == [LOGIN, LOGIN]


async def test_a_token_without_an_end_is_kept() -> None:
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        vault.lease_s = 0
        await auth.token()
        clock.now += 10**9
        await auth.token()
    assert vault.logins == 1


async def test_many_calls_whose_token_is_refused_share_one_login() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        refused = await auth.token()
        found = await asyncio.gather(*(auth.replace(refused) for _ in range(16)))
    assert found == [Secret(b"s.login-2")] * 16
    assert vault.logins == 2


async def test_a_refused_login_is_tried_once_after_each_delay() -> None:
    clock = Clock()
    reader = Reader("wrong")
    async with fake_vault() as vault, _login_auth(vault, clock, reader) as auth:
        outcomes = await asyncio.gather(*(auth.token() for _ in range(16)), return_exceptions=True)
        assert all("refuses the login" in str(outcome) for outcome in outcomes)
        assert vault.logins == 1
        clock.now += 1
        await asyncio.gather(*(auth.token() for _ in range(16)), return_exceptions=True)
        assert vault.logins == 2
        reader.value = "credential"
        assert await auth.token() == Secret(b"s.login-3")


async def test_a_fresh_token_that_is_refused_leads_to_no_further_login() -> None:
    """A policy that is missing: each login succeeds, and each token is refused."""
    clock = Clock()
    async with fake_vault() as vault, _login_auth(vault, clock) as auth:
        first = await auth.token()
        second = await auth.replace(first)
        assert second is not None
        auth.refused(second, "may not")
        with pytest.raises(KmsRefusedError, match="may not"):
            await auth.token()
        assert await auth.replace(second) is None
        assert vault.logins == 2
        clock.now += 1
        third = await auth.token()
        assert await auth.replace(third) is None
        assert vault.logins == 3


async def test_a_late_refusal_of_an_earlier_token_does_not_end_the_present_one() -> None:
    async with fake_vault() as vault, _login_auth(vault, Clock()) as auth:
        first = await auth.token()
        second = await auth.replace(first)
        assert auth.refused(first, "late").detail == "late"
        assert await auth.token() == second


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
