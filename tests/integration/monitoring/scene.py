"""A deployment under a real Prometheus, in which everything that a dashboard shows has happened.

A worker, a gateway and a broker with its plugin for Prometheus are scraped as the example in
`deploy/prometheus` says; only the addresses and the intervals differ. Requests wait while no worker
is there, then uploads, a rotation, a sweep, reads and failures of all kinds follow.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import yaml
from aio_pika.exceptions import DeliveryError

from keyturn.crypto import new_api_key
from keyturn.identifiers import object_s3_key
from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tools.harness import requests
from tools.harness.bucket import Bucket
from tools.harness.http import Client, object_target, request
from tools.harness.process import GatewayProcess, gateway, worker
from tools.harness.wire import Wire, open_wire
from tools.harness.worker_under_test import WorkerUnderTest
from tools.servers.process import free_port
from tools.servers.prometheus import Prometheus
from tools.servers.rabbitmq import METRICS_RENEW_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.harness.deployment import Deployment
    from tools.servers import RabbitMQ

PROMETHEUS: Final = Path(__file__).parents[3] / "deploy/prometheus"
INTERVAL_S: Final = 2
_TIMEOUT_S: Final = 60
_WAITING: Final = 30
_LARGE_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True)
class Monitored:
    """The Prometheus, after everything has happened, and when that was."""

    prometheus: Prometheus
    began_s: float
    ended_s: float


def configuration(addresses: dict[str, str]) -> dict[str, Any]:
    """The example configuration with an address for each of its jobs."""
    document: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    interval = f"{INTERVAL_S}s"
    document["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    document["rule_files"] = [str(PROMETHEUS / name) for name in document["rule_files"]]
    jobs = document["scrape_configs"]
    assert {job["job_name"] for job in jobs} == addresses.keys()
    for job in jobs:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    return document


_STORE: Final = {
    "kind": "vault",
    "address": "http://127.0.0.1:1",
    "mount": "transit",
    "projects": ["nobody"],
    "keys": ["*"],
    "token_file": "/nowhere",
}


@asynccontextmanager
async def monitored(
    deployment: Deployment,
    rabbitmq: RabbitMQ,
    *,
    watching: dict[str, str] | None = None,
    **settings: str,
) -> AsyncIterator[Monitored]:
    """Let everything happen, and keep the Prometheus that saw it.

    `settings` are the complete names and values of further settings of worker and gateway, and
    `watching` those of the worker alone, for its role ingest.
    """
    ports = {name: free_port() for name in ("worker", "gateway")}
    broker = f"127.0.0.1:{rabbitmq.metrics_port}"
    addresses = {
        "keyturn-workers": f"127.0.0.1:{ports['worker']}",
        "keyturn-gateway": f"127.0.0.1:{ports['gateway']}",
        "rabbitmq": broker,
        "rabbitmq-detailed": broker,
    }
    worker_env = deployment.worker_env(
        HEALTH_PORT=str(ports["worker"]), LEASE_S="2", KEYRING_CACHE_S="0.5", SWEEP_PAGE_KEYS="7"
    )
    worker_env |= watching or {}
    # No project has a key of it; its metrics exist all the same.
    settings["KEYTURN_CUSTOMER_KEY_STORES"] = json.dumps({"bao": _STORE})
    gateway_env = deployment.gateway_env(GATEWAY_PORT=str(ports["gateway"]))
    with Prometheus(configuration(addresses)) as prometheus:
        began_s = time.time()
        async with (
            worker(worker_env | settings) as first,
            open_wire(deployment) as wire,
            gateway(gateway_env | settings) as serving,
        ):
            before = WorkerUnderTest(deployment, first, wire)
            await before.enroll("acme")
            await first.terminate()
            waiting = await _publish(before, _WAITING)
            await _until_waiting(prometheus)
            async with worker(worker_env | settings) as process:
                running = WorkerUnderTest(deployment, process, wire)
                await _events(wire, waiting)
                await _until(prometheus, f'keyturn_consuming{{queue="{UPLOAD_QUEUE}"}} == 1')
                await _everything(prometheus, running, serving)
                await asyncio.to_thread(_two_scrapes, prometheus)
                yield Monitored(prometheus, began_s, time.time())


async def _everything(
    prometheus: Prometheus, running: WorkerUnderTest, serving: GatewayProcess
) -> None:
    bucket = Bucket(running.deployment)
    for project in ("other", "broken"):
        await running.enroll(project)
    await _events(running.wire, await _publish(running, 20))
    await _fail(running, bucket)
    client = Client(serving, running.deployment.api_key)
    await _use_gateway(client, bucket)
    await _fail_reads(client)
    await _until(prometheus, 'keyturn_gateway_requests_total{status="503"}')
    await _rotate_and_sweep(running)
    await _fail_reads(client)  # a first one is no increase: its series begins with it
    await _disturb_broker(running)


async def _publish(running: WorkerUnderTest, count: int) -> list[str]:
    """Publish uploads; the ids of the requests."""
    ids = []
    for _ in range(count):
        key = f"burst/{requests.new_id()}"
        sent = running.sign(
            requests.upload(running.deployment, "acme", key, os.urandom(4096)).document
        )
        await running.publish(sent)
        ids.append(sent.request_id)
    return ids


async def _events(wire: Wire, ids: list[str]) -> None:
    for request_id in ids:
        assert (await wire.outcome(request_id))["type"] == "upload.stored"


async def _fail(running: WorkerUnderTest, bucket: Bucket) -> None:
    """Requests that are refused or retried, and objects that a sweep cannot rewrap."""
    deployment = running.deployment
    await running.publish_and_wait(requests.upload(deployment, "acme", "taken", b"1").document)
    refused = await running.publish_and_wait(
        requests.upload(deployment, "acme", "taken", b"2").document
    )
    assert refused["code"] == "already_exists"
    refused = await running.publish_and_wait(requests.enroll(deployment, "acme"))
    assert refused["code"] == "already_enrolled"
    await running.publish(running.sign(requests.rotation(deployment, "nobody", new_api_key())))
    # Projects without a keyring, and with one under a master key that the worker does not have.
    bucket.put_keyring("lost", master_key=("gone", os.urandom(32)))
    for project in ("nobody", "lost"):
        document = requests.upload(deployment, project, "k", b"x").document
        await running.publish(running.sign(document))
    await running.process.logged('"code":"unknown_project"')
    await running.process.logged('"code":"unknown_master_key"')
    made = bucket.made("broken", "k")
    wraps = {
        "enc-dek-user": made.metadata["enc-dek-admin"],
        "enc-dek-admin": made.metadata["enc-dek-user"],
    }
    bucket.put(object_s3_key("broken", "k"), made.body, {**made.metadata, **wraps})


async def _rotate_and_sweep(running: WorkerUnderTest) -> None:
    """Rotate one project, and sweep the one with the broken object."""
    rotation = requests.rotation(running.deployment, "acme", new_api_key())
    sweep = requests.sweep("broken")
    for document in (rotation, sweep):
        await running.publish(running.sign(document))
    await _ended(running.wire, rotation["rotation_id"], "rotation.completed")
    await _ended(running.wire, sweep["sweep_id"], "sweep.completed")


async def _ended(wire: Wire, request_id: str, event_type: str) -> None:
    await wire.event(lambda event: event["type"] == event_type and request_id in event.values())


async def _use_gateway(client: Client, bucket: Bucket) -> None:
    """Reads and writes, and a client that goes away."""
    for _ in range(5):
        assert (await client.request("acme", "taken")).status == 200
    put = await client.request("acme", "new", method="PUT", body=b"x" * 100_000)
    assert put.status in (200, 201, 202), put
    made = bucket.made("other", "corrupt", b"x" * 1000)
    corrupt = made.body[:-1] + bytes([made.body[-1] ^ 1])
    bucket.put(object_s3_key("other", "corrupt"), corrupt, made.metadata)
    bucket.put_made("other", bucket.made("other", "large", bytes(_LARGE_BYTES)))
    process, authorization = client.process, ("Authorization", f"Bearer {client.api_key}")
    reader, writer = await asyncio.open_connection(process.host, process.port)
    writer.write(request("GET", object_target("other", "large"), [authorization]))
    assert (await reader.readexactly(1024)).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


async def _fail_reads(client: Client) -> None:
    assert (await client.request("other", "nothing")).status == 404
    assert (await client.request("acme", "taken", token=new_api_key())).status == 401
    assert (await client.request("lost", "k")).status == 503
    assert (await client.request("other", "corrupt")).status == 502


async def _disturb_broker(running: WorkerUnderTest) -> None:
    """A message that comes again, and two that no queue takes: one mandatory, one not.

    And a connection that ends. Prometheus may not have begun to look when the first worker did.
    """
    await (await aio_pika.connect(running.deployment.amqp_url)).close()
    source = await running.wire.channel.get_queue(dead_letter_name(UPLOAD_QUEUE), ensure=False)
    async with asyncio.timeout(_TIMEOUT_S):
        comes_again = False
        while not comes_again:
            letter = await source.get()
            assert letter is not None
            comes_again = bool(letter.redelivered)
            await letter.nack(requeue=True)
    exchange = await running.wire.channel.get_exchange("keyturn", ensure=False)
    with suppress(DeliveryError):
        await exchange.publish(aio_pika.Message(b"x"), "no.such.type", timeout=30)
    await exchange.publish(aio_pika.Message(b"x"), "no.such.type", mandatory=False, timeout=30)


async def _until_waiting(prometheus: Prometheus) -> None:
    """Until the recorded length of the queue has the requests that wait for a worker."""
    ready = f'keyturn:queue_messages_ready:max{{queue="{UPLOAD_QUEUE}"}} >= {_WAITING}'
    without = f'keyturn:queue_consumers:max{{queue="{UPLOAD_QUEUE}"}} == 0'
    await _until(prometheus, f"{ready} and {without}")


async def _until(prometheus: Prometheus, expr: str) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while not await asyncio.to_thread(prometheus.query, expr):  # noqa: ASYNC110  # no events
            await asyncio.sleep(0.2)


def _two_scrapes(prometheus: Prometheus) -> None:
    """Wait until every job was scraped twice from now on, so that the last changes are in."""
    now = time.time()
    deadline = now + _TIMEOUT_S
    # `timestamp` of a sample is when its scrape began.
    wanted = f"count(timestamp(up) > {now + METRICS_RENEW_S + INTERVAL_S}) == count(up)"
    while not prometheus.query(wanted):
        assert time.time() < deadline, "Prometheus does not scrape"
        time.sleep(0.2)
