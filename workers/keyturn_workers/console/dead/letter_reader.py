"""Reading dead letters into the index, and single ones whole (SPEC 6.9, 16.2).

While letters are read, their queues look empty to others, and the lock `keyturn.dead.lock` keeps
workers and commands away. So one queue is read at a time, and the lock is released between two.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors
from keyturn_workers.console.dead.index import LETTERS_MAX, QueueLetters
from keyturn_workers.console.dead.letters import Compactor, IndexedLetter, digest_text
from keyturn_workers.dead_letters.letters import digest_of, json_headers, redacted_body
from keyturn_workers.dead_letters.queue import browse, exclusive

_SHOWN_MAX_CHARACTERS: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class LetterDetails:
    """A whole letter, without what may be secret.

    Attributes:
        letter: What the index says of it.
        copies: How many identical letters there are.
        properties: The other properties that a sender can set.
        headers: As JSON, cut where it is very long.
        body: The same; of sealed and unknown fields only their lengths.
    """

    letter: IndexedLetter
    copies: int
    properties: tuple[tuple[str, str], ...]
    headers: str
    body: str
    as_of: datetime


@asynccontextmanager
async def locked_channel(broker: Broker, timeout_s: float) -> AsyncIterator[AbstractChannel]:
    """A channel of a connection that holds the lock.

    Raises:
        LockedError: another process reads the letters, and did not end in time.
        AMQPException, OSError: the broker is away.
    """
    with normalize_connection_errors():
        async with (
            await connect_to_broker(broker) as connection,
            exclusive(connection, timeout_s),
        ):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            async with channel:
                yield channel


async def read_queue(broker: Broker, queue: str, lock_timeout_s: float) -> QueueLetters:
    """All letters of a queue, each compacted on arrival.

    Raises:
        DeadLetterError: the lock was not free, or the queue does not exist.
        AMQPException, OSError: the broker is away.
    """
    compactor = Compactor()
    letters: list[IndexedLetter] = []

    def keep(message: AbstractIncomingMessage) -> None:
        if len(letters) < LETTERS_MAX:
            letters.append(compactor.compact(message, queue))

    async with locked_channel(broker, lock_timeout_s) as channel:
        as_of = datetime.now(UTC)
        count = await _read_all(channel, queue, keep)
    return QueueLetters(queue, tuple(letters), count, as_of)


async def read_details(
    broker: Broker, queue: str, digests: frozenset[int], lock_timeout_s: float
) -> dict[int, LetterDetails]:
    """These letters of a queue; errors as `read_queue`. Those that are gone are missing."""
    compactor = Compactor()
    wanted = {digest_text(digest) for digest in digests}
    found: dict[int, LetterDetails] = {}

    def keep(message: AbstractIncomingMessage) -> None:
        if digest_of(message) in wanted:
            letter = compactor.compact(message, queue)
            copies = found[letter.digest].copies if letter.digest in found else 0
            found[letter.digest] = _details(message, letter, copies + 1)

    async with locked_channel(broker, lock_timeout_s) as channel:
        await _read_all(channel, queue, keep)
    return found


async def _read_all(
    channel: AbstractChannel, queue: str, keep: Callable[[AbstractIncomingMessage], None]
) -> int:
    browser = await browse(channel, queue)
    async for _ in browser.batches(keep):
        pass
    if browser.received:
        await browser.requeue(browser.received)
    return browser.received


def _details(message: AbstractIncomingMessage, letter: IndexedLetter, copies: int) -> LetterDetails:
    properties = {
        "message id": message.message_id,
        "content type": message.content_type,
        "content encoding": message.content_encoding,
        "correlation id": message.correlation_id,
        "reply to": message.reply_to,
        "type": message.type,
        "app id": message.app_id,
        "user id": message.user_id,
        "timestamp": message.timestamp,
        "expiration": message.expiration,
        "priority": message.priority or None,
    }
    return LetterDetails(
        letter=letter,
        copies=copies,
        properties=tuple((name, str(value)) for name, value in properties.items() if value),
        headers=_shown(json_headers(message.headers)),
        body=_shown(redacted_body(message.body)),
        as_of=datetime.now(UTC),
    )


def _shown(document: dict[str, Any]) -> str:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    cut = len(text) - _SHOWN_MAX_CHARACTERS
    return text if cut <= 0 else f"{text[:_SHOWN_MAX_CHARACTERS]}\n… {cut} more characters"
