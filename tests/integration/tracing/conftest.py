"""One deployment with traces: an application, a worker, a gateway, and a real OTLP receiver."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from keyturn.crypto import new_api_key
from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tests.integration.tracing.application import PROJECT, SMALL
from tools.harness import requests as rq
from tools.harness.canaries import Canaries
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.otlp_receiver import Received, otlp_receiver
from tools.harness.process import gateway, worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import fresh_amqp_url
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractIncomingMessage

    from tools.servers import S3Server, Servers

_ROOT = Path(__file__).parents[3]
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HOSTILE = {
    "sampled": f"00-{TRACE_ID}-{SPAN_ID}-01",
    "malformed": f"00-{TRACE_ID}-{SPAN_ID}-01" + "x" * 10_000,
    "nested": {"traceparent": [f"00-{TRACE_ID}-{SPAN_ID}-01"]},
}
"""Headers of messages that are otherwise good, by what is odd about them."""


@dataclass
class Lived:
    """What one deployment did, and all that the receiver got."""

    received: Received
    ids: dict[str, str]
    letter: AbstractIncomingMessage
    canaries: Canaries
    logs: list[str]
    bucket: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lived(broker: Servers, ceph: S3Server) -> AsyncIterator[Lived]:
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    keys = [deployment.api_key, new_api_key()]
    canaries = Canaries.of(deployment, PROJECT)
    canaries.secrets["the new API key"] = keys[1].encode()
    settings = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5", "SWEEP_PAGE_KEYS": "1"}
    with otlp_receiver() as received:
        traced = received.env()
        async with (
            worker(deployment.worker_env(**settings) | traced) as working,
            gateway(deployment.gateway_env(KEYRING_CACHE_S="0.5") | traced) as serving,
        ):
            ids = await _application(deployment.publisher_env() | traced, keys)
            client = Client(serving, keys[1])
            assert (await client.request(PROJECT, SMALL)).status == 200
            assert (await client.request(PROJECT, "missing")).status == 404
            put = await client.request(
                PROJECT, "through", {"Prefer": "wait=30"}, method="PUT", body=b"x"
            )
            assert put.status == 201
            ids["put"] = json.loads(put.body)["upload_id"]
            async with open_wire(deployment) as wire:
                for name, header in HOSTILE.items():
                    ids[name] = await _upload(deployment, wire, name, header)
                letter = await wire.take(dead_letter_name(UPLOAD_QUEUE))
            # Both send what is left before they exit.
            assert await serving.terminate() == 0
            assert await working.terminate() == 0
        logs = [*working.lines, *serving.lines]
        yield Lived(received, ids, letter, canaries, logs, deployment.bucket)


async def _upload(deployment: Deployment, wire: Any, name: str, header: object) -> str:
    made = rq.upload(deployment, PROJECT, name, b"x")
    body = rq.encode(made.document)
    headers = rq.headers(body, deployment.publisher_key) | {"traceparent": header}
    await wire.publish("upload.requested", body, headers, message_id=made.upload_id)
    assert (await wire.outcome(made.upload_id))["type"] == "upload.stored"
    return made.upload_id


async def _application(env: dict[str, str], keys: list[str]) -> dict[str, str]:
    """Run the application; returns the ids that it prints."""
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.tracing.application",
        *keys,
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"], "OTEL_SERVICE_NAME": "application", **env},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        printed, _ = await running.communicate()
    assert running.returncode == 0
    found: dict[str, str] = json.loads(printed)
    return found
