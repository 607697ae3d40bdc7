"""A trail on a real broker that is away for a while: nothing lost, in order (SPEC 15.3)."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyturn.audit import AuditChains
from keyturn.crypto import EventVerifier, SigningKey, VerifyKey
from keyturn.messages import AuditRecorded, parse_audit
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_stream import follow, last_offset
from keyturn.topology import AUDIT_STREAM, EVENTS_STREAM, audit_queue
from keyturn_workers.keys.audit.trail import AuditProcess, AuditPublisher, AuditTrail
from keyturn_workers.keys.master_keys.port import KekDerived
from keyturn_workers.pipeline.amqp.declarations import TopologyError, declare
from tools.harness.loopback import proxy_before

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.publisher.event_stream import StreamRecord
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

KEY = SigningKey.from_seed(os.urandom(32))


@asynccontextmanager
async def running_trail(url: str) -> AsyncIterator[AuditTrail]:
    publisher = AuditPublisher(url, "test", KEY, timeout_s=2)
    trail = AuditTrail(AuditProcess.start("worker test"), publisher.publish)
    try:
        async with trail.running():
            yield trail
    finally:
        await publisher.close()


async def stream_of(url: str) -> list[StreamRecord]:
    connection = BrokerConnection(url, publish_timeout_s=30)
    last, found = await last_offset(connection, AUDIT_STREAM), []
    async with asyncio.timeout(60), aclosing(follow(connection, "first", AUDIT_STREAM)) as records:
        async for record in records:
            found.append(record)
            if record.offset == last:
                break
    await connection.close()
    return found


def check(records: list[StreamRecord]) -> list[AuditRecorded]:
    """The different records, which are one whole chain."""
    signatures = EventVerifier("test", [VerifyKey.from_bytes(KEY.public_bytes)])
    chains = AuditChains(signatures, is_whole=True)
    checked = [chains.add(each.body, each.signature, each.key_id) for each in records]
    assert [finding for each in checked for finding in each.findings] == []
    return [parse_audit(r.body) for r, c in zip(records, checked, strict=True) if not c.is_repeated]


async def _derive(trail: AuditTrail, first: int, count: int) -> None:
    for number in range(first, first + count):
        derived = KekDerived("m1", "vault", "admin", f"p{number}", f"call-{number}")
        await trail.kek_derived(derived)


async def test_while_the_connection_is_lost_records_wait_and_keep_their_order(
    vhost_url: str,
) -> None:
    await declare(vhost_url)
    async with proxy_before(vhost_url) as link, running_trail(link.url) as trail:
        await _derive(trail, 0, 300)
        for part in range(1, 4):
            # Cut while records are on their way.
            await _derive(trail, part * 300, 150)
            link.stop()
            await _derive(trail, part * 300 + 150, 150)
            assert trail.pending
            link.resume()
            await trail.record("request.served", project=f"after-{part}")
    records = check(await stream_of(vhost_url))
    assert [record.counter for record in records] == list(range(1, 1204))
    derived = [record.project for record in records if record.action == "kek.derived"]
    assert derived == [f"p{number}" for number in range(1200)]


async def test_a_broker_that_restarts_has_every_record(own_rabbitmq: RabbitMQ) -> None:
    await declare(own_rabbitmq.url)
    await asyncio.to_thread(own_rabbitmq.wait_until_streams_registered)
    async with running_trail(own_rabbitmq.url) as trail:
        await trail.record("request.served", project="before")
        own_rabbitmq.process.end()
        waiting = [
            asyncio.create_task(trail.record("request.served", project=f"p{number}"))
            for number in range(20)
        ]
        await asyncio.to_thread(own_rabbitmq.start)
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting)
    projects = [record.project for record in check(await stream_of(own_rabbitmq.url))]
    assert projects == ["before", *(f"p{number}" for number in range(20))]


async def test_records_enter_no_other_stream(vhost_url: str) -> None:
    """A publisher must not read what operators do."""
    await declare(vhost_url, ["billing"])
    async with running_trail(vhost_url) as trail:
        await trail.record("request.served", publisher="billing", project="acme")
    assert len(await stream_of(vhost_url)) == 1
    connection = BrokerConnection(vhost_url, publish_timeout_s=30)
    for name in (EVENTS_STREAM, f"{EVENTS_STREAM}.billing"):
        assert await last_offset(connection, name) is None
    await connection.close()


async def test_other_bounds_than_those_of_the_stream_are_named(vhost_url: str) -> None:
    await declare(vhost_url)
    with pytest.raises(TopologyError, match=r"keyturn\.audit cannot be declared: .*x-max-age"):
        await declare(vhost_url, audit=audit_queue(3600))
    await declare(vhost_url)
