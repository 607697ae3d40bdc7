"""A proxy before an S3 server that does harm to chosen requests, and counts what it did.

It reads each request whole before it decides, and each answer whole before it gives it on, so
bodies are held in memory: it is for tests whose bodies are small. It never sends a request
twice. Of each harm:

| harm | the client sees | the server |
| --- | --- | --- |
| `500`, `503` | that answer, the latter with `Retry-After` | hears nothing |
| `slow` | its answer so many seconds later | hears of it so many seconds later |
| `reset` | a connection that breaks | hears nothing |
| `request cut` | a connection that breaks | half a request |
| `answer cut` | half an answer | does it |
| `answer lost` | a connection that breaks once it is done | does it |
| `late` | a connection that breaks | does it so many seconds later |
| `404`, `404 page` | of what exists: S3's `NoSuchKey`, a proxy's HTML page | answers |
| `date ahead`, `date behind` | its answer, with a `Date` hours ahead, or 30 s behind | does it |
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tools.chaos.http import Message, absence, head, redated, refusal, with_body, without
from tools.chaos.schedule import UNTRUTHS
from tools.harness.loopback_server import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.chaos.schedule import Action

_LIMIT_BYTES = 1024 * 1024
_BODILESS = frozenset({204, 304})


def key_of(target: str) -> str:
    """The S3 key that a request names; empty for the bucket itself."""
    return unquote(target.partition("?")[0]).removeprefix("/").partition("/")[2]


def kind_of(method: str, target: str, headers: dict[str, str]) -> str:
    """What a request is for: a verb, and what it is about (`put object`, `read keyring` …)."""
    query, key = target.partition("?")[2], key_of(target)
    names = {part.partition("=")[0] for part in query.split("&")}
    if not key:
        return "list" if method == "GET" else "other"
    if key.startswith(".keyturn/doctor/"):
        return "doctor"
    if names & {"uploadId", "uploads"}:
        return "multipart"
    if "tagging" in names:
        return "tags"
    verb = {"PUT": "put", "GET": "read", "HEAD": "read", "DELETE": "delete"}.get(method, "other")
    return f"{'copy' if 'x-amz-copy-source' in headers else verb} {_about(key)}"


def _about(key: str) -> str:
    for prefix, name in (("keyrings", "keyring"), ("staging", "staged"), ("", "record")):
        if key.startswith(f".keyturn/{prefix}"):
            return name
    return "object"


def untruth(harm: Action, request: Message, answer: Message) -> Message | None:
    """What is said in place of an answer; None where the harm does not apply to it.

    Only of what exists is it said that it does not, and never to a HEAD, whose 404 says nothing.
    """
    if harm.to in {"date ahead", "date behind"}:
        return redated(answer, harm.seconds)
    if request.first[0] != "GET" or answer.first[1] not in {"200", "206"}:
        return None
    return absence(answer, page=harm.to == "404 page")


@dataclass
class _Storm:
    action: Action
    seen: int = 0
    left: int = 0


@dataclass
class Harming:
    """Forwards to one server; `seen` counts requests by kind, `done` harms by name and kind.

    `denied` are the S3 keys that were last said not to exist, and when (monotonic).
    """

    host: str
    port: int
    url: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    denied: dict[str, float] = field(default_factory=dict)
    _storms: list[_Storm] = field(default_factory=list)
    _spared: set[str] = field(default_factory=set)

    def storm(self, action: Action) -> None:
        """Let coming requests of a kind meet a harm, as the action says."""
        self._storms.append(_Storm(action, left=action.times))

    def calm(self, confirmed: int | None = None) -> int:
        """End the storms whose time is over by so many confirmed sendings, or all; how many."""
        before = len(self._storms)
        self._storms = [
            storm
            for storm in self._storms
            if confirmed is not None and confirmed <= storm.action.until
        ]
        return before - len(self._storms)

    def _next(self, kind: str) -> Action | None:
        """The harm for the next request of a kind; never for two of them in a row.

        One that is done again at once would else meet one harm after the other, and be put off
        for longer than a run takes: 1, 5, 30, 120, 600 seconds.
        """
        self.seen[kind] += 1
        if kind in self._spared:
            self._spared.discard(kind)
            return None
        for storm in self._storms:
            if storm.action.kind != kind:
                continue
            storm.seen += 1
            if storm.seen % storm.action.every:
                continue
            storm.left -= 1
            if not storm.left:
                self._storms.remove(storm)
            self._spared.add(kind)
            return storm.action
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(self, reader, writer).serve()


class _Connection:
    """One client's connection, and the one to the server that it is given."""

    def __init__(
        self, proxy: Harming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._behind: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def serve(self) -> None:
        """Requests one after the other, until either side has enough."""
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._one():
                    pass
        finally:
            self._writer.transport.abort()
            self._leave_server()

    async def _one(self) -> bool:
        request = await self._request()
        method, target, _ = request.first
        kind = kind_of(method, target, request.headers)
        harm = self._proxy._next(kind)
        if harm is None:
            return await self._give(await self._ask(request))
        if harm.to in UNTRUTHS:
            return await self._tell_an_untruth(harm, kind, request)
        self._proxy.done[harm.to, kind] += 1
        return await self._harm(harm, request)

    async def _tell_an_untruth(self, harm: Action, kind: str, request: Message) -> bool:
        """The server does it and answers; what it answers is changed where that makes sense."""
        answer = await self._ask(request)
        changed = untruth(harm, request, answer)
        if changed is None:
            return await self._give(answer)
        self._proxy.done[harm.to, kind] += 1
        if changed.first[1] == "404":
            self._proxy.denied[key_of(request.first[1])] = time.monotonic()
        return await self._give(changed)

    async def _harm(self, harm: Action, request: Message) -> bool:
        match harm.to:
            case "500" | "503":
                return await self._give(refusal(harm.to, request.first[0]))
            case "slow":
                await asyncio.sleep(harm.seconds)
                return await self._give(await self._ask(request))
            case "request cut":
                _, writer = await self._server()
                writer.write(request.raw[: max(1, len(request.raw) // 2)])
                await writer.drain()
            case "answer cut":
                answer = await self._ask(request)
                half = answer.body[: len(answer.body) // 2]
                self._writer.write(answer.head + half if half else answer.head[:20])
                await self._writer.drain()
                # An abort throws away what was not sent yet, and it is to be half an answer.
                self._writer.close()
            case "answer lost":
                await self._ask(request)
            case "late":
                self._writer.transport.abort()
                await asyncio.sleep(harm.seconds)
                await self._ask(request)
        return False

    async def _request(self) -> Message:
        message = await head(self._reader)
        if message.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            message = without(message, "expect")
        return await with_body(self._reader, message)

    async def _ask(self, request: Message) -> Message:
        reader, writer = await self._server()
        # It may refuse, and hang up, before it has read all of a body.
        with suppress(OSError):
            writer.write(request.raw)
            await writer.drain()
        answer = await head(reader)
        if request.first[0] == "HEAD" or int(answer.first[1]) in _BODILESS:
            return answer
        return await with_body(reader, answer, to_its_end="content-length" not in answer.headers)

    async def _give(self, answer: Message) -> bool:
        self._writer.write(answer.raw)
        await self._writer.drain()
        return answer.headers.get("connection", "").lower() != "close"

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._behind is None:
            host, port = self._proxy.host, self._proxy.port
            self._behind = await asyncio.open_connection(host, port, limit=_LIMIT_BYTES)
        return self._behind

    def _leave_server(self) -> None:
        if self._behind is not None:
            self._behind[1].transport.abort()


@asynccontextmanager
async def harming(url: str) -> AsyncIterator[Harming]:
    """A proxy before the server at this address, without any harm at first."""
    at = urlsplit(url)
    assert at.hostname is not None
    running = Harming(at.hostname, at.port or 80)
    async with loopback_server(running._serve, limit_bytes=_LIMIT_BYTES) as running.url:
        yield running
