"""A worker that starts while storage or broker fail (SPEC 6.2, 10): it tries once more, or ends."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aio_pika
import pytest

from keyturn.topology import UPLOAD_QUEUE
from tests.support.cutting_proxies import counting
from tools.chaos.fault_proxy import run_fault_proxy
from tools.chaos.plan import Action
from tools.harness.deployment import Deployment
from tools.harness.loopback import proxy_before
from tools.harness.process import worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.cutting_proxies import Counting
    from tools.servers import RabbitMQ, S3Server

pytestmark = pytest.mark.servers

# What the broker has said on a connection by which the consumers are being started.
_STARTING_BYTES = 600


@pytest.mark.parametrize("harm", ["500", "503", "answer lost", "answer cut"])
async def test_a_failing_storage_is_no_unsafe_bucket(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, harm: str
) -> None:
    """What failed is tried again; a worker that gave up would call a good bucket unsafe."""
    async with run_fault_proxy(ceph.endpoint_url) as way:
        far = replace(ceph, endpoint_url=way.url)
        deployment = Deployment(vhost_url, far, ceph_bucket)
        # Not the first request, which is only to see whether anything is there.
        way.storm(Action(0, "storm", harm, kind="doctor", every=3, times=8))
        async with worker(deployment.worker_env(), "upload") as running:
            assert way.done[harm, "doctor"] == 8
            assert await running.terminate() == 0


async def test_a_storage_that_keeps_failing_is_reported(
    vhost_url: str, ceph: S3Server, ceph_bucket: str
) -> None:
    """It ends after its time, and says what failed, not that the bucket lacks anything."""
    async with run_fault_proxy(ceph.endpoint_url) as way:
        far = replace(ceph, endpoint_url=way.url)
        deployment = Deployment(vhost_url, far, ceph_bucket)
        way.storm(Action(0, "storm", "500", kind="doctor", every=2, times=10**6))
        env = deployment.worker_env(START_TIMEOUT_S="4")
        async with worker(env, "upload", ready=False) as running:
            assert await running.ended() == 1
    assert "could not be tested" in running.lines[-1]
    assert "InternalError" in running.lines[-1]
    assert not [line for line in running.lines if "lacks" in line]


# The broker.


@asynccontextmanager
async def _before_the_broker(deployment: Deployment) -> AsyncIterator[tuple[Deployment, Counting]]:
    """The deployment as a worker sees it whose connections to the broker can be cut."""
    at = urlsplit(deployment.amqp_url)
    async with counting(deployment.amqp_url) as way:
        netloc = at.netloc.replace(f":{at.port}", f":{urlsplit(way.url).port}")
        yield replace(deployment, amqp_url=at._replace(netloc=netloc).geturl()), way


async def _consumers(deployment: Deployment) -> int:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(UPLOAD_QUEUE, passive=True)
        return declared.declaration_result.consumer_count or 0


async def _until_consumed(deployment: Deployment) -> None:
    """Wait until a worker consumes uploads."""
    for _ in range(600):
        if await _consumers(deployment):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no worker consumes uploads")


async def test_a_broker_that_is_lost_while_consumers_start_is_found_again(
    vhost_url: str, moto: S3Server, moto_bucket: str
) -> None:
    """Twice in a row; then there is one consumer, and none of the tries before comes back."""
    direct = Deployment(vhost_url, moto, moto_bucket)
    async with (
        _before_the_broker(direct) as (deployment, way),
        worker(deployment.worker_env(), "upload", ready=False) as running,
    ):
        await running.logged("worker started")
        way.cuts, way.cut_after = 2, _STARTING_BYTES
        await _until_consumed(direct)
        assert way.was_cut == 2
        await asyncio.sleep(2.5)  # a connection that was left would be made again after 1 s
        assert await _consumers(direct) == 1
        assert await running.terminate() == 0


async def test_sigterm_ends_a_worker_whose_broker_is_just_being_called(
    own_rabbitmq: RabbitMQ, moto: S3Server, moto_bucket: str
) -> None:
    """The broker has closed its connection, and who takes the next one never says anything."""
    called, over = asyncio.Event(), asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await over.wait()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with proxy_before(own_rabbitmq.url) as way:
        deployment = Deployment(way.url, moto, moto_bucket)
        async with worker(deployment.worker_env(), "upload") as running:
            await _until_consumed(Deployment(own_rabbitmq.url, moto, moto_bucket))
            way.target_port = silent.sockets[0].getsockname()[1]
            await asyncio.to_thread(own_rabbitmq.process.end)
            await asyncio.wait_for(called.wait(), 10)
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended(timeout_s=15) == 0
        over.set()
    silent.close()
