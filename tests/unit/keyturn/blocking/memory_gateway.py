"""A gateway that keeps objects in memory, on a thread of its own: blocking clients need one.

It serves what SPEC 9 says of uploads, reads, listings, deletes and links. Keys are used once.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    TOKEN,
    cut,
    json_answer,
    link_document,
    object_of,
    problem_answer,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECTS = "/v1/projects/acme/objects"
_FIELDS = ("Content-Type", "X-Keyturn-Meta-Author")


@dataclass
class MemoryGateway:
    """The project `acme`; `deleted` keys never take another body.

    Attributes:
        objects: Body and headers by key.
        methods: Those of the requests, in order.
        refusal: The answer to every upload, before its body is sent.
        cut: Keys whose objects end before their length.
    """

    url: str = ""
    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    methods: list[str] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(init=False)
    refusal: web.Response | None = None
    cut: set[str] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.methods.append(request.method)
        key = unquote(request.raw_path.partition("?")[0]).removeprefix(_OBJECTS).lstrip("/")
        by_link = request.query.get("token") == TOKEN and request.method == "GET"
        if not by_link and request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return problem_answer(401, "unauthorized", "not the project's API key")
        if request.path.endswith("/deletes"):
            return self._delete((await request.json())["keys"])
        if request.method == "POST":
            return self._link(key.removesuffix("/links"), await request.json())
        if request.method == "PUT":
            return await self._put(key, request)
        return await self._existing(key, request) if key else self._page(request)

    async def _existing(self, key: str, request: web.Request) -> web.StreamResponse:
        if key not in self.objects:
            return problem_answer(404, "not_found", "there is no such object")
        body, headers = self.objects[key]
        if request.method == "DELETE":
            del self.objects[key]
            self.deleted.add(key)
            return web.Response(status=204)
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(body))})
        if key in self.cut:
            return await cut(body, len(body) + 1)(request)
        return await object_of(body, headers)(request)

    async def before_body(self, request: web.Request) -> web.StreamResponse | None:
        if self.refusal is not None:
            return self.refusal
        key = unquote(request.raw_path).removeprefix(f"{_OBJECTS}/")
        if key in self.objects:
            return problem_answer(409, "already_exists", "an object with this key exists")
        if key in self.deleted:
            return problem_answer(409, "deleted_key", "the key was deleted")
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _put(self, key: str, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        given = {name: request.headers[name] for name in _FIELDS if name in request.headers}
        self.objects[key] = (body, {"Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT", **given})
        return json_answer(201, {"upload_id": AN_ID})

    def _delete(self, keys: list[str]) -> web.Response:
        there = [key for key in keys if key in self.objects]
        if not there:
            return problem_answer(404, "not_found", "no object has this key")
        for key in there:
            del self.objects[key]
            self.deleted.add(key)
        rejected = [
            {"key": key, "code": "not_found", "detail": "no object has this key"}
            for key in keys
            if key not in there
        ]
        outcomes = {"deleted": there, "rejected": rejected}
        return json_answer(200, {"request_id": AN_ID, **outcomes})

    def _link(self, key: str, asked: dict[str, object]) -> web.Response:
        document = link_document(key, inline=bool(asked.get("inline")))
        host = "https://files.example.com/kt"
        return json_answer(201, {**document, "url": document["url"].replace(host, self.url)})

    def _page(self, request: web.Request) -> web.Response:
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter")
        after = request.query.get("after", "")
        names = set()
        for key in self.objects:
            if key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition("/")
                names.add(prefix + head + slash if delimiter and slash else key)
        rows = sorted(name for name in names if name > after)
        page, rest = rows[:3], rows[3:]  # small pages, so that clients have to turn them
        return json_answer(
            200,
            {
                "objects": [self._row(name) for name in page if not name.endswith("/")],
                "prefixes": [name for name in page if name.endswith("/")],
                "next": page[-1] if rest else None,
            },
        )

    def _row(self, key: str) -> dict[str, object]:
        size = len(self.objects[key][0])
        return {"key": key, "size": size, "changed_at": "2026-11-24T10:00:00.000000Z"}


@contextmanager
def memory_gateway() -> Iterator[MemoryGateway]:
    """A gateway without objects."""
    memory, ready, end = MemoryGateway(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(memory.answer) as fake:
            fake.expect = memory.before_body
            memory.url, memory.loop = fake.url, asyncio.get_running_loop()
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    try:
        yield memory
    finally:
        memory.loop.call_soon_threadsafe(end.set)
        thread.join()
