"""The network between workers and the bucket: each request is held until the scheduler lets it on.

A request that was sent lives on when its sender dies: it may still arrive, late or never.
The bucket is the awkward one of FACTS: a self-copy reads, lets others run, and then writes;
a streamed put is held against its lease when it begins, and may end at any time.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.s3_wire import error_for
from keyturn_workers.storage.streaming_body import KnownLengthBody
from tests.protocol.faults import Fault, Missing, anything, reads_of
from tools.harness.memory_bucket import Bucket, Stored, etag_of
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from datetime import datetime

    from keyturn_workers.core.storage_port import ObjectStream
    from keyturn_workers.core.storage_values import (
        Capabilities,
        Condition,
        Headers,
        Lease,
        MultipartUpload,
        ObjectSummary,
        ObjectVersion,
        WriteResult,
    )
    from tests.protocol.broker import Delivery
    from tests.protocol.clock import Clock, Loop
    from tests.protocol.process import Process

SENT: Final = "sent"
# Of a streamed put: its lease was checked, and its body is still to be sent; then it is sent.
BEGUN: Final = "begun"
SENDING: Final = "sending"
MID: Final = "mid"
SERVED: Final = "served"
# What a listing gives at once: it is no picture of one moment.
_LIST_PAGE: Final = 4
_WRITES: Final = {"put", "put_stream", "copy_onto_itself", "complete_multipart"}

CURRENT: ContextVar[Delivery | None] = ContextVar("delivery", default=None)
_SERVING: ContextVar[Call | None] = ContextVar("call", default=None)


class Call:
    """One request: sent, at the server in the midst of its effect, or served without a response."""

    def __init__(
        self, sender: Process, op: str, key: str, effect: Callable[[], Awaitable[Any]]
    ) -> None:
        self.sender = sender
        self.op = op
        self.key = key
        self.effect = effect
        self.delivery = CURRENT.get()
        self.state = SENT
        self.sent_s = 0.0
        self.began = 0.0
        # The lease that it was sent with, or else its sender's: the server ends it within that.
        self.lease_s = sender.lease_s
        self.faults: list[Fault] = []
        self.client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.resume: asyncio.Future[None] | None = None
        self.result: Any = None
        self.failure: Exception | None = None

    @property
    def is_ghost(self) -> bool:
        """Whether its sender no longer waits for the response."""
        return self.client.done()

    @property
    def can_proceed(self) -> bool:
        """Whether it waits for the scheduler, and not for a sender that makes a body."""
        return self.state != SENDING

    @property
    def is_write(self) -> bool:
        return self.op in _WRITES

    def __repr__(self) -> str:
        return f"<{self.op} {self.key} {self.state}>"


class Network:
    """All requests that are under way, the oldest first."""

    def __init__(self, loop: Loop, clock: Clock) -> None:
        self.loop = loop
        self.clock = clock
        self.calls: list[Call] = []
        self.faults: list[Fault] = []

    async def ask(
        self, sender: Process, op: str, key: str, effect: Callable[[], Awaitable[Any]]
    ) -> Any:
        """What a worker's call waits for."""
        call = Call(sender, op, key, effect)
        call.sent_s = self.clock.seconds
        self.calls.append(call)
        return await call.client

    def step(self, call: Call, *, respond: bool = True) -> None:
        """Let a request on: to the midst of its effect, to its end, or to its response."""
        if call.state == SENT:
            call.began = self.clock.seconds
            call.faults = [fault for fault in self.faults if fault.meets(call)]
            self.loop.create_task(self._serve(call))
            self.loop.run_until_idle()
        elif call.state in (BEGUN, MID):
            assert call.resume is not None
            resume, call.resume = call.resume, None
            if call.state == BEGUN:
                call.state = SENDING
            if not resume.done():
                resume.set_result(None)
            self.loop.run_until_idle()
        else:
            respond = True
        if call.state == SERVED and (respond or call.is_ghost):
            self._respond(call)

    async def _serve(self, call: Call) -> None:
        _SERVING.set(call)
        try:
            call.result = await call.effect()
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is the sender's
            call.failure = exc
        except asyncio.CancelledError:
            call.failure = StorageUnavailableError("its sender died")
        call.state = SERVED

    def _respond(self, call: Call) -> None:
        self.calls.remove(call)
        if not call.client.done():
            if call.failure is not None:
                call.client.set_exception(call.failure)
            else:
                call.client.set_result(call.result)
        self.loop.run_until_idle()

    def lose(self, call: Call) -> None:
        """The sender sees a broken connection; the request itself may still arrive."""
        if call.state == SERVED:
            self.calls.remove(call)
        if not call.client.done():
            call.client.set_exception(StorageUnavailableError("the connection broke"))
        self.loop.run_until_idle()

    def drop(self, call: Call) -> None:
        """A request that never arrives."""
        assert call.state == SENT
        self.lose(call)
        self.calls.remove(call)

    async def midst(self, state: str = MID) -> None:
        """Called at the server: here it pauses, and others run."""
        call = _SERVING.get()
        assert call is not None
        call.state = state
        call.resume = self.loop.create_future()
        await call.resume
        if state == BEGUN:
            self.check_sender()

    def check_sender(self) -> None:
        """Called at the server: a sender that is lost sends no more of a body."""
        call = _SERVING.get()
        assert call is not None
        if call.is_ghost:
            raise StorageUnavailableError("its sender was lost before it sent the whole body")


class _Watched(Bucket):
    """A bucket whose every new version is shown to the oracle."""

    def __init__(
        self, *, versioned: bool, watch: Callable[[str, Stored, Call | None], None]
    ) -> None:
        super().__init__(versioned=versioned)
        self._watch = watch

    def store(self, key: str, stored: Stored) -> None:
        super().store(key, stored)
        self._watch(key, stored, _SERVING.get())


class Server(MemoryStorage):
    """The bucket itself."""

    def __init__(
        self,
        network: Network,
        watch: Callable[[str, Stored, Call | None], None],
        *,
        parts_lost: Callable[[str], None],
        capabilities: Capabilities,
        versioned: bool,
    ) -> None:
        super().__init__(capabilities=capabilities, versioned=versioned, atomic_copies=False)
        self._network = network
        self._parts_lost = parts_lost
        # The delivery that began each multipart upload.
        self._began: dict[str, Delivery | None] = {}
        self._bucket = _Watched(versioned=versioned, watch=watch)

    @property
    def now(self) -> datetime:
        """The clock of the front end that serves this request, in whole seconds."""
        call = _SERVING.get()
        now = self._network.clock.now + self._skew
        if call is not None:
            if any(fault.dated_early for fault in call.faults):
                now -= timedelta(seconds=self._network.clock.seconds - call.began)
            now += timedelta(seconds=sum(fault.clock_s for fault in call.faults))
        return now.replace(microsecond=0)

    @asynccontextmanager
    async def _acting(self, operation: str, lease: Lease | None = None) -> AsyncIterator[None]:
        call = _SERVING.get()
        if call is not None and lease is not None:
            call.lease_s = lease.expires_s
        async with super()._acting(operation, lease):
            yield

    async def _hook(self, operation: str) -> None:
        if operation == "mid_copy":
            await self._network.midst()
            return
        call = _SERVING.get()
        for fault in [] if call is None else call.faults:
            if fault.missing is not None:
                raise error_for(operation, 404, fault.missing)

    def hide(self, prefix: str, *, code: Missing = "NoSuchKey", times: int | None = None) -> Fault:
        """Let reads under a prefix return 404, with a code or as a proxy's page without one."""
        fault = Fault(reads_of(prefix), times, missing=code)
        self._network.faults.append(fault)
        return fault

    def front_end(
        self,
        clock_s: float = 0.0,
        where: Callable[[Call], bool] = anything,
        *,
        times: int | None = None,
        dated_early: bool = False,
    ) -> Fault:
        """Let these requests be served by a front end whose clock is off, or that dates early."""
        fault = Fault(where, times, clock_s, dated_early)
        self._network.faults.append(fault)
        return fault

    def mend(self, *faults: Fault) -> None:
        """End these faults, or all."""
        left = [fault for fault in self._network.faults if faults and fault not in faults]
        self._network.faults[:] = left

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        size_bytes: int,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """The lease is checked when it begins, the condition when it ends, any time later.

        A sender that is lost before it sent the whole body stores nothing.
        """
        async with self._acting("put_stream", lease):
            await self._network.midst(BEGUN)
            body = await KnownLengthBody(chunks, size_bytes).read_all()
            self._network.check_sender()
            await self._network.midst()
            return self._store(key, body, headers, etag_of(body), condition)

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """As on any server; it is noted which delivery began the upload."""
        upload_id = await super().create_multipart(key, headers)
        call = _SERVING.get()
        self._began[upload_id] = None if call is None else call.delivery
        return upload_id

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """As on any server; the oracle learns of parts that another delivery still needs."""
        call = _SERVING.get()
        is_open = upload_id in self._uploads and self._uploads[upload_id].key == key
        others = call is None or self._began.get(upload_id) is not call.delivery
        if is_open and others and key not in self.stored_keys():
            self._parts_lost(key)
        await super().abort_multipart(key, upload_id)

    def open_uploads(self) -> list[str]:
        """The keys of all open multipart uploads."""
        return [upload.key for upload in self._uploads.values()]

    def current_objects(self) -> dict[str, Stored]:
        """All objects in the bucket."""
        return {key: self._bucket.get(key) for key in self.stored_keys()}

    def every_version(self) -> list[tuple[str, Stored]]:
        """All versions but delete markers."""
        rows = [row for row in self._bucket.versions() if not row.is_delete_marker]
        return [(row.key, self._bucket.get(row.key, row.version_id)) for row in rows]


class Wire:
    """One worker's storage: every method is a request on the network."""

    def __init__(self, sender: Process, network: Network, server: Server) -> None:
        self._sender = sender
        self._network = network
        self._server = server
        self.capabilities = server.capabilities
        self.dead = False

    async def _ask(self, op: str, key: str, effect: Callable[[], Awaitable[Any]]) -> Any:
        if self.dead:
            raise asyncio.CancelledError  # a process that was killed sends nothing any more
        return await self._network.ask(self._sender, op, key, effect)

    def __getattr__(self, op: str) -> Callable[..., Awaitable[Any]]:
        """The methods with a single response."""
        method = getattr(self._server, op)

        async def call(*args: Any, **kwargs: Any) -> Any:
            key = args[0] if args else ""
            return await self._ask(op, key, lambda: method(*args, **kwargs))

        return call

    @asynccontextmanager
    async def stream(self, key: str, **how: Any) -> AsyncIterator[ObjectStream]:
        async def opened() -> ObjectStream:
            async with self._server.stream(key, **how) as stream:
                return stream

        yield await self._ask("stream", key, opened)

    async def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        left = limit
        while left is None or left > 0:
            rows = await self._rows("list", prefix, after=after, limit=_capped(left))
            for row in rows:
                yield row
            if len(rows) < _LIST_PAGE:
                return
            after = rows[-1].key
            left = None if left is None else left - len(rows)

    async def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        for row in await self._rows("list_versions", prefix, after=after, limit=limit):
            yield row

    async def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        for row in await self._rows("list_multipart_uploads", prefix):
            yield row

    async def _rows(self, op: str, prefix: str, **args: Any) -> Sequence[Any]:
        async def collected() -> Sequence[Any]:
            return [row async for row in getattr(self._server, op)(prefix, **args)]

        rows: Sequence[Any] = await self._ask(op, prefix, collected)
        return rows


def _capped(limit: int | None) -> int:
    return _LIST_PAGE if limit is None else min(limit, _LIST_PAGE)
