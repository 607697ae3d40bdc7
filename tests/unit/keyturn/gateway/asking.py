"""Every request of a client, and how the gateway's response fails it."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from keyturn.errors import CodedError
from keyturn.gateway import (
    Client,
    GatewayError,
)
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    NEW_API_KEY,
    Answer,
    serving,
)

CALLS = ["open", "stat", "upload", "rotate", "rotation"]


async def ask(client: Client, how: str) -> None:
    """Make one request of a kind of `CALLS`."""
    if how == "open":
        async with client.open("acme", "k"):
            pass
    elif how == "stat":
        await client.stat("acme", "k")
    elif how == "upload":
        await client.upload("acme", "k", b"the body")
    elif how == "rotate":
        await client.rotate("acme", SecretStr(NEW_API_KEY))
    else:
        await client.rotation("acme", AN_ID)


async def refusal(answer: Answer, how: str) -> Exception:
    """The error of a request to a gateway that answers so; it has no cause and no context."""
    async with serving(answer) as gateway:
        return await failure(gateway.url, how)


async def failure(url: str, how: str) -> Exception:
    """The error of a request to this address; it has no cause and no context."""
    async with Client.connect(url, SecretStr(API_KEY), idle_timeout_s=5) as client:
        with pytest.raises((GatewayError, CodedError)) as raised:
            await ask(client, how)
    error: Exception = raised.value
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


async def read(
    url: str, start: int = 0, length: int | None = None, key: str = "k"
) -> tuple[int, bytes]:
    """The length of an object of `acme` as the gateway states it, and its body."""
    async with (
        Client.connect(url, API_KEY) as client,
        client.open("acme", key, start=start, length=length) as opened,
    ):
        return opened.length, await opened.read()
