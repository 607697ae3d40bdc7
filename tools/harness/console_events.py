"""Signed events of things that did not happen, for a console that must show many (SPEC 6.7)."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn import topology
from keyturn.identifiers import format_time
from tools.harness.requests import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aio_pika.abc import AbstractChannel

    from tools.harness.deployment import Deployment

_AT_ONCE: Final = 1000
_REQUEST: Final = "0" * 64


async def publish(
    channel: AbstractChannel, deployment: Deployment, documents: Iterable[dict[str, Any]]
) -> int:
    """Sign events with the deployment's event key and publish them; returns how many."""
    exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
    key, count, waiting = deployment.event_key, 0, []
    for document in documents:
        body = json.dumps(document).encode()
        headers: dict[str, Any] = {
            topology.SIGNATURE_HEADER: key.sign_event(deployment.name, body),
            topology.EVENT_KEY_HEADER: key.id,
            topology.PUBLISHER_HEADER: document["publisher"],
        }
        message = aio_pika.Message(
            body,
            headers=headers,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        waiting.append(exchange.publish(message, document["type"], timeout=60))
        count += 1
        if len(waiting) == _AT_ONCE:
            await asyncio.gather(*waiting)
            waiting = []
    await asyncio.gather(*waiting)
    return count


def stored_uploads(projects: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    """Uploads that were stored over the last hour, in waves; projects take turns."""
    now = datetime.now(UTC)
    for number in range(count):
        share = 1 - number / count
        ago_s = max(0.0, 3600 * share + 200 * math.sin(15 * share))
        project = projects[number % len(projects)]
        yield _stored(project, number, now - timedelta(seconds=ago_s))


def _stored(project: str, number: int, at: datetime) -> dict[str, Any]:
    return {
        "type": "upload.stored",
        "upload_id": new_id(),
        "project": project,
        "key": f"incoming/{number:06}",
        "size": 4096,
        "generation": 1,
        "at": format_time(at),
        "publisher": "api",
        "request": _REQUEST,
    }
