"""An HTTP proxy before moto that breaks one promise of an S3 server and keeps all others.

moto checks no signature, so that requests can be changed on their way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from aiohttp import ClientSession, DummyCookieJar, web
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_MAX_BODY_BYTES = 64 * 2**20
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
_COPIED = b"<CopyObjectResult><ETag>&quot;%s&quot;</ETag></CopyObjectResult>"


@dataclass
class ProxiedRequest:
    """One request on its way; a promise is broken by changing it."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Send = Callable[[ProxiedRequest], Awaitable[Answer]]


class Honest:
    """Passes on what it gets; the others break one promise each."""

    stores_cut_bodies = False
    """Whether a request whose body did not arrive whole is served all the same."""

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        """Answer a request, by sending it on or otherwise."""
        return await send(request)


@dataclass
class Ignores(Honest):
    """Never sees this header on a put."""

    header: str

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        if request.method == "PUT":
            request.headers.pop(self.header, None)
        return await send(request)


@dataclass
class ChecksThenStores(Honest):
    """Honors this header one request at a time, and lets those through that come meanwhile."""

    header: str
    _under_way: Counter[str] = field(default_factory=Counter)

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        if request.method != "PUT" or self.header not in request.headers:
            return await send(request)
        if self._under_way[request.key]:
            del request.headers[self.header]
        self._under_way[request.key] += 1
        try:
            return await send(request)
        finally:
            self._under_way[request.key] -= 1


@dataclass
class ReadsStale(Honest):
    """Shows the first answer again for what is read once more."""

    _first: dict[tuple[str, str], Answer] = field(default_factory=dict)

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        answer = await send(request)
        object_read = request.method == "GET" and request.key and "tagging" not in request.query
        if object_read and answer.status < web.HTTPMultipleChoices.status_code:
            part = request.key, request.headers.get("range", "")
            return self._first.setdefault(part, answer)
        return answer


@dataclass
class ListsStale(Honest):
    """Shows the first listing of a prefix forever."""

    _first: dict[str, Answer] = field(default_factory=dict)

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        answer = await send(request)
        if request.method == "GET" and request.query.get("list-type"):
            return self._first.setdefault(request.query.get("prefix", ""), answer)
        return answer


class LosesParts(Honest):
    """Completes a multipart upload with its first part alone."""

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        if request.method == "POST" and "uploadId" in request.query:
            first, *more = re.findall(rb"<Part>.*?</Part>", request.body, re.DOTALL)
            for part in more:
                request.body = request.body.replace(part, b"")
            assert first in request.body
        return await send(request)


class CopiesNothing(Honest):
    """Says that it copied, and leaves the object as it was."""

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        if "x-amz-copy-source" not in request.headers or "uploadId" in request.query:
            return await send(request)
        request.method, request.headers = "HEAD", {}
        found = await send(request)
        etag = found.headers["ETag"].strip('"').encode()
        return Answer(200, {"Date": found.headers["Date"]}, _COPIED % etag)


class StoresCutPuts(Honest):
    """Stores what arrived of a body whose connection broke."""

    stores_cut_bodies = True

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        request.headers.pop("content-md5", None)
        return await send(request)


class ResumesLate(Honest):
    """Skips the key behind the one that a listing should resume after."""

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        answer = await send(request)
        if not request.query.get("start-after"):
            return answer
        body = re.sub(rb"<Contents>.*?</Contents>", b"", answer.body, count=1, flags=re.DOTALL)
        return Answer(answer.status, {**answer.headers, "Content-Length": f"{len(body)}"}, body)


class RefusesLeases(Honest):
    """Takes no request that is signed in its query."""

    async def serve(self, request: ProxiedRequest, send: Send) -> Answer:
        if "X-Amz-Expires" in request.query:
            return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        return await send(request)


@asynccontextmanager
async def broken(url: str, promise: Honest) -> AsyncIterator[str]:
    """The address of a proxy before the server at this one.

    What fails in here is raised in the end: to the worker it would be one more broken storage.
    """
    server = URL(url)
    failures: list[Exception] = []

    async def handle(request: web.Request) -> web.Response:
        async def send(forwardedved: ProxiedRequest) -> Answer:
            target = server.join(URL(request.raw_path, encoded=True))
            async with session.request(
                forwardedved.method,
                target,
                headers=forwardedved.headers,
                data=BytesIO(forwardedved.body),
                allow_redirects=False,
            ) as answer:
                # As they came: servers spell the names of headers as they like.
                return Answer(answer.status, answer.headers, await answer.read())

        _, _, key = request.path.lstrip("/").partition("/")
        headers = {
            name.lower(): value
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        body, is_whole = await _body(request)
        if not is_whole and not promise.stores_cut_bodies:
            return web.Response(status=400)
        received = ProxiedRequest(request.method, key, request.query, headers, body)
        try:
            return _response(await promise.serve(received, send))
        except Exception as exc:
            failures.append(exc)
            raise

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    async with ClientSession(
        cookie_jar=DummyCookieJar(), auto_decompress=False, skip_auto_headers=("User-Agent",)
    ) as session:
        try:
            await site.start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()
    if failures:
        raise failures[0]


async def _body(request: web.Request) -> tuple[bytes, bool]:
    """What arrived of the body, and whether that is all of it."""
    body = b""
    try:
        while chunk := await request.content.readany():
            body += chunk
    except ConnectionError:
        return body, False
    return body, True


def _response(answer: Answer) -> web.Response:
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name.lower() not in _HOP_BY_HOP - {"content-length"}
    }
    return web.Response(status=answer.status, headers=headers, body=answer.body)
