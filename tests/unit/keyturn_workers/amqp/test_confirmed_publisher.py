"""Messages leave at once on one channel, and each is confirmed for itself (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec

import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands

from keyturn_workers.amqp.publisher import ConfirmedPublisher
from tests.unit.keyturn_workers.amqp.connections import FakeConnection

if TYPE_CHECKING:
    from collections.abc import Coroutine


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def publisher(connection: FakeConnection) -> ConfirmedPublisher:
    return ConfirmedPublisher(connection.broker, "exchange", timeout_s=3)


def _publish(publisher: ConfirmedPublisher, body: bytes = b"{}") -> Coroutine[Any, Any, None]:
    return publisher.publish("upload.stored", body, commands.Basic.Properties())


async def test_a_message_is_mandatory_and_has_a_time_in_which_to_be_confirmed(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher, b"body")
    ((body,), options) = connection.underlay.basic_publish.await_args
    assert (body, options["exchange"], options["routing_key"]) == (
        b"body",
        "exchange",
        "upload.stored",
    )
    assert (options["mandatory"], options["timeout"], options["wait"]) == (True, 3, False)


async def test_what_no_queue_must_take_is_not_returned(connection: FakeConnection) -> None:
    publisher = ConfirmedPublisher(connection.broker, "exchange", timeout_s=3, is_mandatory=False)
    await _publish(publisher)
    assert connection.underlay.basic_publish.await_args.kwargs["mandatory"] is False


async def test_many_at_once_share_one_channel(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await asyncio.gather(*(_publish(publisher) for _ in range(20)))
    await _publish(publisher)
    assert connection.opened == 1
    assert connection.underlay.basic_publish.await_count == 21


async def test_none_waits_for_the_confirmation_of_another(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    confirmed = asyncio.Event()

    async def confirm(body: bytes, **_: Any) -> None:
        if body == b"first":
            await confirmed.wait()

    connection.underlay.basic_publish.side_effect = confirm
    first = asyncio.create_task(_publish(publisher, b"first"))
    await _publish(publisher, b"second")
    assert not first.done()
    confirmed.set()
    await first


async def test_on_a_lost_connection_publishing_fails_at_once(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher)
    connection.lose()
    with pytest.raises(ChannelInvalidStateError):
        await _publish(publisher)
    assert connection.opened == 1


async def test_on_a_channel_that_was_opened_again_messages_are_published(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher)
    connection.lose()
    await connection.reopen()
    await _publish(publisher)
    assert connection.opened == 1
    assert connection.underlay.basic_publish.await_count == 1


async def test_a_channel_that_stays_lost_is_refused(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    """Events would end with the first lost connection."""
    connection.robust = create_autospec(AbstractChannel, instance=True)
    with pytest.raises(TypeError):
        await _publish(publisher)


async def test_a_failure_to_open_is_tried_again_by_the_next_message(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    open_channel = connection.channel

    async def refuse(**_: object) -> Any:
        connection.channel = open_channel  # type: ignore[method-assign]  # once
        raise ChannelInvalidStateError

    connection.channel = refuse  # type: ignore[method-assign]
    with pytest.raises(ChannelInvalidStateError):
        await _publish(publisher)
    await _publish(publisher)
    assert connection.underlay.basic_publish.await_count == 1
