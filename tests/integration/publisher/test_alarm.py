"""A broker at its memory alarm: nothing more is sent, and no publish waits for long (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from keyturn.publisher import BrokerUnavailableError, OutcomeUnknownError, Publisher
from tests.integration.publisher.side import settings_for, verified, worker_side

if TYPE_CHECKING:
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_ALARM = "memory or disk alarm"


async def test_a_broker_at_its_alarm_is_reported_within_a_second(own_rabbitmq: RabbitMQ) -> None:
    """Nothing that it confirmed is lost, and what it had not confirmed arrives once it can."""
    settings = settings_for(own_rabbitmq.url)
    unconfirmed, took_s = str(uuid.uuid4()), list[float]()
    async with (
        worker_side(own_rabbitmq.url) as worker,
        Publisher.open(settings, alarm_timeout_s=0.5) as publisher,
        Publisher.open(settings, alarm_timeout_s=30) as patient,
    ):
        before = await publisher.upload("acme", "before", b"x")
        await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=True)

        async def failure(upload_id: str | None = None) -> Exception:
            began = time.monotonic()
            with pytest.raises((OutcomeUnknownError, BrokerUnavailableError), match=_ALARM) as got:
                await publisher.upload("acme", "during", b"x", upload_id=upload_id)
            took_s.append(time.monotonic() - began)
            return got.value

        # The broker says so in reply to the first publish.
        assert isinstance(await failure(unconfirmed), OutcomeUnknownError)
        # From then on, nothing is sent, and no publish waits for another one.
        failures = await asyncio.gather(*(failure() for _ in range(20)))
        assert {type(error) for error in failures} == {BrokerUnavailableError}
        assert min(took_s) < 1  # other work on the machine may delay some of them
        assert max(took_s) < 10
        waiting = asyncio.create_task(patient.upload("acme", "patient", b"x"))

        await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=False)
        async with asyncio.timeout(10):
            patiently = await waiting
            after = await _until_published(publisher)
        arrived = [verified(await worker.take()).upload_id for _ in range(4)]
        assert sorted(arrived) == sorted([before, unconfirmed, patiently, after])
        assert await worker.count() == 0


async def _until_published(publisher: Publisher) -> str:
    """The end of the alarm reaches each connection in its own time."""
    while True:
        try:
            return await publisher.upload("acme", "after", b"x")
        except BrokerUnavailableError:
            continue
