"""Dead letters by the hundred thousand, and hostile ones (SPEC 6.9, 12).

Each is put into its queue as a worker would leave it: the request as sent, and a worker's headers.
The ordinary ones are signed requests, so that a replay is served.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn.identifiers import format_time
from keyturn.topology import (
    CODE_HEADER,
    CONTROL_QUEUE,
    DEAD_AT_HEADER,
    DETAIL_HEADER,
    SWEEP_QUEUE,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    dead_letter_name,
)
from tools.harness import hostile, requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aio_pika.abc import AbstractChannel

    from tools.harness.deployment import Deployment

UPLOADS: Final = dead_letter_name(UPLOAD_QUEUE)
CONTROL: Final = dead_letter_name(CONTROL_QUEUE)
SWEEPS: Final = dead_letter_name(SWEEP_QUEUE)

_AT_ONCE: Final = 1000
_PROJECTS: Final = 40
# By code: out of ten letters.
_CODES: Final = (
    ("unknown_project", "there is no keyring for this project"),
    ("unknown_project", "there is no keyring for this project"),
    ("unknown_project", "there is no keyring for this project"),
    ("bad_seal", "the sealed key does not open"),
    ("bad_seal", "the sealed key does not open"),
    ("request_expired", "requested 8 days ago"),
    ("request_expired", "requested 9 days ago"),
    ("not_permitted", "narrow may not upload to this project"),
    ("staged_body_missing", "there is no staged body"),
    ("unknown_intake_key", "no intake key is named old"),
)


@dataclass(frozen=True)
class Letter:
    """One dead letter, and the queue that it is in."""

    queue: str
    body: bytes
    headers: dict[str, Any]
    message_id: str | None = None


async def publish(channel: AbstractChannel, letters: Iterable[Letter]) -> int:
    """Put letters into their queues; returns how many.

    The channel has publisher confirms: each letter is on disk when this returns.
    """
    count, waiting = 0, []
    for letter in letters:
        message = aio_pika.Message(
            letter.body,
            headers=letter.headers,
            content_type="application/json",
            message_id=letter.message_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        waiting.append(channel.default_exchange.publish(message, letter.queue, timeout=60))
        count += 1
        if len(waiting) == _AT_ONCE:
            await asyncio.gather(*waiting)
            waiting = []
    await asyncio.gather(*waiting)
    return count


def refused_uploads(
    deployment: Deployment, count: int, *, project: str = "project", now: datetime | None = None
) -> Iterator[Letter]:
    """Uploads that were refused for ordinary reasons, over the last days.

    One sealed key and one body serve all: sealing would take most of the time.
    """
    now = now or datetime.now(UTC)
    made = requests.upload(deployment, "acme", "template", b"a body that was refused").document
    for number in range(count):
        code, detail = _CODES[number % len(_CODES)]
        age = timedelta(seconds=(count - number) * 86400 * 6 // max(count, 1))
        upload_id = requests.new_id()
        document = {
            **made,
            "upload_id": upload_id,
            "project": f"{project}-{number % _PROJECTS:02}",
            "key": f"incoming/{number:06}.json",
            "requested_at": format_time(now - age),
        }
        body = requests.encode(document)
        yield Letter(
            UPLOADS,
            body,
            {
                **requests.headers(body, deployment.publisher_key),
                CODE_HEADER: code,
                DETAIL_HEADER: detail,
                DEAD_AT_HEADER: format_time(now - age + timedelta(seconds=1)),
            },
            upload_id,
        )


def hostile_letters(deployment: Deployment) -> Iterator[Letter]:
    """Letters that anyone with write access to the broker, or a publisher, could leave."""
    for text in hostile.TEXTS:
        yield Letter(UPLOADS, text.encode(), _everywhere(text), text[:60])
        yield Letter(UNSIGNED_DEAD_QUEUE, _document(text), _everywhere(text), requests.new_id())
    for object_key in hostile.OBJECT_KEYS:
        made = requests.upload(deployment, "acme", object_key, b"content")
        made.document["metadata"] = {"author": hostile.SCRIPT, "note": hostile.BIDI}
        made.document["content_type"] = f"text/html; {hostile.IMAGE}"
        body = requests.encode(made.document)
        yield Letter(
            UPLOADS,
            body,
            {
                **requests.headers(body, deployment.publisher_key),
                CODE_HEADER: "unknown_algorithm",
                DETAIL_HEADER: f"enc-algo is {hostile.SCRIPT}{hostile.CONTROLS}",
                DEAD_AT_HEADER: requests.now(),
            },
            made.upload_id,
        )
    yield Letter(SWEEPS, b"\xff\xfe\x00 not text at all", {}, None)
    yield Letter(CONTROL, b"[" * 5000, {"nested": {"a": [{"b": hostile.SCRIPT}]}}, None)


def _everywhere(text: str) -> dict[str, Any]:
    """Headers with the text wherever one may be."""
    return {
        CODE_HEADER: text[:200],
        DETAIL_HEADER: text,
        DEAD_AT_HEADER: text[:60],
        "keyturn-publisher": text[:60],
        "x-other": text,
        "x-nested": {"list": [text, {"deep": text}]},
    }


def _document(text: str) -> bytes:
    """A request of a known type whose every field is the text."""
    return json.dumps(
        {
            "type": "upload.requested",
            "upload_id": text,
            "project": text,
            "key": text,
            "requested_at": text,
            "content_type": text,
            "metadata": {text: text, "author": text},
            "sealed_key": {"intake_key": text, "ciphertext": text},
            text: text,
        }
    ).encode()
