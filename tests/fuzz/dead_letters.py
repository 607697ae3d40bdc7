"""The parts that a dead letter must keep: all that a replay needs, if a copy can carry them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyturn.topology import UNSIGNED_DEAD_QUEUE, WORKER_HEADERS, dead_letter_name
from keyturn_workers.process.message_copies import sent_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aio_pika import IncomingMessage

_PROPERTIES: Final = ("content_type", "message_id")
_LARGE: Final = 40_000
_DEEP: Final = 32


def check_copy(sent: IncomingMessage, copy: IncomingMessage) -> Iterator[str]:
    """What is not as it was sent (SPEC 12), in words."""
    kept = {name: value for name, value in copy.headers.items() if name not in WORKER_HEADERS}
    expected = sent_headers(sent.headers)
    changed = [name for name in kept if repr(kept[name]) != repr(expected.get(name))]
    lost = sorted(expected.keys() - kept.keys())
    for name in changed:
        yield f"header {name[:20]!r} was {expected.get(name)!r:.60}, is {kept[name]!r:.60}"
    if lost and not _is_oversized(sent.headers):
        yield f"headers lost {[name[:20] for name in lost[:5]]}"
    for name in _PROPERTIES:
        if (getattr(sent, name) or None) != (getattr(copy, name) or None):
            yield f"{name} is not as it was sent"


def dead_queue_of(queue: str, code: str) -> str:
    """Where a work queue's message is dead with this code."""
    return UNSIGNED_DEAD_QUEUE if code == "bad_signature" else dead_letter_name(queue)


def _is_oversized(headers: Mapping[str, Any]) -> bool:
    """Whether these are more, or deeper, than a copy can carry."""
    text = repr(headers)
    return len(text) > _LARGE or text.count("{") > _DEEP
