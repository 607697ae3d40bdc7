"""Reading dead letters without removing them, and describing them safely (SPEC 12).

Letters are consumed without acknowledgment, by one consumer a queue; the unprocessed ones go back
in their order (dead-letter queues have no delivery limit, see `keyturn.topology`). Nothing in a
letter is trusted: anyone with write access to the broker can invent its id, its headers and its
code. A sealed body, or the value of an unknown field, must never be shown.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import has_control_characters, parse_time
from keyturn.messages import claimed_type, load_json
from keyturn.topology import (
    BODY_DROPPED_HEADER,
    CODE_HEADER,
    CONTROL_QUEUE,
    DEAD_LOCK,
    DEAD_QUEUES,
    DETAIL_HEADER,
    PUBLISHER_HEADER,
    REQUESTS,
    SIGNATURE_HEADER,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    UPLOAD_REQUESTS,
)
from keyturn_workers.amqp.locks import broker_lock
from keyturn_workers.cli.errors import CommandError

_DIGEST_DIGITS: Final = 16
_ID_MAX_CHARACTERS: Final = 64
_REQUEUE_TIMEOUT_S: Final = 5
_POLL_INTERVAL_S: Final = 0.02
_LOCK_TIMEOUT_S: Final = 120
_LOCK_RETRY_S: Final = 0.1
# Fields without a secret in a well-formed request; of all others only the length is shown.
_SAFE_FIELDS: Final = frozenset(
    {
        "type",
        "upload_id",
        "request_id",
        "rotation_id",
        "sweep_id",
        "project",
        "key",
        "requested_at",
        "content_type",
        "expected_generation",
        "plaintext",
        "v0",
        "adopt",
        "master_key",
        "encrypt_plaintext",
        "repair",
        "dry_run",
    }
)
_SAFE_NESTED_FIELDS: Final = {
    "sealed_key": ("intake_key",),
    "sealed_kek": ("intake_key",),
    "sealed_v0_kek": ("intake_key",),
    "body": ("staged", "sha256", "bytes"),
}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter claims."""

    queue: str
    message_id: str | None
    digest: str
    type: str | None
    project: str | None
    code: str | None
    detail: str | None
    publisher: str | None
    requested_at: str | None
    size_bytes: int

    @property
    def id(self) -> str:
        """Its message id, or its digest if the id is unusable."""
        return self.message_id or self.digest

    def age(self, now: datetime) -> str | None:
        """Roughly how long ago it was requested, by its own claim."""
        try:
            seconds = int((now - parse_time(self.requested_at or "")).total_seconds())
        except ValueError:
            return None
        for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if abs(seconds) >= length:
                return f"{seconds // length} {unit}"
        return f"{seconds} s"


def dead_queue(name: str) -> str:
    """The dead-letter queue of this name, with or without `.dead`.

    Raises:
        CommandError: there is no such queue.
    """
    dead = f"{name.removesuffix('.dead')}.dead"
    if dead not in DEAD_QUEUES:
        raise CommandError(f"{name} is not one of {', '.join(DEAD_QUEUES)}")
    return dead


def work_queue(message: AbstractIncomingMessage, dead: str) -> str:
    """The work queue that a letter of this dead-letter queue is replayed to.

    For unsigned messages it follows from the type.

    Raises:
        MalformedRequestError: unsigned, and not of a request type.
    """
    if dead != UNSIGNED_DEAD_QUEUE:
        return dead.removesuffix(".dead")
    claimed = claimed_type(message.body)
    if claimed not in REQUESTS:
        raise MalformedRequestError("it has no request type, so there is no queue to replay it to")
    return UPLOAD_QUEUE if claimed in UPLOAD_REQUESTS else CONTROL_QUEUE


def describe(message: AbstractIncomingMessage, queue: str) -> DeadLetter:
    """Describe a delivery of this dead-letter queue."""
    document = _document(message.body)
    headers = message.headers
    message_id = message.message_id
    usable = (
        message_id is not None
        and 0 < len(message_id) <= _ID_MAX_CHARACTERS
        and not has_control_characters(message_id)
    )
    return DeadLetter(
        queue=queue,
        message_id=message_id if usable else None,
        digest=_digest(message),
        type=_text(document.get("type")),
        project=_text(document.get("project")),
        code=_text(headers.get(CODE_HEADER)) or _broker_reason(headers),
        detail=_text(headers.get(DETAIL_HEADER)),
        publisher=_text(headers.get(PUBLISHER_HEADER)),
        requested_at=_text(document.get("requested_at")),
        size_bytes=len(message.body),
    )


def _digest(message: AbstractIncomingMessage) -> str:
    hashed = hashlib.sha256(message.body)
    for name in (PUBLISHER_HEADER, SIGNATURE_HEADER, CODE_HEADER):
        hashed.update(b"\0" + str(message.headers.get(name, "")).encode(errors="replace"))
    return f"h-{hashed.hexdigest()[:_DIGEST_DIGITS]}"


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        return load_json(body)
    except MalformedRequestError:
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _broker_reason(headers: Mapping[str, Any]) -> str | None:
    """Why the broker itself moved a message here, such as `delivery_limit`."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return _text(deaths[0].get("reason"))
    return _text(headers.get("x-first-death-reason"))


def redacted_body(body: bytes) -> dict[str, Any]:
    """A request's fields; only the lengths of sealed and unknown ones."""
    try:
        document = load_json(body)
    except MalformedRequestError as exc:
        return {"unreadable": exc.detail, "bytes": len(body)}
    return {name: _redact(name, value) for name, value in document.items()}


def _redact(name: str, value: object) -> object:
    if name in _SAFE_FIELDS and not isinstance(value, dict | list):
        return value
    if name == "metadata" and isinstance(value, dict):
        return value
    if name in _SAFE_NESTED_FIELDS and isinstance(value, dict):
        safe = _SAFE_NESTED_FIELDS[name]
        return {part: v if part in safe else _elide(v) for part, v in value.items()}
    return _elide(value)


def _elide(value: object) -> str:
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    return f"<{len(json.dumps(value))} characters of JSON>"


def json_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as JSON values."""
    converted: dict[str, Any] = json.loads(json.dumps(dict(headers), default=str))
    return converted


@asynccontextmanager
async def exclusive(connection: AbstractConnection) -> AsyncIterator[None]:
    """Lock the dead letters against workers and other commands.

    While one reads the letters, the queues look empty to the others.

    Raises:
        CommandError: the lock was not free in time.
    """
    for _ in range(round(_LOCK_TIMEOUT_S / _LOCK_RETRY_S)):
        async with broker_lock(connection, DEAD_LOCK) as acquired:
            if acquired:
                yield
                return
        await asyncio.sleep(_LOCK_RETRY_S)
    raise CommandError("a worker or another command is reading the dead letters; try again later")


def check_body_kept(message: AbstractIncomingMessage) -> None:
    """Check that the letter still has its body.

    Raises:
        MalformedRequestError: the body was dropped (SPEC 6.9).
    """
    if BODY_DROPPED_HEADER in message.headers:
        code = _text(message.headers.get(CODE_HEADER))
        raise MalformedRequestError(f"cannot be replayed: with {code} the body is not kept")


class DeadLetterReader:
    """Reads dead letters on one channel, and returns the unprocessed ones to their queues."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self._read: dict[str, list[AbstractIncomingMessage]] = {}

    async def read(self, queue: str, limit: int) -> AsyncIterator[AbstractIncomingMessage]:
        """The letters of a dead-letter queue, oldest first, unacknowledged.

        At most as many as there are now: a letter that is replayed and dies again is not read
        twice.

        Raises:
            CommandError: the queue does not exist.
        """
        try:
            declared = await self.channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity as exc:
            raise CommandError(f"{queue} does not exist on the broker; start a worker") from exc
        count = declared.declaration_result.message_count or 0
        if not count:
            return
        # It imports FastStream, which takes a second.
        from keyturn_workers.amqp.dead_letters import receive_batch  # noqa: PLC0415

        # All of them before any is processed: for each acknowledged one the consumer would get
        # another.
        letters = [
            message async for message in receive_batch(self.channel, declared, min(limit, count))
        ]
        self._read.setdefault(queue, []).extend(letters)
        for message in letters:
            yield message

    async def requeue_all(self) -> None:
        """Return the unprocessed letters, and wait until the queues show them.

        The broker requeues letters only after it has replied, even to the close of the
        channel: the next command could find the queue empty. The wait is bounded, because
        another consumer may take the letters meanwhile.
        """
        unprocessed = {
            name: [message for message in messages if not message.processed]
            for name, messages in self._read.items()
        }
        last = max(
            (message for messages in unprocessed.values() for message in messages),
            key=lambda message: message.delivery_tag or 0,
            default=None,
        )
        if last is None:
            return
        await last.nack(multiple=True, requeue=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_REQUEUE_TIMEOUT_S):
                for name, messages in unprocessed.items():
                    await self._wait_until_queued(name, len(messages))

    async def _wait_until_queued(self, name: str, count: int) -> None:
        while True:
            declared = await self.channel.declare_queue(name, passive=True)
            if (declared.declaration_result.message_count or 0) >= count:
                return
            await asyncio.sleep(_POLL_INTERVAL_S)
