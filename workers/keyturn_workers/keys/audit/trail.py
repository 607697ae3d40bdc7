"""One process's chain of audit records, published in order (SPEC 15.3).

A record gets its number and the digest of the previous record as soon as it is made, and is logged
at once, also while the broker is away. Records are published in that order, several at a time, and
again under the same number until the broker has confirmed them. A record that is published twice
is recognized as the same (SPEC 6.2).

Concurrent records keep their order: on one channel the broker takes them in the order in which they
were sent, so that after a lost connection it has the first of them. The next attempt begins with a
single record, to open one channel for all the others.

No record may be dropped, or published before its predecessors.
"""

import asyncio
import os
import pwd
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, takewhile
from typing import Any, Final, Self
from uuid import uuid4

import structlog
from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from keyturn.crypto.signatures import SigningKey
from keyturn.errors import NotDeliveredError, PublisherError
from keyturn.identifiers import format_time, is_project, parse_time
from keyturn.messages.audit import DONE, AuditAction, AuditRecorded, body_digest, encode_audit
from keyturn.publisher.connection import (
    Broker,
    BrokerConnection,
    connect_to_broker,
    normalize_connection_errors,
    persistent_json,
)
from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EXCHANGE,
    SIGNATURE_HEADER,
    Queue,
)
from keyturn_workers.keys.master_keys.port import KekDerived

_MAX_CHARACTERS: Final = 200
PUBLISH_TIMEOUT_S: Final = 30.0
MAX_PENDING: Final = 1000
"""The number of unconfirmed records above which the derivation of keys has to wait."""
_AT_ONCE: Final = 64
_PAUSES_S: Final = (0.1, 0.5, 1.0, 5.0)
_DRAIN_S: Final = 10.0

Publish = Callable[[str, bytes], Awaitable[None]]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AuditProcess:
    """One run of a process.

    Attributes:
        id: A new UUID: each run has its own chain.
        role: The kind of process, such as `worker control` or `download`.
        host: The machine's name.
        actor: `user@host`, the actor of actions that no request asks for.
    """

    id: str
    role: str
    host: str
    actor: str

    @classmethod
    def start(cls, role: str) -> Self:
        """Describe this process, with a new id."""
        host = one_line(socket.gethostname())
        return cls(str(uuid4()), role, host, one_line(f"{_user()}@{host}"))


def one_line(text: str) -> str:
    """Fit a name into a record: at most 200 characters, none of them a control character."""
    kept = "".join(character if character.isprintable() else "?" for character in text)
    return kept[:_MAX_CHARACTERS] or "?"


def _user() -> str:
    # The account that the kernel knows, not the environment, which the user can set.
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # a container's user without a name


async def log_kek_derived(derived: KekDerived) -> None:
    """Log that a provider derived a KEK; a process without an event key can do no more."""
    _log.info("kek.derived", **_of_derived(derived))


def utc_now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Pending:
    audit_id: str
    body: bytes
    confirmed: asyncio.Future[None]


class AuditTrail:
    """The records of one process. Use it within its `running` block.

    Args:
        process: The process.
        publish: Publishes a record by its id; raises unless the broker confirmed it.
        is_logged: True to log each record, and failures to publish.
        now: The time.
        max_pending: The number of records that may wait before `kek_derived` waits.
    """

    def __init__(
        self,
        process: AuditProcess,
        publish: Publish,
        *,
        is_logged: bool = True,
        now: Callable[[], datetime] = utc_now,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._process = process
        self._publish = publish
        self._is_logged = is_logged
        self._now = now
        self._max_pending = max_pending
        self._counter = 0
        self._previous: str | None = None
        self._at = ""
        self._queue: deque[_Pending] = deque()
        self._changed = asyncio.Condition()
        self._added = asyncio.Event()

    @property
    def pending(self) -> int:
        """The number of records that the broker has not confirmed yet."""
        return len(self._queue)

    async def record(
        self,
        action: AuditAction,
        *,
        actor: str | None = None,
        outcome: str = DONE,
        audit_id: str | None = None,
        **fields: Any,
    ) -> str:
        """Record one use; return the record's id once the broker has it on disk.

        Cancelling the caller ends only its wait: the record is published all the same.

        `actor` is this process's own by default; `outcome` is `done`, `started`, or the code of an
        error; `audit_id` is given if the record's id must be the same each time. `fields` are
        further fields of `AuditRecorded`.
        """
        pending = self._append(action, actor, outcome, fields, audit_id)
        await asyncio.shield(pending.confirmed)
        return pending.audit_id

    async def kek_derived(self, derived: KekDerived) -> None:
        """Record that a provider derived a KEK.

        The call waits for the broker only if many records do: a process that cannot record stops
        deriving.
        """
        self._append("kek.derived", None, DONE, _of_derived(derived))
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._queue) <= self._max_pending)

    @asynccontextmanager
    async def running(self, *, drain_s: float = _DRAIN_S) -> AsyncIterator[None]:
        """Publish records while the block runs, and for up to `drain_s` after it the rest."""
        sending = asyncio.create_task(self._send(), name="audit trail")
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._drained()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            if self._queue and self._is_logged:
                # These records are in the log; on the stream, the chain ends before them.
                _log.error("audit records not published", count=len(self._queue))

    async def _drained(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._queue)

    def _append(
        self,
        action: AuditAction,
        actor: str | None,
        outcome: str,
        fields: dict[str, Any],
        audit_id: str | None = None,
    ) -> _Pending:
        # No await here, so that the order of the chain is the order of the queue.
        record = AuditRecorded(
            audit_id=audit_id or str(uuid4()),
            at=self._time(),
            process=self._process.id,
            role=self._process.role,
            host=self._process.host,
            counter=self._counter + 1,
            previous=self._previous,
            action=action,
            actor=self._process.actor if actor is None else actor,
            outcome=outcome,
            **fields,
        )
        body = encode_audit(record)
        self._counter, self._previous = record.counter, body_digest(body)
        if self._is_logged:
            _log.info(AUDIT_RECORDED, **record.model_dump(exclude_none=True, exclude={"type"}))
        confirmed = asyncio.get_running_loop().create_future()
        pending = _Pending(record.audit_id, body, confirmed)
        self._queue.append(pending)
        self._added.set()
        return pending

    def _time(self) -> str:
        """The time of a record, never before the previous record's.

        So a process's records between two times are consecutive, and an export of them has no gap.
        """
        now = format_time(self._now())
        if self._at and parse_time(now) < parse_time(self._at):
            now = self._at
        self._at = now
        return now

    async def _send(self) -> None:
        at_once, failures = 1, 0
        while True:
            await self._added.wait()
            batch = list(islice(self._queue, at_once))
            if not batch:
                self._added.clear()
                continue
            results = await asyncio.gather(
                *(self._publish(each.audit_id, each.body) for each in batch),
                return_exceptions=True,
            )
            confirmed = len(list(takewhile(lambda result: result is None, results)))
            await self._confirm(confirmed)
            if confirmed == len(batch):
                at_once, failures = _AT_ONCE, 0
                continue
            at_once = 1
            if not failures and self._is_logged:
                problem, pending = _problem(results[confirmed]), len(self._queue)
                _log.warning("audit trail not written", problem=problem, pending=pending)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    async def _confirm(self, count: int) -> None:
        for _ in range(count):
            done = self._queue.popleft()
            if not done.confirmed.done():
                done.confirmed.set_result(None)
        async with self._changed:
            self._changed.notify_all()


def _problem(failure: object) -> str:
    # The text of a foreign exception can contain the broker's address with its password.
    return str(failure) if isinstance(failure, PublisherError) else type(failure).__name__


def _of_derived(derived: KekDerived) -> dict[str, Any]:
    call = derived.request_id
    return {
        "master_key": derived.master_key,
        "project": derived.project if is_project(derived.project) else None,
        "kind": derived.kind,
        "provider": derived.provider,
        "provider_request_id": None if call is None else one_line(call),
    }


# The stream.


class AuditPublisher:
    """Signs records with the event key and publishes them.

    `timeout_s` is the time limit of one publish, connecting included.
    """

    def __init__(
        self,
        broker: Broker,
        deployment: str,
        event_key: SigningKey,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        self._connection = BrokerConnection(broker, publish_timeout_s=timeout_s)
        self._deployment = deployment
        self._event_key = event_key

    async def connect(self) -> None:
        """Connect now.

        Raises:
            BrokerUnavailableError: the broker refuses, or does not respond in time.
        """
        await self._connection.connect()

    async def publish(self, audit_id: str, body: bytes) -> None:
        """Publish one record; return once the broker has it on disk.

        Raises:
            PublisherError: the record is not, or perhaps not, on the stream.
        """
        headers = {
            SIGNATURE_HEADER: self._event_key.sign_event(self._deployment, body),
            EVENT_KEY_HEADER: self._event_key.id,
        }
        message = persistent_json(body, audit_id, headers)
        await self._connection.publish(AUDIT_RECORDED, message)

    async def close(self) -> None:
        """Abandon publishes under way, and disconnect."""
        await self._connection.close()


async def declare_missing(broker: Broker, stream: Queue) -> None:
    """Declare the stream for a command that writes to it, unless it exists.

    Workers declare it with all other queues. A command leaves an existing stream as it is: its
    limits are the workers' settings. A broker user that may not declare it also cannot delete it.

    Raises:
        NotDeliveredError: it does not exist, and the broker user may not declare it.
        OSError, AMQPException: the broker is not reachable.
    """
    with normalize_connection_errors():
        async with await connect_to_broker(broker) as connection:
            channel = await connection.channel()
            try:
                await channel.declare_queue(AUDIT_STREAM, passive=True)
            except ChannelNotFoundEntity:
                channel = await connection.channel()
            else:
                return
            try:
                exchange = await channel.declare_exchange(
                    EXCHANGE, ExchangeType.TOPIC, durable=True
                )
                declared = await channel.declare_queue(
                    stream.name, durable=True, arguments=dict(stream.arguments)
                )
                for routing_key in stream.bindings:
                    await declared.bind(exchange, routing_key)
            except ChannelAccessRefused as exc:
                raise NotDeliveredError(
                    f"no worker has declared {AUDIT_STREAM}; start one"
                ) from exc
