"""Every request of a client, and how the gateway's response fails it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

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
    FakeGateway,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CALLS = [
    "open",
    "stat",
    "upload",
    "rotate",
    "rotation",
    "list",
    "delete",
    "delete_many",
    "link",
    "ciphertext_link",
]
SENT_ONCE = ["upload", "rotate", "delete", "delete_many"]
"""Those that change something: without a response, they may have taken effect."""
EACH_WAY = ["open", "upload", "list"]
"""One of each way in which a refusal with a body is read: of an object, of a sending, of a read."""


async def ask(
    client: Client, how: str, *, project: str = "acme", key: str = "k", **more: Any
) -> None:
    """Make one request of a kind of `CALLS`."""
    if how == "open":
        async with client.open(project, key, **more):
            pass
    elif how == "upload":
        await client.upload(project, key, b"the body", **{"wait": False} | more)
    elif how == "rotate":
        await client.rotate(project, **{"new_api_key": SecretStr(NEW_API_KEY)} | more)
    elif how == "rotation":
        await client.rotation(project, **{"rotation_id": AN_ID} | more)
    elif how == "list":
        _ = [entry async for entry in client.list(project, **more)]
    elif how == "delete_many":
        await client.delete_many(project, [key], **more)
    else:
        await getattr(client, how)(project, key, **more)


@asynccontextmanager
async def connected(answer: Answer, **options: Any) -> AsyncIterator[tuple[FakeGateway, Client]]:
    """A gateway that answers so, and a client of it."""
    async with (
        serving(answer) as gateway,
        Client.connect(gateway.url, API_KEY, **options) as client,
    ):
        yield gateway, client


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


def own_frames(error: BaseException) -> Iterator[str]:
    """The variables of every frame of ours that an error passed: reporters of errors show them."""
    trace = error.__traceback__
    while trace is not None:
        if "contracts/keyturn/" in trace.tb_frame.f_code.co_filename:
            yield repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
