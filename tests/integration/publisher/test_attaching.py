"""A reader that attaches while the stream's first event is written misses nothing (SPEC 6.7)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from keyturn.publisher import Publisher
from keyturn.publisher.requests import new_id
from tests.integration.publisher.side import OWN_STREAM, WorkerSide, answer_elsewhere, stored

if TYPE_CHECKING:
    from keyturn.settings import PublisherSettings


async def test_an_event_published_while_a_quiet_stream_is_attached_to_is_found(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    """The broker puts a consumer behind an event that is written in that moment."""
    async with Publisher.open(settings) as publisher:
        for _ in range(30):
            await worker.delete(OWN_STREAM)
            await worker.declare()
            upload_id = new_id()
            since = datetime.now(UTC)
            event_sent = answer_elsewhere(stored(upload_id))
            events = publisher.progress(
                upload_id, since=since, project="acme", request_type="upload.requested"
            )
            async with asyncio.timeout(20), aclosing(events):
                _, event = await asyncio.gather(worker.publish(event_sent), anext(events))
            assert event == event_sent


async def test_a_clock_ahead_of_the_brokers_loses_no_later_event(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    event = stored(new_id())
    async with Publisher.open(settings) as publisher, aclosing(publisher.events(ahead)) as events:
        reading = asyncio.create_task(anext(events))
        async with asyncio.timeout(60):
            while not reading.done():  # until the reader has attached
                await worker.publish(event)
        assert await reading == event
