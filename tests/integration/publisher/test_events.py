"""Waiting for events on a real stream: found, verified, and across losses (SPEC 6.7)."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from keyturn.crypto import SigningKey
from keyturn.messages import SweepRequested, UploadRejected, UploadStored, encode
from keyturn.publisher import (
    EventsUnavailableError,
    NotSentHereError,
    Publisher,
    WaitTimeoutError,
)
from keyturn.publisher.requests import build, now
from tests.integration.publisher.side import (
    EVENTS,
    OWN_STREAM,
    Network,
    WorkerSide,
    answer,
    answer_elsewhere,
    settings_for,
    stored,
    worker_side,
)

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn.settings import PublisherSettings
    from tools.servers import RabbitMQ

AT = "2026-11-24T10:00:00Z"
_UPLOAD: Any = {"project": "acme", "request_type": "upload.requested"}


def _rejected(upload_id: str) -> UploadRejected:
    return UploadRejected(upload_id=upload_id, project="acme", code="bad_seal", detail="", at=AT)


async def test_event_published_before_anyone_waited_is_found(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        await worker.publish(answer(publisher, stored(upload_id)))
        event = await publisher.wait(upload_id, timeout_s=20)
        assert isinstance(event, UploadStored)
        assert await publisher.wait(upload_id, timeout_s=20) == event


async def test_event_published_while_many_wait_reaches_its_own(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        ids = [await publisher.upload("acme", f"k{n}", b"x") for n in range(300)]
        waits = [asyncio.create_task(publisher.wait(i, timeout_s=30)) for i in ids]
        for n, upload_id in reversed(list(enumerate(ids))):
            published = stored(upload_id, key=f"k{n}") if n % 3 else _rejected(upload_id)
            await worker.publish(answer(publisher, published))
        events = await asyncio.gather(*waits)
    for n, (upload_id, event) in enumerate(zip(ids, events, strict=True)):
        assert event.upload_id == upload_id  # type: ignore[union-attr]
        assert isinstance(event, UploadStored if n % 3 else UploadRejected)


async def test_forged_events_are_never_believed(
    settings: PublisherSettings, worker: WorkerSide, caplog: pytest.LogCaptureFixture
) -> None:
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        lie = answer(publisher, stored(upload_id, size=666))
        body = encode(lie)
        await worker.publish(lie, key=SigningKey.from_seed(b"f" * 32))
        await worker.publish(lie, deployment="elsewhere")
        await worker.publish_raw("upload.stored", body, None)
        await worker.publish_raw("upload.stored", body, "no base64")
        good = EVENTS.sign_event("test", body)
        await worker.publish_raw("upload.stored", body.replace(b"666", b"667"), good)
        await worker.publish_raw("upload.stored", b"no json", EVENTS.sign_event("test", b"no json"))
        truth = answer(publisher, stored(upload_id, size=1))
        await worker.publish(truth)
        assert await publisher.wait(upload_id, timeout_s=20) == truth
        assert publisher.unverified_events == 5
    assert "offset 0" in caplog.text
    assert "666" not in caplog.text


async def test_wait_ends_in_time(settings: PublisherSettings, worker: WorkerSide) -> None:
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        with pytest.raises(WaitTimeoutError, match=upload_id):
            await publisher.wait(upload_id, timeout_s=0.3)
        with pytest.raises(TimeoutError):
            await publisher.wait(str(uuid.uuid4()), timeout_s=0.3, **_UPLOAD)
        await worker.publish(answer(publisher, stored(upload_id)))
        await publisher.wait(upload_id, timeout_s=20)


async def test_wait_without_a_stream_says_so(settings: PublisherSettings) -> None:
    none = r"has declared keyturn\.events\.billing: none has started yet"
    request = build(SweepRequested, requested_at=now(), sweep_id=str(uuid.uuid4()), project="acme")
    async with Publisher.open(settings) as publisher:
        with pytest.raises(EventsUnavailableError, match=none):
            await publisher.wait(str(uuid.uuid4()), timeout_s=20, **_UPLOAD)
        with publisher._waiter.sending(request, b"{}"):
            pass
        with pytest.raises(EventsUnavailableError, match=none):
            await publisher.wait(request.sweep_id, timeout_s=20)


async def test_another_process_waits_from_a_moment_on(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    since = datetime.now(UTC)
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
    published = answer(publisher, stored(upload_id))
    await worker.publish(answer_elsewhere(_rejected(upload_id), publisher="mallory"))
    await worker.publish(published)
    async with Publisher.open(settings) as other:
        assert await other.wait(upload_id, since=since, timeout_s=20, **_UPLOAD) == published
        with pytest.raises(NotSentHereError, match="name its project and request_type"):
            await other.wait(upload_id, since=since, timeout_s=20)


async def test_reader_that_restarts_passes_over_the_answer_to_an_earlier_attempt(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        await worker.publish(answer(publisher, _rejected(upload_id)))
        await publisher.wait(upload_id, timeout_s=20)
        reader = publisher._waiter._reader
        assert reader is not None
        reader.cancel()
        await asyncio.wait({reader})
        await publisher.upload("acme", "a", b"x", upload_id=upload_id)
        await worker.publish(answer(publisher, stored(upload_id)))
        assert isinstance(await publisher.wait(upload_id, timeout_s=20), UploadStored)


async def test_forgotten_request_is_still_found(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    """Memory is bounded: beyond the limit the oldest is waited for like another's."""
    async with Publisher.open(settings) as publisher:
        publisher._waiter._max_tracked = 2
        ids = [await publisher.upload("acme", f"k{n}", b"x") for n in range(4)]
        assert len(publisher._waiter._sent) == 2
        for upload_id in ids[:2]:
            await worker.publish(answer_elsewhere(stored(upload_id)))
        for upload_id in ids[2:]:
            await worker.publish(answer(publisher, stored(upload_id)))
        waits = (publisher.wait(i, timeout_s=20, **_UPLOAD) for i in ids)
        events = await asyncio.gather(*waits)
        assert [event.upload_id for event in events] == ids  # type: ignore[union-attr]


async def test_events_gives_all_that_is_signed_in_order(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    published: list[Event] = [stored(str(uuid.uuid4()), key=f"k{n}") for n in range(700)]
    async with Publisher.open(settings) as publisher:
        for event in published[:350]:
            await worker.publish(event)
        await worker.publish(published[0], key=SigningKey.from_seed(b"f" * 32))
        unknown = b'{"type": "sweep.progressed"}'
        await worker.publish_raw("sweep.progressed", unknown, EVENTS.sign_event("test", unknown))
        reading = asyncio.create_task(_read(publisher, 700))
        for event in published[350:]:
            await worker.publish(event)
        assert await reading == published
        since = datetime.now(UTC) - timedelta(minutes=1)
        assert (await _read(publisher, 700, since))[-1] == published[-1]
        assert publisher.unverified_events == 2


async def _read(publisher: Publisher, count: int, since: datetime | None = None) -> list[Event]:
    events: list[Event] = []
    async with aclosing(publisher.events(since)) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_events_come_once_each_across_a_lost_connection(
    network: tuple[Network, PublisherSettings], worker: WorkerSide
) -> None:
    relay, settings = network
    published: list[Event] = [stored(str(uuid.uuid4()), key=f"k{n}") for n in range(300)]
    seen: list[Event] = []
    async with Publisher.open(settings) as publisher, aclosing(publisher.events()) as stream:
        for event in published[:200]:
            await worker.publish(event)
        async for event in stream:
            seen.append(event)
            if len(seen) in (100, 200):
                relay.cut()
            if len(seen) == 200:
                for later in published[200:]:
                    await worker.publish(later)
            if len(seen) == 300:
                break
    assert seen == published


async def test_deleted_stream_comes_back_when_a_worker_declares_it(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    """The broker cancels the consumer then, which is no error on any channel."""
    async with Publisher.open(settings) as publisher:
        first = await publisher.upload("acme", "a", b"x")
        second = await publisher.upload("acme", "b", b"x")
        await worker.publish(answer(publisher, stored(first)))
        await publisher.wait(first, timeout_s=20)
        await worker.delete(OWN_STREAM)
        waiting = asyncio.create_task(publisher.wait(second, timeout_s=30))
        await worker.declare()
        await worker.publish(answer(publisher, stored(second)))
        assert isinstance(await waiting, UploadStored)


async def _stream_is_back(url: str) -> None:
    """A broker that accepts connections again may still be bringing its streams back."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with worker_side(url):
                    return
            except ChannelNotFoundEntity:
                await asyncio.sleep(0.2)


async def test_publisher_outlives_a_restart_of_the_broker(own_rabbitmq: RabbitMQ) -> None:
    url = own_rabbitmq.url
    async with Publisher.open(settings_for(url)) as publisher:
        async with worker_side(url) as worker:
            early = await publisher.upload("acme", "early", b"x")
            late = await publisher.upload("acme", "late", b"x")
            await worker.publish(answer(publisher, stored(early)))
            assert isinstance(await publisher.wait(early, timeout_s=20), UploadStored)
        waiting = asyncio.create_task(publisher.wait(late, timeout_s=90))
        await asyncio.to_thread(own_rabbitmq.restart)
        after = await publisher.upload("acme", "after", b"x")
        await _stream_is_back(url)
        async with worker_side(url) as worker:
            await worker.publish(answer(publisher, stored(late)))
            await worker.publish(answer(publisher, stored(after)))
            assert isinstance(await waiting, UploadStored)
            assert isinstance(await publisher.wait(after, timeout_s=60), UploadStored)
            assert isinstance(await publisher.wait(early, timeout_s=60), UploadStored)
            assert await worker.count() == 3
