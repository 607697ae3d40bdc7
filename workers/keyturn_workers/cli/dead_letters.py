"""Dead letters: reading them without taking them, and describing them safely (SPEC 12).

Looking is taking without acknowledgement, by one consumer a queue; what was not acted on goes
back in its order (dead-letter queues have no delivery limit, see `keyturn.topology`).
Nothing in a letter is anybody's word: its id, its headers and its code can be made up by
whoever may write to the broker.
It must never show a sealed body, nor a value of a field that may hold anything.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
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
from keyturn_workers.amqp.locks import locked
from keyturn_workers.cli.errors import CommandError

_DIGEST_DIGITS: Final = 16
_ID_MAX_CHARACTERS: Final = 64
_GIVE_BACK_TIMEOUT_S: Final = 5
_LOOK_AGAIN_S: Final = 0.02
_LOCK_TIMEOUT_S: Final = 120
_LOCKED_FOR_S: Final = 0.1
# Fields that hold no secret in a well-formed request; all others are shown by their length.
_SHOWN_FIELDS: Final = frozenset(
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
_SHOWN_INSIDE: Final = {
    "sealed_key": ("intake_key",),
    "sealed_kek": ("intake_key",),
    "sealed_v0_kek": ("intake_key",),
    "body": ("staged", "sha256", "bytes"),
}


@dataclass(frozen=True, slots=True)
class Letter:
    """What can be said of one dead letter."""

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
        """How commands name it: its message id, or its digest where that is none."""
        return self.message_id or self.digest

    def age(self, now: datetime) -> str | None:
        """How long ago it was requested, roughly, as it says itself."""
        try:
            seconds = int((now - parse_time(self.requested_at or "")).total_seconds())
        except ValueError:
            return None
        for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if abs(seconds) >= length:
                return f"{seconds // length} {unit}"
        return f"{seconds} s"


def dead_queue(name: str) -> str:
    """The dead-letter queue that a queue's name means, with or without `.dead`.

    Raises:
        CommandError: none of ours.
    """
    dead = f"{name.removesuffix('.dead')}.dead"
    if dead not in DEAD_QUEUES:
        raise CommandError(f"{name} is none of {', '.join(DEAD_QUEUES)}")
    return dead


def work_queue(message: AbstractIncomingMessage, dead: str) -> str:
    """The work queue that a letter of this dead-letter queue is replayed to.

    Of what nobody signed, the one that its type belongs to.

    Raises:
        MalformedRequestError: it was unsigned, and has no type of a request.
    """
    if dead != UNSIGNED_DEAD_QUEUE:
        return dead.removesuffix(".dead")
    claimed = claimed_type(message.body)
    if claimed not in REQUESTS:
        raise MalformedRequestError("has no type of a request, so no queue to replay it to")
    return UPLOAD_QUEUE if claimed in UPLOAD_REQUESTS else CONTROL_QUEUE


def letter_of(message: AbstractIncomingMessage, queue: str) -> Letter:
    """Describe a delivery of this dead-letter queue."""
    document = _document(message.body)
    headers = message.headers
    named = message.message_id
    usable = (
        named is not None
        and 0 < len(named) <= _ID_MAX_CHARACTERS
        and not has_control_characters(named)
    )
    return Letter(
        queue=queue,
        message_id=named if usable else None,
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


def shown_body(body: bytes) -> dict[str, Any]:
    """A request's fields, the sealed and the unknown ones by their length alone."""
    try:
        document = load_json(body)
    except MalformedRequestError as exc:
        return {"unreadable": exc.detail, "bytes": len(body)}
    return {name: _shown(name, value) for name, value in document.items()}


def _shown(name: str, value: object) -> object:
    if name in _SHOWN_FIELDS and not isinstance(value, dict | list):
        return value
    if name == "metadata" and isinstance(value, dict):
        return value
    if name in _SHOWN_INSIDE and isinstance(value, dict):
        inside = _SHOWN_INSIDE[name]
        return {part: v if part in inside else _elided(v) for part, v in value.items()}
    return _elided(value)


def _elided(value: object) -> str:
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    return f"<{len(json.dumps(value))} characters of JSON>"


def shown_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as JSON can hold them."""
    shown: dict[str, Any] = json.loads(json.dumps(dict(headers), default=str))
    return shown


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


@asynccontextmanager
async def connected(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    """A connection for as long as one command lasts."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        yield connection


@asynccontextmanager
async def undisturbed(connection: aio_pika.abc.AbstractConnection) -> AsyncIterator[None]:
    """Keep the workers, and other commands, from the letters meanwhile.

    While one reads them the others would find them taken, and say that there is none.

    Raises:
        CommandError: they were not free in time.
    """
    for _ in range(round(_LOCK_TIMEOUT_S / _LOCKED_FOR_S)):
        async with locked(connection, DEAD_LOCK) as is_mine:
            if is_mine:
                yield
                return
        await asyncio.sleep(_LOCKED_FOR_S)
    raise CommandError("a worker or another command is reading the dead letters; try again")


def check_body_kept(message: AbstractIncomingMessage) -> None:
    """Return where the letter is whole.

    Raises:
        MalformedRequestError: its body was not kept (SPEC 6.9).
    """
    if BODY_DROPPED_HEADER in message.headers:
        code = _text(message.headers.get(CODE_HEADER))
        raise MalformedRequestError(f"cannot be replayed: of {code} the body is not kept")


class Look:
    """One look at dead letters, on one channel."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self._taken: dict[str, list[AbstractIncomingMessage]] = {}

    async def deliveries(self, queue: str, limit: int) -> AsyncIterator[AbstractIncomingMessage]:
        """The letters of a dead-letter queue, oldest first, unacknowledged.

        At most as many as stand there now: one that is replayed and dies again is not met twice.

        Raises:
            CommandError: the queue does not stand.
        """
        try:
            declared = await self.channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity as exc:
            raise CommandError(f"{queue} does not exist on the broker; start a worker") from exc
        standing = declared.declaration_result.message_count or 0
        taken = self._taken.setdefault(queue, [])
        if not standing:
            return
        # It brings the workers' side of the broker with it, a second of imports.
        from keyturn_workers.amqp.dead_letters import taken as taken_of  # noqa: PLC0415

        # All of them before any is acted on: for each that is acknowledged the consumer would be
        # given one more.
        found = [
            message async for message in taken_of(self.channel, declared, min(limit, standing))
        ]
        taken += found
        for message in found:
            yield message

    async def give_back(self) -> None:
        """Hand back what was not acted on, and wait until the next look can see it.

        The broker takes letters back after it has answered, even to the channel's close: a
        command that came next at once would find the queue empty. The wait is bounded,
        because somebody else may take them meanwhile.
        """
        kept = {
            name: [message for message in messages if not message.processed]
            for name, messages in self._taken.items()
        }
        last = max(
            (message for messages in kept.values() for message in messages),
            key=lambda message: message.delivery_tag or 0,
            default=None,
        )
        if last is None:
            return
        await last.nack(multiple=True, requeue=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_TIMEOUT_S):
                for name, messages in kept.items():
                    await self._seen(name, len(messages))

    async def _seen(self, name: str, count: int) -> None:
        while True:
            declared = await self.channel.declare_queue(name, passive=True)
            if (declared.declaration_result.message_count or 0) >= count:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
