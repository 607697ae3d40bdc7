"""Signed events of things that did not happen, for a console that must show many (SPEC 6.7)."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn import topology
from keyturn.identifiers import format_time
from keyturn.messages import COUNT_FIELDS
from tools.harness.requests import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aio_pika.abc import AbstractChannel

    from tools.harness.deployment import Deployment

_AT_ONCE: Final = 1000
_TURNS_PER_S: Final = 10
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


def ended_sweeps(projects: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    """The ends of sweeps over the last hours, some with failures; projects take turns."""
    now = datetime.now(UTC)
    for number in range(count):
        failed = 3 if number % 17 == 0 else 0
        counts = dict.fromkeys(COUNT_FIELDS, 0)
        counts |= {"objects": 500 + number % 300, "failed": failed}
        counts["current"] = counts["objects"] - failed
        yield {
            "type": "sweep.completed",
            "sweep_id": new_id(),
            "project": projects[number % len(projects)],
            "at": format_time(now - timedelta(seconds=(count - number) * 5)),
            "publisher": "api",
            "request": _REQUEST,
            "clean": failed == 0,
            **counts,
        }


def stored_uploads(projects: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    """Uploads that were stored over the last hour, in waves; projects take turns."""
    now = datetime.now(UTC)
    for number in range(count):
        share = 1 - number / count
        ago_s = max(0.0, 3600 * share + 200 * math.sin(15 * share))
        project = projects[number % len(projects)]
        yield _stored(project, number, now - timedelta(seconds=ago_s))


async def keep_storing(
    channel: AbstractChannel, deployment: Deployment, projects: Sequence[str], per_s: int
) -> None:
    """Publish that uploads were stored just now, at this rate, until cancelled."""
    numbers = itertools.count()
    while True:
        part = [next(numbers) for _ in range(max(1, per_s // _TURNS_PER_S))]
        now = datetime.now(UTC)
        stored = (_stored(projects[number % len(projects)], number, now) for number in part)
        await asyncio.gather(publish(channel, deployment, stored), asyncio.sleep(1 / _TURNS_PER_S))


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
