"""A response counts with the expected status alone, and a document up to a size (SPEC 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from keyturn.errors import NotFoundError, UnauthorizedError, UnexpectedResponseError
from keyturn.gateway.responses import ByteRange
from keyturn.gateway.transport import AuthorizedRequests, Transport
from tests.unit.keyturn.gateway.gateway import (
    API_KEY,
    FakeGateway,
    json_always,
    object_of,
    problem,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with serving(json_always(200, {"a": "b"})) as running:
        yield running


@pytest.fixture
async def requests(gateway: FakeGateway) -> AsyncIterator[AuthorizedRequests]:
    async with Transport.open(
        gateway.url, connect_timeout_s=5, idle_timeout_s=5, max_connections=1
    ) as transport:
        yield AuthorizedRequests(transport, SecretStr(API_KEY))


async def test_a_document_is_read_by_its_status_and_up_to_a_size(
    gateway: FakeGateway, requests: AuthorizedRequests
) -> None:
    assert await requests.read("GET", "/x") == {"a": "b"}
    assert await requests.read("POST", "/x", body=b"{}") == {"a": "b"}
    assert await requests.read("GET", "/x", max_bytes=5) == {}
    with pytest.raises(UnexpectedResponseError):
        await requests.read("GET", "/x", done=201)
    assert gateway.methods == ["GET", "POST", "GET", "GET"]
    assert [seen.headers.get("Content-Type") for seen in gateway.seen[:2]] == [
        None,
        "application/json",
    ]


async def test_what_is_sent_returns_its_status(
    gateway: FakeGateway, requests: AuthorizedRequests
) -> None:
    assert await requests.send("DELETE", "/x", {}, None, (200, 204)) == (200, {"a": "b"})
    gateway.answer = problem(401, "unauthorized", f"not {API_KEY}")
    with pytest.raises(UnauthorizedError) as raised:
        await requests.send("DELETE", "/x", {}, None, (200, 204))
    assert API_KEY not in str(raised.value)


async def test_an_object_is_open_as_long_as_its_block(
    gateway: FakeGateway, requests: AuthorizedRequests
) -> None:
    gateway.answer = object_of(b"0123456789")
    async with requests.object("GET", "/x", ByteRange(2, 3)) as (response, by_storage):
        assert (await response.read(), by_storage) == (b"234", False)
    gateway.answer = problem(404, "not_found")
    with pytest.raises(NotFoundError):
        async with requests.object("GET", "/x", ByteRange(0, None)):
            pass
