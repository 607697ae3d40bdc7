"""A fake gateway of SPEC 9 whose responses a test scripts, and every request of a client to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from aiohttp import web
from pydantic import SecretStr

from keyturn.errors import CodedError
from keyturn.gateway import (
    Client,
    GatewayError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from multidict import CIMultiDictProxy

API_KEY = "kt_" + "0123456789abcdefghijABCDEFGHIJ+/=-_.~xyz"
NEW_API_KEY = "kt_" + "zyxwvutsrqponmlkjihgfedcba9876543210ZYXWVUT"
AN_ID = "2f6c9a0e-0000-4000-8000-000000000001"
HEADERS = {
    "ETag": '"c0ffee"',
    "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT",
    "Content-Type": "text/plain",
    "X-Keyturn-Meta-Author": "kim",
    "X-Keyturn-Meta-Title": "=?utf-8?b?w6nDqQ==?=",
    "Accept-Ranges": "bytes",
}
TOKEN = "t0" + "k" * 40 + "n"
EXPIRES_AT = datetime(2026, 11, 24, 11, tzinfo=UTC)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; `body` is None where its end did not come."""

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes | None


@dataclass
class FakeGateway:
    """Answers every request by `answer`."""

    answer: Answer
    expect: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
    url: str = ""
    seen: list[Seen] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return [seen.method for seen in self.seen]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body: bytes | None = await request.read()
        except ConnectionError:
            body = None
        self.seen.append(Seen(request.method, request.raw_path, request.headers, body))
        return await self.answer(request)

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        if self.expect is not None:
            return await self.expect(request)
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[FakeGateway]:
    fake = FakeGateway(answer)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{rest:.*}", fake._handle, expect_handler=fake._expect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = "http://{}:{}".format(*runner.addresses[0])
        yield fake
    finally:
        await runner.cleanup()


def always(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """The same answer to everything."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


def object_of(body: bytes, headers: Mapping[str, str] = HEADERS) -> Answer:
    """One object at every key, whole or by one range, as SPEC 9.2 has it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        requested = request.headers.get("Range")
        if requested is None:
            return web.Response(body=body, headers=headers)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", requested)
        assert found is not None
        if found[1]:
            first = int(found[1])
            last = min(int(found[2] or len(body)), len(body) - 1)
        else:
            first, last = max(0, len(body) - int(found[2])), len(body) - 1
        if first >= len(body):
            return problem_answer(
                416, "range_not_satisfiable", "", {"Content-Range": f"bytes */{len(body)}"}
            )
        range_headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
        return web.Response(status=206, body=body[first : last + 1], headers=range_headers)

    return answer


def cut(body: bytes, length: int, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer that promises `length` bytes, sends these, and drops the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**(headers or {}), "Content-Length": str(length)})
        await response.prepare(request)
        await response.write(body)
        drop(request)
        return response

    return answer


def drop(request: web.Request) -> None:
    """End the connection, after what was written to it."""
    assert request.transport is not None
    request.transport.close()


def problem_answer(
    status: int, code: str, detail: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """A problem document of RFC 9457."""
    document = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    return json_answer(status, document, headers, content_type="application/problem+json")


def json_always(status: int, value: Any) -> Answer:
    """The same JSON document in answer to everything."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return json_answer(status, value)

    return answer


def problem(status: int, code: str, detail: str = "") -> Answer:
    """The same refusal of everything."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return problem_answer(status, code, detail)

    return answer


def json_answer(
    status: int,
    document: Any,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = "application/json",
) -> web.Response:
    """A JSON document."""
    return web.Response(
        status=status,
        body=json.dumps(document).encode(),
        headers={**(headers or {}), "Content-Type": content_type},
    )


def page_of(
    keys: Sequence[str], prefixes: Sequence[str] = (), *, next_after: str | None = None
) -> dict[str, Any]:
    """A page of a listing; every object has 5 bytes."""
    return {
        "objects": [
            {"key": key, "size": 5, "changed_at": "2026-11-24T10:00:00.000000Z"} for key in keys
        ],
        "prefixes": list(prefixes),
        "next": next_after,
    }


def link_document(key: str, *, inline: bool = False) -> dict[str, Any]:
    """A link to an object of `acme`, at the gateway's public address."""
    more = "&inline=1" if inline else ""
    expires = int(EXPIRES_AT.timestamp())
    return {
        "url": f"https://files.example.com/kt/v1/projects/acme/objects/{quote(key)}"
        f"?expires={expires}{more}&token={TOKEN}",
        "expires_at": "2026-11-24T11:00:00Z",
    }


def ciphertext_link_document() -> dict[str, Any]:
    """A link to an object's stored bytes."""
    return {
        "url": f"https://s3.example.com/bucket/acme/k?X-Amz-Signature={TOKEN}",
        "expires_at": "2026-11-24T11:00:00Z",
        "metadata": {"enc-algo": "Cobblestone-256", "enc-dek-user": "c2VhbGVk"},
    }


UPLOADED = json_always(201, {"upload_id": AN_ID})


async def after(seconds: float) -> None:
    """Wait in a test that time itself is about."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, reached.set)
    await reached.wait()


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
        # By the module, not the file: the constructor of a dataclass has none.
        if trace.tb_frame.f_globals["__name__"].startswith("keyturn."):
            yield repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
