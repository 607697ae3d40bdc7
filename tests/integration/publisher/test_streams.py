"""Which stream a publisher reads, as whom, from where, on a real broker (SPEC 6.7, 6.8, 6.10)."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.messages import COUNT_FIELDS, RotationCompleted
from keyturn.publisher import EventsUnavailableError, Publisher
from keyturn.publisher.requests import new_id
from tests.integration.publisher.side import (
    EVENTS,
    OWN_STREAM,
    WorkerSide,
    answer,
    answer_elsewhere,
    settings_for,
    stored,
)

if TYPE_CHECKING:
    from keyturn.settings import PublisherSettings
    from tools.servers import Servers

_AT = "2026-11-24T10:00:00Z"
_ROTATION: Any = {"project": "acme", "request_type": "rotation.requested"}
_COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}


async def test_a_publisher_without_a_stream_of_its_own_learns_why(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    await worker.delete(OWN_STREAM)
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        with pytest.raises(EventsUnavailableError, match="do not know this publisher"):
            await publisher.wait(upload_id, timeout_s=20)


def _user(broker: Servers, url: str, read: str) -> str:
    """The address of a new user of this vhost, who may read what matches."""
    if broker.rabbitmq is None:
        pytest.skip("users are made on a private broker alone")
    name, password = f"u{secrets.token_hex(4)}", secrets.token_hex(8)
    vhost = URL(url).path.removeprefix("/")
    broker.rabbitmq.control("add_user", name, password)
    broker.rabbitmq.control("set_permissions", "-p", vhost, name, "^$", "^keyturn$", read)
    return str(URL(url).with_user(name).with_password(password))


async def test_a_user_that_may_read_its_own_stream_alone_needs_no_more(
    broker: Servers, vhost_url: str, worker: WorkerSide
) -> None:
    restricted = settings_for(_user(broker, vhost_url, r"^keyturn\.events\.billing$"))
    since, rotation_id = datetime.now(UTC), new_id()
    async with Publisher.open(restricted) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        published = answer(publisher, stored(upload_id))
        await worker.publish(published)
        assert await publisher.wait(upload_id, timeout_s=20) == published
        named: dict[str, Any] = {"publisher": "billing", "request": "0" * 64}
        end = RotationCompleted(rotation_id=rotation_id, project="acme", at=_AT, **_COUNTS, **named)
        await worker.publish(end)
        assert await publisher.wait(rotation_id, timeout_s=20, since=since, **_ROTATION) == end
        with pytest.raises(EventsUnavailableError) as refused:
            await anext(publisher.events())
    assert "may not read keyturn.events: it needs read permission ^keyturn\\.events$" in str(
        refused.value
    )


async def test_the_error_of_a_user_that_may_not_read_its_stream_says_what_it_needs(
    broker: Servers, vhost_url: str, worker: WorkerSide
) -> None:
    async with Publisher.open(
        settings_for(_user(broker, vhost_url, r"^keyturn\.events$"))
    ) as publisher:
        upload_id = await publisher.upload("acme", "a", b"x")
        with pytest.raises(EventsUnavailableError) as refused:
            await publisher.wait(upload_id, timeout_s=20)
    assert await worker.count() == 1
    assert "may not read keyturn.events.billing: it needs read permission" in str(refused.value)
    assert "^keyturn\\.events\\.billing$" in str(refused.value)


async def test_events_of_the_old_and_of_the_new_key_are_believed(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    new = SigningKey.from_seed(b"n" * 32)
    keys = tuple(VerifyKey.from_bytes(key.public_bytes) for key in (new, EVENTS))
    both = settings.model_copy(update={"event_public_key": keys})
    for signer in (EVENTS, new):
        async with Publisher.open(both) as publisher:
            upload_id = await publisher.upload("acme", signer.id, b"x")
            await worker.publish(answer(publisher, stored(upload_id)), key=signer)
            await publisher.wait(upload_id, timeout_s=20)
            assert publisher.unverified_events == 0


# A reader that attaches while the stream's first event is written misses nothing.


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
