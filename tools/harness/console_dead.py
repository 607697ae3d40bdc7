"""Dead letters for the console's pages, made up: an index without a broker (SPEC 16.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead import DeadLetters
from keyturn_workers.console.dead.index import DeadIndex, QueueLetters
from keyturn_workers.console.dead.letters import IndexedLetter
from tools.harness import hostile

if TYPE_CHECKING:
    from datetime import datetime

    from keyturn_workers.console.model import Model

UPLOADS, CONTROL, UNSIGNED = "keyturn.upload.dead", "keyturn.control.dead", "keyturn.unsigned.dead"


def index_of(*letters: IndexedLetter, at: datetime) -> DeadIndex:
    """An index of these letters; all queues were read."""
    queues = []
    for name in DEAD_QUEUES:
        own = tuple(letter for letter in letters if letter.queue == name)
        queues.append(QueueLetters(name, own, len(own), at))
    return DeadIndex(queues)


def made_up_letters(now: datetime, count: int = 131) -> list[IndexedLetter]:
    """Ordinary letters, and one of each kind that cannot be replayed."""
    letters = [
        _letter(
            number,
            now,
            code="bad_seal" if number % 3 else "unknown_project",
            project=f"project-{number % 9}",
        )
        for number in range(count)
    ]
    return [
        *letters,
        _letter(count, now, code="request_expired", obstacle="expired"),
        _letter(count + 1, now, code="already_exists", obstacle="body"),
        _letter(count + 2, now, queue=UNSIGNED, code="bad_signature", obstacle="type", type=""),
        _letter(count + 3, now, queue=CONTROL, code="", detail=hostile.SCRIPT, message_id=""),
        _letter(count + 4, now, code=hostile.SCRIPT[:64], project=hostile.BIDI[:64]),
    ]


def _letter(number: int, now: datetime, **changes: Any) -> IndexedLetter:
    dead_at = now.timestamp() - 600.0 * number
    values: dict[str, Any] = {
        "queue": UPLOADS,
        "digest": 10**15 + number,
        "message_id": f"2f6c9a0e-0000-4000-8000-{number:012}",
        "type": "upload.requested",
        "project": "acme",
        "code": "bad_seal",
        "detail": "the sealed key does not open",
        "publisher": "api",
        "requested_at": dead_at - 5,
        "dead_at": dead_at,
        "size_bytes": 2400 + number,
        "work_queue": "keyturn.upload",
        "obstacle": "",
    }
    return IndexedLetter(**values | changes)


def made_up(model: Model, now: datetime) -> DeadLetters:
    """Dead letters of which none is read, moved or recorded."""
    dead = DeadLetters("amqp://console.test/", model, cast("Any", None))
    dead.index = index_of(*made_up_letters(now), at=now)
    return dead
