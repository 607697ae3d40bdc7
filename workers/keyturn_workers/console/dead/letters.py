"""What the console keeps of a dead letter in memory: a few hundred bytes, no body (SPEC 12). Pure.

Everything here is the letter's own claim, and cut short: anyone with write access to the broker
can put a letter with headers of any length into a queue.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import MalformedRequestError, RequestExpiredError
from keyturn.identifiers import parse_time
from keyturn_workers.dead_letters.letters import (
    DeadLetter,
    check_body_kept,
    dead_at,
    describe,
    work_queue,
)

Obstacle = Literal["", "body", "type", "expired"]
"""Why a letter cannot be replayed from the console; empty if it can."""

OBSTACLES: Final[dict[Obstacle, str]] = {
    "": "It can be replayed.",
    "body": "Its body was not kept: with this code, only what identifies the request is.",
    "type": "It names no type of request, so there is no queue to replay it to.",
    "expired": "It is past its age, and would be refused again. Its request must be signed anew: "
    "the publisher sends it again, or an operator runs `keyturn dead replay --resign`.",
}
_WORD_MAX_CHARACTERS: Final = 64
_DETAIL_MAX_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class IndexedLetter:
    """A dead letter by its own claim; what it does not name is empty.

    Attributes:
        digest: What tells it apart from all others; identical copies share it.
        requested_at: In seconds since 1970.
        dead_at: The same.
        work_queue: Where a replay sends it.
    """

    queue: str
    digest: int
    message_id: str
    type: str
    project: str
    code: str
    detail: str
    publisher: str
    requested_at: float | None
    dead_at: float | None
    size_bytes: int
    work_queue: str
    obstacle: Obstacle

    @property
    def digest_text(self) -> str:
        """The digest as commands and addresses name it."""
        return digest_text(self.digest)

    @property
    def since(self) -> float:
        """When it became a dead letter; of one that does not say, when it was requested."""
        return self.dead_at or self.requested_at or 0.0

    @property
    def since_at(self) -> datetime | None:
        """The same as an instant."""
        return instant(self.since or None)

    @property
    def dead_instant(self) -> datetime | None:
        """When it became a dead letter."""
        return instant(self.dead_at)

    @property
    def requested_instant(self) -> datetime | None:
        """When it was requested."""
        return instant(self.requested_at)


def digest_text(digest: int) -> str:
    """The digest as commands and addresses name it."""
    return f"h-{digest:016x}"


def digest_number(text: str) -> int:
    """A digest as it is kept.

    Raises:
        ValueError: not a digest.
    """
    number = int(text.removeprefix("h-"), 16)
    if digest_text(number) != text:
        raise ValueError("not a digest")
    return number


class Compactor:
    """Makes indexed letters; equal texts of several letters are held once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def compact(self, message: AbstractIncomingMessage, queue: str) -> IndexedLetter:
        """What is kept of a delivery of this dead-letter queue."""
        letter = describe(message, queue)
        to, obstacle = _replay(message, letter, queue)
        return IndexedLetter(
            queue=queue,
            digest=digest_number(letter.digest),
            message_id=letter.message_id or "",
            type=self._text(letter.type),
            project=self._text(letter.project),
            code=self._text(letter.code),
            detail=self._text(letter.detail, _DETAIL_MAX_CHARACTERS),
            publisher=self._text(letter.publisher),
            requested_at=_seconds(letter.requested_at),
            dead_at=_timestamp(dead_at(message.headers)),
            size_bytes=letter.size_bytes,
            work_queue=self._text(to),
            obstacle=obstacle,
        )

    def _text(self, text: str | None, limit: int = _WORD_MAX_CHARACTERS) -> str:
        cut = (text or "")[:limit]
        return self._texts.setdefault(cut, cut)


def _replay(
    message: AbstractIncomingMessage, letter: DeadLetter, queue: str
) -> tuple[str, Obstacle]:
    try:
        to = work_queue(message.body, queue)
    except MalformedRequestError:
        return "", "type"
    try:
        check_body_kept(message)
    except MalformedRequestError:
        return to, "body"
    return to, "expired" if letter.code == RequestExpiredError.code else ""


def instant(seconds: float | None) -> datetime | None:
    """An instant that is kept as seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(text: str | None) -> float | None:
    try:
        return _timestamp(parse_time(text or ""))
    except ValueError:
        return None


def _timestamp(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
